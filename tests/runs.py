"""Helpers for tests that execute the pipeline through the command line."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from slmrec.commands.main import main

STEPS = (
    "prepare",
    "pretrain/popularity",
    "pretrain/cooccurrence",
    "pretrain/sasrec",
    "finetune",
    "distill",
    "evaluate",
)
"""Folders of the run that `tests/pipeline/conftest.py` makes."""
TRAINED = ("pretrain/sasrec", "finetune", "distill")
TIMES = ("wall_s", "peak_rss_mb", "training_s")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the error message of a command, which must be one line, with exit code 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in theirs)


def contents(folder: Path) -> dict[str, Any]:
    """Return the content of a run without times: weights by name, tables, and metrics."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            found[name] = {key: value.tolist() for key, value in load_file(path).items()}
        elif path.suffix == ".parquet":
            found[name] = pq.read_table(path).to_pylist()
        elif path.name == "metrics.json" and path.parent.name != "evaluate":
            found[name] = {key: value for key, value in read_json(path).items() if key not in TIMES}
    return found
