"""From logs to data-set folders: what is in the files, in which order, and that the counts are true."""

import csv
import gzip
import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmrec.config import PrepareConfig
from slmrec.data import prepare as module
from slmrec.data.dataset import Dataset
from slmrec.data.ids import stripped
from slmrec.data.logs.read import read_events
from slmrec.data.prepare import prepare_dataset
from slmrec.errors import ConfigError, DataError

Row = tuple[Any, ...]
FILES = [
    *("dataset.json", "histories.npy", "histories.txt", "interactions.parquet", "items.parquet", "offsets.npy"),
    "users.parquet",
]
THREE = [("u", "a", 1), ("u", "b", 2), ("u", "c", 3)]


def write_csv(path: Path, rows: Sequence[Row], header: Sequence[str] = ("user_id", "item_id", "timestamp")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return path


def write_parquet(path: Path, rows: Sequence[Row], **options: Any) -> Path:
    columns = dict(zip(("user_id", "item_id", "timestamp"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), path, **options)
    return path


def prepare(input: Path, **settings: Any) -> tuple[Path, dict[str, float]]:
    output = input.parent / f"{input.name}.prepared.{len(list(input.parent.iterdir()))}"
    output.mkdir()
    return output, prepare_dataset(PrepareConfig(**settings), output, str(input))


def facts(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "dataset.json").read_text(encoding="utf-8")))


def tables(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("interactions", "items", "users")}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "dataset.json"}


def histories(folder: Path) -> dict[Any, list[Any]]:
    """In the caller's ids."""
    dataset = Dataset.load(folder)
    item_ids, user_ids = dataset.item_ids.to_pylist(), dataset.user_ids.to_pylist()
    cuts = zip(user_ids, dataset.offsets[:-1], dataset.offsets[1:], strict=True)
    return {user: [item_ids[item - 1] for item in dataset.flat[start:end]] for user, start, end in cuts}


def test_tables_and_facts(tmp_path: Path) -> None:
    rows = [("b", 10, 3), ("a", 9, 1), ("b", 2, 1), ("a", 10, 2), ("b", 2, 2), ("a", 9, 3), ("b", 9, 0)]
    path = write_csv(tmp_path / "log.csv", rows)
    folder, counts = prepare(path)
    found = tables(folder)
    assert found["users"] == [{"user": 1, "user_id": "a"}, {"user": 2, "user_id": "b"}]
    assert found["items"] == [{"item": number, "item_id": item} for number, item in enumerate((2, 9, 10), 1)]
    assert [tuple(row.values()) for row in found["interactions"]] == [
        (1, 2, 1, 0),
        (1, 3, 2, 1),
        (1, 2, 3, 2),
        (2, 2, 0, 0),
        (2, 1, 1, 1),
        (2, 1, 2, 2),
        (2, 3, 3, 3),
    ]
    expected = {"num_read_events": 7, "num_rejected_rows": 0, "num_dropped_users": 0, "num_dropped_items": 0}
    expected |= {"num_users": 2, "num_items": 3, "num_events": 7}
    assert counts.items() >= (expected | {"shortest_history": 3, "mean_history": 3.5, "longest_history": 4}).items()
    assert not any(name.startswith("num_removed_by_") for name in counts)
    written = facts(folder)
    assert written["counts"] == counts
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert written["sources"] == [{"file": "log.csv", "bytes": path.stat().st_size, "sha256": digest}]
    assert written["rules"].items() >= {"min_user_events": 3, "repeats": "keep", "ties": ["row"]}.items()
    assert sorted(file.name for file in folder.iterdir()) == FILES


def test_types(tmp_path: Path) -> None:
    folder, _ = prepare(write_csv(tmp_path / "log.csv", [("u", 1, 1), ("u", 2, 2), ("u", 3, 3)]))
    whole, text = pa.int64(), pa.string()
    schemas = {name: pq.read_schema(folder / f"{name}.parquet") for name in ("interactions", "items", "users")}
    assert {name: dict(zip(schema.names, schema.types, strict=True)) for name, schema in schemas.items()} == {
        "interactions": {"user": whole, "item": whole, "timestamp": whole, "position": whole},
        "items": {"item": whole, "item_id": whole},
        "users": {"user": whole, "user_id": text},
    }


