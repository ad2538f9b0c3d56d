"""Shared fixtures: the folder of real data and recorded values, and a small data set."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from slmrec import prepare
from slmrec.data.dataset import Dataset
from slmrec.recipes import find_recipe

ROOT = Path(__file__).parents[1]


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name tests of bytes by their number: gzip adds the time, and all workers must collect the same names."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data sets and the reference's recorded outputs, which are no part of this repository."""
    folder = (ROOT / os.environ.get("SLMREC_SHARED", "../shared")).resolve()
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set SLMREC_SHARED to the folder of shared data")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB, which only root can mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, without a window; a module's own, since its event loop is in the way of others."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without drawings, which take seconds and have tests of their own."""
    monkeypatch.setattr("slmrec.report.page.svg_of", lambda chart: '<svg width="1" height="1"></svg>')
    monkeypatch.setattr("slmrec.report.page.write_png", lambda chart, path: path.touch())


@pytest.fixture(scope="session")
def shop_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One user a line: 80 users who walk a ring of 40 items in steps of 1, 2 or 3."""
    path = tmp_path_factory.mktemp("raw") / "shop.txt"
    walks = [[f"i{(7 * user + step * (1 + user % 3)) % 40:02d}" for step in range(5 + user % 9)] for user in range(80)]
    path.write_text("".join(f"u{user:02d} {' '.join(items)}\n" for user, items in enumerate(walks)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_recipe(shop_file: Path) -> str:
    """The recipe `tiny` for that file, as YAML text, which each test loads and changes for itself."""
    content = yaml.safe_load(find_recipe("tiny").read_text(encoding="utf-8"))
    return yaml.safe_dump(content | {"prepare": {"input": str(shop_file)}})


@pytest.fixture
def titled_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Table of items with titles; a function that measures the titles' lengths stands in for the language model."""

    def read(_: object, titles: list[str], *rest: object) -> torch.Tensor:
        return torch.tensor([[1.0, len(title), len(title) % 3] for title in titles])

    monkeypatch.setattr("slmrec.models.text.sources.read_by_language_model", read)
    monkeypatch.setattr("slmrec.pipeline.run.check_source", lambda *_: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    items = tmp_path / "items.csv"
    items.write_text("item_id,title\n" + "".join(f"i{item:02d},Thing{item * 's'}\n" for item in range(40)))
    return items


@pytest.fixture(scope="session")
def tiny_dataset(shop_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Data set prepared from that file."""
    folder = tmp_path_factory.mktemp("tiny_dataset")
    prepare(shop_file, folder)
    return Dataset.load(folder)
