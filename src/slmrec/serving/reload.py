"""Replacement of a served model by a newer one from the same folder."""

import asyncio
import gc
from pathlib import Path
from typing import Literal

from slmrec.errors import CheckpointError, StorageError
from slmrec.serving.engine import Engine
from slmrec.serving.http.errors import ConflictError
from slmrec.serving.loading import load, served_fingerprint
from slmrec.storage.cache import refreshed

Outcome = Literal["loaded", "unchanged"]


class Reloader:
    """Loads the model folder of an engine again while the current model keeps serving."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine, self._folder = engine, folder
        self._is_loading = False

    async def reload(self) -> Outcome:
        """Load the folder if it changed and let the engine serve the new model.

        Raises:
            ConflictError: The folder cannot be loaded, or another reload is running; the current model keeps serving.
        """
        if self._is_loading:
            raise ConflictError(f"{self._folder.name} is already being loaded; try again when it is done")
        self._is_loading = True
        try:
            return await asyncio.to_thread(self._load)
        except (CheckpointError, StorageError, OSError) as error:  # a file may vanish while the folder is replaced
            raise ConflictError(f"{error}; the current model keeps serving") from None
        finally:
            self._is_loading = False

    def _load(self) -> Outcome:
        current = self._engine.active.loaded
        self._folder = refreshed(self._folder)
        if served_fingerprint(self._folder) == current.fingerprint:
            return "unchanged"
        self._engine.replace(load(self._folder, str(current.recommender.device)))
        gc.unfreeze()
        gc.collect()  # frees the previous model
        gc.freeze()
        return "loaded"
