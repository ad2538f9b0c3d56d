"""A model folder, checked and ready to answer; whatever is wrong with it is one `CheckpointError`."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmrec.errors import CheckpointError, SlmrecError
from slmrec.inference.recommender import Recommender
from slmrec.models.folder import fingerprint_of


@dataclass(frozen=True)
class Loaded:
    """A model that serves, and where it came from."""

    recommender: Recommender
    fingerprint: str
    """Of the bytes of configuration, weights and vocabulary."""
    name: str
    metrics: dict[str, float]
    """Those of the folder's card."""
    loaded_at: float
    """Seconds since 1970."""

    @property
    def version(self) -> str:
        """A short form of the fingerprint, told with every answer."""
        return self.fingerprint[:12]

    def describe(self) -> dict[str, Any]:
        """What `GET /model` tells."""
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


def load(folder: Path, device: str | None = None) -> Loaded:
    """The model of a folder, tried out once.

    Args:
        folder: the model folder.
        device: as in `Recommender.from_pretrained`.

    Raises:
        CheckpointError: a file is missing or damaged, or the model cannot be built or used; the message names it.
    """
    try:
        fingerprint = fingerprint_of(folder)
        recommender = Recommender.from_pretrained(folder, device=device)
        _try_out(recommender, folder)
    except SlmrecError:
        raise
    except Exception as error:  # an edited configuration fails in as many ways as there are settings
        told = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{folder}: cannot be loaded ({type(error).__name__}: {told}); copy or train it anew"
        ) from error
    about = recommender.about
    return Loaded(recommender, fingerprint, about.title, dict(about.metrics), time.time())


def _try_out(recommender: Recommender, folder: Path) -> None:
    """One request; also computes what the model keeps for inference."""
    item_id = recommender.vocabulary.item_ids[0].as_py()
    if not recommender.model.item_vectors().isfinite().all():
        raise CheckpointError(f"{folder}: item vectors hold NaN or infinity; copy or train it anew")
    if not recommender.encode([[item_id]]).isfinite().all():
        raise CheckpointError(f"{folder}: the model answers with NaN or infinity; copy or train it anew")
