"""Safetensors files from anywhere: their header is read first, in bounds, and then the tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from slmrec.files import one_line, parse_json, special_file

MAX_HEADER_BYTES = 2**22
"""Largest header that is read, about 30,000 tensors; the format allows 100 MB."""


class TensorFacts(NamedTuple):
    """Type and shape of a tensor, as the header of a file states them."""

    dtype: str
    """Name in the format, such as `F32`."""
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, TensorFacts]:
    """Read the types and shapes of all tensors of a safetensors file, but no tensor.

    Raises:
        OSError: the file does not exist or cannot be read.
        ValueError: it is no safetensors file, is cut off, or has too large a header.
    """
    if kind := special_file(path):
        raise ValueError(f"it is {kind}, expected a file")
    with path.open("rb") as stream:
        num_bytes = int.from_bytes(stream.read(8), "little")
        if num_bytes > MAX_HEADER_BYTES:
            raise ValueError(f"its header has {num_bytes:,} bytes, at most {MAX_HEADER_BYTES:,} are read")
        text = stream.read(num_bytes)
    try:
        with safe_open(path, "pt"):  # checks types, places and sizes of all tensors against the size of the file
            entries = parse_json(text.decode("utf-8"))
    except SafetensorError as error:
        raise ValueError(one_line(error)) from None
    entries.pop("__metadata__", None)
    return {name: TensorFacts(entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file.

    Raises:
        OSError: the file does not exist or cannot be read.
        ValueError: as `read_header`.
    """
    read_header(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(one_line(error)) from None


def read_metadata(path: Path) -> Mapping[str, str]:
    """Read the texts that stand in the header of a safetensors file.

    Raises:
        OSError: the file does not exist or cannot be read.
        ValueError: as `read_header`.
    """
    read_header(path)
    with safe_open(path, "pt") as stream:
        return stream.metadata() or {}
