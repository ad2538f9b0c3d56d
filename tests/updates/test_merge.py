"""Data of an update: what is new in a log, and users and items that keep their numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slmrec.config import PrepareConfig
from slmrec.data.dataset import Dataset
from slmrec.data.prepare import prepare_dataset
from slmrec.data.statistics.describe import describe
from slmrec.errors import DataError
from slmrec.updates.merge import Changes, merge, write_changes
from slmrec.updates.new_log import read_items, read_log

ROWS = [(f"u{user}", f"i{(user + place) % 6}", 100 * place + user) for user in range(1, 9) for place in range(4)]
SETTINGS = PrepareConfig(min_item_events=2)


def write(
    rows: list[tuple[Any, ...]], path: Path, columns: tuple[str, ...] = ("user_id", "item_id", "timestamp")
) -> str:
    lines = [",".join(columns[: len(rows[0])]), *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def known(tmp_path: Path) -> Path:
    folder = tmp_path / "known"
    folder.mkdir()
    prepare_dataset(SETTINGS, folder, write(ROWS, tmp_path / "log.csv"))
    return folder


def changes_of(
    rows: list[tuple[Any, ...]], known: Path, items: str | None = None, settings: PrepareConfig = SETTINGS
) -> Changes:
    dataset = Dataset.load(known)
    table = None
    if items is not None:
        path = known.parent / "new_items.csv"
        path.write_text(items, encoding="utf-8")
        table = read_items(settings, dataset, path)
    return merge(settings, known, read_log(settings, dataset, write(rows, known.parent / "new.csv")), table)


def written(changes: Changes, known: Path, name: str) -> Dataset:
    folder = known.parent / name
    folder.mkdir()
    lengths = np.bincount(changes.events.users, minlength=len(changes.user_ids))
    write_changes(changes, known, folder, np.stack([lengths - 1, lengths], axis=1))
    return Dataset.load(folder)


def histories(dataset: Dataset) -> dict[Any, list[Any]]:
    ids = dataset.item_ids.to_pylist()
    parts = np.split(np.asarray(dataset.flat), dataset.offsets[1:-1])
    return {
        user: [ids[item - 1] for item in part] for user, part in zip(dataset.user_ids.to_pylist(), parts, strict=True)
    }


def test_old_users_and_items_keep_their_numbers(known: Path) -> None:
    before = Dataset.load(known)
    new = [("u1", "i5", 900), ("u1", "a0", 50), ("u0", "a0", 910), ("u0", "i1", 911), ("u0", "i2", 912)]
    changes = changes_of([*new, ("rare", "i1", 5)], known)
    assert (changes.num_new_events, changes.num_new_users, changes.num_new_items) == (5, 1, 1)
    after = written(changes, known, "after")
    assert after.user_ids.to_pylist() == [*before.user_ids.to_pylist(), "u0"]
    assert after.item_ids.to_pylist() == [*before.item_ids.to_pylist(), "a0"]
    own = histories(after)
    assert own["u1"] == ["i1", "a0", "i2", "i3", "i4", "i5"], "an older event that arrives late takes its place"
    assert own["u0"] == ["a0", "i1", "i2"] and own["u2"] == histories(before)["u2"]
    assert after.split_rule == "newest" and len(after.held_out("valid")) == 9
    assert describe(known.parent / "after").num_events == len(after.flat)

    later = changes_of([("rare", "i2", 950), ("rare", "i3", 951), *new], known.parent / "after")
    assert (later.num_new_events, later.num_new_users, later.num_known) == (3, 1, 5), "a rare user's event has waited"
    assert histories(written(later, known.parent / "after", "later"))["rare"] == ["i1", "i2", "i3"]


@pytest.mark.parametrize(
    ("settings", "has_times"),
    [
        (SETTINGS, True),
        (PrepareConfig(max_history=3), True),
        (PrepareConfig(max_history=3, order="file"), False),
        (PrepareConfig(repeats="drop", order="file"), True),
        (PrepareConfig(repeats="merge", core="single_pass", min_user_events=4, min_item_events=2, order="file"), False),
        (PrepareConfig(split="temporal"), True),
    ],
)
def test_the_same_log_again_is_not_new(settings: PrepareConfig, has_times: bool, tmp_path: Path) -> None:
    rows = [*ROWS, ("few", "i1", 1), ("u1", "once", 301), ("u1", "i4", 302), ("u1", "i4", 302)]
    rows = rows if has_times else [row[:2] for row in rows]
    (tmp_path / "known").mkdir()
    prepare_dataset(settings, tmp_path / "known", write(rows, tmp_path / "log.csv"))
    assert changes_of(rows, tmp_path / "known", settings=settings).is_empty
    more = [*rows, ("u2", "i1", 999)[: len(rows[0])]]
    changes = changes_of(more, tmp_path / "known", settings=settings)
    assert changes.num_new_events == 1 and changes.num_new_items == 0
    assert changes.events.items[changes.events.users == changes.user_ids.to_pylist().index("u2")][-1] == 2


def test_items_of_a_table_join_without_events(known: Path) -> None:
    table = "item_id,title\ni3,Three &amp; more\nz1,A new one\n"
    changes = changes_of(ROWS, known, table)
    assert changes.num_new_events == 0 and changes.num_new_items == 1 and not changes.is_empty
    after = written(changes, known, "after")
    assert after.titles is not None
    assert dict(zip(after.item_ids.to_pylist(), after.titles.to_pylist(), strict=True)) | {"i3": "Three & more"} == {
        **{f"i{number}": None for number in range(6)},
        "i3": "Three & more",
        "z1": "A new one",
    }


def test_times_and_ids_are_those_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "known").mkdir()
    rows = [(int(user[1:]), int(item[1:]), 1_600_000_000 + time) for user, item, time in ROWS]
    prepare_dataset(PrepareConfig(), tmp_path / "known", write(rows, tmp_path / "log.csv"))
    dataset, path = Dataset.load(tmp_path / "known"), tmp_path / "new.parquet"
    times = [1_600_000_001_000, 1_700_000_000_500]  # milliseconds; the first event is known
    pq.write_table(pa.table({"user_id": ["1.0", "1"], "item_id": [1.0, 2.0], "timestamp": times}), path)
    changes = merge(PrepareConfig(), tmp_path / "known", read_log(PrepareConfig(), dataset, str(path)))
    assert (changes.num_new_events, changes.num_known, changes.unit) == (1, 1, "ms")
    assert changes.user_ids.type == pa.int64()

    refused = {
        "item_id is 'x9', but the ids of the run are whole numbers": [(1, 2, 1_700_000_000), (1, "x9", 1_700_000_000)],
        "no column 'timestamp'": [(1, 2)],
        "no column 'item_id'": [(1,)],
    }
    for message, faulty in refused.items():
        with pytest.raises(DataError, match=message):
            changes_of(faulty, tmp_path / "known", settings=PrepareConfig())
    with pytest.raises(DataError, match="user_id is '1', a whole number as all others, but no id of the run is one"):
        read_log(PrepareConfig(), _with_text_ids(tmp_path), write([(1, "i2", 9)], tmp_path / "number.csv"))


def _with_text_ids(folder: Path) -> Dataset:
    (folder / "text").mkdir()
    prepare_dataset(PrepareConfig(), folder / "text", write(ROWS, folder / "text.csv"))
    return Dataset.load(folder / "text")
