"""A/B tests: the model of each user, and the log of what users were shown."""

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slmrec.data.ids import id_text
from slmrec.errors import ConfigError

_LOG = logging.getLogger(__name__)
_MAX_ROWS, _MAX_SECONDS, _MAX_KEPT = 10_000, 60.0, 100_000
_SCHEMA = pa.schema(
    [
        ("time", pa.timestamp("us", "UTC")),
        ("user_id", pa.string()),
        ("variant", pa.string()),
        ("model_version", pa.string()),
        ("items", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True)
class Split:
    """Division of the users between two models.

    Example:
        >>> Split(("A", "B"), 0.5).model_of("ann") == Split(("A", "B"), 0.5).model_of("ann")
        True
        >>> [Split(("A", "B"), share).model_of("ann") for share in (0.0, 1.0)]
        ['A', 'B']
    """

    models: tuple[str, str]
    share: float
    """Share of the users to whom the second model answers, from 0 to 1."""
    salt: str = "slmrec"
    """Another text divides the users anew."""

    @classmethod
    def of(cls, models: Sequence[str], share: float, salt: str) -> "Split":
        """Return the division of the users of a server.

        Raises:
            ConfigError: There are not two models, or the share is out of range.
        """
        if not 0 <= share <= 1:
            raise ConfigError(f"--split is {share}, expected the share of users of the second model, from 0 to 1")
        if len(models) != 2:
            raise ConfigError(
                f"--split divides the users between two models, got {', '.join(models)}; give --model A=DIR --model "
                "B=DIR"
            )
        return cls((models[0], models[1]), share, salt)

    def model_of(self, user_id: str | int | float) -> str:
        """Return the model that answers a user: the same in every process, and after every restart."""
        digest = hashlib.sha256(f"{self.salt}\0{user_text(user_id)}".encode()).digest()
        return self.models[int.from_bytes(digest[:8]) < self.share * 2**64]


def user_text(user_id: str | int | float) -> str:
    """Return a user id as text; 7, 7.0 and "7" are one user."""
    return id_text(user_id, whole_numbers=not isinstance(user_id, str))


class ExposureLog:
    """Log of answers as Parquet files, each of which appears when it is complete.

    A file is written once there are 10,000 answers, once a minute, and when the server stops.

    Args:
        folder: Folder of the files; it is created.

    Raises:
        ConfigError: The folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: list[dict[str, Any]] = []
        self._number = 0
        self._wake: asyncio.Event | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".{os.getpid()}.partial"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"--exposures {folder}: cannot be written ({error.strerror}); name another folder"
            ) from None

    def add(self, user_id: str | int | float | None, answer: dict[str, Any]) -> None:
        """Add an answer, with the fields of `messages.Answer`; only the event loop may call it."""
        self._rows.append(
            {
                "time": time.time_ns() // 1000,
                "user_id": None if user_id is None else user_text(user_id),
                "variant": answer["model"],
                "model_version": answer["model_version"],
                "items": [str(item["item_id"]) for item in answer["items"]],
                "scores": [item["score"] for item in answer["items"]],
            }
        )
        if len(self._rows) >= _MAX_ROWS and self._wake is not None:
            self._wake.set()

    async def run(self) -> None:
        """Write files until the task is cancelled."""
        self._wake = asyncio.Event()
        while True:
            try:
                async with asyncio.timeout(_MAX_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            await self.flush()

    async def flush(self) -> None:
        """Write the answers that are not in a file yet."""
        rows, self._rows = self._rows, []
        if not rows:
            return
        self._number += 1
        try:
            await asyncio.to_thread(self._write, rows, self._number)
        except OSError as error:
            kept = [*rows, *self._rows]
            self._rows = kept[-_MAX_KEPT:]
            _LOG.error(
                "serve: %d exposures cannot be written to %s (%s); %d are kept for another try, %d are lost",
                *(len(rows), self._folder, error.strerror or error, len(self._rows), len(kept) - len(self._rows)),
            )

    def _write(self, rows: list[dict[str, Any]], number: int) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        path = self._folder / f"exposures-{stamp}-{os.getpid()}-{number:06d}.parquet"
        partial = path.with_name(f".{path.name}.partial")
        try:
            pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
