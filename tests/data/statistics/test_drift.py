"""Drift between two data sets, against values worked out by hand and plain Python."""

import json
from collections import Counter
from math import log2, sqrt
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmrec import prepare
from slmrec.commands.main import main
from slmrec.data.statistics.drift import Drift, drift, jensen_shannon

OLD = {"u1": "a b c", "u2": "a b a", "u3": "a b d"}
NEW = {"u1": "a b c e", "u2": "a b e a b", "u4": "b c a", "u5": "f f f"}


def prepared(folder: Path, histories: dict[str, str]) -> Path:
    folder.mkdir()
    lines = [f"{user} {items}" for user, items in histories.items()]
    (folder / "log.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    prepare(folder / "log.txt", folder / "[data]", format="sequences")
    return folder / "[data]"


@pytest.fixture
def result(tmp_path: Path) -> Drift:
    return drift(prepared(tmp_path / "old", OLD), prepared(tmp_path / "new", NEW))


def naive_distance(first: Counter[Any], second: Counter[Any]) -> float:
    total = 0.0
    for value in {*first, *second}:
        shares = first[value] / first.total(), second[value] / second.total()
        total += sum(share / 2 * log2(2 * share / sum(shares)) for share in shares if share)
    return sqrt(max(total, 0))


def test_new_and_gone_items_and_users(result: Drift) -> None:
    assert result.items == (2, pytest.approx(2 / 5), pytest.approx(5 / 15), 1, pytest.approx(1 / 4))  # e, f; d
    assert result.users == (2, pytest.approx(2 / 4), pytest.approx(6 / 15), 1, pytest.approx(1 / 3))  # u4, u5; u3
    assert result.share_users_new_item == pytest.approx(3 / 4)
    assert result.share_users_newest_item_new == pytest.approx(2 / 4)  # u1 and u5


def test_shifts(result: Drift) -> None:
    old, new = (Counter(" ".join(histories.values()).split()) for histories in (OLD, NEW))
    assert result.popularity_distance == pytest.approx(naive_distance(old, new))
    common = [Counter({item: counts[item] for item in "abc"}) for counts in (old, new)]
    assert result.common_popularity_distance == pytest.approx(naive_distance(*common))
    lengths = Counter({2: 3}), Counter({2: 2, 4: 2})  # by the lower bounds of the bins 2-3 and 4-7
    assert result.length_distance == pytest.approx(naive_distance(*lengths))


def test_equal_and_disjoint_data(tmp_path: Path) -> None:
    old = prepared(tmp_path / "old", OLD)
    same = drift(old, old)
    assert same.items == same.users == (0, 0, 0, 0, 0)
    assert same[-3:] == (0, 0, 0)
    other = drift(old, prepared(tmp_path / "other", {"v1": "x y z"}))
    assert other.popularity_distance == pytest.approx(1) and other.common_popularity_distance is None
    assert other.items.share_new == other.items.share_gone == other.users.share_events == 1


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1))
def test_distance_is_symmetric_and_bounded(counts: list[tuple[int, int]]) -> None:
    first, second = ([pair[side] for pair in [*counts, (1, 1)]] for side in (0, 1))
    distance = jensen_shannon(first, second)
    assert 0 <= distance <= 1 and distance == pytest.approx(jensen_shannon(second, first))
    assert distance == pytest.approx(
        naive_distance(Counter(dict(enumerate(first))), Counter(dict(enumerate(second)))), abs=1e-7
    )


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = prepared(tmp_path / "old", OLD), prepared(tmp_path / "new", NEW)
    capsys.readouterr()
    assert main(["drift", str(old), str(new), "--output", str(tmp_path / "inner" / "drift.json")]) == 0
    shown = capsys.readouterr().out
    assert "2 (40.0% of the new data set)" in shown and "no times" in shown and "written to" in shown
    content = json.loads((tmp_path / "inner" / "drift.json").read_text(encoding="utf-8"))
    assert content["items"]["num_new"] == 2 and content["old"]["num_events"] == 9
    assert content["popularity_distance"] == drift(old, new).popularity_distance


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = prepared(tmp_path / "old", OLD)
    numbers = prepared(tmp_path / "numbers", {"1": "7 8 9"})
    log = old.parent / "log.txt"
    capsys.readouterr()
    for arguments, message in (
        (
            [log, old],
            f"{log}: not a prepared data set (dataset.json is missing); expected the output folder of prepare",
        ),
        ([old, tmp_path / "absent"], f"{tmp_path / 'absent'}: not a prepared data set"),
        ([old, numbers], f"item ids are text in {old} and numbers in {numbers}, so they cannot be compared; prepare"),
        ([old, old, "--output", "drift.csv"], "drift.csv: numbers are written as JSON; give --output NAME.json"),
    ):
        assert main(["drift", *map(str, arguments)]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1 and message in captured.err
