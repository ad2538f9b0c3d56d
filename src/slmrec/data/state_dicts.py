"""State dicts in safetensors files, or in PyTorch files from which only tensors are loaded."""

import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from slmrec.data.tensor_files import read_tensors
from slmrec.errors import DataError
from slmrec.files import one_line, special_file

_SAFETENSORS, _TORCH = ".safetensors", (".bin", ".pt", ".pth")
_LOAD_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    zipfile.BadZipFile,
    NotImplementedError,
)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read named tensors onto the CPU.

    Raises:
        DataError: the file is missing, damaged, of an unknown format, or contains objects other than named tensors.
    """
    if kind := special_file(path):
        raise DataError(f"{path}: is {kind}, expected a file of weights; save them to a file first")
    if not path.is_file():
        raise DataError(f"{path}: no such file of weights")
    if path.suffix == _SAFETENSORS:
        return _safetensors(path)
    if path.suffix not in _TORCH:
        suffixes = ", ".join((_SAFETENSORS, *_TORCH))
        raise DataError(f"{path}: weights are read from {suffixes}; got {path.suffix or 'no suffix'!r}")
    try:
        _check_archive(path)
        value = torch.load(path, map_location="cpu", weights_only=True)
    except _LOAD_ERRORS as error:
        message = str(error)
        reason = (message.partition("WeightsUnpickler error: ")[2] or message).partition(" Please use")[0]
        raise DataError(
            f"{path}: only named tensors are loaded ({one_line(reason, 200)}); save the model's state_dict() alone"
        ) from None
    return _checked(path, value)


def _check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to more than its size; PyTorch compresses nothing."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > path.stat().st_size:
        raise DataError(f"{path}: unpacks to {size:,} bytes, more than its size; save it with torch.save")


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return read_tensors(path)
    except ValueError as error:
        raise DataError(f"{path}: not a safetensors file ({error}); copy it again") from None


def _checked(path: Path, value: object) -> dict[str, Tensor]:
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds a {type(value).__name__}, expected tensors by name; save the state_dict()")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise DataError(
                f"{path}: {name!r} is a {type(tensor).__name__}, expected a tensor; save the state_dict() alone"
            )
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise DataError(
                f"{path}: {name!r} has the shape {tuple(tensor.shape)} but fewer values; save a plain state_dict()"
            )
    return {name: tensor.detach() for name, tensor in value.items()}
