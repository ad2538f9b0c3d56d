"""Item vectors of a Parquet file, which belong to items by their ids."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from slmrec.data.vectors_by_id import read_vectors_by_id, vector_width
from slmrec.errors import DataError

FLOATS = pa.list_(pa.float32())


def write(path: Path, ids: list[Any], vectors: list[Any], kind: pa.DataType = FLOATS) -> Path:
    pq.write_table(pa.table({"item_id": ids, "vector": pa.array(vectors, kind)}), path / "vectors.parquet")
    return path / "vectors.parquet"


@pytest.mark.parametrize(
    "kind", [FLOATS, pa.large_list(pa.float64()), pa.list_(pa.float32(), 2), pa.list_(pa.int16())], ids=str
)
@pytest.mark.parametrize(
    ("catalogue", "ids"),
    [
        (["a", "b", "c"], ["c", "x", "a"]),
        ([7, 8, 9], [9, 1, 7]),
        ([7, 8, 9], ["9", "1", "7.0"]),
        ([7, 8, 9], [9.0, 1.0, 7.0]),
    ],
    ids=["text", "numbers", "numbers as text", "floats"],
)
def test_vectors_belong_to_items_by_their_ids(
    tmp_path: Path, kind: pa.DataType, catalogue: list[Any], ids: list[Any]
) -> None:
    path = write(tmp_path, ids, [[5, 6], [1, 1], [3, 4]], kind)
    expected = torch.tensor([[0, 0], [3, 4], [0, 0], [5, 6]], dtype=torch.float32)
    assert torch.equal(read_vectors_by_id(path, pa.array(catalogue)), expected)


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        (["a", "a"], [[1.0], [2.0]], "item_id 'a' occurs 2 times; keep one row of it"),
        (["a", None], [[1.0], [2.0]], "row 1: item_id is None: expected an id"),
        (
            ["a", "b"],
            [[1.0], [2.0, 3.0]],
            "row 0: vector has 1 numbers, but others have 2; write vectors of one length",
        ),
        (["a", "b"], [[1.0], None], "row 1: vector has 0 numbers, but others have 1"),
        (["a", "b"], [[1.0], [float("nan")]], "row 1: vector has a value that is not finite"),
        (["x"], [[1.0]], "none of its 1 ids, such as 'x', is an item of the data set, such as 'a'"),
    ],
)
def test_faults_are_refused_with_their_row(tmp_path: Path, ids: list[Any], vectors: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_vectors_by_id(write(tmp_path, ids, vectors), pa.array(["a", "b"]))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "vectors.parquet"
    with pytest.raises(DataError, match="no such file of item vectors"):
        read_vectors_by_id(path, pa.array(["a"]))
    path.write_bytes(b"no table")
    with pytest.raises(DataError, match="not a Parquet file"):
        read_vectors_by_id(path, pa.array(["a"]))
    pq.write_table(pa.table({"item": ["a"], "vector": [[1.0]]}), path)
    with pytest.raises(DataError, match=r"no column 'item_id' \(columns: item, vector\); expected item_id and vector"):
        read_vectors_by_id(path, pa.array(["a"]))
    with pytest.raises(DataError, match="vector is a column of string, expected lists of numbers"):
        read_vectors_by_id(write(tmp_path, ["a"], ["1 2"], pa.string()), pa.array(["a"]))
    for read in (vector_width, lambda path: read_vectors_by_id(path, pa.array(["a"]))):
        with pytest.raises(DataError, match="has no rows; write a row with item_id and vector"):
            read(write(tmp_path, [], []))


def test_the_width_is_that_of_the_first_vector(tmp_path: Path) -> None:
    assert vector_width(write(tmp_path, ["a", "b"], [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])) == 3
