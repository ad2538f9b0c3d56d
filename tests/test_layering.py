"""Imports point downwards only; the table below is the architecture."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "slmrec"

BASE = {"errors", "types"}
MIDDLE = {"data", "models", "losses", "metrics", "diversity", "statistics", "config", "catalogue", "memory"} | {
    "redundancy",
    "linear_heads",
}
TOOLS = {"batch_size", "live", "training", "evaluation", "baselines", "card", "checkpoint", "teacher_states", "index"}
SERVING = {"sequences", "recommend", "serving"}

# Place (a module or a package of slmrec) -> the places it may import. A package may import itself.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "types": set(),
    **dict.fromkeys(MIDDLE, BASE),
    "card": BASE | {"models"},
    "config_file": BASE | {"config"},
    "losses": BASE | {"catalogue"},
    "batch_size": BASE | {"data", "memory"},
    "training": BASE | {"config", "data", "models", "losses", "metrics", "batch_size", "live"},
    "live": BASE,
    "evaluation": BASE | {"data", "metrics", "catalogue"},
    "teacher_states": BASE | {"data", "evaluation"},
    "baselines": BASE | {"data", "metrics"},
    "checkpoint": BASE | {"card", "data", "models"},
    "index": BASE | {"catalogue"},
    "sequences": BASE,
    "recommend": BASE | {"card", "checkpoint", "data", "models", "catalogue", "sequences", "index"},
    "serving": BASE | {"checkpoint", "recommend", "catalogue"},
    "stages": BASE | MIDDLE | {"config_file"} | TOOLS | SERVING,
    "cli": BASE | MIDDLE | {"config_file"} | TOOLS | SERVING | {"stages"},
    "__main__": {"cli"},
    "__init__": {"recommend", "stages"},  # deferred: see test_package.py
}

# Libraries with one home, and those with none.
MAY_USE: dict[str, set[str]] = {
    "transformers": {"models"},
    "peft": {"models"},
    "accelerate": {"training", "live"},
    "urllib": {"data"},  # fetch.py
    "huggingface_hub": {"checkpoint"},  # with fetch.py, all that speaks to the network
    "duckdb": {"data"},
    "matplotlib": {"stages"},
    "jinja2": {"stages"},
    "onnxruntime": {"stages"},
    "faiss": {"index"},
    "starlette": {"serving"},
    "uvicorn": {"serving"},
    "prometheus_client": {"serving"},
    "pickle": {"data"},  # vectors.py: a reader that can build tensors and nothing else
    **{name: set() for name in ("_pickle", "cloudpickle", "dill", "joblib", "shelve")},
}


def place_of(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports(path: Path, source: str) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything that a file imports, wherever in the file."""
    package = ("slmrec", *path.relative_to(SOURCE).parent.parts)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def violations(path: Path, source: str) -> list[str]:
    place = place_of(path)
    found = []
    for line, name in imports(path, source):
        root, _, rest = name.partition(".")
        if root in MAY_USE and place not in MAY_USE[root]:
            found.append(f"line {line}: {place} may not use {root}")
        if root == "slmrec" and rest != "__version__":
            target = {"": "__init__", "Recommender": "recommend", "prepare": "stages"}.get(rest, rest.split(".")[0])
            if target not in MAY_IMPORT[place] | {place}:
                found.append(f"line {line}: {place} may not import {name}")
    return found


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_imports_follow_the_table(path: Path) -> None:
    assert place_of(path) in MAY_IMPORT, f"{path.name} has no place yet: add it to MAY_IMPORT in {Path(__file__).name}"
    assert violations(path, path.read_text(encoding="utf-8")) == []


def test_the_source_was_found() -> None:
    assert SOURCE / "config_file.py" in FILES


def test_the_table_points_downwards() -> None:
    TopologicalSorter(MAY_IMPORT).prepare()  # raises CycleError
    assert set().union(*MAY_IMPORT.values()) <= set(MAY_IMPORT)


def test_only_cli_stages_and_training_know_the_config() -> None:
    assert {place for place, below in MAY_IMPORT.items() if "config" in below} == {
        *("cli", "stages", "training", "config_file")
    }


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        (
            "losses.py",
            "from slmrec.metrics import ndcg",
            ["line 1: losses may not import slmrec.evaluation.metrics.ndcg"],
        ),
        ("losses.py", "from slmrec import training", ["line 1: losses may not import slmrec.training.trainer"]),
        ("losses.py", "def f():\n    import slmrec.config", ["line 2: losses may not import slmrec.config"]),
        ("data/dataset.py", "from ..models import sasrec", ["line 1: data may not import slmrec.models.sasrec"]),
        ("data/dataset.py", "from slmrec import Recommender", ["line 1: data may not import slmrec.Recommender"]),
        ("metrics.py", "import slmrec", ["line 1: metrics may not import slmrec"]),
        ("stages/distill.py", "from transformers import AutoModel", ["line 1: stages may not use transformers"]),
        (
            "stages/distill.py",
            "import slmrec.commands.main as cli",
            ["line 1: stages may not import slmrec.commands.main"],
        ),
        ("evaluation.py", "import accelerate.utils", ["line 1: evaluation may not use accelerate"]),
        ("stages/fetch.py", "import urllib.request", ["line 1: stages may not use urllib"]),
        ("checkpoint.py", "import json, pickle", ["line 1: checkpoint may not use pickle"]),
        ("data/dataset.py", "from .batching import collate\nfrom ..errors import DataError", []),
        ("checkpoint.py", "from slmrec.version import __version__", []),
    ],
)
def test_violations_are_seen(file: str, source: str, expected: list[str]) -> None:
    assert violations(SOURCE / file, source) == expected
