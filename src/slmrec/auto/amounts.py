"""Durations and sizes, as numbers or as texts such as 20m and 8g."""

import math
import re
from numbers import Real

from slmrec.errors import ConfigError

Amount = str | float
"""A number, or a text of numbers with units."""


def seconds_of(duration: Amount | None, name: str = "--time-budget") -> float | None:
    """Return a duration such as 90s, 20m or 1h30m, or a number of seconds, in seconds; None if none is given.

    Args:
        duration: The duration.
        name: Name of the option, for messages.

    Raises:
        ConfigError: It is not a duration, or not above 0.

    Example:
        >>> seconds_of("1h30m"), seconds_of(90)
        (5400.0, 90.0)
    """
    expected = "a duration such as 90s, 20m, 2h or 1h30m"
    return _amount(duration, name, expected, "seconds", {"h": 3600, "m": 60, "s": 1})


def bytes_of(size: Amount | None, name: str = "--memory") -> int | None:
    """Return a size such as 8g or 800m, or a number of bytes, in bytes; None if none is given.

    Args:
        size: The size.
        name: Name of the option, for messages.

    Raises:
        ConfigError: It is not a size, or not above 0.

    Example:
        >>> bytes_of("1.5g") == 3 * 2**29
        True
    """
    expected, units = "a size such as 8g or 800m", {"t": 2**40, "g": 2**30, "m": 2**20}
    amount = _amount(size, name, expected, "bytes", units, r"(?:i?b)?")
    return None if amount is None else int(amount)


def _amount(
    amount: Amount | None, name: str, expected: str, unit: str, units: dict[str, int], suffix: str = ""
) -> float | None:
    """Return a number, or the sum of numbers with units, the largest unit first, each at most once."""
    if amount is None:
        return None
    if isinstance(amount, Real) and not isinstance(amount, bool):
        total, expected = float(amount), f"{expected}, or a number of {unit} above 0"
    else:
        parts = "".join(rf"(?:(\d{{1,9}}(?:\.\d{{1,9}})?)\s*{one}{suffix})?\s*" for one in units)
        found = re.fullmatch(parts, str(amount).strip().lower(), re.ASCII)
        numbers = found.groups() if found else ()
        total = sum(float(number or 0) * size for number, size in zip(numbers, units.values(), strict=False))
    if not (total > 0 and math.isfinite(total)):
        raise ConfigError(f"{name} is {amount!r}; expected {expected}")
    return total
