"""Times of events: parsing numbers and dates to whole numbers, units, and dates for display."""

import re
from typing import Any, Literal, NamedTuple

import ibis
import numpy as np
from ibis.expr.types import Column

from slmrec.data.engine import first_row

Unit = Literal["s", "ms", "us", "ns"]
PER_SECOND: dict[Unit, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}

_ZONE = r"Z|UTC|[+-]\d{2}(?::?\d{2})?"
_DATE = rf"^(\d{{4}}-\d{{1,2}}-\d{{1,2}})(?:[T ](\d{{1,2}}:\d{{2}}(?::\d{{2}}(?:\.(\d{{1,9}}))?)?) ?({_ZONE})?)?$"
"""Groups: day, time of day, digits of the fraction of a second, time zone."""
_WHOLE = r"^[+-]?[0-9]+$"
_NUMBER = r"^[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?$"
_MAX_EXACT_FLOAT = 2.0**53


class ParsedTimes(NamedTuple):
    """A parsed column of times."""

    timestamp: Column
    """Whole numbers; null for values that are not times, or not of the kind of the first one."""
    nanosecond: Column
    """Fractions of a second of dates, otherwise 0."""
    kind: Literal["number", "date"]
    """The kind of the first time, which applies to the whole log."""
    first: str | None
    """The first time as text; None for columns of numbers."""


def parse_times(column: Column) -> ParsedTimes:
    """Parse a column of numbers or text to whole numbers; dates become seconds since 1970-01-01 UTC."""
    dtype = column.type()
    zero = ibis.literal(0, "int64")
    if dtype.is_integer():
        return ParsedTimes(column.try_cast("int64"), zero, "number", None)  # unsigned values may be too large
    if dtype.is_floating():
        return ParsedTimes(_whole_float(column), zero, "number", None)
    text = column.cast("string").strip()
    rows = text.name("time").as_table()
    first = first_row(rows.filter(rows.time.re_search(_NUMBER) | rows.time.re_search(_DATE))).get("time")
    if first is None or re.match(_NUMBER, first):
        return ParsedTimes(_whole_number(text), zero, "number", first)
    seconds, nanosecond = _date_parts(text)
    return ParsedTimes(seconds, nanosecond, "date", first)


def invalid_time_reason(value: str | None, times: ParsedTimes) -> str:
    """Return why a value is not a valid time of a log."""
    other_kind = _DATE if times.kind == "number" else _NUMBER
    if value is not None and times.first is not None and re.match(other_kind, value.strip()):
        kinds = ("date", "number") if times.kind == "number" else ("number", "date")
        return f"a {kinds[0]}, but the first time of the log is a {kinds[1]}; write all times in one way"
    return "expected a whole number or a date such as 2014-07-23T10:00:00Z"


def time_unit(largest: int) -> Unit:
    """Guess the unit of times from their magnitude.

    Seconds up to the year 5138 are recognised as seconds; finer units before March 1973 are taken for coarser ones.

    Args:
        largest: the largest absolute value, of 64 bits.

    Example:
        >>> time_unit(1_700_000_000), time_unit(1_700_000_000_000)
        ('s', 'ms')
    """
    return next(unit for unit, per_second in PER_SECOND.items() if largest < 10**11 * per_second)


def date(time: int, unit: Unit, resolution: Literal["D", "s"] = "D") -> str:
    """Format a time as a date in UTC, with the resolution of a day or a second.

    Example:
        >>> date(1_405_296_000, "s"), date(-1_500, "ms", "s")
        ('2014-07-14', '1969-12-31 23:59:58')
    """
    return str(np.datetime64(time, unit).astype(f"datetime64[{resolution}]")).replace("T", " ")


def _whole_float(number: Any) -> Any:
    whole = number.try_cast("int64")  # null for NaN and large values; fractions are rounded
    return ibis.ifelse((number.abs() < _MAX_EXACT_FLOAT) & (whole == number), whole, None)


def _whole_number(text: Any) -> Any:
    """Parse whole numbers exactly, with or without `.0`; fractions become null."""
    plain = text.re_replace(r"\.0*$", "")
    scientific = ibis.ifelse(text.re_search(_NUMBER), text, None).try_cast("float64")
    return ibis.cases(
        (text.re_search(_WHOLE), text.try_cast("int64")),
        (plain.re_search(_WHOLE), plain.try_cast("int64")),
        else_=_whole_float(scientific),
    )


def _date_parts(text: Any) -> tuple[Any, Any]:
    """Return seconds since 1970-01-01 UTC, and nanoseconds."""
    day, clock, fraction, zone = (text.re_extract(_DATE, group) for group in (1, 2, 3, 4))
    moment = day.concat(" ", clock.re_replace(r"\..*$", "")).strip().try_cast("timestamp")
    seconds = moment.epoch_seconds().cast("int64") - _zone_seconds(zone)
    return seconds, fraction.rpad(9, "0").cast("int64")


def _zone_seconds(zone: Any) -> Any:
    """Return the offset of a time zone such as +02:00 from UTC, in seconds."""
    hours = zone.re_extract(r"^[+-](\d{2})", 1).try_cast("int64").fill_null(0)
    minutes = zone.re_extract(r"^[+-]\d{2}:?(\d{2})$", 1).try_cast("int64").fill_null(0)
    return ibis.ifelse(zone.startswith("-"), -1, 1) * (hours * 3600 + minutes * 60)
