"""One log gives one data set, or one refusal, from every kind of file and table, with every type of id and of time."""

import csv
import datetime
import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_files import write

import slmrec
from slmrec.errors import DataError

WHOLE = st.integers(-(2**53), 2**53)
TYPES: dict[str, tuple[st.SearchStrategy[Any], pa.DataType]] = {
    "whole numbers": (st.integers(-(2**63), 2**63 - 1), pa.int64()),
    "small numbers": (st.integers(0, 255), pa.uint8()),
    "hashes": (st.integers(2**62, 2**64 - 1), pa.uint64()),
    "floats": (st.integers(0, 10**15).map(float), pa.float64()),
    "fractions": (st.integers(0, 99).map(lambda number: number + 0.5), pa.float64()),
    "large floats": (st.integers(2**54, 2**60).map(float), pa.float64()),
    "decimals": (WHOLE.map(Decimal), pa.decimal128(20, 0)),
    "text": (st.text("aZ0é😀.-/ ", max_size=4).map(lambda text: f"i{text}j"), pa.string()),
    "numbers as text": (st.sampled_from(["7", "8.0", " 9", "-10"]), pa.string()),
    "codes": (st.sampled_from(["007", "1E5", "1.5", "7.0", "A1"]), pa.string()),
    "categories": (st.sampled_from(["a", "b", "c d"]), pa.dictionary(pa.int32(), pa.string())),
    "lists": (st.lists(st.integers(0, 9), min_size=1, max_size=3), pa.list_(pa.int64())),
    "objects": (
        st.integers(0, 9).map(lambda number: {"sku": number, "n": 1}),
        pa.struct({"sku": pa.int64(), "n": pa.int64()}),
    ),
}
FAST = ("hashes", "floats", "fractions", "text", "lists")
"""Types that are tried in every run of the tests."""
NULL_WORDS = (None, "NA", pytest.param("nan", marks=pytest.mark.heavy), pytest.param("-", marks=pytest.mark.heavy))


def written(value: Any) -> str:
    return "" if value is None else str(value)


def in_json(value: Any) -> Any:
    return int(value) if isinstance(value, Decimal) else str(value)


def table_of(rows: list[tuple[Any, int]], id_type: pa.DataType) -> pa.Table:
    """A log of pairs of an item and a user, in order; the ids of users are text."""
    items = pa.array([item for item, _ in rows], id_type)
    return pa.table({"user_id": [f"u{user}" for _, user in rows], "item_id": items, "timestamp": range(len(rows))})


def all_kinds(folder: Path, table: pa.Table) -> dict[str, Any]:
    rows = [tuple(row.values()) for row in table.to_pylist()]
    kinds: dict[str, Any] = {}
    for name, delimiter in (("csv", ","), ("tsv", "\t")):
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=delimiter).writerows([table.column_names, *(map(written, row) for row in rows)])
        kinds[name] = write(folder / f"log.{name}", text.getvalue())
    objects = (json.dumps(dict(zip(table.column_names, row, strict=True)), default=in_json) for row in rows)
    kinds["jsonl"] = write(folder / "log.jsonl", "\n".join(objects))
    kinds["parquet"] = write(folder / "log.parquet", table)
    kinds["pandas"] = table.to_pandas(types_mapper=pd.ArrowDtype if pa.types.is_list(table["item_id"].type) else None)
    kinds["polars"] = pl.from_arrow(table)
    return kinds


