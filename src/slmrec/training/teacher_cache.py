"""Cached outputs of a frozen teacher: computed once, and read from a memory-mapped file batch by batch.

The file is in the safetensors format: `blocks` (blocks, R, H) and `users` (R, D) in float32, with one row for each of
the R supervised positions of all samples, in the order of the samples and of the items within each.
"""

import fcntl
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from slmrec.data.batching import by_length
from slmrec.data.dataset import CHUNK, Ints, Items, Samples
from slmrec.errors import CheckpointError
from slmrec.evaluation.rank import eval_mode
from slmrec.files import one_line
from slmrec.inference.freeze import freeze
from slmrec.models.model import repeat_bonus
from slmrec.processes import barrier, is_main, on_main, share
from slmrec.training.samples import TrainingSamples
from slmrec.types import Batch, Encoded, SequenceEncoder, Unit, timestamp_unit_of
from slmrec.version import __version__

VERSION = "1"
"""Version of the file format and of the meaning of its values."""
_FLOAT32 = np.dtype("<f4")
_REMEDY = "delete the file, and it will be computed again"

Mapped = np.memmap[Any, np.dtype[np.float32]]
"""Memory-mapped part of a file."""
Shapes = dict[str, tuple[int, ...]]
"""Shapes of the tensors of a file, in their order in the file."""