def test_sequences_have_no_timestamps(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("v c a b a\nu b b a\n", encoding="utf-8")
    folder, _ = prepare(path)
    assert histories(folder) == {"u": ["b", "b", "a"], "v": ["c", "a", "b", "a"]}
    assert {row["timestamp"] for row in tables(folder)["interactions"]} == {None}
    assert pq.read_schema(folder / "interactions.parquet").field("timestamp").type == pa.int64()


distinct_times = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from(["a", "b", "ü", "01"]), st.integers(0, 10**10)),
    min_size=1,
    max_size=12,
    unique_by=lambda row: row[2],
)


@settings(max_examples=5, deadline=None)
@given(rows=distinct_times, data=st.data())
def test_shuffled_rows_give_the_same_files(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("shuffled")
    rows = [*rows, ("z", "a", -1), ("z", "b", -2), ("z", "a", -3)]
    shuffled = data.draw(st.permutations(rows))
    first, first_counts = prepare(write_csv(folder / "first.csv", rows))
    other, other_counts = prepare(write_csv(folder / "other.csv", shuffled))
    assert contents(first) == contents(other)
    assert first_counts == other_counts
    assert facts(first)["fingerprint"] == facts(other)["fingerprint"]


@pytest.mark.parametrize("scale", [1, 1000, 10**9])
def test_times_one_apart_keep_their_order(tmp_path: Path, scale: int) -> None:
    start = 1_700_000_000 * scale
    rows = [("u", f"i{step:03d}", start + step) for step in range(200)]
    for write, name in ((write_csv, "log.csv"), (write_parquet, "log.parquet")):
        folder, _ = prepare(write(tmp_path / name, rows[::-1]))
        assert histories(folder)["u"] == [item for _, item, _ in rows]
        assert [row["timestamp"] for row in tables(folder)["interactions"]] == [time for _, _, time in rows]


def test_parts_of_a_second_keep_their_order(tmp_path: Path) -> None:
    rows = [("u", f"i{step}", f"2024-01-01T00:00:00.{step}Z") for step in range(9)]
    folder, _ = prepare(write_csv(tmp_path / "log.csv", rows[::-1]))
    assert histories(folder)["u"] == [f"i{step}" for step in range(9)]


@pytest.mark.parametrize("kind", ["csv", "parquet", "parts of csv", "parts of parquet"])
def test_ties_keep_the_order_of_a_large_log(tmp_path: Path, kind: str) -> None:
    items = [(7919 * row) % 300_007 for row in range(300_000)]
    rows = [("u", item, 5) for item in items]
    *in_parts, suffix = kind.split(" of ")
    write = write_csv if suffix == "csv" else write_parquet
    if in_parts:
        path = tmp_path / "log"
        path.mkdir()
        for part in range(10):
            write(path / f"part-{part:03d}.{suffix}", rows[part * 30_000 : (part + 1) * 30_000])
    else:
        path = write(tmp_path / f"log.{suffix}", rows, **({"row_group_size": 20_000} if suffix == "parquet" else {}))
    folder, _ = prepare(path)
    assert histories(folder)["u"] == items


def test_a_tie_column_orders_ties(tmp_path: Path) -> None:
    rows = [("u", "a", 1, 3), ("u", "b", 1, 1), ("u", "c", 1, 2), ("u", "d", 0, 9)]
    log = write_csv(tmp_path / "log.csv", rows, header=("user_id", "item_id", "timestamp", "session"))
    folder, _ = prepare(log, tie_col="session")
    assert histories(folder)["u"] == ["d", "b", "c", "a"]
    assert facts(folder)["rules"]["ties"] == ["tie", "row"]


def test_tables_in_parts_are_as_those_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(3)
    rows = [(f"u{draw.randrange(9)}", f"i{draw.randrange(20)}", draw.randrange(50)) for _ in range(101)]
    log = write_csv(tmp_path / "log.csv", rows)
    whole, _ = prepare(log)
    for size in (1, 7, 101):
        monkeypatch.setattr(module, "ROWS_PER_PART", size)
        folder, _ = prepare(log)
        assert tables(folder) == tables(whole)
        assert facts(folder)["fingerprint"] == facts(whole)["fingerprint"]


def test_repeats_are_kept(tmp_path: Path) -> None:
    folder, counts = prepare(write_csv(tmp_path / "log.csv", [("u", "a", 1)] * 4))
    assert histories(folder)["u"] == ["a"] * 4
    assert counts["num_events"] == 4


def test_ids_survive(tmp_path: Path) -> None:
    items = ["007", "7", "+7", "a,b", 'say "x"', "naïve", "日本", "😀", "a b", "Z", "null-", "-0"]
    folder, _ = prepare(write_csv(tmp_path / "log.csv", [("Ü,1", item, 1) for item in items]))
    assert histories(folder) == {"Ü,1": items}
    assert Dataset.load(folder).item_ids.to_pylist() == sorted(items)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["10", "9", "-1"], [-1, 9, 10]),
        (["10", "9", "09"], ["09", "10", "9"]),
        (["10", "9", "+1"], ["+1", "10", "9"]),
        (["10", "9", "a"], ["10", "9", "a"]),
        (["1234567890123456789", "9223372036854775807", "2"], [2, 1234567890123456789, 2**63 - 1]),
        (["9223372036854775808", "9", "10"], [9, 10, 2**63]),
        (["18446744073709551616", "9", "10"], ["10", "18446744073709551616", "9"]),
        (["10.0", "9", "-1.0"], [-1, 9, 10]),
        (["\U0001f600", "\uffee", "z"], ["z", "\uffee", "\U0001f600"]),
    ],
)
def test_ids_are_ordered_by_value_or_code_point(tmp_path: Path, ids: list[str], expected: list[Any]) -> None:
    folder, _ = prepare(write_csv(tmp_path / "log.csv", [("u", item, 1) for item in ids]))
    assert [(row["item"], row["item_id"]) for row in tables(folder)["items"]] == list(enumerate(expected, 1))


