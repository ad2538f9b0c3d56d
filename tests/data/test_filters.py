"""Every combination of rules against a plain re-implementation, and what must hold whatever the log."""

import csv
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import ibis
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmrec.config import PrepareConfig
from slmrec.data.dataset import Dataset
from slmrec.data.engine import connected
from slmrec.data.filters import apply_rules, cut_times, remove_returns
from slmrec.data.prepare import prepare_dataset
from slmrec.errors import DataError


class Event(NamedTuple):
    user: str
    item: str
    time: int
    rating: int
    row: int


Log = list[Event]
Order = Callable[[Event], tuple[int, ...]]
ORDERS: dict[str, Order] = {"time": lambda event: (event.time, event.row), "file": lambda event: (event.row,)}
COLUMNS = {"time": ["timestamp", "nanosecond", "row"], "file": ["row"]}
COMBINATIONS = list(
    itertools.product(
        (None, 3.0), ("fixed_point", "single_pass"), ("keep", "drop", "merge"), (None, 4), ("time", "file")
    )
)


def log_of(values: Sequence[tuple[int, int, int, int]]) -> Log:
    return [Event(f"u{user}", f"i{item}", *others, row) for row, (user, item, *others) in enumerate(values)]


LOGS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 6), st.integers(1, 5)), min_size=1, max_size=70
).map(log_of)


def rules(**changes: Any) -> PrepareConfig:
    """Return rules without validation, so that small limits can be tested."""
    return PrepareConfig.model_construct(**changes)


ANY_RULES = st.builds(
    rules,
    min_rating=st.sampled_from([None, 2.0, 3.0]),
    min_user_events=st.sampled_from([1, 2, 3, 5]),
    min_item_events=st.integers(1, 4),
    core=st.sampled_from(["fixed_point", "single_pass"]),
    order=st.sampled_from(["time", "file"]),
    repeats=st.sampled_from(["keep", "drop", "merge"]),
    max_history=st.sampled_from([None, 3, 5]),
)


class Naive:
    """The rules in plain Python; `removed` says how many events each one took out."""

    def __init__(self, log: Log, rules: PrepareConfig) -> None:
        self.log, self.rules, self.removed = log, rules, Counter[str]()
        if rules.min_rating is not None:
            self.keep("min_rating", [event for event in log if event.rating >= rules.min_rating])
        if rules.core == "single_pass":
            self.keep_frequent("user")
            self.keep_frequent("item")
        self.keep_first_of_repeats()
        if rules.max_history is not None:
            newest = [event for history in self.histories().values() for event in history[-rules.max_history :]]
            self.keep("max_history", newest)
        if rules.core == "single_pass":
            self.keep_frequent("user")
        else:
            self.keep_core()

    def keep_core(self) -> None:
        left = -1
        while left != len(self.log):
            left = len(self.log)
            self.keep_frequent("user")
            self.keep_frequent("item")
            if self.rules.repeats == "merge":
                self.keep_first_of_repeats()

    def keep(self, rule: str, log: Log) -> None:
        self.removed[rule] += len(self.log) - len(log)
        self.log = log

    def keep_frequent(self, name: str) -> None:
        sizes = Counter(getattr(event, name) for event in self.log)
        setting = f"min_{name}_events"
        least = getattr(self.rules, setting)
        self.keep(setting, [event for event in self.log if sizes[getattr(event, name)] >= least])

    def histories(self) -> dict[str, Log]:
        found: dict[str, Log] = {}
        for event in sorted(self.log, key=ORDERS[self.rules.order]):
            found.setdefault(event.user, []).append(event)
        return found

    def keep_first_of_repeats(self) -> None:
        kept = []
        for history in self.histories().values():
            for place, event in enumerate(history):
                before = {"keep": [], "drop": history[:place], "merge": history[max(place - 1, 0) : place]}
                if event.item not in {earlier.item for earlier in before[self.rules.repeats]}:
                    kept.append(event)
        self.keep("repeats", kept)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with connected("duckdb", tmp_path_factory.mktemp("engine"), "1GB") as connection:
        yield connection


def table_of(engine: Any, log: Log) -> Any:
    names = ("user_id", "item_id", "timestamp", "rating", "row")
    columns = {name: list(column) for name, column in zip(names, zip(*log, strict=True), strict=True)}
    return stored(engine, columns | {"nanosecond": [0] * len(log)})


def stored(engine: Any, columns: dict[str, list[Any]]) -> Any:
    name = ibis.util.gen_name("log")
    engine.con.register(f"{name}_arrow", pa.table(columns))
    engine.con.execute(f"create table {name} as select * from {name}_arrow")
    return engine.table(name)


