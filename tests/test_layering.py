"""The architecture: imports point downwards, libraries have one home, files and folders stay small."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "slmrec"

GROUND = (
    "types",
    "errors",
    "version",
    "files",
    "packaged",
    "folders",
    "locks",
    "progress",
    "plots",
    "topk",
    "processes",
    "launcher",
    "html_tables",
    "callbacks",
)
LAYERS: tuple[tuple[str, ...], ...] = (
    GROUND,
    ("recipes",),
    ("config",),
    ("storage",),
    ("data",),
    ("models",),
    ("inference",),
    ("evaluation",),
    ("training",),
    ("pipeline",),
    ("auto",),
    ("updates",),
    ("studies",),
    ("report",),
    ("serving",),
    ("forgetting",),
    ("run_folder",),
    ("run",),
    ("commands",),
    ("__main__",),
)
"""Modules and folders of slmrec from the ground up. A place imports only from layers before its own, and from itself;
the modules of the ground layer may import each other."""
LAYER_OF = {place: number for number, layer in enumerate(LAYERS) for place in layer}
LAZY = {"callbacks", "inference", "pipeline", "config", "run", "run_folder", "version"}
"""Places that `slmrec/__init__.py` imports when they are first used; see test_package.py."""

LIBRARY_HOMES: dict[str, tuple[str, ...]] = {
    "transformers": ("models", "training"),
    "peft": ("models", "training"),
    "accelerate": ("training", "processes.py"),
    "huggingface_hub": ("models/folder.py", "models/hub.py"),
    "urllib": ("config/secrets.py", "data/public"),
    "duckdb": ("data",),
    "fsspec": ("storage",),
    "ibis": ("data",),
    "psycopg": ("data/logs/database.py",),
    "pyspark": ("data/engine.py", "inference/batch/spark.py"),
    "faiss": ("inference/faiss_index.py",),
    "onnx": ("inference",),
    "onnxruntime": ("inference",),
    "optuna": ("studies/tune.py",),
    "matplotlib": ("plots.py", "report", "studies"),
    "jinja2": ("report",),
    "fastapi": ("serving",),
    "starlette": ("serving",),
    "uvicorn": ("serving",),
    "prometheus_client": ("serving",),
    "pickle": ("data/item_vectors.py", "data/state_dicts.py"),  # readers that can only build tensors
    **dict.fromkeys(("_pickle", "cloudpickle", "dill", "joblib", "shelve"), ()),
}
"""Files or folders that may import a library; all other libraries may be imported anywhere."""

MAX_LINES, MAX_FILES = 350, 20
FILES = sorted(SOURCE.rglob("*.py"))
FOLDERS = sorted({SOURCE, *(path for path in SOURCE.rglob("*") if path.is_dir() and path.name != "__pycache__")})


def relative(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def place_of(path: Path) -> str:
    """Top-level module or folder of a file."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def nodes_of(tree: ast.AST, type_checking: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if type_checking or not is_type_checking(child):
            yield child
            yield from nodes_of(child, type_checking)