texts = st.text(st.characters(codec="utf-8", exclude_categories=["C"])).map(lambda text: f"i{stripped(text)}")
ids = st.one_of(st.integers(-(10**18), 10**18), texts)


@settings(max_examples=6, deadline=None)
@given(data=st.data(), users=st.lists(ids.map(str).filter(bool), min_size=1, max_size=9, unique=True))
def test_ids_are_dense_and_lead_back(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, users: list[str]
) -> None:
    items = st.lists(ids.map(str).filter(bool), min_size=3, max_size=7)
    logs = {user: data.draw(items) for user in users}
    rows = [(user, item, time) for user, chosen in logs.items() for time, item in enumerate(chosen)]
    folder, _ = prepare(write_parquet(tmp_path_factory.mktemp("ids") / "log.parquet", rows))
    found = tables(folder)
    for name in ("user", "item"):
        assert [row[name] for row in found[f"{name}s"]] == list(range(1, len(found[f"{name}s"]) + 1))
        assert {row[name] for row in found["interactions"]} == {row[name] for row in found[f"{name}s"]}
    assert {str(user): list(map(str, chosen)) for user, chosen in histories(folder).items()} == logs


def test_short_users_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [("u7", "only", 1), ("u7", "b", 2), ("u8", "b", 2), *[("u1", "a", 1)] * 3]
    folder, counts = prepare(write_csv(tmp_path / "log.csv", rows))
    assert histories(folder) == {"u1": ["a", "a", "a"]}
    assert counts == facts(folder)["counts"]
    expected = {"num_read_events": 6, "num_removed_by_min_user_events": 3, "num_dropped_users": 2}
    assert counts.items() >= (expected | {"num_dropped_items": 2, "num_items": 1, "num_events": 3}).items()


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "log.csv", [("u7", "a", 1)])
    with pytest.raises(DataError, match=r"no event is left; .*min_user_events \(3\): 1; loosen .* give more data"):
        prepare(path)


