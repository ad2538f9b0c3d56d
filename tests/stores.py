"""Stores for tests: an empty one in memory, with a cache of its own."""

from pathlib import Path
from typing import Any

import fsspec
import pytest


def empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return fsspec's store in memory, empty; copies of its files are kept below `tmp_path`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("slmrec.storage.cache._names", {})
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    return store


def upload(store: Any, source: Path, target: str) -> None:
    """Upload a file or folder."""
    for path in [source] if source.is_file() else source.rglob("*"):
        if path.is_file():
            store.pipe(f"{target}/{path.relative_to(source)}".removesuffix("/."), path.read_bytes())
