"""The command `slmrec data fetch`: downloads of public data sets."""

import shlex
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from slmrec.data.public.download import RECORD, Download, download
from slmrec.data.public.registry import DATASETS, PublicDataset, RemoteFile, find_dataset
from slmrec.files import printable


def fetch(name: str, output: Path) -> None:
    """Download a data set into a folder; prints its terms first, and finally the command to continue with.

    Raises:
        DataError: the data set is unknown, or a file cannot be downloaded or verified.
    """
    dataset = find_dataset(name)
    print(f"{dataset.name}: {dataset.about}\nterms: {dataset.terms}\ncite: {dataset.citation}", flush=True)
    for file in dataset.files:
        print(printable(_outcome(_download(file, output))), flush=True)
    print(printable(f"written to {output}; continue with: {_next_command(dataset, output)}"))


def list_datasets() -> None:
    """Print the names and descriptions of all data sets, with the sizes of the downloads where they are known."""
    for dataset in DATASETS:
        sizes = [file.num_bytes for file in dataset.files if file.num_bytes]
        size = f" ({sum(sizes) / 1e6:,.0f} MB)" if sizes else ""
        print(f"{dataset.name:<22}{dataset.about}{size}")
    print("`slmrec data fetch NAME` shows a data set's terms and downloads it")


def _download(file: RemoteFile, folder: Path) -> Download:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), transient=True) as progress:
        task = progress.add_task(file.name, total=file.num_bytes)
        return download(file, folder, lambda done, total: progress.update(task, completed=done, total=total))


def _outcome(result: Download) -> str:
    state = "downloaded" if result.fetched else "exists already"
    if result.compared_with:
        verified = f"matches the checksum of {result.compared_with}"
    else:
        verified = f"no checksum is published to compare with; recorded in {RECORD} for later downloads"
    return f"{result.path}: {state}, {result.checksum}: {verified}"


def _next_command(dataset: PublicDataset, folder: Path) -> str:
    output = Path("out") / dataset.name
    words = ("--input", folder / dataset.events, "--items", folder / dataset.items, "--output", output)
    return f"slmrec prepare {shlex.join(str(word) for word in words)}"