def imports(path: Path, source: str, type_checking: bool = True) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything that a file imports, in functions too."""
    package = ("slmrec", *path.relative_to(SOURCE).parent.parts)
    for node in nodes_of(ast.parse(source), type_checking):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def violations(path: Path, source: str) -> list[str]:
    """Imports of a file that its place does not allow."""
    place, messages = place_of(path), []
    for line, name in imports(path, source):
        root, _, rest = name.partition(".")
        homes = LIBRARY_HOMES.get(root)
        if homes is not None and not any(PurePosixPath(relative(path)).is_relative_to(home) for home in homes):
            messages.append(f"line {line}: {relative(path)} may not import {root}")
        if root == "slmrec":
            target = rest.split(".")[0]
            if place == "__init__":
                allowed = target in LAZY
            else:
                below = LAYER_OF.get(target, len(LAYERS)) < LAYER_OF[place]
                allowed = below or target == place or (place in GROUND and target in GROUND)
            if not allowed:
                messages.append(f"line {line}: {place} may not import {name}")
    return messages


def module_of(name: str) -> Path | None:
    """File of the module, or of the package, that an imported name belongs to."""
    parts = name.split(".")[1:]
    while parts:
        path = SOURCE.joinpath(*parts)
        if path.with_suffix(".py").is_file():
            return path.with_suffix(".py")
        if (path / "__init__.py").is_file():
            return path / "__init__.py"
        parts.pop()
    return None


def graph_of(folder: Path) -> dict[str, set[str]]:
    """Imports between the modules and folders that stand directly in a folder."""
    graph: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*.py")):
        node = path.relative_to(folder).parts[0]
        targets = graph.setdefault(node, set())
        for _, name in imports(path, path.read_text(encoding="utf-8"), type_checking=False):
            module = module_of(name) if name.startswith("slmrec.") else None
            if module is not None and module.is_relative_to(folder):
                targets.add(module.relative_to(folder).parts[0])
        targets.discard(node)
    return graph


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_point_downwards(path: Path) -> None:
    assert place_of(path) in {*LAYER_OF, "__init__"}, f"{path.name} has no layer yet: add it to LAYERS in this file"
    assert violations(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if folder != SOURCE], ids=relative)
def test_no_folder_has_import_cycles(folder: Path) -> None:
    try:
        TopologicalSorter(graph_of(folder)).prepare()
    except CycleError as error:
        pytest.fail(f"{relative(folder)}: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("folder", FOLDERS, ids=relative)
def test_folders_are_small(folder: Path) -> None:
    assert len([path for path in folder.iterdir() if path.is_file()]) <= MAX_FILES


@pytest.mark.parametrize("path", [path for path in FILES if place_of(path) != "commands"], ids=relative)
def test_only_commands_print(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    lines = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert lines == [], "use logging.getLogger(__name__)"


def test_tests_mirror_the_source() -> None:
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    homes = {folder: ROOT if folder.parts[:1] == ("benchmarks",) else SOURCE for folder in folders}
    assert [str(folder) for folder, home in homes.items() if not (home / folder).is_dir()] == []


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("models/sasrec.py", "from slmrec.training import losses", ["models may not import slmrec.training.losses"]),
        ("data/items.py", "def f():\n    import slmrec.pipeline", ["data may not import slmrec.pipeline"]),
        ("data/dataset.py", "from ..models import sasrec", ["data may not import slmrec.models.sasrec"]),
        ("data/dataset.py", "from slmrec import Recommender", ["data may not import slmrec.Recommender"]),
        ("topk.py", "from slmrec.config import Config", ["topk may not import slmrec.config.Config"]),
        ("__init__.py", "from slmrec.serving import server", ["__init__ may not import slmrec.serving.server"]),
        (
            "pipeline/distill.py",
            "from transformers import AutoModel",
            ["pipeline/distill.py may not import transformers"],
        ),
        ("evaluation/rank.py", "import accelerate.utils", ["evaluation/rank.py may not import accelerate"]),
        ("data/prepare.py", "import urllib.request", ["data/prepare.py may not import urllib"]),
        ("models/folder.py", "import json, pickle", ["models/folder.py may not import pickle"]),
        ("data/dataset.py", "from .batching import collate\nfrom ..config import prepare", []),
        ("models/folder.py", "from slmrec.version import __version__\nimport huggingface_hub", []),
        ("files.py", "from slmrec.errors import DataError", []),
        ("data/public/download.py", "from urllib.request import Request", []),
    ],
)
def test_violations_are_seen(file: str, source: str, expected: list[str]) -> None:
    assert [message.split(": ")[1] for message in violations(SOURCE / file, source)] == expected


def test_cycles_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SOURCE", tmp_path)
    (tmp_path / "data" / "logs").mkdir(parents=True)
    (tmp_path / "data" / "logs" / "read.py").write_text("def f():\n    from slmrec.data.engine import connect")
    (tmp_path / "data" / "engine.py").write_text("from slmrec.data.logs import read")
    with pytest.raises(
        pytest.fail.Exception, match=r"data: (logs -> engine.py -> logs|engine.py -> logs -> engine.py)"
    ):
        test_no_folder_has_import_cycles(tmp_path / "data")