def test_titles_join_by_id(tmp_path: Path) -> None:
    named = [(10, "Ten", 0), (99, "Unsold", 0), (2, "Two", 0), (2, "Deux", 0)]
    items = write_csv(tmp_path / "items.csv", named, header=("item_id", "title", "price"))
    log = write_csv(tmp_path / "log.csv", [("u", 10, 1), ("u", 3, 2), ("u", 2, 3)])
    folder, counts = prepare(log, items=str(items))
    assert [(row["item_id"], row["title"]) for row in tables(folder)["items"]] == [(2, "Two"), (3, None), (10, "Ten")]
    assert (counts["num_titled_items"], counts["num_retitled_items"]) == (2, 1)
    assert [source["file"] for source in facts(folder)["sources"]] == ["log.csv", "items.csv"]
    titles = Dataset.load(folder).titles
    assert titles is not None
    assert titles.to_pylist() == ["Two", None, "Ten"]


def test_titles_are_unescaped(tmp_path: Path) -> None:
    named = [("a", "Salt &amp; Pepper"), ("b", "R&B"), ("c", "&lt;3 &#39;x&#39;")]
    items = write_csv(tmp_path / "items.csv", named, header=("item_id", "title"))
    folder, _ = prepare(write_csv(tmp_path / "log.csv", THREE), items=str(items))
    assert [row["title"] for row in tables(folder)["items"]] == ["Salt & Pepper", "R&B", "<3 'x'"]


def test_titles_of_the_log_itself_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles = write_csv(tmp_path / "titles.csv", [("b", "B &amp; b", 0), ("a", "A", 1)], ("item_id", "title", "row"))

    def with_titles(engine: Any, *given: Any) -> Any:
        read = read_events(engine, *given)
        return read._replace(titles=engine.read_csv(str(titles)), columns={"format": "reference"})

    monkeypatch.setattr(module, "read_events", with_titles)
    folder, counts = prepare(write_csv(tmp_path / "log.csv", THREE))
    assert [(row["item_id"], row["title"]) for row in tables(folder)["items"]] == [
        ("a", "A"),
        ("b", "B & b"),
        ("c", None),
    ]
    assert counts["num_titled_items"] == 2


TITLES = {
    "of_items": ([("a", "A"), ("b", "B &amp; b"), ("a", " A "), ("c", ""), ("b", "B &amp; b")], ["A", "B & b", None]),
    "of_events": ([("a", "good"), ("b", "bad"), ("a", "fine"), ("c", "well"), ("b", "never")], None),
    "alike": ([("a", "bought"), ("b", "bought"), ("a", "bought"), ("c", "bought"), ("b", "bought")], None),
    "nowhere_twice": ([("a", "A"), ("b", "B"), ("c", "C")], None),
}


@pytest.mark.parametrize("kind", TITLES)
@pytest.mark.parametrize("column", ["title", "Product Name"])
@pytest.mark.parametrize("format", ["csv", "parquet", "jsonl"])
def test_titles_in_the_log_are_read_if_they_are_those_of_items(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, column: str, format: str
) -> None:
    caplog.set_level("INFO", logger="slmrec")
    rows, expected = TITLES[kind]
    names = ("user_id", "item_id", column, "timestamp")
    events = [("u", item, title, time) for time, (item, title) in enumerate(rows)]
    path = tmp_path / f"log.{format}"
    if format == "csv":
        write_csv(path, events, names)
    elif format == "parquet":
        pq.write_table(pa.Table.from_pylist([dict(zip(names, event, strict=True)) for event in events]), path)
    else:
        path.write_text("\n".join(json.dumps(dict(zip(names, event, strict=True))) for event in events))
    folder, counts = prepare(path)
    assert [row.get("title") for row in tables(folder)["items"]] == (expected or [None] * 3)
    assert ("title" in tables(folder)["items"][0]) == bool(expected) == (counts.get("num_titled_items") == 2)
    assert facts(folder)["columns"].get("title_col") == (column if expected else None)
    said = f"titles of items read from the log's column {column}" if expected else f"column {column} does not hold"
    assert sum(said in record.getMessage() for record in caplog.records) == 1


def test_a_table_of_items_replaces_the_titles_of_the_log(tmp_path: Path) -> None:
    log = write_csv(
        tmp_path / "log.csv",
        [("u", "a", "old", time) for time in range(3)],
        ("user_id", "item_id", "title", "timestamp"),
    )
    items = write_csv(tmp_path / "items.csv", [("a", "new")], ("item_id", "title"))
    assert tables(prepare(log, items=str(items))[0])["items"] == [{"item": 1, "item_id": "a", "title": "new"}]