def applied(engine: Any, log: Log, rules: PrepareConfig) -> tuple[Log, dict[str, int]]:
    events, removed = apply_rules(engine, "log.csv", table_of(engine, log), COLUMNS[rules.order], rules)
    rows = events.to_pyarrow().sort_by("row").to_pylist()
    return [log[at] for at in sorted(place_of(log)[row["row"]] for row in rows)], removed


def place_of(log: Log) -> dict[int, int]:
    return {event.row: place for place, event in enumerate(log)}


@settings(max_examples=20, deadline=None)
@given(log=LOGS, chosen=ANY_RULES)
def test_any_rules_do_what_plain_python_does(engine: Any, log: Log, chosen: PrepareConfig) -> None:
    expected = Naive(log, chosen)
    if not expected.log:
        with pytest.raises(DataError, match="no event is left; events removed by"):
            applied(engine, log, chosen)
        return
    found, removed = applied(engine, log, chosen)
    assert found == sorted(expected.log, key=lambda event: event.row)
    assert +Counter(removed) == +expected.removed
    assert sum(removed.values()) == len(log) - len(found)


@settings(max_examples=25, deadline=None)
@given(
    log=LOGS,
    least=st.tuples(st.sampled_from([1, 2, 3]), st.integers(1, 4)),
    repeats=st.sampled_from(["keep", "drop", "merge"]),
    max_history=st.sampled_from([None, 3, 5]),
)
def test_after_a_fixed_point_all_minimums_hold_and_the_rules_change_nothing(
    engine: Any, log: Log, least: tuple[int, int], repeats: str, max_history: int | None
) -> None:
    chosen = rules(min_user_events=least[0], min_item_events=least[1], repeats=repeats, max_history=max_history)
    try:
        kept, _ = applied(engine, log, chosen)
    except DataError:
        assert not Naive(log, chosen).log
        return
    users, items = Counter(event.user for event in kept), Counter(event.item for event in kept)
    assert min(users.values()) >= least[0] and min(items.values()) >= least[1]
    assert max(users.values()) <= (max_history or len(log))
    again, removed = applied(engine, kept, chosen)
    assert again == kept and not any(removed.values())


def random_log(seed: int, num: int = 500) -> Log:
    draw = random.Random(seed)
    values = [(int(draw.triangular(0, 60, 0)), int(draw.triangular(0, 25, 0))) for _ in range(num)]
    return log_of([(*pair, draw.randrange(60), draw.randrange(1, 6)) for pair in values])


def written(log: Log, path: Path) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = ((event.user, event.item, event.time, event.rating) for event in log)
        csv.writer(file).writerows([("user_id", "item_id", "timestamp", "rating"), *rows])
    return path


def chosen_by(combination: tuple[Any, ...]) -> dict[str, Any]:
    names = ("min_rating", "core", "repeats", "max_history", "order")
    return dict(zip(names, combination, strict=True)) | {"min_user_events": 3, "min_item_events": 5}


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_every_combination_of_rules(engine: Any, combination: tuple[Any, ...]) -> None:
    log, chosen = random_log(COMBINATIONS.index(combination)), rules(**chosen_by(combination))
    expected = Naive(log, chosen)
    assert 0 < len(expected.log) < len(log)
    found, removed = applied(engine, log, chosen)
    assert found == sorted(expected.log, key=lambda event: event.row)
    assert +Counter(removed) == +expected.removed


@pytest.mark.parametrize("combination", COMBINATIONS[::7])
def test_rules_of_files(tmp_path: Path, combination: tuple[Any, ...]) -> None:
    log, chosen = random_log(COMBINATIONS.index(combination)), chosen_by(combination)
    expected = Naive(log, rules(**chosen))
    counts = prepare_dataset(PrepareConfig(**chosen), tmp_path, str(written(log, tmp_path / "log.csv")))
    data = Dataset.load(tmp_path)
    users, items = data.user_ids.to_pylist(), data.item_ids.to_pylist()
    found = {
        user: [items[item - 1] for item in data.flat[start:end]]
        for user, start, end in zip(users, data.offsets[:-1], data.offsets[1:], strict=True)
    }
    assert found == {user: [event.item for event in history] for user, history in expected.histories().items()}
    told = {name.removeprefix("num_removed_by_"): n for name, n in counts.items() if name.startswith("num_removed_by_")}
    assert +Counter(told) == +expected.removed
    assert counts["num_read_events"] == len(log)
    for name in ("user", "item"):
        all_ids, left = ({getattr(event, name) for event in part} for part in (log, expected.log))
        assert counts[f"num_dropped_{name}s"] == len(all_ids) - len(left)


