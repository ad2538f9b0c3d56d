"""A hundred damaged copies of model folders: each is opened, or refused in one line, in bounded time and memory."""

import json
import resource
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from artefacts import MODELS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slmrec import Recommender
from slmrec.data.dataset import Dataset
from slmrec.errors import SlmrecError
from slmrec.models.folder import save_recommender

FILES = ("config.json", "model.safetensors", "items.parquet", "about.json")
VALUES = st.sampled_from(
    [None, True, -1, 0, 1, 3, 10**9, 10**18, 1e300, 0.5, "", "x", "../x", "a/b", [], [1], {}, {"model_type": "llama"}]
)


@pytest.fixture(scope="module", params=["sasrec", "decoder", "ensemble"])
def folder(request: pytest.FixtureRequest, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    save_recommender(MODELS[request.param](), tiny_dataset, path, "tiny", {"ndcg@10": 0.5})
    return path


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every object or list in a value with every key of it."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


@st.composite
def damages(draw: st.DrawFn) -> tuple[str, str, list[Any]]:
    kind = draw(st.sampled_from(["flip", "cut", "insert", "remove", "swap", "change", "change", "change", "drop"]))
    name = draw(st.sampled_from(("config.json", "about.json") if kind in ("change", "drop") else FILES))
    number = st.integers(0, 10**6)
    return kind, name, [draw(number), draw(number), draw(VALUES), draw(st.sampled_from(FILES)), draw(st.booleans())]


def damage(folder: Path, kind: str, name: str, drawn: list[Any]) -> None:
    where, number, value, other, without_sums = drawn
    path = folder / name
    content = path.read_bytes()
    at = where % len(content)
    if kind == "flip":
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 + number % 255)]) + content[at + 1 :])
    elif kind == "cut":
        path.write_bytes(content[:at])
    elif kind == "insert":
        path.write_bytes(content[:at] + bytes([number % 256]) * (1 + number % 50) + content[at:])
    elif kind == "remove":
        path.unlink()
    elif kind == "swap":
        path.write_bytes((folder / other).read_bytes())
        (folder / other).write_bytes(content)
    else:
        values = json.loads(content)
        found = places(values)
        holder, key = found[where % len(found)]
        if kind == "change":
            holder[key] = value
        else:
            del holder[key]
        path.write_text(json.dumps(values), encoding="utf-8")
    if without_sums and name != "about.json":  # whoever makes up a folder makes up its checksums
        (folder / "about.json").unlink(missing_ok=True)


def check_a_damaged_copy(folder: Path, drawn: tuple[str, str, list[Any]]) -> None:
    """Damage a copy of a folder, and open it, or see that one line refuses it."""
    with TemporaryDirectory() as temporary:
        copy = Path(shutil.copytree(folder, Path(temporary) / "copy"))
        damage(copy, *drawn)
        start, peak_kb = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            recommender = Recommender.from_pretrained(copy)
            assert len(recommender.recommend([["i01", "i02"], []], 3).table)
            recommender.save_pretrained(Path(temporary) / "again")
        except SlmrecError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
        assert time.process_time() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kb < 1_000_000


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(damages())
def test_a_damaged_copy_is_opened_or_refused_in_one_line(folder: Path, drawn: tuple[str, str, list[Any]]) -> None:
    check_a_damaged_copy(folder, drawn)


@pytest.mark.heavy
@settings(max_examples=35, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(damages())
def test_a_hundred_damaged_copies_are_opened_or_refused(folder: Path, drawn: tuple[str, str, list[Any]]) -> None:
    check_a_damaged_copy(folder, drawn)
