"""The histories of a prepared folder as flat arrays on disk, which are mapped, not read: loading costs nothing."""

import json
import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from slmrec.errors import DataError

FLAT, OFFSETS, CUTS = "histories.npy", "offsets.npy", "cuts.npy"
OF = "histories.txt"
"""Says which data set and cuts the arrays were made from."""
BATCH_EVENTS = 2**18
_REMEDY = "run prepare anew"
_DELETE = f"delete {FLAT}, {OFFSETS} and {CUTS}; they are written anew"


class Histories(NamedTuple):
    """All users' histories, mapped."""

    flat: NDArray[np.int32]
    """Items 1..V, user after user, oldest first."""
    offsets: NDArray[np.int64]
    """(U+1,): user u (from 0) owns `flat[offsets[u]:offsets[u+1]]`."""
    cuts: NDArray[np.int32] | None
    """(U, 2): how many events of a user lie before validation and before test; None for leave-one-out."""


def write_histories(folder: Path) -> None:
    """Writes `histories.npy`, `offsets.npy` and, for a split by time, `cuts.npy` into a prepared folder.

    Reads `interactions.parquet` in batches, so that memory does not grow with it. A file appears when it is complete.

    Raises:
        DataError: the events are not those of a prepared data set, or the folder cannot be written to.
    """
    times = _cut_times(folder)
    num_users = pq.read_metadata(folder / "users.parquet").num_rows
    with _log(folder) as log, ExitStack() as files:
        # Closed in the opposite order: the offsets appear last.
        offsets = files.enter_context(_written_whole(folder / OFFSETS, "<i8", (num_users + 1,)))
        cuts = files.enter_context(_written_whole(folder / CUTS, "<i4", (num_users, 2))) if times else None
        flat = files.enter_context(_written_whole(folder / FLAT, "<i4", (log.metadata.num_rows,)))
        before = np.empty((0, 1 + len(times)), np.int64)
        for items, starts in _blocks(log, folder, times, num_users):
            flat.write(items.astype("<i4").data)
            offsets.write(starts[:, 0].astype("<i8").data)
            before = np.concatenate([before[-1:], starts])
            if cuts:
                cuts.write(np.diff(before[:, 1:], axis=0).astype("<i4").data)
    if not times:
        (folder / CUTS).unlink(missing_ok=True)
    (folder / OF).write_text(_fingerprint(folder), encoding="utf-8")


def open_histories(folder: Path) -> Histories:
    """The histories of a prepared folder, mapped; they are written first if they are not there.

    Raises:
        DataError: they cannot be written, or do not belong to the folder's events.
    """
    names = (FLAT, OFFSETS, CUTS) if _cut_times(folder) else (FLAT, OFFSETS)
    whole = all((folder / name).is_file() for name in (*names, OF))
    if not whole or (folder / OF).read_text(encoding="utf-8") != _fingerprint(folder):
        write_histories(folder)
    flat, offsets, *rest = (_mapped(folder / name) for name in names)
    found = len(flat), len(offsets) - 1
    expected = tuple(pq.read_metadata(folder / f"{name}.parquet").num_rows for name in ("interactions", "users"))
    if found != expected:
        raise DataError(f"{folder}: {FLAT} has (events, users) {found}, expected {expected}; {_DELETE}")
    return Histories(flat, offsets, rest[0] if rest else None)


def _fingerprint(folder: Path) -> str:
    """Of the data set and its cuts."""
    facts = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    return " ".join(map(str, (facts.get("fingerprint", ""), *_cut_times(folder))))


def give_back_pages(*arrays: NDArray[Any] | None) -> None:
    """Those of mapped arrays that were read leave the memory of the process; the next reader gets them again."""
    for array in arrays:
        mapped = None if array is None or array.base is None else array.base.base
        if isinstance(mapped, mmap.mmap):
            mapped.madvise(mmap.MADV_DONTNEED)


def _log(folder: Path) -> Any:
    # Buffered ahead, all that was read would stay in memory until the file is closed.
    return pq.ParquetFile(folder / "interactions.parquet", pre_buffer=False, buffer_size=2**20)


def _cut_times(folder: Path) -> tuple[int, ...]:
    """When validation and test begin, if the data are split by time; else nothing."""
    rules = json.loads((folder / "dataset.json").read_text(encoding="utf-8")).get("rules", {})
    split = rules.get("split", "leave_one_out")
    if split not in {"leave_one_out", "temporal"}:
        raise DataError(
            f"{folder}: dataset.json has the split {split!r}, expected leave_one_out or temporal; {_REMEDY}"
        )
    return (int(rules["valid_from"]), int(rules["test_from"])) if split == "temporal" else ()


def _blocks(
    log: Any, folder: Path, times: tuple[int, ...], num_users: int
) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
    """The items of each batch of events; for each user who begins in it, how many events and early events precede.

    Early are those before each of the times. The last block has no items, but users without events and the total.
    """
    num_items = pq.read_metadata(folder / "items.parquet").num_rows
    seen, newest = np.zeros(1 + len(times), np.int64), 0
    for users, items, *stamps in _columns(log, folder, ["user", "item", *(["timestamp"] if times else [])]):
        _check_range(folder, "item", items, 1, num_items)
        _check_range(folder, "user", users, max(newest, 1), num_users)
        if (np.diff(users) < 0).any():
            raise DataError(f"{folder}: interactions.parquet is not sorted by user; {_REMEDY}")
        early = [stamps[0] < time for time in times]
        so_far = np.zeros((len(users) + 1, len(seen)), np.int64)
        np.cumsum(np.stack([np.ones(len(users), bool), *early], axis=1), axis=0, out=so_far[1:])
        beginning = np.arange(newest + 1, users[-1] + 1)
        yield items, seen + so_far[np.searchsorted(users, beginning)]
        seen, newest = seen + so_far[-1], int(users[-1])
    yield np.empty(0, np.int32), np.tile(seen, (num_users - newest + 1, 1))


def _columns(log: Any, folder: Path, names: list[str]) -> Iterator[list[NDArray[Any]]]:
    try:
        for batch in log.iter_batches(BATCH_EVENTS, columns=names):
            for name in names:
                if batch[name].null_count:
                    raise DataError(f"{folder}: {name} is missing in interactions.parquet, expected numbers; {_REMEDY}")
            if batch.num_rows:
                yield [batch[name].to_numpy() for name in names]
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(f"{folder}: interactions.parquet cannot be read ({error}); {_REMEDY}") from None


def _check_range(folder: Path, name: str, values: NDArray[Any], least: int, most: int) -> None:
    outside = values[(values < least) | (values > most)]
    if len(outside):
        raise DataError(
            f"{folder}: {name} {outside[0]} in interactions.parquet, expected {least} to {most} there, sorted by user; "
            f"{_REMEDY}"
        )


@contextmanager
def _written_whole(path: Path, dtype: str, shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
    """Takes the bytes of an array, which appears as a .npy file when all of them are written."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            header = {"descr": dtype, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            yield stream
        partial.replace(path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}), expected a folder that takes new files; make room or give "
            "write permission, or copy the data set elsewhere"
        ) from None
    finally:
        if partial.exists():
            partial.unlink()


def _mapped(path: Path) -> NDArray[Any]:
    try:
        return np.asarray(np.load(path, mmap_mode="r"))
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: no whole array ({error}); {_DELETE}") from None