def without_returns(log: Log, quantities: Sequence[int]) -> tuple[list[int], int]:
    """Return the rows that stay, and the number of returns that match none, by a stack per user and item."""
    stacks: dict[tuple[str, str], list[int]] = {}
    num_unmatched = 0
    for event in sorted(log, key=ORDERS["time"]):
        stack = stacks.setdefault((event.user, event.item), [])
        if quantities[event.row] > 0:
            stack.append(event.row)
        elif quantities[event.row] < 0 and stack:
            stack.pop()
        else:
            num_unmatched += quantities[event.row] < 0
    return sorted(row for stack in stacks.values() for row in stack), num_unmatched


@settings(max_examples=15, deadline=None)
@given(LOGS, st.lists(st.sampled_from([1, 6, -1, -2, 0]), min_size=70, max_size=70))
def test_a_return_removes_the_newest_earlier_event_of_its_pair(engine: Any, log: Log, quantities: list[int]) -> None:
    expected, num_unmatched = without_returns(log, quantities)
    rows = range(len(log))
    table = table_of(engine, log).join(stored(engine, {"row": list(rows), "quantity": quantities[: len(log)]}), "row")
    if not expected:
        with pytest.raises(DataError, match=r"^log\.csv: no event is left after returns; \d+ events were returned"):
            remove_returns(engine, "log.csv", table, COLUMNS["time"])
        return
    found = remove_returns(engine, "log.csv", table, COLUMNS["time"])
    assert sorted(found.events.row.to_pyarrow().to_pylist()) == expected
    assert found.num_zero == sum(quantities[row] == 0 for row in rows)
    assert found.num_unmatched == num_unmatched
    assert found.num_removed == len(log) - len(expected)


def test_newest_events_are_those_of_the_order_where_ties_are_unknown(engine: Any) -> None:
    log = log_of([(0, item, 5, 1) for item in range(5)])
    ties = [3, None, 1, None, 2]  # those unknown come last
    table = table_of(engine, log)
    tied = table.join(stored(engine, {"row": list(range(5)), "tie": ties}), "row")
    events, _ = apply_rules(engine, "log.csv", tied, ["timestamp", "tie", "row"], rules(max_history=3))
    assert sorted(events.item_id.to_pyarrow().to_pylist()) == ["i0", "i1", "i3"]


def test_nothing_left_says_which_rule_took_what(engine: Any) -> None:
    log = log_of([(0, 0, 0, 5), (0, 1, 1, 5), (1, 1, 2, 2)])
    with pytest.raises(
        DataError,
        match=r"^log\.csv: no event is left; events removed by prepare\.min_rating \(3\.0\): 1, "
        r"prepare\.min_user_events \(3\): 2; loosen these rules, or give more data",
    ):
        applied(engine, log, rules(min_rating=3.0))


def test_superseded_tables_are_not_kept(engine: Any) -> None:
    log = [event for event in random_log(1) if event.item != "i39"]
    number = "select count(*) from duckdb_columns() where table_name not like '%arrow' and column_name = 'row'"
    before = engine.con.execute(number).fetchall()[0][0]
    _, removed = applied(engine, log, rules(min_rating=2.0, min_item_events=5, repeats="merge", max_history=9))
    after = engine.con.execute(number).fetchall()[0][0]
    assert len(removed) > 3
    assert after == before + 2  # the log, and what is left of it


@settings(max_examples=20, deadline=None)
@given(
    times=st.lists(st.integers(0, 40), min_size=1, max_size=60),
    start=st.sampled_from([0, -20, 1_700_000_000, 1_700_000_000_000_000_000]),
    shares=st.sampled_from([(0.1, 0.1), (0.1, 0.2), (0.2, 0.1), (0.3, 0.3), (0.05, 0.5), (0.01, 0.01)]),
)
def test_periods_begin_at_order_statistics(
    engine: Any, times: list[int], start: int, shares: tuple[float, float]
) -> None:
    times = [start + time for time in times]
    table = table_of(engine, log_of([(0, 0, time, 1) for time in times]))
    valid, test = (Fraction(str(share)) for share in shares)
    nth = [int(len(times) * (1 - share)) for share in (valid + test, test)]
    expected = [sorted(times)[place] for place in nth]
    chosen = rules(split="temporal", valid_share=shares[0], test_share=shares[1])
    if not min(times) < expected[0] < expected[1]:
        with pytest.raises(DataError, match=f"begins {min(times)}, validation {expected[0]}, test {expected[1]}"):
            cut_times(engine, "log.csv", table, chosen)
        return
    assert cut_times(engine, "log.csv", table, chosen) == dict(zip(("valid_from", "test_from"), expected, strict=True))
    assert sum(time >= expected[1] for time in times) >= test * len(times)
