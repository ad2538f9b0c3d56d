"""Times of the events of requests: `timestamps`, which are as long as the histories."""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from reprlib import repr as shortened
from typing import Any

import numpy as np

from slmrec.errors import ConfigError
from slmrec.types import Unit

TIMESTAMPS = "timestamps"
_LIMIT = 2**62
"""Times are smaller, so that the difference of two times has 64 bits."""


def checked_times(values: Any, num_items: int, unit: Unit) -> list[int]:
    """Return the times of a history as whole numbers in a unit, counted from 1970-01-01 UTC.

    Args:
        values: Whole numbers in this unit, as numbers or text, or dates; a date without a time zone is in UTC.
        num_items: Number of items of the history.
        unit: Unit of the result.

    Raises:
        ValueError: The length differs, a value is no time, or a time is earlier than the one before it.

    Example:
        >>> checked_times([5.0, "6", datetime(1970, 1, 1, 0, 1)], 3, "s")
        [5, 6, 60]
    """
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise ValueError(f"expected a list of times, got {shortened(values)}")
    if len(values) != num_items:
        raise ValueError(f"got {len(values)} times, expected {num_items}: one for each item, known or not")
    times: list[int] = []
    for number, value in enumerate(values, 1):
        time = value if type(value) is int else _time(value, unit)
        if time is None or not -_LIMIT < time < _LIMIT:
            raise ValueError(f"time {number} is {shortened(value)}: expected a whole number in {unit}, or a date")
        if times and time < times[-1]:
            raise ValueError(f"time {number} is {time}, earlier than the one before it, {times[-1]}; give oldest first")
        times.append(time)
    return times


def check_timestamps(timestamps: Any, histories: Sequence[Sequence[Any]], unit: Unit | None) -> list[list[int]] | None:
    """Return the times of some histories; None if none are given, and none are needed.

    Args:
        timestamps: Times of each history; None: not given.
        histories: Item ids of each history.
        unit: Unit in which the model reads times; None: it reads none, so that times are checked alone.

    Raises:
        ConfigError: They are missing but needed, or do not fit the histories.
    """
    if timestamps is None:
        if unit is not None and any(map(len, histories)):
            raise ConfigError(needed(unit, f"give {TIMESTAMPS}, a list of times for each history"))
        return None
    if not hasattr(timestamps, "__len__") or len(timestamps) != len(histories):
        raise ConfigError(
            f"{TIMESTAMPS} is {shortened(timestamps)}, expected a list of times for each of the {len(histories)} "
            "histories; give [] for an empty one"
        )
    checked = []
    for number, (times, history) in enumerate(zip(timestamps, histories, strict=True)):
        try:
            checked.append(checked_times(times, len(history), unit or "s"))
        except ValueError as error:
            raise ConfigError(f"{TIMESTAMPS} of history {number}: {error}") from None
    return checked


def needed(unit: Unit, remedy: str) -> str:
    """Return the message for histories without times that a model needs."""
    return f"the model reads the times of events, which are missing; {remedy}, in {unit} since 1970-01-01 UTC"


def _time(value: Any, unit: Unit) -> int | None:
    """Return a value as a time; None if it is none."""
    for convert in ("as_py", "to_datetime64"):  # values of Arrow and pandas
        if hasattr(value, convert):
            value = getattr(value, convert)()
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(UTC).replace(tzinfo=None)
    if isinstance(value, date | np.datetime64):
        moment = np.datetime64(value)
        return None if np.isnat(moment) else int(moment.astype(f"datetime64[{unit}]").astype(np.int64))
    try:
        number = None if isinstance(value, bool | np.bool_) else int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    is_exact = isinstance(value, str) or number == value
    return number if is_exact else None
