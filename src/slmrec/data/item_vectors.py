"""Item vectors in files: .npy, .safetensors, or a pickled tensor, read without executing code in it."""

import collections
import io
import pickle
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from slmrec.errors import DataError
from slmrec.files import one_line

_BROKEN_PICKLE = (
    pickle.UnpicklingError,
    *(EOFError, AttributeError, IndexError, TypeError, ValueError, KeyError),
    RuntimeError,  # raised for a damaged storage
)


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
    if not path.is_file():
        raise DataError(f"{path}: no such file of item vectors")
    readers = {".npy": _npy, ".safetensors": _safetensors, ".pkl": _pickled}
    if path.suffix not in readers:
        raise DataError(f"{path}: item vectors are read from {', '.join(readers)}; got {path.suffix or 'no suffix'!r}")
    vectors = readers[path.suffix](path).float()
    if vectors.dim() != 2 or len(vectors) not in (num_items, num_items + 1):
        raise DataError(
            f"{path}: shape {tuple(vectors.shape)}; expected ({num_items}, D), one row for each item of items.parquet, "
            f"or ({num_items + 1}, D) with the padding item first"
        )
    if not torch.isfinite(vectors).all():
        row = int((~torch.isfinite(vectors)).any(dim=1).nonzero()[0])
        raise DataError(f"{path}: row {row} contains a value that is not finite; correct the vectors")
    rows = vectors[-num_items:]
    return torch.cat([torch.zeros(1, rows.shape[1]), rows])


def _npy(path: Path) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: not an array of numbers ({one_line(error)})") from None
    return _tensor(path, array)


def _safetensors(path: Path) -> Tensor:
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path}: not a safetensors file ({one_line(error)})") from None
    if len(tensors) != 1:
        raise DataError(f"{path}: contains {len(tensors)} tensors ({', '.join(tensors)}); expected one")
    return next(iter(tensors.values()))


def _pickled(path: Path) -> Tensor:
    try:
        value = _TensorUnpickler(io.BytesIO(path.read_bytes())).load()
    except _BROKEN_PICKLE as error:
        raise DataError(f"{path}: only a pickled tensor or array is loaded ({one_line(error)})") from None
    if isinstance(value, dict) and len(value) == 1:  # the reference's file has one named table
        (value,) = value.values()
    if isinstance(value, np.ndarray):
        value = _tensor(path, value)
    if not isinstance(value, Tensor):
        raise DataError(f"{path}: contains a {type(value).__name__}; expected a tensor or array")
    return value.detach().cpu()


def _tensor(path: Path, array: NDArray[Any]) -> Tensor:
    if array.dtype.kind not in "fiu":
        raise DataError(f"{path}: contains an array of {array.dtype}; expected numbers")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _encode(text: str, encoding: str) -> bytes:
    """Rebuild bytes as written by pickle protocols 0 to 2."""
    return text.encode(encoding)


def _from_buffer(buffer: bytes, dtype: Any, shape: tuple[int, ...], order: Literal["C", "F"]) -> Any:
    """Rebuild an array as written by pickle protocol 5."""
    return np.frombuffer(buffer, dtype).reshape(shape, order=order).copy()


def _load_storage(raw: bytes) -> Any:
    return torch.load(io.BytesIO(raw), weights_only=True, map_location="cpu")


class _TensorUnpickler(pickle.Unpickler):
    """Unpickler that builds only tensors and arrays; other names are rejected before they are imported."""

    _ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch._utils", "_rebuild_parameter"): lambda data, requires_grad, hooks: data,
        ("torch.storage", "_load_from_bytes"): _load_storage,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("_codecs", "encode"): _encode,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy.core.numeric", "_frombuffer"): _from_buffer,
        ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return self._ALLOWED[module, name]
