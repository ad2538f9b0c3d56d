"""Shared fixtures: the folder of real data and recorded values, and a small data set."""

import os
from pathlib import Path

import pytest

from slmrec import prepare
from slmrec.data.dataset import Dataset

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data sets and the reference's recorded outputs, which are no part of this repository."""
    folder = (ROOT / os.environ.get("SLMREC_SHARED", "../shared")).resolve()
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set SLMREC_SHARED to the folder of shared data")
    return folder


@pytest.fixture(scope="session")
def shop_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One user a line: 80 users who walk a ring of 40 items in steps of 1, 2 or 3."""
    path = tmp_path_factory.mktemp("raw") / "shop.txt"
    walks = [[f"i{(7 * user + step * (1 + user % 3)) % 40:02d}" for step in range(5 + user % 9)] for user in range(80)]
    path.write_text("".join(f"u{user:02d} {' '.join(items)}\n" for user, items in enumerate(walks)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_dataset(shop_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The same, prepared."""
    folder = tmp_path_factory.mktemp("tiny_dataset")
    prepare(shop_file, folder)
    return Dataset.load(folder)
