"""Loading and checking of a model folder for the server; every fault of the folder is a `CheckpointError`."""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmrec.files import sha256
from slmrec.folders import RULES
from slmrec.inference.dry_run import failures_reported
from slmrec.inference.recommender import Recommender
from slmrec.models.folder import fingerprint_of


@dataclass(frozen=True)
class LoadedModel:
    """Recommender in memory, with its origin."""

    recommender: Recommender
    fingerprint: str
    """Hash of the configuration, the weights, the vocabulary and the standing rules."""
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
            "timestamp_unit": model.timestamp_unit,
            "rule_columns": self.recommender.rules.columns,
            "num_standing_rules": len(self.recommender.rules.standing),
            "metrics": self.metrics,
            "loaded_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.loaded_at)),
        }


def served_fingerprint(folder: Path) -> str:
    """Return the hash of the files of a model folder on which its answers depend.

    Raises:
        CheckpointError: It is not a model folder.
    """
    model, rules = fingerprint_of(folder), folder / RULES
    return model if not rules.is_file() else hashlib.sha256(f"{model} {sha256(rules)}".encode()).hexdigest()


def load(folder: Path, device: str | None = None) -> LoadedModel:
    """Load the model of a folder and run it once.

    Args:
        folder: Model folder.
        device: Device, as in `Recommender.from_pretrained`.

    Raises:
        CheckpointError: A file is missing or damaged, or the model cannot be built or run; the message names the file.
    """
    with failures_reported(folder):
        fingerprint = served_fingerprint(folder)
        recommender = Recommender.from_pretrained(folder, device=device)
    about = recommender.about
    return LoadedModel(recommender, fingerprint, about.title, dict(about.metrics), time.time())
