"""Public data sets, downloaded by name."""

import shlex
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from slmrec.data.public.download import RECORD, Download, download
from slmrec.data.public.registry import DATASETS, PublicDataset, RemoteFile, find_dataset


def fetch(name: str, output: Path) -> None:
    """Downloads a data set into a folder: shows its terms first, and last the command to go on with.

    Raises:
        DataError: there is no such data set, or a file cannot be had as it should be.
    """
    dataset = find_dataset(name)
    print(f"{dataset.name}: {dataset.about}\nterms: {dataset.terms}\ncite: {dataset.citation}", flush=True)
    for file in dataset.files:
        print(_outcome(_download(file, output)), flush=True)
    print(f"written to {output}; go on with: {_next_command(dataset, output)}")


def list_datasets() -> None:
    """Prints the names of the data sets, what they are, and how large the download is where that is known."""
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


def _outcome(found: Download) -> str:
    how = "fetched" if found.fetched else "was there already"
    if found.compared_with:
        agreed = f"as {found.compared_with} says"
    else:
        agreed = f"no checksum is published, so nothing could be compared; kept in {RECORD} for the next time"
    return f"{found.path}: {how}, {found.checksum}: {agreed}"


def _next_command(dataset: PublicDataset, folder: Path) -> str:
    output = Path("out") / dataset.name
    words = ("--input", folder / dataset.events, "--items", folder / dataset.items, "--output", output)
    return f"slmrec prepare {shlex.join(str(word) for word in words)}"
