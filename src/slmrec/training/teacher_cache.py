"""The frozen teacher's outputs, computed once: stored in a file, and read from it batch by batch as if by the teacher.

The file is in the safetensors format: `blocks` (blocks, R, H) and `users` (R, D) in float32, with one row for each of
the R read-out positions of all samples, in the order of the samples and of the items within each.
"""

import fcntl
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from slmrec.data.batching import by_length, collate
from slmrec.data.dataset import CHUNK, Ints, Items, Samples
from slmrec.errors import CheckpointError
from slmrec.evaluation.rank import eval_mode
from slmrec.inference.freeze import freeze
from slmrec.types import Batch, Encoded, SequenceEncoder
from slmrec.version import __version__

VERSION = "1"
"""Of the file's layout and of what its numbers mean."""
_FLOAT32 = np.dtype("<f4")
_REMEDY = "delete the file; it is computed anew"

Mapped = np.memmap[Any, np.dtype[np.float32]]
"""Part of a file, as an array."""
Shapes = dict[str, tuple[int, ...]]
"""Of the tensors of a file, in its order."""


def fingerprint(
    teacher: nn.Module, samples: Samples, *, num_blocks: int, max_history_items: int, every_position: bool
) -> str:
    """Identifies a teacher's outputs for some samples: by its weights and architecture, the samples and the settings.

    Args:
        teacher: its weights count in the precision they have, its architecture as its `config` describes it.
        samples: what the teacher reads.
        num_blocks: blocks whose states are wanted.
        max_history_items: the newest items of a sample that are read.
        every_position: whether each item position is read out, or only the newest.
    """
    config: Any = getattr(teacher, "config", None)
    facts = [VERSION, __version__, num_blocks, max_history_items, every_position, len(samples), len(samples.flat)]
    digest = hashlib.sha256(json.dumps([*facts, config and config.to_json_string()]).encode())
    for array in _arrays(samples):
        digest.update(np.ascontiguousarray(array, "<i8").data)
    for name, value in sorted(teacher.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _arrays(samples: Samples) -> Iterator[Items]:
    """The items, then the starts, then the ends of all samples, a chunk at a time."""
    yield from (samples.flat[at : at + CHUNK] for at in range(0, len(samples.flat), CHUNK))
    yield from (samples.spans(rows)[0] for rows in samples.chunks())
    yield from (samples.spans(rows)[1] for rows in samples.chunks())


def store_teacher_states(
    teacher: SequenceEncoder,
    samples: Samples,
    path: Path,
    *,
    num_blocks: int,
    max_history_items: int,
    every_position: bool,
    fingerprint: str,
    batch_size: int = 256,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Writes the teacher's outputs for all samples, in one pass; does nothing if the file is there.

    The file appears when it is complete: what an interrupted pass leaves behind is overwritten by the next. Several
    processes may want the same file; one computes it, the others wait.

    Args:
        teacher: read in eval mode and float32, on the device it is on; comes back in the mode it was in.
        samples: what the teacher reads.
        path: the file.
        num_blocks: blocks whose states are stored beside the user vectors; 0: none.
        max_history_items: the newest items of a sample that are read.
        every_position: store each item position, or only the newest.
        fingerprint: kept in the file; see `fingerprint`.
        batch_size: samples encoded at once; no more than their outputs are held in memory.
        progress: called after each batch with the number of samples in it.

    Raises:
        CheckpointError: there is not enough room for the file.
    """
    device = teacher.item_vectors().device
    places = _Places(samples, max_history_items, every_position)
    with eval_mode(teacher), torch.inference_mode():
        frozen = freeze(teacher, fused=False)
        first = collate(samples, np.zeros(1, np.int64), max_history_items).histories.to(device)
        shapes = _shapes_of(frozen.encode(first, num_blocks=num_blocks), places.total)
        with _written_whole(path, shapes, fingerprint) as stored:
            if stored is None:
                return
            for rows, batch in by_length(samples, batch_size, max_history_items, every_position):
                histories, at = batch.histories.to(device), places.of(rows)
                encoded = frozen.encode(histories, every_position=every_position, num_blocks=num_blocks)
                for target, values in zip(stored, (*encoded.hidden_states, encoded.users), strict=True):
                    target[at] = values.float().cpu().numpy()
                if progress:
                    progress(len(rows))


class StoredTeacher(nn.Module):
    """Outputs of a frozen teacher, read from a file; implements `TeacherOutputs` of `slmrec.training.losses`.

    Knows the samples it was stored for and no others: a batch is looked up by its `rows`. Reads the rows it needs from
    the file, which is never read whole. `open` makes one.
    """

    item_table: Tensor

    def __init__(
        self,
        stored: list[Mapped],
        places: "_Places",
        item_vectors: Tensor,
        every_position: bool,
    ) -> None:
        super().__init__()
        self._stored, self._places, self._every_position = stored, places, every_position
        self.register_buffer("item_table", item_vectors.detach(), persistent=False)

    @classmethod
    def open(
        cls,
        path: Path,
        fingerprint: str,
        item_vectors: Tensor,
        samples: Samples,
        *,
        num_blocks: int,
        max_history_items: int,
        every_position: bool,
    ) -> "StoredTeacher":
        """The teacher of a file that `store_teacher_states` wrote with the same arguments.

        Args:
            path: the file.
            fingerprint: the one that the file must carry.
            item_vectors: (V+1, D), those of the teacher.
            samples: those that the teacher has read.
            num_blocks: blocks whose states are stored.
            max_history_items: the newest items of a sample that were read.
            every_position: whether each item position was read out.

        Raises:
            CheckpointError: the file is cut short, or belongs to another teacher, other data or other settings.
        """
        metadata, shapes = _described(path)
        places = _Places(samples, max_history_items, every_position)
        hidden, width = (0, *shapes.get("blocks", ()))[-1], item_vectors.shape[1]  # H is proved by the fingerprint
        _check(path, "format version", metadata.get("version"), VERSION)
        _check(path, "fingerprint", metadata.get("fingerprint"), fingerprint)
        _check(path, "content", shapes, _shapes(num_blocks, places.total, hidden, width))
        return cls(_mapped(path, shapes, "r"), places, item_vectors, every_position)

    def item_vectors(self) -> Tensor:
        """(V+1, D); row 0 is padding."""
        return self.item_table

    def outputs(self, batch: Batch, num_blocks: int) -> Encoded:
        """User vectors (N, D) and, if asked for, the stored states (N, H) of each block, on the device of the batch.

        Raises:
            ValueError: the batch does not say which samples it holds or is of others, or the number of blocks is
                neither 0 nor the stored one.
        """
        *blocks, users = self._stored
        if num_blocks not in (0, len(blocks)):
            raise ValueError(f"num_blocks is {num_blocks}, but {len(blocks)} blocks are stored; ask for those or for 0")
        at = self._rows_of(batch)
        read = [torch.from_numpy(values[at]).to(batch.targets.device) for values in (*blocks[:num_blocks], users)]
        return Encoded(read[-1], tuple(read[:-1]))

    def _rows_of(self, batch: Batch) -> Ints:
        if batch.rows is None:
            raise ValueError("the batch has no rows, by which stored outputs are found; make it with collate")
        at = self._places.of(batch.rows.cpu().numpy())
        if batch.every_position != self._every_position or len(at) != len(batch.targets):
            raise ValueError(
                f"the batch has {len(batch.targets)} read-outs, but {len(at)} are stored for its rows; give batches "
                "of the samples that were stored"
            )
        return at


class _Places:
    """Where in the file the read-outs of each sample stand."""

    def __init__(self, samples: Samples, max_history_items: int, every_position: bool) -> None:
        lengths = samples.clipped_lengths(max_history_items)
        self._counts = lengths if every_position else np.ones_like(lengths)
        self._starts = np.cumsum(self._counts, dtype=np.int64) - self._counts
        self.total = int(self._counts.sum())

    def of(self, rows: Ints) -> Ints:
        """(N,) rows of the file, in row-major order."""
        counts = self._counts[rows].astype(np.int64)
        before = np.cumsum(counts) - counts
        at: Ints = np.repeat(self._starts[rows] - before, counts) + np.arange(counts.sum())
        return at


def _shapes_of(encoded: Encoded, total: int) -> Shapes:
    states = encoded.hidden_states
    hidden = states[0].shape[1] if states else 0
    return _shapes(len(states), total, hidden, encoded.users.shape[1])


def _shapes(num_blocks: int, total: int, hidden: int, width: int) -> Shapes:
    blocks = {"blocks": (num_blocks, total, hidden)} if num_blocks else {}
    return blocks | {"users": (total, width)}


@contextmanager
def _written_whole(path: Path, shapes: Shapes, fingerprint: str) -> Iterator[list[Mapped] | None]:
    """The blocks and the users to fill in; then the file takes its place. None if it is there."""
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # the others wait here, until the file is there or its writer has died
        if path.exists():
            partial.unlink(missing_ok=True)
            yield None
            return
        header = _header(shapes, fingerprint)
        size = len(header) + sum(map(_num_bytes, shapes.values()))
        stream.truncate(0)
        _check_room(path, size)
        stream.write(header)
        stream.truncate(size)
        stored = _mapped(partial, shapes, "r+")
        yield stored
        for values in stored:
            values.flush()
        partial.replace(path)


def _check_room(path: Path, size: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < size:  # a full disk would end the process without a word when a page of the file is written
        raise CheckpointError(
            f"{path}: needs {size / 1e6:.0f} MB, but {free / 1e6:.0f} MB are free; make room, or set "
            "distill.teacher_states to a folder that has it"
        )


def _header(shapes: Shapes, fingerprint: str) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"version": VERSION, "fingerprint": fingerprint}}
    start = 0
    for name, shape in shapes.items():
        end = start + _num_bytes(shape)
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": (start, end)}
        start = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # so that the data are aligned
    return len(text).to_bytes(8, "little") + text


def _num_bytes(shape: tuple[int, ...]) -> int:
    return _FLOAT32.itemsize * math.prod(shape)


def _described(path: Path) -> tuple[dict[str, str], Shapes]:
    """Metadata and shapes of a file; safetensors itself checks that they account for all of its bytes."""
    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            precisions = {values.get_dtype() for values in slices.values()}
            found = file.metadata() or {}, {name: tuple(values.get_shape()) for name, values in slices.items()}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cut short, or not what was stored ({error}); {_REMEDY}") from None
    _check(path, "precision", precisions, {"F32"})
    return found


def _mapped(path: Path, shapes: Shapes, mode: Literal["r", "r+"]) -> list[Mapped]:
    """The stored blocks, then the users, without reading them."""
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
