"""Notations of dates, guessed from texts."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cache
from itertools import product

_DAYS = (
    *("%d.%m.%Y", "%d.%m.%y", "%d/%m/%Y", "%m/%d/%Y", "%d/%m/%y", "%m/%d/%y", "%d-%m-%Y", "%m-%d-%Y", "%d-%m-%y"),
    *("%m-%d-%y", "%Y/%m/%d", "%Y.%m.%d", "%Y-%m-%d", "%Y%m%d", "%d %b %Y", "%d %B %Y", "%b %d %Y", "%B %d %Y"),
    *("%b %d, %Y", "%B %d, %Y", "%d-%b-%Y", "%d-%b-%y", "%d/%b/%Y", "%a, %d %b %Y", "%a %d %b %Y", "%d. %B %Y"),
)
_CLOCKS = (
    "%H:%M",
    "%H:%M:%S",
    "%H:%M:%S.%f",
    "%I:%M %p",
    "%I:%M:%S %p",
    "%I:%M%p",
    "%I:%M:%S%p",
    "%H.%M",
    "%H.%M.%S",
    "%H%M%S",
)
_SEPARATORS = (" ", ", ", "T", ":")
_ZONES = ("", " %z", "%z", " UTC", " GMT", "Z")
_UNIX = tuple(f"%a %b %d %H:%M:%S{zone} %Y" for zone in ("", " UTC", " GMT"))
_COMPACT_DAYS = ("%Y%m%d", "%d%m%Y", "%m%d%Y")
_COMPACT_CLOCKS = {8: ("",), 10: ("%H",), 12: ("%H%M",), 14: ("%H%M%S",), 17: ("%H%M%S%g",)}
"""Times of day by the number of digits of the whole date."""
_RECENT_YEARS = range(1970, 2101)
_ENOUGH = 0.9
_WORDS = re.compile(r"%-?[A-Za-z]|[^\W_]+")
_OFFSET = re.compile(r"(%z|[+-]\d\d:?\d\d)$")


def guess_formats(texts: Sequence[str]) -> list[str]:
    """Return the formats of `strptime` that read nearly all of some texts; several if day and month are ambiguous.

    Example:
        >>> guess_formats(["14.11.2023 22:13"]), guess_formats(["03/04/2023"])
        (['%d.%m.%Y %H:%M'], ['%d/%m/%Y', '%m/%d/%Y'])
    """
    for first in dict.fromkeys(texts[:3]):  # one of them may be invalid
        formats = [format for format in _formats_by_signs().get(_signs(first), []) if _reads(first, format)]
        matching = [format for format in formats if _read_nearly_all(texts, format)]
        if matching:
            return matching
    return []


def guess_hint(texts: Sequence[str], format: str | None = None) -> str:
    """Return the part of a message that names the setting for dates in another notation; empty if none is recognised.

    Args:
        texts: the first times of a log.
        format: the present setting, which does not need to be named.
    """
    formats = guess_formats(texts)
    return "" if format in formats else _hint(formats)


def compact_hint(numbers: Sequence[str]) -> str:
    """Return the part of a message that names the notation of dates written as whole numbers; empty for other numbers.

    As seconds or milliseconds, such numbers would be in 1970, 1976, or far in the future.

    Example:
        >>> compact_hint(["20231114", "20231115"]), compact_hint(["1700000000"])
        ("; set prepare.time_format='%Y%m%d'", '')
    """
    dates = [number.removesuffix(".0") for number in numbers]
    length = max(map(len, dates), default=0)
    formats = [f"{day}{clock}" for day in _COMPACT_DAYS for clock in _COMPACT_CLOCKS.get(length, ())]
    return _hint([format for format in formats if _read_nearly_all(dates, format, recent=True)])


def _hint(formats: Sequence[str]) -> str:
    if not formats:
        return ""
    first, *others = (f"prepare.time_format={format!r}" for format in formats)
    if not others:
        return f"; set {first}"
    return f"; set {first} if the day comes first, or {others[0]} if the month does"


def _formats() -> Iterator[str]:
    yield from _DAYS
    yield from _UNIX
    for day, separator, clock, zone in product(_DAYS, _SEPARATORS, _CLOCKS, _ZONES):
        yield f"{day}{separator}{clock}{zone}"


@cache
def _formats_by_signs() -> dict[str, list[str]]:
    formats = defaultdict(list)
    for format in _formats():
        formats[_signs(format)].append(format)
    return formats


def _signs(text: str) -> str:
    """Return the characters of a text or a format between its numbers and words."""
    return _WORDS.sub("", _OFFSET.sub("+", text))


def _read_nearly_all(texts: Sequence[str], format: str, recent: bool = False) -> bool:
    return sum(_reads(text, format, recent) for text in texts) >= _ENOUGH * len(texts)


def _reads(text: str, format: str, recent: bool = False) -> bool:
    try:
        year = datetime.strptime(text, format.replace("%g", "%f")).year
    except ValueError:
        return False
    return not recent or year in _RECENT_YEARS
