import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmrec.data.dataset import Dataset
from slmrec.data.prepare import prepare_dataset
from slmrec.errors import DataError

Row = tuple[Any, Any, Any]


def write_csv(path: Path, rows: Sequence[Row], header: Sequence[str] = ("user_id", "item_id", "timestamp")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return path


def prepare(input: Path, **options: Any) -> tuple[Path, dict[str, float]]:
    output = input.parent / f"{input.name}.prepared.{len(list(input.parent.iterdir()))}"
    output.mkdir()
    return output, prepare_dataset(input, output, **options)


def facts(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "dataset.json").read_text(encoding="utf-8")))


def tables(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("interactions", "items", "users")}


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
    assert counts == {
        "num_users": 2,
        "num_items": 3,
        "num_events": 7,
        "shortest_history": 3,
        "mean_history": 3.5,
        "longest_history": 4,
        "dropped_users": 0,
    }
    written = facts(folder)
    assert written["counts"] == counts
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert written["sources"] == [{"file": "log.csv", "bytes": path.stat().st_size, "sha256": digest}]
    assert written["rules"]["short_users"] == "error"
    assert sorted(file.name for file in folder.iterdir()) == [
        "dataset.json",
        "interactions.parquet",
        "items.parquet",
        "users.parquet",
    ]


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
    st.tuples(st.sampled_from("uvw"), st.sampled_from(["a", "b", "ü", "01"]), st.integers(0, 10**13)),
    min_size=1,
    max_size=12,
    unique_by=lambda row: row[2],
)


@settings(max_examples=8, deadline=None)
@given(rows=distinct_times, data=st.data())
def test_shuffled_rows_give_the_same_data_set(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("shuffled")
    rows = [*rows, ("z", "a", 1), ("z", "b", 2), ("z", "a", 3)]
    shuffled = data.draw(st.permutations(rows))
    first, first_counts = prepare(write_csv(folder / "first.csv", rows), short_users="drop")
    other, other_counts = prepare(write_csv(folder / "other.csv", shuffled), short_users="drop")
    assert tables(first) == tables(other)
    assert first_counts == other_counts
    assert facts(first)["fingerprint"] == facts(other)["fingerprint"]


@pytest.mark.parametrize("scale", [1, 1000, 10**9])
def test_times_one_apart_keep_their_order(tmp_path: Path, scale: int) -> None:
    start = 1_700_000_000 * scale
    rows = [("u", f"i{step:03d}", start + step) for step in range(200)]
    folder, _ = prepare(write_csv(tmp_path / "log.csv", rows[::-1]))
    assert histories(folder)["u"] == [item for _, item, _ in rows]
    assert [row["timestamp"] for row in tables(folder)["interactions"]] == [time for _, _, time in rows]


def test_parts_of_a_second_keep_their_order(tmp_path: Path) -> None:
    rows = [("u", f"i{step}", f"2024-01-01T00:00:00.{step}Z") for step in range(9)]
    folder, _ = prepare(write_csv(tmp_path / "log.csv", rows[::-1]))
    assert histories(folder)["u"] == [f"i{step}" for step in range(9)]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_ties_keep_the_order_of_a_large_file(tmp_path: Path, kind: str) -> None:
    items = [(7919 * row) % 300_007 for row in range(300_000)]
    path = tmp_path / f"log.{kind}"
    if kind == "csv":
        write_csv(path, [("u", item, 5) for item in items])
    else:
        columns = {"user_id": ["u"] * len(items), "item_id": items, "timestamp": [5] * len(items)}
        pq.write_table(pa.table(columns), path, row_group_size=20_000)
    folder, _ = prepare(path)
    assert histories(folder)["u"] == items


def test_repeats_are_kept(tmp_path: Path) -> None:
    folder, counts = prepare(write_csv(tmp_path / "log.csv", [("u", "a", 1)] * 4))
    assert histories(folder)["u"] == ["a"] * 4
    assert counts["num_events"] == 4


def test_ids_survive(tmp_path: Path) -> None:
    items = ["007", "7", "+7", "a,b", 'say "x"', "naïve", "日本", "😀", " a", "Z", "null", "-0"]
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
        (["9223372036854775808", "9", "10"], ["10", "9", "9223372036854775808"]),
        (["\U0001f600", "\uffee", "z"], ["z", "\uffee", "\U0001f600"]),
    ],
)
def test_ids_are_ordered_by_value_or_code_point(tmp_path: Path, ids: list[str], expected: list[Any]) -> None:
    folder, _ = prepare(write_csv(tmp_path / "log.csv", [("u", item, 1) for item in ids]))
    assert [(row["item"], row["item_id"]) for row in tables(folder)["items"]] == list(enumerate(expected, 1))


