"""Subsets of a data set: the events that stay, numbers of users and items, and the split of what is left."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slmrec import prepare
from slmrec.data.dataset import Dataset
from slmrec.data.subset import write_subset

EVENTS = [("a", item, 10 * time) for time, item in enumerate("pqrst")] + [
    ("b", item, 10 * time + 1) for time, item in enumerate("sqpr")
]


def prepared(folder: Path, **settings: object) -> Path:
    table = pa.table({name: list(values) for name, values in zip(("user_id", "item_id", "timestamp"), zip(*EVENTS, strict=True), strict=True)})  # fmt: skip # noqa: E501
    items = pa.table({"item_id": list("pqrst"), "title": [f"The {name}" for name in "pqrst"]})
    return prepare(table, folder, items, **settings)


def without(source: Path, output: Path, items: set[int]) -> Dataset:
    output.mkdir()
    keep = ~np.isin(Dataset.load(source).flat, list(items))
    write_subset(source, output, keep)
    return Dataset.load(output)


def test_events_leave_and_numbers_stay(tmp_path: Path) -> None:
    source = prepared(tmp_path / "all")
    left = without(source, tmp_path / "left", {4})  # item s
    assert [left.flat[start:end].tolist() for start, end in zip(left.offsets, left.offsets[1:], strict=False)] == [
        [1, 2, 3, 5], [2, 1, 3]
    ]  # fmt: skip
    assert left.item_ids.to_pylist() == list("pqrst") and left.titles is not None and left.num_users == 2
    assert left.train_counts().tolist() == [0, 1, 2, 0, 0, 0]
    events = pq.read_table(tmp_path / "left" / "interactions.parquet")
    assert events["position"].to_pylist() == [0, 1, 2, 3, 0, 1, 2]
    assert events["timestamp"].to_pylist() == [0, 10, 20, 40, 11, 21, 31]
    assert events.schema.names == pq.read_schema(source / "interactions.parquet").names
    assert left.fingerprint != Dataset.load(source).fingerprint


def test_the_last_two_events_that_are_left_are_held_out(tmp_path: Path) -> None:
    left = without(prepared(tmp_path / "all"), tmp_path / "left", {5})
    valid = left.held_out("valid")
    assert valid.flat[valid.spans(np.arange(2))[1]].tolist() == [3, 1]


def test_a_temporal_split_keeps_its_times(tmp_path: Path) -> None:
    source = prepared(tmp_path / "all", split="temporal", valid_share=0.2, test_share=0.2)
    before = Dataset.load(source)
    left = without(source, tmp_path / "left", {3})
    assert before.cuts is not None and left.cuts is not None
    assert left.preparation["rules"] == before.preparation["rules"]
    assert set(left.flat[np.r_[0 : left.cuts[0, 0]]].tolist()) == set(before.flat[: before.cuts[0, 0]].tolist()) - {3}


def test_users_without_events_stay(tmp_path: Path) -> None:
    source = prepared(tmp_path / "all")
    (tmp_path / "left").mkdir()
    counts = write_subset(source, tmp_path / "left", np.arange(9) < 5)
    left = Dataset.load(tmp_path / "left")
    assert counts["num_events"] == 5 and left.num_users == 2 and left.held_out("test").users().tolist() == [0]


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 9 events, but keep has 3 entries"):
        write_subset(prepared(tmp_path / "all"), tmp_path, np.ones(3, bool))
