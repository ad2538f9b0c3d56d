"""Item vectors in files: .npy, .safetensors, or a pickled tensor, read without executing code in it."""

import collections
import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slmrec.data.tensor_files import read_tensors
from slmrec.errors import DataError
from slmrec.files import one_line, special_file

_BROKEN_PICKLE = (
    pickle.UnpicklingError,
    *(EOFError, AttributeError, IndexError, TypeError, ValueError, KeyError),
    *(RuntimeError, MemoryError),  # raised for a damaged storage
)
_MAX_OPERATIONS = 10_000
"""Largest number of operations of a pickle; a tensor has some 50."""


def read_item_vectors(path: Path, num_items: int) -> Tensor:
    """Read a matrix of item vectors.

    Args:
        path: a file with V rows (item 1 first) or V+1 rows (padding item first).
        num_items: V.

    Returns:
        (V+1, D) float32; row 0, of the padding item, is zero.

    Raises:
        DataError: the file is missing, of an unknown format, or has another number of rows, or a value is not finite.
    """
    vectors = read_matrix(path)
    if len(vectors) not in (num_items, num_items + 1):
        raise DataError(
            f"{path}: shape {tuple(vectors.shape)}; expected ({num_items}, D), one row for each item of items.parquet, "
            f"or ({num_items + 1}, D) with the padding item first"
        )
    vectors = vectors.float()
    if not torch.isfinite(vectors).all():
        row = int((~torch.isfinite(vectors)).any(dim=1).nonzero()[0])
        raise DataError(f"{path}: row {row} contains a value that is not finite; correct the vectors")
    rows = vectors[-num_items:]
    return torch.cat([torch.zeros(1, rows.shape[1]), rows])


def read_matrix(path: Path) -> Tensor:
    """Read a matrix of item vectors as it is in the file, with any number of rows.

    Raises:
        DataError: the file is missing, of an unknown format, or contains something else.
    """
    if kind := special_file(path):
        raise DataError(f"{path}: is {kind}, expected a file of item vectors; save them to a file first")
    if not path.is_file():
        raise DataError(f"{path}: no such file of item vectors")
    readers = {".npy": _npy, ".safetensors": _safetensors, ".pkl": _pickled}
    if path.suffix not in readers:
        raise DataError(f"{path}: item vectors are read from {', '.join(readers)}; got {path.suffix or 'no suffix'!r}")
    matrix = readers[path.suffix](path)
    if matrix.dim() != 2:
        raise DataError(f"{path}: shape {tuple(matrix.shape)}; expected (V, D), one row for each item")
    return matrix


def _npy(path: Path) -> Tensor:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: the shape is compared with the file's size
    except (ValueError, EOFError, OverflowError, SyntaxError, MemoryError) as error:
        raise DataError(f"{path}: not an array of numbers ({one_line(error)})") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: not an array of numbers but an archive of several; save one with numpy.save")
    return _tensor(path, array)


def _safetensors(path: Path) -> Tensor:
    try:
        tensors = read_tensors(path)
    except ValueError as error:
        raise DataError(f"{path}: not a safetensors file ({one_line(error)})") from None
    if len(tensors) != 1:
        raise DataError(f"{path}: contains {len(tensors)} tensors ({', '.join(tensors)}); expected one")
    return next(iter(tensors.values()))


def _pickled(path: Path) -> Tensor:
    try:
        content = path.read_bytes()
        _check_operations(io.BytesIO(content))
        value = _TensorUnpickler(io.BytesIO(content)).load()
    except _BROKEN_PICKLE as error:
        raise DataError(f"{path}: only a pickled tensor or array is loaded ({one_line(error)})") from None
    if isinstance(value, dict) and len(value) == 1:  # the reference's file has one named table
        (value,) = value.values()
    if isinstance(value, _PickledArray):
        value = value.array
    if isinstance(value, np.ndarray):
        value = _tensor(path, value)
    if not isinstance(value, Tensor):
        raise DataError(f"{path}: contains a {type(value).__name__}; expected a tensor or array")
    return value.detach().cpu()


def _tensor(path: Path, array: NDArray[Any]) -> Tensor:
    if array.dtype.kind not in "fiu":
        raise DataError(f"{path}: contains an array of {array.dtype}; expected numbers")
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))


def _check_operations(stream: io.BytesIO, max_number: int | None = None) -> None:
    """Refuse a pickle for which the unpickler would take memory that the file does not fill.

    Args:
        stream: Stream at the start of the pickle; afterwards it is behind the pickle.
        max_number: Largest number in it; None: any.
    """
    for count, (operation, argument, _) in enumerate(pickletools.genops(stream)):
        is_memo = operation.name in ("PUT", "BINPUT", "LONG_BINPUT")
        limit = _MAX_OPERATIONS if is_memo else max_number
        if count > _MAX_OPERATIONS or (isinstance(argument, int) and limit is not None and argument > limit):
            raise pickle.UnpicklingError("it claims more values than it has")


def _encode(text: str, encoding: str) -> bytes:
    """Rebuild bytes as written by pickle protocols 0 to 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the encoding {encoding!r} is not allowed")
    return text.encode(encoding)


class _PickledArray:
    """Array whose shape and bytes, as they stand in a pickle, are compared before it is built."""

    def __init__(self, *_: object) -> None:
        self.array: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[int, tuple[int, ...], np.dtype[Any], bool, Any]) -> None:
        _, shape, dtype, is_fortran, content = state
        if dtype.kind not in "fiu":  # refused by its type, whatever it holds
            self.array = np.zeros(0, dtype)
            return
        if not isinstance(content, bytes) or len(content) != math.prod(shape) * dtype.itemsize:
            raise pickle.UnpicklingError(f"an array of shape {shape} has other content")
        self.array = np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")


def _rebuild_tensor(storage: Any, offset: int, size: tuple[int, ...], *rest: Any) -> Any:
    """Rebuild a tensor that has no more values than its storage."""
    if math.prod(size) > len(storage):
        raise pickle.UnpicklingError(f"a tensor of shape {tuple(size)} has a storage of {len(storage)} values")
    return torch._utils._rebuild_tensor_v2(storage, offset, size, *rest)  # type: ignore[no-untyped-call]


def _from_buffer(buffer: bytes, dtype: Any, shape: tuple[int, ...], order: Literal["C", "F"]) -> Any:
    """Rebuild an array as written by pickle protocol 5."""
    return np.frombuffer(buffer, dtype).reshape(shape, order=order).copy()


def _load_storage(raw: bytes) -> Any:
    stream = io.BytesIO(raw)
    for max_number in (None, None, None, len(raw)):  # magic number, protocol, system, and the storage with its size
        _check_operations(stream, max_number)
    return torch.load(io.BytesIO(raw), weights_only=True, map_location="cpu")


class _TensorUnpickler(pickle.Unpickler):
    """Unpickler that builds only tensors and arrays; other names are rejected before they are imported."""

    _ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): lambda data, requires_grad, hooks: data,
        ("torch.storage", "_load_from_bytes"): _load_storage,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("_codecs", "encode"): _encode,
        ("numpy", "ndarray"): _PickledArray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy.core.numeric", "_frombuffer"): _from_buffer,
        ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return self._ALLOWED[module, name]
