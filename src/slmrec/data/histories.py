"""Histories of a prepared folder as flat arrays on disk, which are memory-mapped."""

import mmap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from slmrec.errors import DataError
from slmrec.files import one_line, read_json, write_atomically

FLAT, OFFSETS, CUTS, TIMES = "histories.npy", "offsets.npy", "cuts.npy", "times.npy"
HELD_OUT = "held_out.parquet"
"""The file of the split `newest` with the number of events of each user before validation (`valid_at`) and before test
(`test_at`)."""
FINGERPRINT = "histories.txt"
"""The file with the fingerprint of the data set and the cuts that the arrays were made from."""
BATCH_EVENTS = 2**18
_REMEDY = "run prepare again"
_DELETE = f"delete {FLAT}, {OFFSETS} and {CUTS}; they are written again"


class Histories(NamedTuple):
    """The histories of all users, memory-mapped."""

    flat: NDArray[np.int32]
    """Items 1..V, user after user, oldest first."""
    offsets: NDArray[np.int64]
    """(U+1,): user u (from 0) owns `flat[offsets[u]:offsets[u+1]]`."""
    cuts: NDArray[np.int32] | None
    """(U, 2): the number of events of each user before validation and before test; None for leave-one-out."""


def write_histories(folder: Path) -> None:
    """Write `histories.npy`, `offsets.npy` and, unless the split is leave-one-out, `cuts.npy` into a prepared folder.

    `interactions.parquet` is read in batches, so the memory does not grow with its size. Files appear once they are
    complete.

    Raises:
        DataError: the events are not those of a prepared data set, or the folder is not writable.
    """
    times = _cut_times(folder)
    (folder / TIMES).unlink(missing_ok=True)  # those of earlier events; `open_times` writes new ones when needed
    num_users = pq.read_metadata(folder / "users.parquet").num_rows
    with _log(folder) as log, ExitStack() as files:
        # Files are closed in the opposite order, so the offsets appear last.
        offsets = files.enter_context(_npy_writer(folder / OFFSETS, "<i8", (num_users + 1,)))
        cuts = files.enter_context(_npy_writer(folder / CUTS, "<i4", (num_users, 2))) if times else None
        flat = files.enter_context(_npy_writer(folder / FLAT, "<i4", (log.metadata.num_rows,)))
        pending = np.empty((0, 1 + len(times)), np.int64)
        for items, starts in _blocks(log, folder, times, num_users):
            flat.write(items.astype("<i4").data)
            offsets.write(starts[:, 0].astype("<i8").data)
            pending = np.concatenate([pending[-1:], starts])
            if cuts:
                cuts.write(np.diff(pending[:, 1:], axis=0).astype("<i4").data)
    if _split(folder) == "newest":
        _write_cuts(folder, num_users)
    elif not times:
        (folder / CUTS).unlink(missing_ok=True)
    (folder / FINGERPRINT).write_text(_fingerprint(folder), encoding="utf-8")


def open_histories(folder: Path) -> Histories:
    """Map the histories of a prepared folder; they are written first if they are missing or outdated.

    Raises:
        DataError: the histories cannot be written, or do not match the folder's events.
    """
    names = (FLAT, OFFSETS) if _split(folder) == "leave_one_out" else (FLAT, OFFSETS, CUTS)
    complete = all((folder / name).is_file() for name in (*names, FINGERPRINT))
    if not complete or (folder / FINGERPRINT).read_text(encoding="utf-8") != _fingerprint(folder):
        write_histories(folder)
    flat, offsets, *rest = (_mapped(folder / name) for name in names)
    shape = len(flat), len(offsets) - 1
    expected = tuple(pq.read_metadata(folder / f"{name}.parquet").num_rows for name in ("interactions", "users"))
    if shape != expected:
        raise DataError(f"{folder}: {FLAT} has (events, users) {shape}, expected {expected}; {_DELETE}")
    return Histories(flat, offsets, rest[0] if rest else None)


