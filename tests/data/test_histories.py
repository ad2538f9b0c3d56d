"""The flat arrays are those of the log, however it is cut into batches, and appear whole or not at all."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmrec.data import histories
from slmrec.data.dataset import Dataset
from slmrec.data.histories import open_histories, write_histories
from slmrec.errors import DataError

LOGS = st.lists(st.lists(st.integers(0, 9), max_size=6).map(sorted), min_size=1, max_size=12)
"""The times of each user's events."""
TEMPORAL = {"split": "temporal", "valid_from": 4, "test_from": 7}


def write_folder(folder: Path, log: list[list[int]], rules: dict[str, Any], **columns: Any) -> None:
    """A prepared folder in which event k of all is item k."""
    total = sum(map(len, log))
    table = {
        "user": np.repeat(np.arange(1, len(log) + 1), [len(times) for times in log]),
        "item": np.arange(1, total + 1),
        "timestamp": pa.array([time for times in log for time in times], pa.int64()),
        "position": np.zeros(total, np.int64),
    }
    pq.write_table(pa.table(table | columns), folder / "interactions.parquet", row_group_size=5)
    pq.write_table(pa.table({"user_id": range(len(log))}), folder / "users.parquet")
    pq.write_table(pa.table({"item_id": range(total)}), folder / "items.parquet")
    (folder / "dataset.json").write_text(json.dumps({"fingerprint": "x", "rules": rules}), encoding="utf-8")


@settings(deadline=None)
@given(LOGS.filter(any), st.integers(1, 7))
def test_arrays_are_those_of_the_log_however_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory, log: list[list[int]], batch_events: int
) -> None:
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder, log, TEMPORAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(histories, "BATCH_EVENTS", batch_events)
        write_histories(folder)
    found = open_histories(folder)
    assert found.flat.tolist() == list(range(1, sum(map(len, log)) + 1))
    assert found.offsets.tolist() == np.cumsum([0, *map(len, log)]).tolist()
    assert found.cuts is not None
    assert found.cuts.tolist() == [[sum(time < 4 for time in times), sum(time < 7 for time in times)] for times in log]
    assert [array.dtype for array in found] == [np.int32, np.int64, np.int32]
    assert not list(folder.glob(".*"))


def test_they_are_written_once_and_then_mapped(tmp_path: Path) -> None:
    write_folder(tmp_path, [[1, 2, 3], [4, 5, 6, 7]], {"split": "leave_one_out"})
    Dataset.load(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert {path.name for path in before} >= {"histories.npy", "offsets.npy"}
    assert not (tmp_path / "cuts.npy").exists()
    data = Dataset.load(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert isinstance(data.flat.base, np.memmap) and isinstance(data.offsets.base, np.memmap)
    assert not data.flat.flags.writeable and data.cuts is None


def test_a_folder_that_says_nothing_of_a_split_is_leave_one_out(tmp_path: Path) -> None:
    write_folder(tmp_path, [[1, 2, 3]], {}, timestamp=pa.nulls(3, pa.int64()))
    assert Dataset.load(tmp_path).split_rule == "leave_one_out"


def test_another_split_leaves_no_cuts_behind(tmp_path: Path) -> None:
    write_folder(tmp_path, [[1, 2, 3]], TEMPORAL)
    assert Dataset.load(tmp_path).split_rule == "temporal" and (tmp_path / "cuts.npy").exists()
    write_folder(tmp_path, [[1, 2, 3]], {"split": "leave_one_out"})
    write_histories(tmp_path)
    assert Dataset.load(tmp_path).split_rule == "leave_one_out" and not (tmp_path / "cuts.npy").exists()


def test_pages_are_given_back_and_come_again(tmp_path: Path) -> None:
    write_folder(tmp_path, [[1, 2, 3]], {})
    flat, offsets, cuts = open_histories(tmp_path)
    histories.give_back_pages(flat, offsets, cuts, np.arange(3), np.arange(9).reshape(3, 3).T)
    assert flat.tolist() == [1, 2, 3] and offsets.tolist() == [0, 3]


def test_a_folder_that_takes_no_files_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, [[1, 2, 3]], {})

    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(DataError, match=r"histories.npy: cannot be written \(Permission denied\).*copy the data set"):
        Dataset.load(tmp_path)
    assert not list(tmp_path.glob(".*")) and not list(tmp_path.glob("*.npy"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": [1, 2, 1]}, "user 1 in interactions.parquet|is not sorted by user"),
        ({"user": [1, 1, 3]}, "user 3 in interactions.parquet, expected 1 to 2"),
        ({"user": [0, 1, 2]}, "user 0 in interactions.parquet, expected 1 to 2"),
        ({"item": [1, 4, 1]}, "item 4 in interactions.parquet, expected 1 to 3"),
        ({"item": [1, 0, 1]}, "item 0 in interactions.parquet, expected 1 to 3"),
        ({"timestamp": [1, None, 1]}, "timestamp is missing in interactions.parquet"),
    ],
)
def test_events_of_no_prepared_data_set_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    write_folder(tmp_path, [[1], [2, 3]], TEMPORAL, **columns)
    with pytest.raises(DataError, match=rf"({message}).*run prepare again"):
        Dataset.load(tmp_path)
    assert not list(tmp_path.glob("*.npy")) and not list(tmp_path.glob(".*"))


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, [[1, 2, 3]], {"split": "random"})
    with pytest.raises(DataError, match=r"the split 'random', expected leave_one_out, temporal or newest"):
        Dataset.load(tmp_path)


def test_a_log_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, [[1, 2, 3]], TEMPORAL)
    pq.write_table(pq.read_table(tmp_path / "interactions.parquet").drop(["item"]), tmp_path / "interactions.parquet")
    with pytest.raises(DataError, match=r"interactions.parquet cannot be read .*run prepare again"):
        Dataset.load(tmp_path)


def test_arrays_of_other_events_or_cut_short_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, [[1, 2, 3]], {})
    write_histories(tmp_path)
    write_folder(tmp_path, [[1, 2, 3, 4]], {})
    with pytest.raises(DataError, match=r"has \(events, users\) \(3, 1\), expected \(4, 1\); delete histories.npy"):
        Dataset.load(tmp_path)
    (tmp_path / "histories.npy").write_bytes((tmp_path / "histories.npy").read_bytes()[:-4])
    with pytest.raises(DataError, match=r"histories.npy: not a complete array .*delete histories.npy"):
        Dataset.load(tmp_path)


def test_arrays_of_another_data_set_of_the_same_size_are_written_anew(tmp_path: Path) -> None:
    write_folder(tmp_path, [[1, 2, 3], [4, 5, 6]], {})
    open_histories(tmp_path)
    write_folder(tmp_path, [[1, 2, 3], [4, 5, 6]], {}, item=np.arange(6, 0, -1))
    facts = json.loads((tmp_path / "dataset.json").read_text(encoding="utf-8"))
    (tmp_path / "dataset.json").write_text(json.dumps(facts | {"fingerprint": "y"}), encoding="utf-8")
    assert open_histories(tmp_path).flat.tolist() == [6, 5, 4, 3, 2, 1]