def cache_keys(teacher: nn.Module, data: TrainingSamples, numbers_of_blocks: Iterable[int]) -> dict[int, str]:
    """Return keys that identify the teacher outputs for some samples, by the number of blocks.

    A key depends on the weights, precision and architecture of the teacher, the samples, and what is read of them. The
    weights and the samples are hashed once for all keys.

    Args:
        teacher: The teacher; its `config`, if it has one, describes the architecture.
        data: Samples that the teacher reads.
        numbers_of_blocks: Numbers of blocks whose hidden states are cached.
    """
    config: Any = getattr(teacher, "config", None)
    samples, unit = data.samples, timestamp_unit_of(teacher)
    settings = [VERSION, __version__, data.max_history_items, data.every_position, len(samples), len(samples.flat)]
    digest = hashlib.sha256(json.dumps([*settings, config and config.to_json_string()]).encode())
    for array in _arrays(samples, unit):
        digest.update(np.ascontiguousarray(array, "<i8").data)
    for name, value in sorted(teacher.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    content = digest.hexdigest()
    return {
        num_blocks: hashlib.sha256(f"{content} {num_blocks}".encode()).hexdigest() for num_blocks in numbers_of_blocks
    }


def _arrays(samples: Samples, unit: Unit | None) -> Iterator[Items]:
    """Yield the items, their times where they are read, then the starts, then the ends of all samples, in chunks."""
    starts = range(0, len(samples.flat), CHUNK)
    yield from (samples.flat[start : start + CHUNK] for start in starts)
    if unit is not None:
        ends = (min(start + CHUNK, len(samples.flat)) for start in starts)
        yield from (samples.times_at(np.arange(*span), unit) for span in zip(starts, ends, strict=True))
    yield from (samples.spans(rows)[0] for rows in samples.chunks())
    yield from (samples.spans(rows)[1] for rows in samples.chunks())


def write_teacher_cache(
    teacher: SequenceEncoder,
    data: TrainingSamples,
    path: Path,
    *,
    num_blocks: int,
    key: str,
    batch_size: int = 256,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write the outputs of the teacher for all samples in one pass; do nothing if the file exists.

    The file appears when it is complete, and the rest of an interrupted pass is overwritten by the next one. If several
    runs need the same file, one computes it and the others wait. The processes of a run divide the samples; those on
    other machines than the main process only wait, because machines that write into one file could lose each other's
    values.

    Args:
        teacher: The teacher, read in evaluation mode and float32 on its device; its mode is restored.
        data: Samples that the teacher reads.
        path: File to write.
        num_blocks: Number of blocks whose hidden states are written beside the user vectors; 0: none.
        key: Key of the outputs, which is kept in the file; see `cache_keys`.
        batch_size: Number of samples encoded at once; no more than their outputs are held in memory.
        progress: Function that is called after each batch with its number of samples.

    Raises:
        CheckpointError: The disk has not enough space for the file.
    """
    device, data = teacher.item_vectors().device, replace(data, timestamp_unit=timestamp_unit_of(teacher))
    rows_of_samples = _Rows(data)
    with eval_mode(teacher), torch.inference_mode():
        first = data.collate(np.zeros(1, np.int64)).histories.to(device)
        frozen = freeze(teacher, fused=False)
        shapes = _output_shapes(frozen.encode(first, num_blocks=num_blocks), rows_of_samples.total)
        with _locked_file(path, shapes, key) as parts:
            if parts is None:
                return
            reading = data.max_history_items, data.every_position, data.timestamp_unit
            for sample_rows, batch in share(by_length(data.samples, batch_size, *reading), on_one_machine=True):
                histories, rows = batch.histories.to(device), rows_of_samples.of(sample_rows)
                encoded = frozen.encode(histories, every_position=data.every_position, num_blocks=num_blocks)
                for part, values in zip(parts, (*encoded.hidden_states, encoded.users), strict=True):
                    part[rows] = values.float().cpu().numpy()
                if progress:
                    progress(len(sample_rows))


class CachedTeacher(nn.Module):
    """Outputs of a frozen teacher that are read from a file; implements `TeacherOutputs`.

    The outputs of a batch are found by its `rows`, so the batches must be of the cached samples. Only the rows of a
    batch are read from the file. Use `open` to make one.
    """

    item_table: Tensor
    age_scores: Tensor | None

    def __init__(self, parts: list[Mapped], rows: "_Rows", item_vectors: Tensor, age_scores: Tensor | None) -> None:
        super().__init__()
        self._parts, self._rows = parts, rows
        self.register_buffer("item_table", item_vectors.detach(), persistent=False)
        self.register_buffer("age_scores", None if age_scores is None else age_scores.detach(), persistent=False)

    @classmethod
    def open(
        cls,
        path: Path,
        key: str,
        item_vectors: Tensor,
        data: TrainingSamples,
        *,
        num_blocks: int,
        age_scores: Tensor | None = None,
    ) -> "CachedTeacher":
        """Open a file that `write_teacher_cache` wrote with the same arguments.

        Args:
            path: The file.
            key: Key that the file must have.
            item_vectors: (V+1, D) item vectors of the teacher.
            data: Samples that the teacher has read.
            num_blocks: Number of blocks whose hidden states are cached.
            age_scores: The teacher's scores of the items of the history by their age, as in `Model.age_scores`; they
                are not cached.

        Raises:
            CheckpointError: The file is damaged, or belongs to another teacher, other data or other settings.
        """
        metadata, shapes = _read_header(path)
        rows = _Rows(data)
        hidden_size = (0, *shapes.get("blocks", ()))[-1]  # not checked by itself: the key covers it
        _check(path, "format version", metadata.get("version"), VERSION)
        _check(path, "key", metadata.get("key"), key)
        _check(path, "content", shapes, _shapes(num_blocks, rows.total, hidden_size, item_vectors.shape[1]))
        return cls(_map_parts(path, shapes, "r"), rows, item_vectors, age_scores)

    @property
    def hidden_size(self) -> int:
        """H, the width of the cached hidden states."""
        return int(self._parts[0].shape[1])

    def item_vectors(self) -> Tensor:
        """Return the item vectors (V+1, D); row 0 is padding."""
        return self.item_table

    def outputs(self, batch: Batch, num_blocks: int) -> Encoded:
        """Return user vectors (N, D) and, if requested, hidden states (N, H) of each block on the batch's device.

        Raises:
            ValueError: The batch does not hold cached samples, or `num_blocks` is neither 0 nor the cached number.
        """
        *blocks, users = self._parts
        if num_blocks not in (0, len(blocks)):
            raise ValueError(
                f"num_blocks is {num_blocks}, but {len(blocks)} blocks are cached; give that number, or 0 for none"
            )
        rows = self._rows.of_batch(batch)
        parts = (*blocks[:num_blocks], users)
        tensors = [torch.from_numpy(part[rows]).to(batch.targets.device) for part in parts]
        bonus = None
        if self.age_scores is not None:
            bonus = repeat_bonus(self.age_scores, batch.histories, batch.every_position)
        return Encoded(tensors[-1], tuple(tensors[:-1]), bonus)


class _Rows:
    """Rows of the file that belong to the supervised positions of each sample."""

    def __init__(self, data: TrainingSamples) -> None:
        lengths = data.samples.clipped_lengths(data.max_history_items)
        self._every_position = data.every_position
        self._counts = lengths if data.every_position else np.ones_like(lengths)
        self._starts = np.cumsum(self._counts, dtype=np.int64) - self._counts
        self.total = int(self._counts.sum())

    def of(self, sample_rows: Ints) -> Ints:
        """Return the (N,) rows of some samples, in row-major order."""
        counts = self._counts[sample_rows].astype(np.int64)
        offsets = np.cumsum(counts) - counts
        rows: Ints = np.repeat(self._starts[sample_rows] - offsets, counts) + np.arange(counts.sum())
        return rows

    def of_batch(self, batch: Batch) -> Ints:
        if batch.rows is None:
            raise ValueError("the batch has no sample numbers (rows), by which outputs are cached; use collate")
        rows = self.of(batch.rows.cpu().numpy())
        if batch.every_position != self._every_position or len(rows) != len(batch.targets):
            raise ValueError(
                f"the batch has {len(batch.targets)} supervised positions, but {len(rows)} are cached for its samples; "
                "give batches of the cached samples"
            )
        return rows


def _output_shapes(encoded: Encoded, total: int) -> Shapes:
    states = encoded.hidden_states
    hidden_size = states[0].shape[1] if states else 0
    return _shapes(len(states), total, hidden_size, encoded.users.shape[1])


def _shapes(num_blocks: int, total: int, hidden_size: int, item_width: int) -> Shapes:
    blocks = {"blocks": (num_blocks, total, hidden_size)} if num_blocks else {}
    return blocks | {"users": (total, item_width)}


@contextmanager
def _locked_file(path: Path, shapes: Shapes, key: str) -> Iterator[list[Mapped] | None]:
    """Give the blocks and the users to write, and put the file in place at the end; None if the file exists.

    `slmrec.files.write_atomically` gives each process a file of its own; here all runs lock the same one, and all
    processes of a run write into it.
    """
    partial = path.with_suffix(".partial")
    with ExitStack() as lock:
        if not on_main(lambda: _create(lock, path, partial, _header(shapes, key), shapes)):
            yield None
            return
        parts = _map_parts(partial, shapes, "r+")
        yield parts
        for part in parts:
            part.flush()
        barrier()
        if is_main():
            partial.replace(path)
        barrier()


def _create(lock: ExitStack, path: Path, partial: Path, header: bytes, shapes: Shapes) -> bool:
    """Lock the partial file and give it its size, or return False if the file exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = lock.enter_context(partial.open("ab"))
    fcntl.flock(stream, fcntl.LOCK_EX)  # waits until another run has finished the file or ended
    if path.exists():
        partial.unlink(missing_ok=True)
        return False
    size = len(header) + sum(map(_num_bytes, shapes.values()))
    stream.truncate(0)
    _check_space(path, size)
    stream.write(header)
    stream.truncate(size)
    return True


def _check_space(path: Path, size: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < size:  # a write to a mapped page on a full disk would end the process without a message
        raise CheckpointError(
            f"{path}: needs {size / 1e6:.0f} MB, but {free / 1e6:.0f} MB are free; free disk space, or choose an "
            "--output on another disk"
        )


def _header(shapes: Shapes, key: str) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"version": VERSION, "key": key}}
    start = 0
    for name, shape in shapes.items():
        end = start + _num_bytes(shape)
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": (start, end)}
        start = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # aligns the data
    return len(text).to_bytes(8, "little") + text


def _num_bytes(shape: tuple[int, ...]) -> int:
    return _FLOAT32.itemsize * math.prod(shape)


def _read_header(path: Path) -> tuple[dict[str, str], Shapes]:
    """Return metadata and shapes of a file; safetensors checks that they agree with its size."""
    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            precisions = {values.get_dtype() for values in slices.values()}
            metadata, shapes = file.metadata() or {}, {name: tuple(part.get_shape()) for name, part in slices.items()}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or incomplete ({one_line(error)}); {_REMEDY}") from None
    _check(path, "precision", precisions, {"F32"})
    return metadata, shapes


def _map_parts(path: Path, shapes: Shapes, mode: Literal["r", "r+"]) -> list[Mapped]:
    """Return the blocks, then the users, memory-mapped."""
    with path.open("rb") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
    parts: list[Mapped] = []
    for shape in shapes.values():
        values = np.memmap(path, _FLOAT32, mode, start, shape)
        parts.extend(values if values.ndim == 3 else [values])
        start += _num_bytes(shape)
    return parts


def _check(path: Path, what: str, got: object, expected: object) -> None:
    if got != expected:
        raise CheckpointError(f"{path}: the {what} is {got}, expected {expected}; {_REMEDY}")
