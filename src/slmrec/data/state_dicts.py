"""State dicts in safetensors files, or in PyTorch files from which only tensors are loaded."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from slmrec.errors import DataError
from slmrec.files import one_line

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
)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read named tensors onto the CPU.

    Raises:
        DataError: the file is missing, damaged, of an unknown format, or contains objects other than named tensors.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file of weights")
    if path.suffix == _SAFETENSORS:
        return _safetensors(path)
    if path.suffix not in _TORCH:
        suffixes = ", ".join((_SAFETENSORS, *_TORCH))
        raise DataError(f"{path}: weights are read from {suffixes}; got {path.suffix or 'no suffix'!r}")
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except _LOAD_ERRORS as error:
        message = str(error)
        reason = (message.partition("WeightsUnpickler error: ")[2] or message).partition(" Please use")[0]
        raise DataError(
            f"{path}: only named tensors are loaded ({one_line(reason, 200)}); save the model's state_dict() alone"
        ) from None
    return _checked(path, value)


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path}: not a safetensors file ({error}); copy it again") from None


def _checked(path: Path, value: object) -> dict[str, Tensor]:
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds a {type(value).__name__}, expected tensors by name; save the state_dict()")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise DataError(
                f"{path}: {name!r} is a {type(tensor).__name__}, expected a tensor; save the state_dict() alone"
            )
    return {name: tensor.detach() for name, tensor in value.items()}
