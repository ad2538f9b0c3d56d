"""State dicts that a user brings: safetensors, or torch's own files read so that nothing but tensors comes of them."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from slmrec.errors import DataError

_SAFETENSORS, _TORCH = ".safetensors", (".bin", ".pt", ".pth")
_BROKEN = (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU.

    Raises:
        DataError: the file is missing, of another kind, damaged, or would build anything but named tensors.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file of weights")
    if path.suffix == _SAFETENSORS:
        return _safetensors(path)
    if path.suffix not in _TORCH:
        kinds = ", ".join((_SAFETENSORS, *_TORCH))
        raise DataError(f"{path}: weights are read from {kinds}; got {path.suffix or 'no suffix'!r}")
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except _BROKEN as error:
        reason = " ".join(str(error).split())
        named = reason.partition("WeightsUnpickler error: ")[2] or reason
        raise DataError(
            f"{path}: only named tensors are read, and nothing else is built ({named[:200]}); save the model's "
            "state_dict() alone"
        ) from None
    return _tensors_of(path, value)


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path}: not a safetensors file ({error}); copy it anew") from None


def _tensors_of(path: Path, value: object) -> dict[str, Tensor]:
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds a {type(value).__name__}, expected tensors by name; save the state_dict()")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise DataError(
                f"{path}: {name!r} is a {type(tensor).__name__}, expected a tensor; save the state_dict() alone"
            )
    return {name: tensor.detach() for name, tensor in value.items()}
