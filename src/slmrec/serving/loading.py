"""A model folder, checked and ready to answer; whatever is wrong with it is one `CheckpointError`."""

import hashlib
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from slmrec.errors import CheckpointError, SlmrecError
from slmrec.recommend import Recommender

_FIGURE = re.compile(r"^\| ([\w@/.-]+) \| (-?\d+(?:\.\d+)?) \|$", re.MULTILINE)


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
            "model_type": model.config.model_type,  # type: ignore[attr-defined]
            "num_items": model.num_items,
            "num_parameters": sum(value.numel() for value in model.parameters()),  # type: ignore[attr-defined]
            "max_history_items": model.max_history_items,
            "metrics": self.metrics,
            "loaded_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.loaded_at)),
        }


def load(folder: Path) -> Loaded:
    """The model of a folder, tried out once.

    Raises:
        CheckpointError: a file is missing or damaged, or the model cannot be built or used; the message names it.
    """
    fingerprint = fingerprint_of(folder)
    try:
        _check_files(folder)
        recommender = Recommender.from_pretrained(folder)
        _try_out(recommender, folder)
    except SlmrecError:
        raise
    except Exception as error:  # an edited configuration fails in as many ways as there are settings
        told = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{folder}: cannot be loaded ({type(error).__name__}: {told}); copy or train it anew"
        ) from error
    name, metrics = _card(folder)
    return Loaded(recommender, fingerprint, name, metrics, time.time())


def fingerprint_of(folder: Path) -> str:
    """SHA-256 of the files that decide the answers.

    Raises:
        CheckpointError: the folder is no model folder.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder}: not a model folder (config.json is missing); give the output of a training stage"
        )
    digest = hashlib.sha256()
    for path in _files(folder):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return [folder / "config.json", *sorted(folder.glob("*.safetensors")), *sorted(folder.glob("*.parquet"))]


def _check_files(folder: Path) -> None:
    """Each file by itself, so that a damaged one is named."""
    for path in _files(folder):
        try:
            _open(path)
        except (ValueError, SafetensorError, pa.ArrowException, OSError) as error:
            told = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path}: damaged or cut short ({told}); copy or train it anew") from None


def _open(path: Path) -> None:
    if path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".parquet":
        pq.read_table(path)
    else:
        with safe_open(path, "pt"):
            pass


def _try_out(recommender: Recommender, folder: Path) -> None:
    """One request; also computes what the model keeps for inference."""
    item_id = recommender.vocabulary.item_ids[0].as_py()
    if not recommender.model.item_vectors().isfinite().all():
        raise CheckpointError(f"{folder}: item vectors hold NaN or infinity; copy or train it anew")
    if not recommender.encode([[item_id]]).isfinite().all():
        raise CheckpointError(f"{folder}: the model answers with NaN or infinity; copy or train it anew")


def _card(folder: Path) -> tuple[str, dict[str, float]]:
    """Title and metrics of the model card."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    return title[1] if title else folder.name, {name: float(value) for name, value in _FIGURE.findall(text)}