def result(log: Any, output: Path, **options: Any) -> Any:
    """The tables of the data set and their types; or the end of the refusal."""
    try:
        folder = slmrec.prepare(log, output, **options)
    except DataError as error:
        reason = str(error).partition("expected")[2] or str(error).rpartition("looks like")[2]
        assert reason and "\n" not in str(error)
        return reason.partition(";")[0]
    unit = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["timestamp_unit"]
    return [*(pq.read_table(folder / f"{name}.parquet") for name in ("interactions", "items", "users")), unit]


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.heavy) for name in TYPES]
)
@settings(max_examples=1, deadline=None, derandomize=True)
@given(data=st.data())
def test_one_log_is_the_same_from_every_kind_of_file(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    ids, id_type = TYPES[name]
    items = [*data.draw(st.lists(ids, min_size=4, max_size=6)), *(["A1"] if name == "codes" else [])]
    table = table_of([(item, user) for user in range(3) for item in items], id_type)
    folder = tmp_path_factory.mktemp("ids")
    results = {kind: result(log, folder / "out" / kind) for kind, log in all_kinds(folder, table).items()}
    assert all(found == results["csv"] for found in results.values()), results
    refused = name in {"fractions", "large floats", "lists", "objects"}
    assert isinstance(results["csv"], str) == refused


YEARS = {"min_value": datetime.datetime(2000, 1, 1), "max_value": datetime.datetime(2030, 1, 1)}
SECONDS = st.integers(10**9, 2 * 10**9)
MOMENTS = st.datetimes(**YEARS)
DAYS = MOMENTS.map(datetime.datetime.date)
TIMES: dict[str, tuple[st.SearchStrategy[Any], pa.DataType]] = {
    "seconds": (SECONDS, pa.int64()),
    "unsigned milliseconds": (SECONDS.map(lambda time: 1000 * time + 5), pa.uint64()),
    "floats": (SECONDS.map(float), pa.float64()),
    "fractions": (SECONDS.map(lambda time: time + 0.25), pa.float64()),
    "counters": (st.integers(0, 255), pa.uint8()),
    "numbers as text": (SECONDS.map(lambda time: f" {time}.5"), pa.string()),
    "days": (DAYS, pa.date32()),
    "datetimes": (MOMENTS, pa.timestamp("us")),
    "datetimes with a zone": (
        MOMENTS.map(lambda time: time.replace(tzinfo=datetime.UTC)),
        pa.timestamp("us", "Asia/Tokyo"),
    ),
    "datetimes as text": (MOMENTS.map(lambda time: f"{time:%Y-%m-%dT%H:%M:%S}.123456789+05:30"), pa.string()),
    "categories": (DAYS.map(str), pa.dictionary(pa.int32(), pa.string())),
    "strptime": (MOMENTS.map(lambda time: f"{time:%d.%m.%Y %H:%M}"), pa.string()),
    "numbers for strptime": (DAYS.map(lambda day: int(f"{day:%Y%m%d}")), pa.int64()),
    "dates as numbers": (DAYS.map(lambda day: float(f"{day:%Y%m%d}")), pa.float64()),
    "other notations": (DAYS.map(lambda day: f"{day:%Y/%m/%d}"), pa.string()),
    "mixed units": (st.sampled_from([1_700_000_000, 1_700_000_000_000]), pa.int64()),
    "booleans": (st.booleans(), pa.bool_()),
}
FORMATS = {"strptime": "%d.%m.%Y %H:%M", "numbers for strptime": "%Y%m%d"}
REFUSED_TIMES = {"dates as numbers", "other notations", "mixed units", "booleans"}
FAST_TIMES = ("datetimes with a zone", "dates as numbers")


@pytest.mark.parametrize(
    "name", [name if name in FAST_TIMES else pytest.param(name, marks=pytest.mark.heavy) for name in TIMES]
)
@settings(max_examples=1, deadline=None, derandomize=True)
@given(data=st.data())
def test_times_are_the_same_from_every_kind_of_file(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    values, time_type = TIMES[name]
    times = data.draw(st.lists(values, min_size=6, max_size=9, unique=name not in {"booleans", "mixed units"}))
    if name == "mixed units":
        times[:2] = [1_700_000_000, 1_700_000_000_000]
    users = [f"u{number % 2}" for number in range(len(times))]
    items = [f"i{number}" for number in range(len(times))]
    table = pa.table({"user_id": users, "item_id": items, "timestamp": pa.array(times, time_type)})
    folder = tmp_path_factory.mktemp("times")
    options = {"time_format": FORMATS[name]} if name in FORMATS else {}
    results = {kind: result(log, folder / "out" / kind, **options) for kind, log in all_kinds(folder, table).items()}
    assert all(found == results["csv"] for found in results.values()), results
    assert isinstance(results["csv"], str) == (name in REFUSED_TIMES)


@pytest.mark.parametrize("word", NULL_WORDS)
def test_missing_ids_are_faults_in_every_kind_of_file(tmp_path: Path, word: str | None) -> None:
    items = [*"abc", word, *"abc"]
    kinds = all_kinds(tmp_path, table_of([(item, 1) for item in items], pa.string()))
    for kind in ("csv", "pandas"):
        assert result(kinds[kind], tmp_path / "stopped" / kind).startswith(" an id"), kind
    results = {kind: result(log, tmp_path / "out" / kind, on_bad_row="skip") for kind, log in kinds.items()}
    assert all(found == results["csv"] for found in results.values())
    assert results["csv"][1]["item_id"].to_pylist() == ["a", "b", "c"]
    assert len(pq.read_table(tmp_path / "out" / "polars" / "rejected.parquet")) == 1


def test_missing_numbers_are_faults_in_every_kind_of_file(tmp_path: Path) -> None:
    table = table_of([(item, 1) for item in (5.0, 6.0, None, 7.0)], pa.float64())
    results = {
        kind: result(log, tmp_path / "out" / kind, on_bad_row="skip")
        for kind, log in all_kinds(tmp_path, table).items()
    }
    assert all(found == results["csv"] for found in results.values())
    assert results["csv"][1]["item_id"].to_pylist() == [5, 6, 7]


def test_parts_that_write_whole_numbers_differently_are_one_log(tmp_path: Path) -> None:
    header = "user_id,item_id,timestamp\n"
    parts = {"a.csv": header + "1,5,1\n1,6,2\n1,7,3\n", "b.csv": header + "1.0,5.0,4\n2.0,6.0,5\n2,7,6\n2,5,7\n"}
    folder = slmrec.prepare(write(tmp_path / "log", parts), tmp_path / "out")
    assert pq.read_table(folder / "users.parquet")["user_id"].to_pylist() == [1, 2]
    assert pq.read_table(folder / "items.parquet")["item_id"].to_pylist() == [5, 6, 7]


def test_ids_of_the_type_text_stay_as_written(tmp_path: Path) -> None:
    table = table_of([(item, 1) for item in (5.0, 6.5, 7.0)], pa.float64())
    for kind, log in all_kinds(tmp_path, table).items():
        found = result(log, tmp_path / "out" / kind, id_type="text")
        assert found[1]["item_id"].to_pylist() == ["5.0", "6.5", "7.0"], kind


@pytest.mark.parametrize("dtype", ["category", pl.Categorical, pl.Enum(["a", "b", "c"])])
def test_categories_of_data_frames_are_read(tmp_path: Path, dtype: Any) -> None:
    columns = {"user_id": ["u"] * 3, "item_id": ["b", "a", "c"], "timestamp": [1, 2, 3]}
    frame: Any = pd.DataFrame(columns) if dtype == "category" else pl.DataFrame(columns)
    frame = (
        frame.astype({"item_id": dtype}) if dtype == "category" else frame.with_columns(pl.col("item_id").cast(dtype))
    )
    folder = slmrec.prepare(frame, tmp_path / "out")
    assert pq.read_table(folder / "items.parquet")["item_id"].to_pylist() == ["a", "b", "c"]


@pytest.mark.parametrize("catalogue", [["5", "6", "7"], ["5.0", "6.0", "7"], ["A1", "5.0", "6.0"]])
def test_items_are_found_by_the_type_of_the_log(tmp_path: Path, catalogue: list[str]) -> None:
    log = write(tmp_path / "log.csv", "user_id,item_id,timestamp\n" + "".join(f"u,{i},1\n" for i in catalogue))
    is_text = "A1" in catalogue
    tables: dict[str, Any] = {
        "as written": pa.table({"item_id": catalogue, "title": ["x", "y", "z"]}),
        "as floats": pa.table({"item_id": [5.0, 6.0, 7.0], "title": ["x", "y", "z"]}),
        "as text": pa.table({"item_id": ["5.0", "6.0", "7.0"], "title": ["x", "y", "z"]}),
    }
    for name, items in tables.items():
        if is_text and name == "as floats":
            continue
        folder = slmrec.prepare(log, tmp_path / "out" / name, items)
        titles = pq.read_table(folder / "items.parquet")["title"].to_pylist()
        assert titles.count(None) == (1 if is_text and name == "as text" else 0), name