def test_named_columns_of_items_are_kept_with_their_types(tmp_path: Path) -> None:
    columns = {
        "item_id": ["c", "a", "x"],
        "price": [1.5, None, 3.0],
        "stock": pa.array([7, 8, 9], pa.int32()),
        "tags": [["red", "old"], [], None],
        "maker": [{"name": "Ü", "since": 1900}, None, {"name": "y", "since": 1}],
        "row": [70, 80, 90],
        "customer": ["p", "q", "r"],
    }
    items = tmp_path / "items.parquet"
    pq.write_table(pa.table(columns), items)
    kept = ("price", "stock", "tags", "maker", "row")
    folder, counts = prepare(write_csv(tmp_path / "log.csv", THREE), items=str(items), item_columns=kept)
    assert tables(folder)["items"] == [
        {"item": 1, "item_id": "a", "price": None, "stock": 8, "tags": [], "maker": None, "row": 80},
        {"item": 2, "item_id": "b", **dict.fromkeys(kept)},
        {
            **{"item": 3, "item_id": "c", "price": 1.5, "stock": 7, "tags": ["red", "old"]},
            **{"maker": {"name": "Ü", "since": 1900}, "row": 70},
        },
    ]
    assert pq.read_schema(folder / "items.parquet").field("stock").type == pa.int32()
    assert "num_titled_items" not in counts


def test_the_log_as_table_of_items_keeps_no_other_column(tmp_path: Path) -> None:
    rows = "".join(
        f"u,{item},{time},9.9,{title}\n" for time, (item, title) in enumerate(["aA", "bB", "aA", "bC", "bC"])
    )
    log = tmp_path / "orders.csv"
    log.write_text(f"user_id,item_id,timestamp,price,title\n{rows}u,d,soon,1,D\nu,e\n", encoding="utf-8")
    folder, counts = prepare(log, items=str(log), on_bad_row="skip")
    assert tables(folder)["items"] == [
        {"item": 1, "item_id": "a", "title": "A"},
        {"item": 2, "item_id": "b", "title": "C"},
    ]
    assert (counts["num_retitled_items"], facts(folder)["rejected"]) == (
        1,
        {"2 columns, expected 5": 1, "timestamp: expected a number or a date such as 2014-07-23T10:00:00Z": 1},
    )


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    same = [prepare(write(tmp_path / f"log{n}", THREE))[0] for n, write in enumerate((write_csv, write_parquet))]
    changes = [
        [("v", "a", 1), ("v", "b", 2), ("v", "c", 3)],
        [("u", "a", 1), ("u", "b", 2), ("u", "d", 3)],
        [("u", "ab", 1), ("u", "b", 2), ("u", "c", 3)],
        [("u", "a", 1), ("u", "b", 2), ("u", "c", 4)],
        [("u", "b", 1), ("u", "a", 2), ("u", "c", 3)],
    ]
    others = [prepare(write_csv(tmp_path / f"{number}.csv", change))[0] for number, change in enumerate(changes)]
    assert len({facts(folder)["fingerprint"] for folder in same}) == 1
    assert len({facts(folder)["fingerprint"] for folder in (*same, *others)}) == 1 + len(changes)


def test_rows_that_are_no_events_are_counted_and_listed(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "log.csv", [*THREE, ("u", "", 4), ("u", "d", "soon")])
    folder, counts = prepare(path, on_bad_row="skip")
    assert (counts["num_read_events"], counts["num_rejected_rows"]) == (3, 2)
    rejected = pq.read_table(folder / "rejected.parquet").to_pylist()
    assert [(row["line"], row["column"]) for row in rejected] == [(5, "item_id"), (6, "timestamp")]
    assert sum(facts(folder)["rejected"].values()) == 2


def events_in_time(seed: int) -> list[Row]:
    draw = random.Random(seed)
    return [(f"u{draw.randrange(40)}", f"i{draw.randrange(25)}", draw.randrange(300)) for _ in range(500)]


