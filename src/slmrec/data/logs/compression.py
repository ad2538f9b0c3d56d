"""Compressed files: opening them, and reading them in blocks of bounded size and number."""

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, cast

import pyarrow as pa

from slmrec.data.logs.archives import open_log
from slmrec.errors import DataError

Compression = Literal["none", "gzip", "zstd", "zip"]

_MAGIC: dict[bytes, Compression] = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",  # without files
}
_MAX_RATIO, _MIN_BOMB_BYTES = 250, 2**28
"""Compressed files that unpack to more than both are refused; logs shrink to a twentieth at best."""
BLOCK_BYTES = 2**20


def compression_of(file: Path) -> Compression:
    """Detect the compression of a file from its first bytes."""
    with file.open("rb") as stream:
        first = stream.read(4)
    return next((name for magic, name in _MAGIC.items() if first.startswith(magic)), "none")


def open_file(file: Path) -> IO[bytes]:
    """Open a file for reading; compressed content is decompressed on the fly."""
    compression = compression_of(file)
    if compression == "gzip":
        return cast(IO[bytes], gzip.open(file))
    if compression == "zip":
        return open_log(file)
    if compression == "zstd":
        return io.BufferedReader(cast(io.RawIOBase, _ZstdFile(file)))
    return file.open("rb")


class _ZstdFile(io.RawIOBase):
    def __init__(self, file: Path) -> None:
        self._stream = pa.input_stream(str(file), compression="zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def blocks(file: Path) -> Iterator[bytes]:
    """Yield the content of a file in blocks.

    Raises:
        DataError: the compressed file is damaged, or unpacks to far more than a log does.
    """
    try:
        with open_file(file) as stream:
            packed = 0 if compression_of(file) == "none" else file.stat().st_size
            num_bytes = 0
            while block := stream.read(BLOCK_BYTES):
                num_bytes += len(block)
                if packed and num_bytes > max(_MIN_BOMB_BYTES, _MAX_RATIO * packed):
                    raise DataError(
                        f"{file}: unpacks to more than {_MAX_RATIO} times its size, as no log does; unpack it yourself "
                        "if it is one"
                    )
                yield block
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise DataError(
            f"{file}: the compressed file is truncated or damaged ({error}); copy or download the whole file again"
        ) from None
