"""Parquet files whose columns are far larger in memory than in the file are refused at every door."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slmrec import prepare
from slmrec.config import PrepareConfig
from slmrec.data import parquet
from slmrec.data.vectors_by_id import read_vectors_by_id
from slmrec.errors import DataError
from slmrec.inference.history_files import open_user_rows
from slmrec.inference.items import _read as read_items_to_add

RATIO = r"log\.parquet: (cannot be read \()?its columns unpack to more than 1,048,576 bytes, out of all proportion"
MANY, LONG = 150_000, "x" * 20_000


def repeated(text: str, num: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(np.zeros(num, np.int32), [text])


BOMBS: dict[str, dict[str, Any]] = {
    "rows": {"user_id": repeated("u", MANY), "item_id": repeated("i", MANY), "timestamp": np.zeros(MANY, np.int64)},
    "texts": {"user_id": repeated(LONG, 100), "item_id": np.arange(100), "timestamp": np.arange(100)},
    "a list": {"user_id": ["u"], "history": [np.zeros(MANY, np.int64)]},
    "texts in a list": {"user_id": ["u"], "history": [[LONG] * 100]},
}


@pytest.mark.parametrize("name", BOMBS)
def test_columns_out_of_proportion_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_MIN_LIMIT", 2**20)
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table(BOMBS[name]), path, compression="zstd")
    assert path.stat().st_size < 4000
    with pytest.raises(DataError, match=RATIO), open_user_rows(path, PrepareConfig()) as rows:
        list(rows.read())
    if "item_id" in BOMBS[name]:
        with pytest.raises(DataError, match=RATIO):
            prepare(path, tmp_path / "data")
        log = {"user_id": ["u"] * 3, "item_id": ["i"] * 3, "timestamp": [1, 2, 3]}
        with pytest.raises(DataError, match=RATIO):
            prepare(pa.table(log), tmp_path / "data", items=path, title_col="user_id")
    monkeypatch.setattr(parquet, "_MIN_LIMIT", 2**24)  # such a size is read, large or not
    assert parquet.unpacked_size(path, path, BOMBS[name], "1GB") > 2**20


@pytest.mark.parametrize("read", [read_items_to_add, lambda path: read_vectors_by_id(path, pa.array(["u"]))])
def test_vectors_out_of_proportion_are_refused(
    read: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_MIN_LIMIT", 2**20)
    table = pa.table({"item_id": ["u"], "vector": [np.zeros(MANY, np.float32)]})
    pq.write_table(table, tmp_path / "log.parquet", compression="zstd")
    with pytest.raises(DataError, match=RATIO.replace("log.parquet: ", "log.parquet: (cannot be read .)?")):
        read(tmp_path / "log.parquet")


def test_columns_that_are_not_read_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_MIN_LIMIT", 2**20)
    log = {"user_id": ["u"] * 100, "item_id": range(100), "timestamp": range(100), "review": repeated(LONG, 100)}
    pq.write_table(pa.table(log), tmp_path / "log.parquet", compression="zstd")
    prepare(tmp_path / "log.parquet", tmp_path / "data")
