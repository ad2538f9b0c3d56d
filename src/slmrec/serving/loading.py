"""Loading and checking of a model folder for the server; every fault of the folder is a `CheckpointError`."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmrec.errors import CheckpointError, SlmrecError
from slmrec.inference.recommender import Recommender
from slmrec.models.folder import fingerprint_of


@dataclass(frozen=True)
class LoadedModel:
    """Recommender in memory, with its origin."""

    recommender: Recommender
    fingerprint: str
    """Hash of the configuration, the weights and the vocabulary."""
    name: str
    metrics: dict[str, float]
    """Metrics of the model card."""
    loaded_at: float
    """Unix time in seconds."""

    @property
    def version(self) -> str:
        """Short form of the fingerprint; it is part of every answer."""
        return self.fingerprint[:12]

    def describe(self) -> dict[str, Any]:
        """Return the entry of this model in `GET /model`; see `messages.ModelInfo`."""
        model = self.recommender.model
        return {
            "name": self.name,
            "version": self.version,
            "fingerprint": self.fingerprint,
            "model_type": model.config.model_type,
            "num_items": model.num_items,
            "num_parameters": sum(value.numel() for value in model.parameters()),
            "max_history_items": model.max_history_items,
            "metrics": self.metrics,
            "loaded_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.loaded_at)),
        }


def load(folder: Path, device: str | None = None) -> LoadedModel:
    """Load the model of a folder and run it once.

    Args:
        folder: Model folder.
        device: Device, as in `Recommender.from_pretrained`.

    Raises:
        CheckpointError: A file is missing or damaged, or the model cannot be built or run; the message names the file.
    """
    try:
        fingerprint = fingerprint_of(folder)
        recommender = Recommender.from_pretrained(folder, device=device)
        _check_outputs(recommender, folder)
    except SlmrecError:
        raise
    except Exception as error:  # an edited configuration can fail in any way
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{folder}: the model cannot be loaded ({type(error).__name__}: {reason}); copy the folder again or retrain"
        ) from error
    about = recommender.about
    return LoadedModel(recommender, fingerprint, about.title, dict(about.metrics), time.time())


def _check_outputs(recommender: Recommender, folder: Path) -> None:
    """Encode one history; this also fills the caches that the model keeps for inference."""
    item_id = recommender.vocabulary.item_ids[0].as_py()
    if not recommender.model.item_vectors().isfinite().all():
        raise CheckpointError(f"{folder}: the item vectors contain NaN or infinity; copy the folder again or retrain")
    if not recommender.encode([[item_id]]).isfinite().all():
        raise CheckpointError(f"{folder}: the model returns NaN or infinity; copy the folder again or retrain")
