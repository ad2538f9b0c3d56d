"""The exchange of a served model for a newer one of the same folder."""

import asyncio
import gc
from pathlib import Path
from typing import Literal

from slmrec.errors import CheckpointError
from slmrec.models.folder import fingerprint_of
from slmrec.serving.engine import Engine
from slmrec.serving.loading import load
from slmrec.serving.refusals import ConflictError

Outcome = Literal["loaded", "unchanged"]


class Reloader:
    """Loads the folder of an engine again, beside the model that goes on serving."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine, self._folder = engine, folder
        self._is_loading = False

    async def reload(self) -> Outcome:
        """Whether the folder held another model, which then serves.

        Raises:
            ConflictError: the folder is refused, or is being loaded already; the model of before goes on.
        """
        if self._is_loading:
            raise ConflictError(f"{self._folder.name} is being loaded already; wait for that")
        self._is_loading = True
        try:
            return await asyncio.to_thread(self._load)
        except (CheckpointError, OSError) as error:  # a file may vanish while the folder is exchanged
            raise ConflictError(f"{error}; the model loaded before goes on serving") from None
        finally:
            self._is_loading = False

    def _load(self) -> Outcome:
        if fingerprint_of(self._folder) == self._engine.serving.loaded.fingerprint:
            return "unchanged"
        self._engine.replace(load(self._folder))
        gc.unfreeze()
        gc.collect()  # the model of before
        gc.freeze()
        return "loaded"
