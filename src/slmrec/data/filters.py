"""Which events stay: rules over tables of events, alike on every engine."""

from dataclasses import dataclass
from typing import Any, Literal

import ibis
from ibis.expr.types import Table

from slmrec.data.engine import drop, keep, value
from slmrec.errors import DataError


@dataclass(frozen=True)
class Rules:
    """The settings of `prepare` of the same names."""

    min_rating: float | None
    min_user_events: int
    min_item_events: int
    core: Literal["fixed_point", "single_pass"]
    order: Literal["time", "file"]
    repeats: Literal["keep", "drop", "merge"]
    max_history: int | None
    split: Literal["leave_one_out", "temporal"]
    valid_share: float
    test_share: float


@dataclass
class Filtering:
    """Events on their way through the rules."""

    engine: Any
    events: Table
    order: list[Any]
    """Columns by which a user's events are in order."""
    removed: dict[str, int]
    """Events that each rule took out."""

    def keep_where(self, rule: str, events: Table) -> None:
        """Goes on with fewer events."""
        former, self.events = self.events, keep(self.engine, events)
        taken_out = value(former.count()) - value(self.events.count())
        if self.removed:  # else it is the log itself
            drop(self.engine, former)
        self.removed[rule] = self.removed.get(rule, 0) + taken_out


def apply_rules(engine: Any, input: str, events: Table, order: list[Any], rules: Rules) -> tuple[Table, dict[str, int]]:
    """The events that stay, and how many each rule took out.

    `core: single_pass`: rare users, then rare items by what is left, then repeats, old events, and users who are short
    now. `core: fixed_point`: repeats and old events, then rare users and items in turn until none is left, so that what
    stays fulfils every rule.

    Raises:
        DataError: nothing stays.
    """
    state = Filtering(engine, events, order, {})
    if rules.min_rating is not None:
        state.keep_where("min_rating", events.filter(events.rating >= rules.min_rating))
    if rules.core == "single_pass":
        _filter_rare(state, "user_id", rules.min_user_events)
        _filter_rare(state, "item_id", rules.min_item_events)
    _filter_repeats(state, rules.repeats)
    if rules.max_history is not None:
        newest_first = [ibis.desc(column, nulls_first=True) for column in order]
        age = ibis.row_number().over(group_by="user_id", order_by=newest_first)
        aged = state.events.mutate(age=age)
        state.keep_where("max_history", aged.filter(aged.age < rules.max_history).drop("age"))
    if rules.core == "single_pass":
        _filter_rare(state, "user_id", rules.min_user_events)
    else:
        _filter_to_core(state, rules)
    if not value(state.events.count()):
        raise DataError(f"{input}: {_nothing_left(state.removed, rules)}")
    return state.events, state.removed


def _filter_to_core(state: Filtering, rules: Rules) -> None:
    fewest = {"user_id": rules.min_user_events, "item_id": rules.min_item_events}
    active = [column for column, minimum in fewest.items() if minimum > 1]
    changed = bool(active)
    while changed:
        taken_out = [_filter_rare(state, column, fewest[column]) for column in active]
        changed = any(taken_out) and (len(active) > 1 or rules.repeats == "merge")
        if changed and rules.repeats == "merge":  # what stood between two of the same may be gone
            _filter_repeats(state, rules.repeats)


def _filter_rare(state: Filtering, column: str, minimum: int) -> bool:
    """Takes out users or items of too few events; whether there were any."""
    sizes = state.events.group_by(column).aggregate(size=state.events.count())
    rare = keep(state.engine, sizes.filter(sizes["size"] < minimum).select(column))
    if not value(rare.count()):
        return False
    setting = f"min_{column.removesuffix('_id')}_events"
    state.keep_where(setting, state.events.anti_join(rare, column))
    return True


def _filter_repeats(state: Filtering, repeats: str) -> None:
    if repeats == "keep":
        return
    events = state.events
    if repeats == "drop":
        earlier = ibis.row_number().over(group_by=["user_id", "item_id"], order_by=state.order) > 0
    else:
        before = events.item_id.lag().over(group_by="user_id", order_by=state.order)
        earlier = (before == events.item_id).fill_null(False)
    marked = events.mutate(earlier=earlier)
    state.keep_where("repeats", marked.filter(~marked.earlier).drop("earlier"))


def _nothing_left(removed: dict[str, int], rules: Rules) -> str:
    told = ", ".join(f"prepare.{rule} ({getattr(rules, rule)}): {number}" for rule, number in removed.items())
    return f"no event is left; events taken out by {told}; loosen these rules, or give more data"


def cut_times(engine: Any, input: str, events: Table, rules: Rules) -> dict[str, int]:
    """When the validation and the test period of a temporal split begin: `valid_from`, `test_from`.

    Raises:
        DataError: the events have no times, or their times do not tell the periods apart.
    """
    times = events.timestamp
    if value(times.isnull().any()):
        raise DataError(f"{input}: has no times, but prepare.split is temporal; use leave_one_out")
    first, number = value(times.min()), value(times.count())
    sizes = events.group_by("timestamp").aggregate(size=events.count())
    running = sizes.mutate(up_to=sizes["size"].sum().over(ibis.window(order_by="timestamp", following=0)))
    running = keep(engine, running.select("timestamp", "up_to"))
    shares = {"valid_from": rules.valid_share + rules.test_share, "test_from": rules.test_share}
    places = {name: int(round(number * (1 - share), 6)) for name, share in shares.items()}
    found = {name: value(running.filter(running.up_to > nth).timestamp.min()) for name, nth in places.items()}
    if not first < found["valid_from"] < found["test_from"]:
        raise DataError(
            f"{input}: prepare.split is temporal, but the times do not part into three periods (it begins {first}, "
            f"validation {found['valid_from']}, test {found['test_from']}); change prepare.valid_share or "
            "prepare.test_share"
        )
    return found
