"""Rules that decide which events are kept; they are table expressions and run on every engine."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import ibis
from ibis.expr.types import Table

from slmrec.config.prepare import PrepareConfig
from slmrec.data.engine import drop, keep, value
from slmrec.errors import DataError
from slmrec.files import printable


@dataclass
class _Filtering:
    """Events while the rules are applied one after the other."""

    engine: Any
    events: Table
    order: list[Any]
    """Columns that order the events of a user."""
    num_removed: dict[str, int]
    """The number of events removed by each rule."""

    def apply(self, rule: str, events: Table) -> None:
        """Continue with the events that a rule keeps, and count the removed ones."""
        before, self.events = self.events, keep(self.engine, events)
        count = value(before.count()) - value(self.events.count())
        if self.num_removed:  # before the first rule, the table is the log itself
            drop(self.engine, before)
        self.num_removed[rule] = self.num_removed.get(rule, 0) + count


class Returns(NamedTuple):
    """Events without returns, and the numbers of removed rows."""

    events: Table
    num_returned: int
    """The number of events that a return removed, and of these returns."""
    num_unmatched: int
    """The number of returns without an earlier event of the user and the item."""
    num_zero: int
    """The number of rows of quantity 0."""

    @property
    def num_removed(self) -> int:
        """The number of removed rows."""
        return 2 * self.num_returned + self.num_unmatched + self.num_zero

    def message(self, column: str) -> str:
        """Return a line that says what was removed."""
        return (
            f"returns in {printable(column)}: {self.num_returned:,} events and their returns removed; "
            f"{self.num_unmatched:,} returns without an earlier event and {self.num_zero:,} rows of quantity 0 dropped"
        )


def remove_returns(engine: Any, log: str, rows: Table, order: list[str]) -> Returns:
    """Remove returns, the events that they take back, and rows of quantity 0.

    Each return removes the newest earlier event of its user and item that no other return removed.

    Args:
        engine: the engine of the rows.
        log: the name of the log, for messages.
        rows: `user_id`, `item_id`, `quantity`, and the columns of `order`.
        order: columns that order the rows of a user.

    Raises:
        DataError: no event is left.
    """
    pairs = ["user_id", "item_id"]
    ordered = [*order, ibis.desc("quantity")]  # an event before its return, where the order has ties
    marked = rows.filter(rows.quantity != 0).mutate(sign=ibis.ifelse(rows.quantity < 0, -1, 1))
    up_to = ibis.window(group_by=pairs, order_by=ordered, preceding=None, following=0)
    summed = marked.mutate(balance=marked["sign"].sum().over(up_to))
    onward = ibis.window(group_by=pairs, order_by=ordered, preceding=0, following=None)
    # an event is taken back once the balance falls below that right after the event
    ended = keep(engine, summed.mutate(lowest=summed.balance.min().over(onward)))
    events = ended.filter((ended["sign"] > 0) & (ended.lowest >= ended.balance))
    events = keep(engine, events.drop("sign", "balance", "lowest", "quantity"))
    lowest = ended.group_by(pairs).aggregate(lowest=ended.balance.min())
    num_unmatched = -int(value(lowest.filter(lowest.lowest < 0).lowest.sum()) or 0)
    num_zero, num_events = value((rows.quantity == 0).sum()), value(events.count())
    num_returned = (value(ended.count()) - num_events - num_unmatched) // 2
    drop(engine, ended)
    if not num_events:
        raise DataError(
            f"{log}: no event is left after returns; {num_returned:,} events were returned, and {num_zero:,} rows have "
            "quantity 0; give another column as prepare.quantity_col, or leave it out"
        )
    return Returns(events, num_returned, num_unmatched, int(num_zero))


def apply_rules(
    engine: Any, log: str, events: Table, order: list[Any], settings: PrepareConfig
) -> tuple[Table, dict[str, int]]:
    """Remove the events that the rules exclude.

    `core: single_pass` removes rare users, then rare items among the remaining events, then repeats, old events, and
    finally users with too few remaining events. `core: fixed_point` removes repeats and old events, then alternates
    between rare users and rare items until no rule is violated.

    Args:
        engine: the engine of the events.
        log: the name of the log, for messages.
        events: `user_id`, `item_id`, the columns of `order`, and `rating` if `min_rating` is set.
        order: columns that order the events of a user.
        settings: the rules.

    Returns:
        The remaining events, and the number of events removed by each rule.

    Raises:
        DataError: no event is left.
    """
    state = _Filtering(engine, events, order, {})
    if settings.min_rating is not None:
        state.apply("min_rating", events.filter(events.rating >= settings.min_rating))
    if settings.core == "single_pass":
        _remove_rare(state, "user_id", settings.min_user_events)
        _remove_rare(state, "item_id", settings.min_item_events)
    _remove_repeats(state, settings.repeats)
    if settings.max_history is not None:
        newest_first = [ibis.desc(column, nulls_first=True) for column in order]
        age = ibis.row_number().over(group_by="user_id", order_by=newest_first)
        aged = state.events.mutate(age=age)
        state.apply("max_history", aged.filter(aged.age < settings.max_history).drop("age"))
    if settings.core == "single_pass":
        _remove_rare(state, "user_id", settings.min_user_events)
    else:
        _reduce_to_core(state, settings)
    if not value(state.events.count()):
        removed = state.num_removed.items()
        counts = ", ".join(f"prepare.{rule} ({getattr(settings, rule)}): {number}" for rule, number in removed)
        raise DataError(f"{log}: no event is left; events removed by {counts}; loosen these rules, or give more data")
    return state.events, state.num_removed


def _reduce_to_core(state: _Filtering, settings: PrepareConfig) -> None:
    minimums = {"user_id": settings.min_user_events, "item_id": settings.min_item_events}
    active = [column for column, minimum in minimums.items() if minimum > 1]
    changed = bool(active)
    while changed:
        removed = [_remove_rare(state, column, minimums[column]) for column in active]
        changed = any(removed) and (len(active) > 1 or settings.repeats == "merge")
        if changed and settings.repeats == "merge":  # two events of one item may now be consecutive
            _remove_repeats(state, settings.repeats)


def _remove_rare(state: _Filtering, column: str, minimum: int) -> bool:
    """Remove users or items with too few events; return whether there were any."""
    sizes = state.events.group_by(column).aggregate(size=state.events.count())
    rare = keep(state.engine, sizes.filter(sizes["size"] < minimum).select(column))
    if not value(rare.count()):
        return False
    setting = f"min_{column.removesuffix('_id')}_events"
    state.apply(setting, state.events.anti_join(rare, column))
    return True


def _remove_repeats(state: _Filtering, repeats: str) -> None:
    if repeats == "keep":
        return
    events = state.events
    if repeats == "drop":
        is_repeat = ibis.row_number().over(group_by=["user_id", "item_id"], order_by=state.order) > 0
    else:
        previous = events.item_id.lag().over(group_by="user_id", order_by=state.order)
        is_repeat = (previous == events.item_id).fill_null(False)
    marked = events.mutate(is_repeat=is_repeat)
    state.apply("repeats", marked.filter(~marked.is_repeat).drop("is_repeat"))


def cut_times(engine: Any, log: str, events: Table, settings: PrepareConfig) -> dict[str, int]:
    """Return the start times `valid_from` and `test_from` of the periods of a temporal split.

    Raises:
        DataError: the events have no times, or too few distinct times for three periods.
    """
    times = events.timestamp
    if value(times.isnull().any()):
        raise DataError(f"{log}: has no times, but prepare.split is temporal; use leave_one_out")
    first, number = value(times.min()), value(times.count())
    sizes = events.group_by("timestamp").aggregate(size=events.count())
    running = sizes.mutate(up_to=sizes["size"].sum().over(ibis.window(order_by="timestamp", following=0)))
    running = keep(engine, running.select("timestamp", "up_to"))
    shares = {"valid_from": settings.valid_share + settings.test_share, "test_from": settings.test_share}
    ranks = {name: int(round(number * (1 - share), 6)) for name, share in shares.items()}
    starts = {name: value(running.filter(running.up_to > rank).timestamp.min()) for name, rank in ranks.items()}
    if not first < starts["valid_from"] < starts["test_from"]:
        raise DataError(
            f"{log}: prepare.split is temporal, but the times do not form three periods (training begins {first}, "
            f"validation {starts['valid_from']}, test {starts['test_from']}); change prepare.valid_share or "
            "prepare.test_share"
        )
    return starts