def test_short_users_are_an_error(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "log.csv", [("u7", "a", 1), ("u7", "b", 2), *[("u1", "a", 1)] * 3])
    with pytest.raises(
        DataError,
        match=r"log\.csv: 1 user has fewer than 3 events \(for example 'u7' with 2\), .*prepare\.short_users=drop",
    ):
        prepare(path)


def test_short_users_are_dropped(tmp_path: Path) -> None:
    rows = [("u7", "only", 1), ("u7", "b", 2), ("u8", "b", 2), *[("u1", "a", 1)] * 3]
    folder, counts = prepare(write_csv(tmp_path / "log.csv", rows), short_users="drop")
    assert histories(folder) == {"u1": ["a", "a", "a"]}
    assert counts["dropped_users"] == facts(folder)["counts"]["dropped_users"] == 2
    assert counts["num_items"] == len(tables(folder)["items"]) == 1


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"log\.csv: no user has 3 events.*give more data"):
        prepare(write_csv(tmp_path / "log.csv", [("u7", "a", 1)]), short_users="drop")


def test_titles_join_by_id(tmp_path: Path) -> None:
    named = [(10, "Ten", 0), (99, "Unsold", 0), (2, "Two", 0), (2, "Deux", 0)]
    items = write_csv(tmp_path / "items.csv", named, header=("item_id", "title", "price"))
    log = write_csv(tmp_path / "log.csv", [("u", 10, 1), ("u", 3, 2), ("u", 2, 3)])
    folder, counts = prepare(log, items=items)
    assert [(row["item_id"], row["title"]) for row in tables(folder)["items"]] == [(2, "Two"), (3, None), (10, "Ten")]
    assert (counts["num_titled_items"], counts["num_retitled_items"]) == (2, 1)
    assert [source["file"] for source in facts(folder)["sources"]] == ["log.csv", "items.csv"]
    titles = Dataset.load(folder).titles
    assert titles is not None
    assert titles.to_pylist() == ["Two", None, "Ten"]


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    rows = [("u", "a", 1), ("u", "b", 2), ("u", "c", 3)]
    table = pa.table(dict(zip(("user_id", "item_id", "timestamp"), zip(*rows, strict=True), strict=True)))
    pq.write_table(table, tmp_path / "log.parquet")
    same = [prepare(write_csv(tmp_path / "log.csv", rows))[0], prepare(tmp_path / "log.parquet")[0]]
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


def test_beauty(shared: Path, tmp_path: Path) -> None:
    counts = prepare_dataset(shared / "data" / "Beauty.txt.gz", tmp_path, items=shared / "data" / "Beauty.items.csv.gz")
    assert (counts["num_users"], counts["num_items"], counts["num_events"]) == (22_363, 12_101, 198_502)
    assert (counts["shortest_history"], counts["longest_history"], counts["num_titled_items"]) == (5, 204, 12_083)
    assert histories(tmp_path)[1] == [1, 2, 3, 4, 5]
    dataset = Dataset.load(tmp_path)
    assert dataset.item_ids.to_pylist() == list(range(1, 12_102))


def test_reviews_in_json_lines(shared: Path, tmp_path: Path) -> None:
    counts = prepare_dataset(
        shared / "data" / "amazon2018" / "Gift_Cards_5.json.gz",
        tmp_path,
        user_col="reviewerID",
        item_col="asin",
        time_col="unixReviewTime",
    )
    assert (counts["num_users"], counts["num_items"], counts["num_events"]) == (458, 148, 2972)


def test_check_ins_without_a_header_are_no_sequences(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: user '0' has line 1 already"):
        prepare_dataset(shared / "data" / "other" / "gowalla_checkins.txt.gz", tmp_path)


def test_a_download_that_was_cut_off_is_refused(shared: Path, tmp_path: Path) -> None:
    path = shared / "data" / "amazon2014" / "reviews_Digital_Music_5.truncated.json.gz"
    with pytest.raises(DataError, match=r"truncated\.json\.gz: the gzip file is cut off or damaged .*download"):
        prepare_dataset(path, tmp_path, user_col="reviewerID", item_col="asin", time_col="unixReviewTime")
    assert not list(tmp_path.iterdir())
