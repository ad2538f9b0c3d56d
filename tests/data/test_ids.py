"""The rules of ids: missing ids, lists, and columns of whole numbers, text, and neither."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slmrec.config.prepare import NULL_VALUES, IdType
from slmrec.data.engine import connected
from slmrec.data.ids import (
    id_column,
    id_text,
    is_list,
    is_missing,
    is_missing_id,
    is_refused,
    kind_of_ids,
    refusal,
)

BIG = 2**63 + 5


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Any]:
    with connected("duckdb", tmp_path, "500MB") as engine:
        yield engine


def read(engine: Any, folder: Path, values: pa.Array, id_type: IdType = "auto") -> Any:
    """The kind of a column and its ids, or the refused values."""
    path = folder / "ids.parquet"
    pq.write_table(pa.table({"id": values}), path)
    table = engine.read_parquet(str(path))
    ids = id_column(table.id)
    if isinstance(ids, str):
        return ids
    table = table.select(id=ids)
    table = table.filter(~is_missing_id(table.id, NULL_VALUES) & ~is_list(table.id))
    kind = kind_of_ids(table.id, id_type)
    if kind.name == "refused":
        return kind.name, table.filter(is_refused(table.id)).to_pyarrow()["id"].to_pylist()
    return kind.name, table.select(id=kind.convert(table.id)).to_pyarrow()["id"].to_pylist()


@pytest.mark.parametrize(
    ("texts", "kind", "ids"),
    [
        (["1", "2.0", " 3 ", "-4", "-0", "5.000"], "int64", [1, 2, 3, -4, 0, 5]),
        (["\u00a07", "8\ufeff"], "int64", [7, 8]),
        (["007", "1"], "text", ["007", "1"]),
        (["1E5", "1"], "text", ["1E5", "1"]),
        (["1e+05", "1.0"], "text", ["1e+05", "1.0"]),
        (["A1", "1.0", "1.5"], "text", ["A1", "1.0", "1.5"]),
        (["+1", "2"], "text", ["+1", "2"]),
        (["1.", "2"], "text", ["1.", "2"]),
        (["1.5", "2"], "refused", ["1.5"]),
        (["5.00000000000000000001", "2.0"], "refused", ["5.00000000000000000001"]),
        (["9007199254740994.0", "2"], "refused", ["9007199254740994.0"]),
        (["1.2345678901234568e+18", "2.0"], "refused", ["1.2345678901234568e+18"]),
        ([str(BIG), "2"], "uint64", [BIG, 2]),
        ([str(BIG), "-2"], "whole", [str(BIG), "-2"]),
        (["9" * 40, "2.0", "-0"], "whole", ["9" * 40, "2", "0"]),
    ],
)
def test_columns_of_text(engine: Any, tmp_path: Path, texts: list[str], kind: str, ids: list[Any]) -> None:
    assert read(engine, tmp_path, pa.array(texts)) == (kind, ids)


@pytest.mark.parametrize(
    ("values", "kind", "ids"),
    [
        (pa.array([3, None], pa.int16()), "int64", [3]),
        (pa.array([3, 2**63 - 1], pa.uint64()), "int64", [3, 2**63 - 1]),
        (pa.array([3, BIG], pa.uint64()), "uint64", [3, BIG]),
        (pa.array([3.0, None, float("nan"), 2.0**53]), "int64", [3, 2**53]),
        (pa.array([3.0, 2.0**24], pa.float32()), "int64", [3, 2**24]),
        (pa.array([3.0, 2.0**25], pa.float32()), "refused", [2.0**25]),
        (pa.array([3.0, 3.5]), "refused", [3.5]),
        (pa.array([3.0, float("inf")]), "refused", [float("inf")]),
        (pa.array([3.0, 2.0**53 + 2]), "refused", [2.0**53 + 2]),
        (pa.array([Decimal("3.00"), Decimal("4.00")]), "int64", [3, 4]),
        (pa.array([Decimal("3.50"), Decimal("4.00")]), "refused", [Decimal("3.50")]),
        (pa.array([Decimal(BIG), Decimal(-1)]), "whole", [str(BIG), "-1"]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), "text", ["a", "b", "a"]),
    ],
)
def test_typed_columns(engine: Any, tmp_path: Path, values: pa.Array, kind: str, ids: list[Any]) -> None:
    assert read(engine, tmp_path, values) == (kind, ids)


@pytest.mark.parametrize(
    ("values", "ids"),
    [
        (pa.array(["17001.0", " 007 "]), ["17001.0", "007"]),
        (pa.array([17001.0, 1.5]), ["17001.0", "1.5"]),
        (pa.array([BIG], pa.uint64()), [str(BIG)]),
    ],
)
def test_text_keeps_ids_as_written(engine: Any, tmp_path: Path, values: pa.Array, ids: list[str]) -> None:
    assert read(engine, tmp_path, values, "text") == ("text", ids)


@pytest.mark.parametrize("value", [[1], {"a": 1}])
def test_columns_of_lists_are_refused(engine: Any, tmp_path: Path, value: Any) -> None:
    assert "write one row per item" in read(engine, tmp_path, pa.array([value]))


def test_columns_of_other_types_are_refused(engine: Any, tmp_path: Path) -> None:
    assert read(engine, tmp_path, pa.array([True])).startswith("has the type boolean, expected ids")


LISTS = ["[0, 1]", "[1]", "['a']", '["a", "b"]', "[]", "{}", '{"a": 1}', "{'a'}", "[[0]]", "[0 1]", "[a, b]", "(1, 2)"]
NO_LISTS = ["[deleted]", "[U:1:4614]", "{3F2504E0-4F89-11D3}", "(500)", "a[1, 2]"]


def test_lists_as_text(engine: Any, tmp_path: Path) -> None:
    assert read(engine, tmp_path, pa.array([*LISTS, *NO_LISTS])) == ("text", NO_LISTS)
    for text in LISTS:
        with pytest.raises(ValueError, match="write one row per item"):
            id_text(text, whole_numbers=False)
    assert [id_text(text, whole_numbers=True) for text in NO_LISTS] == NO_LISTS


MISSING = ["", " ", "\u00a0", "NA", "nan", "NaN", "null", "NULL", "none", "n/a", "-", " - ", "<NA>", "\\N"]


def test_missing_ids(engine: Any, tmp_path: Path) -> None:
    assert read(engine, tmp_path, pa.array([*MISSING, None, "na1", "--"])) == ("text", ["na1", "--"])
    assert all(map(is_missing, [*MISSING, None, float("nan"), np.float32("nan")]))
    assert not any(map(is_missing, ["na1", 0, 0.0, "0"]))
    assert is_missing("guest", ["Guest"])
    assert not is_missing("NA", ["Guest"])


@pytest.mark.parametrize(
    ("value", "whole_numbers", "text"),
    [
        (9, True, "9"),
        (9.0, True, "9"),
        ("9.0", True, "9"),
        (" 9 ", True, "9"),
        ("-0", True, "0"),
        ("007", True, "007"),
        (np.float32(9), True, "9"),
        (np.uint64(BIG), True, str(BIG)),
        (Decimal("9.00"), True, "9"),
        ("9.0", False, "9.0"),
        (9, False, "9"),
        ("x", True, "x"),
    ],
)
def test_id_of_a_request(value: Any, whole_numbers: bool, text: str) -> None:
    assert id_text(value, whole_numbers) == text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (9.5, "expected a whole number"),
        (float("inf"), "expected a whole number"),
        (2.0**60, "a float above 2\\^53"),
        (float("nan"), "expected an id"),
        (None, "expected an id"),
        (True, "expected an id"),
        ([9], "write one row per item"),
        ({"id": 9}, "write one row per item"),
    ],
)
def test_values_that_are_no_ids(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        id_text(value, whole_numbers=True)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("1.5", "a fraction"),
        (Decimal("1.5"), "a fraction"),
        ("5.00000000000000000001", "a fraction"),
        ("1e+17", "a float that is too large to be exact"),
        (2.0**60, "a float that is too large to be exact"),
        (float("inf"), "a float that is too large to be exact"),
    ],
)
def test_a_refusal_names_the_setting(value: Any, kind: str) -> None:
    assert refusal(value).startswith(kind)
    assert "prepare.id_type=text" in refusal(value)