def test_leave_one_out_parts_the_events(tmp_path: Path) -> None:
    folder, counts = prepare(write_csv(tmp_path / "log.csv", events_in_time(0)))
    data = Dataset.load(folder)
    ends = data.offsets[1:]
    owners, items = (np.concatenate(parts) for parts in zip(*data.train_events(), strict=True))
    valid, test = (
        [data.flat[end] for end in data.held_out(split).spans(np.arange(data.num_users))[1]]
        for split in ("valid", "test")
    )
    assert [*valid] == [*data.flat[ends - 2]] and [*test] == [*data.flat[ends - 1]]
    assert len(items) + len(valid) + len(test) == counts["num_events"] == 500
    expected = {user: row[:-2] for user, row in enumerate(np.split(data.flat, ends[:-1]))}
    assert {user: items[owners == user].tolist() for user in expected} == {u: r.tolist() for u, r in expected.items()}
    assert counts["num_train_events"] == len(items)


def test_a_split_by_time_parts_the_events(tmp_path: Path) -> None:
    rows = events_in_time(1)
    folder, counts = prepare(write_csv(tmp_path / "log.csv", rows), split="temporal", valid_share=0.2)
    times = sorted(time for _, _, time in rows)
    periods = {name: facts(folder)["rules"][name] for name in ("valid_from", "test_from")}
    assert periods == {"valid_from": times[350], "test_from": times[450]}
    data = Dataset.load(folder)
    stamps = pq.read_table(folder / "interactions.parquet")["timestamp"].to_numpy()
    owners, items = (np.concatenate(parts) for parts in zip(*data.train_events(), strict=True))
    users = np.repeat(np.arange(data.num_users), np.diff(data.offsets))
    trained = stamps < periods["valid_from"]
    assert owners.tolist() == users[trained].tolist() and items.tolist() == data.flat[trained].tolist()
    later = {"valid": ~trained & (stamps < periods["test_from"]), "test": stamps >= periods["test_from"]}
    for split, inside in later.items():
        firsts = [np.flatnonzero(inside & (users == user))[:1] for user in range(data.num_users)]
        expected = [first[0] for first in firsts if len(first) and first[0] > data.offsets[users[first[0]]]]
        samples = data.held_out(split)  # type: ignore[arg-type]
        assert samples.spans(np.arange(len(samples)))[1].tolist() == expected
        assert counts[f"num_{split}_targets"] == len(expected) > 0
    assert trained.sum() + later["valid"].sum() + later["test"].sum() == 500


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("u a b c\n", "log.txt", r"log\.txt: has no times, but prepare\.split is temporal; use leave_one_out"),
        (
            "user_id,item_id,timestamp\nu,a,7\nu,b,7\nu,c,8\n",
            "log.csv",
            r"log\.csv: prepare\.split is temporal, but the times do not form three periods "
            r"\(training begins 7, validation 7, test 7\); change prepare\.valid_share",
        ),
    ],
)
def test_a_split_by_time_needs_times(tmp_path: Path, text: str, name: str, message: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        prepare(tmp_path / name, split="temporal", valid_share=0.4, test_share=0.4)


def test_a_split_by_time_contradicts_the_order_of_the_file() -> None:
    with pytest.raises(ValueError, match="split: temporal needs order: time"):
        PrepareConfig(split="temporal", order="file")


PAPER_FILES = ["Gift_Cards", "Magazine_Subscriptions", "All_Beauty", "Appliances"]


def paper(events: list[tuple[str, str, int, float]], order: str) -> dict[str, list[str]]:
    """What the reference's notebook leaves of (user, item, time, rating)."""
    events = [event for event in events if event[3] >= 3]
    users = Counter(user for user, *_ in events)
    events = [event for event in events if users[event[0]] >= 5]
    items = Counter(item for _, item, *_ in events)
    events = [event for event in events if items[event[1]] >= 20]
    if order == "time":
        events = sorted(events, key=lambda event: event[2])  # stable, as pandas' groupby over sorted rows
    found: dict[str, list[str]] = {}
    for user, item, *_ in events:
        found.setdefault(user, []).append(item)
    found = {user: history for user, history in found.items() if len(history) >= 5}
    found = {user: list(dict.fromkeys(history)) for user, history in found.items()}
    return {user: history for user, history in found.items() if len(history) >= 5}


@pytest.mark.parametrize("order", ["time", "file"])
@pytest.mark.parametrize("name", PAPER_FILES)
def test_the_rules_of_the_paper_on_real_reviews(shared: Path, tmp_path: Path, name: str, order: str) -> None:
    path = shared / "data" / "amazon2018" / f"{name}_5.json.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    events = [(row["reviewerID"], row["asin"], row["unixReviewTime"], row["overall"]) for row in rows]
    expected = paper(events, order)
    settings = PrepareConfig(preset="paper", order=order)
    if not expected:
        with pytest.raises(DataError, match=r"no event is left; .*prepare\.min_item_events \(20\): \d+"):
            prepare_dataset(settings, tmp_path, str(path))
        return
    counts = prepare_dataset(settings, tmp_path, str(path))
    assert histories(tmp_path) == expected
    assert counts["num_removed_by_min_rating"] == sum(row["overall"] < 3 for row in rows)
    removed = sum(number for name, number in counts.items() if name.startswith("num_removed_by_"))
    assert counts["num_events"] == len(rows) - removed == sum(map(len, expected.values()))


@pytest.mark.parametrize("order", ["time", "file"])
def test_the_rules_of_the_paper_on_a_random_log(tmp_path: Path, order: str) -> None:
    draw = random.Random(5)
    drawn = [(int(draw.triangular(0, 150, 0)), int(draw.triangular(0, 60, 0))) for _ in range(2000)]
    events = [(f"u{user}", f"i{item}", draw.randrange(99), draw.randint(1, 5)) for user, item in drawn]
    log = write_csv(tmp_path / "log.csv", events, header=("user_id", "item_id", "timestamp", "rating"))
    folder, counts = prepare(log, preset="paper", order=order)
    expected = paper(events, order)
    assert histories(folder) == expected
    assert 20 < len(expected) < len({user for user, *_ in events}) - counts["num_dropped_users"] + 1
    for rule in ("min_rating", "min_user_events", "min_item_events", "repeats"):
        assert counts[f"num_removed_by_{rule}"] > 0


def test_what_is_set_besides_a_preset_counts(tmp_path: Path) -> None:
    rows = [
        ("u", item, time, rating) for time, (item, rating) in enumerate(zip("abcdef", (5, 5, 5, 5, 2, 1), strict=True))
    ]
    log = write_csv(tmp_path / "log.csv", rows, header=("user_id", "item_id", "timestamp", "rating"))
    folder, _ = prepare(log, preset="paper", min_item_events=1, min_rating=2)
    assert histories(folder) == {"u": list("abcde")}


def test_beauty(shared: Path, tmp_path: Path) -> None:
    items = str(shared / "data" / "Beauty.items.csv.gz")
    settings = PrepareConfig(items=items)
    counts = prepare_dataset(settings, tmp_path, str(shared / "data" / "Beauty.txt.gz"))
    assert (counts["num_users"], counts["num_items"], counts["num_events"]) == (22_363, 12_101, 198_502)
    assert (counts["shortest_history"], counts["longest_history"], counts["num_titled_items"]) == (5, 204, 12_083)
    assert histories(tmp_path)[1] == [1, 2, 3, 4, 5]
    assert Dataset.load(tmp_path).item_ids.to_pylist() == list(range(1, 12_102))


def test_reviews_in_json_lines(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "amazon2018"
    settings = PrepareConfig(items=str(folder / "meta_Gift_Cards.json.gz"))
    counts = prepare_dataset(settings, tmp_path, str(folder / "Gift_Cards_5.json.gz"))
    assert (counts["num_users"], counts["num_items"], counts["num_events"]) == (458, 148, 2972)
    assert counts["num_titled_items"] == 148
    assert not any("&amp;" in row["title"] for row in tables(tmp_path)["items"])


def test_a_download_that_was_cut_off_is_refused(shared: Path, tmp_path: Path) -> None:
    path = shared / "data" / "amazon2014" / "reviews_Digital_Music_5.truncated.json.gz"
    with pytest.raises(
        DataError, match=r"truncated\.json\.gz: the (gzip|compressed) file is truncated or damaged .*download"
    ):
        prepare_dataset(PrepareConfig(), tmp_path, str(path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [
        ("4 bananas", ConfigError, r"prepare\.memory_limit is '4 bananas': .*bananas.*; give it as 4GB$"),
        ("", ConfigError, r"prepare\.memory_limit is ''.*; give it as 4GB$"),
        ("1MB", DataError, r"log\.csv: Out of Memory Error: [^*]*; raise prepare\.memory_limit, or free space on the"),
    ],
)
def test_a_memory_limit_that_will_not_do(tmp_path: Path, limit: str, error: type[Exception], message: str) -> None:
    log, output = write_csv(tmp_path / "log.csv", THREE), tmp_path / "data"
    output.mkdir()
    with pytest.raises(error, match=message) as raised:
        prepare_dataset(PrepareConfig(memory_limit=limit), output, str(log))
    assert "\n" not in str(raised.value)
    assert not list(output.iterdir())


def test_a_folder_prepared_earlier_still_loads(tmp_path: Path) -> None:
    """Without arrays, and with the rules that there were then."""
    folder, _ = prepare(write_csv(tmp_path / "log.csv", events_in_time(2)))
    expected = histories(folder)
    for path in folder.glob("*.npy"):
        path.unlink()
    old = {"fingerprint": "x", "counts": {"dropped_users": 0}, "rules": {"short_users": "error", "ties": "file order"}}
    (folder / "dataset.json").write_text(json.dumps(old), encoding="utf-8")
    assert histories(folder) == expected
    assert Dataset.load(folder).split_rule == "leave_one_out"


RETURNS = [
    *(("u", "a", 1, 2), ("u", "b", 2, 1), ("u", "a", 3, 1), ("u", "a", 4, -1), ("u", "c", 5, 1)),
    *(("u", "d", 6, -3), ("u", "d", 7, 1), ("u", "e", 8, 0)),
]


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_returns_remove_events_and_are_none(tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture) -> None:
    names = ("user_id", "item_id", "timestamp", "Quantity")
    path = tmp_path / f"log.{form}"
    rows = [dict(zip(names, row, strict=True)) for row in RETURNS]
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        delimiter = "," if form == "csv" else "\t"
        path.write_text("".join(delimiter.join(map(str, row)) + "\n" for row in (names, *RETURNS)), encoding="utf-8")
    with caplog.at_level("INFO"):
        folder, counts = prepare(path, quantity_col="quantity")
    written = tables(folder)
    ids = [row["item_id"] for row in written["items"]]
    assert [ids[row["item"] - 1] for row in written["interactions"]] == ["a", "b", "c", "d"]
    assert [row["timestamp"] for row in written["interactions"]] == [1, 2, 5, 7]
    names_of_counts = ("num_read_events", "num_removed_by_quantity_col", "num_returned_events")
    assert [counts[name] for name in names_of_counts] == [8, 4, 1]
    assert (counts["num_unmatched_returns"], counts["num_zero_quantities"]) == (1, 1)
    assert facts(folder)["columns"]["quantity_col"] == "Quantity"
    assert (
        "returns in quantity: 1 events and their returns removed; 1 returns without an earlier event and 1 rows of "
        "quantity 0 dropped" in caplog.text
    )
    assert "read as events" not in caplog.text
    caplog.clear()
    _, counts = prepare(path)
    assert caplog.text.count("the column Quantity is negative in 2 rows, which are read as events; set ") == 1
    assert counts["num_events"] == 8


def test_quantities_that_are_no_numbers_are_invalid_rows(tmp_path: Path) -> None:
    log = write_csv(
        tmp_path / "log.csv",
        [*((*row, 1) for row in THREE), ("u", "d", 4, "two")],
        ("user_id", "item_id", "timestamp", "qty"),
    )
    with pytest.raises(DataError, match=r"log\.csv: line 5: qty is 'two': expected a number"):
        prepare(log, quantity_col="qty")
    assert prepare(log, quantity_col="qty", on_bad_row="skip")[1]["num_rejected_rows"] == 1