def open_times(folder: Path) -> NDArray[np.int64]:
    """Map the times of the events of a prepared folder, in its `timestamp_unit`; they are written at the first call.

    Raises:
        DataError: an event has no time, or the times cannot be written or do not match the folder's events.
    """
    path = folder / TIMES
    with _log(folder) as log:
        shape = (log.metadata.num_rows,)
        if not path.is_file():
            with _npy_writer(path, "<i8", shape) as stream:
                for (times,) in _columns(log, folder, ["timestamp"]):
                    stream.write(times.astype("<i8").data)
    mapped = _mapped(path)
    if mapped.shape != shape:
        raise DataError(
            f"{folder}: {TIMES} has {len(mapped)} events, expected {shape[0]}; delete it, it is written again"
        )
    return mapped


def read_facts(folder: Path) -> dict[str, Any]:
    """Read `dataset.json` of a prepared folder.

    Raises:
        DataError: the file is missing, or it is no JSON object.
    """
    path = folder / "dataset.json"
    try:
        facts = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)}); {_REMEDY}") from None
    if not isinstance(facts, dict) or not isinstance(facts.get("rules", {}), dict):
        raise DataError(f"{path}: is no JSON object with rules; {_REMEDY}")
    return facts


def _fingerprint(folder: Path) -> str:
    """Return the fingerprint of the data set and the times of its cuts."""
    return " ".join(map(str, (read_facts(folder).get("fingerprint", ""), *_cut_times(folder))))


def give_back_pages(*arrays: NDArray[Any] | None) -> None:
    """Release the resident pages of mapped arrays; they are read from disk again when needed."""
    for array in arrays:
        mapped = None if array is None or array.base is None else array.base.base
        if isinstance(mapped, mmap.mmap):
            mapped.madvise(mmap.MADV_DONTNEED)


def _log(folder: Path) -> Any:
    # Pre-buffering keeps all data in memory until the file is closed.
    return pq.ParquetFile(folder / "interactions.parquet", pre_buffer=False, buffer_size=2**20)


def _split(folder: Path) -> str:
    """Return the rule by which events are held out."""
    split = str(read_facts(folder).get("rules", {}).get("split", "leave_one_out"))
    if split not in {"leave_one_out", "temporal", "newest"}:
        raise DataError(
            f"{folder}: dataset.json has the split {split!r}, expected leave_one_out, temporal or newest; {_REMEDY}"
        )
    return split


def _cut_times(folder: Path) -> tuple[int, ...]:
    """Return the start times of validation and test of a temporal split; empty for other splits."""
    rules = read_facts(folder).get("rules", {})
    return (int(rules["valid_from"]), int(rules["test_from"])) if _split(folder) == "temporal" else ()


def _write_cuts(folder: Path, num_users: int) -> None:
    """Write the cuts of the split `newest`, which a file of the folder lists."""
    table = pq.read_table(folder / HELD_OUT, columns=["valid_at", "test_at"])
    if len(table) != num_users:
        raise DataError(f"{folder}: {HELD_OUT} has {len(table)} users, expected {num_users}; {_REMEDY}")
    with _npy_writer(folder / CUTS, "<i4", (num_users, 2)) as stream:
        stream.write(np.stack([column.to_numpy() for column in table.columns], axis=1).astype("<i4").data)


def _blocks(
    log: Any, folder: Path, times: tuple[int, ...], num_users: int
) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
    """Yield the items of each batch of events, and the numbers of preceding events for each user who starts in it.

    The numbers count all preceding events, and those before each of the times. The last block has no items; it covers
    users without events, and the total.
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
def _npy_writer(path: Path, dtype: str, shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
    """Open a stream for the content of a .npy file, which appears once all of it is written."""
    try:
        with write_atomically(path) as temporary, temporary.open("wb") as stream:
            header = {"descr": dtype, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            yield stream
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}), expected a writable folder; make room or give "
            "write permission, or copy the data set elsewhere"
        ) from None


def _mapped(path: Path) -> NDArray[Any]:
    try:
        return np.asarray(np.load(path, mmap_mode="r"))
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: not a complete array ({error}); {_DELETE}") from None
