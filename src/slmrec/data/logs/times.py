"""Times as whole numbers: numbers as they are, dates as seconds and nanoseconds."""

import re
from typing import Any, Literal, NamedTuple

import ibis
from ibis.expr.types import Column

from slmrec.data.engine import first_row

_ZONE = r"Z|UTC|[+-]\d{2}(?::?\d{2})?"
_DATE = rf"^(\d{{4}}-\d{{1,2}}-\d{{1,2}})(?:[T ](\d{{1,2}}:\d{{2}}(?::\d{{2}}(?:\.(\d{{1,9}}))?)?) ?({_ZONE})?)?$"
"""Day, time of the day, digits of the fraction of a second, zone."""
_WHOLE = r"^[+-]?[0-9]+$"
_NUMBER = r"^[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?$"
_LARGEST_EXACT = 2.0**53


class Times(NamedTuple):
    """A column of times, parsed."""

    timestamp: Column
    """Whole number; null for what is no time, or not of the kind of the first one."""
    nanosecond: Column
    kind: Literal["number", "date"]
    """All times of a log are of the kind of its first one."""
    first: str | None


def parsed_times(column: Column) -> Times:
    """Any column of times as whole numbers."""
    kind = column.type()
    nothing = ibis.literal(0, "int64")
    if kind.is_integer():
        return Times(column.try_cast("int64"), nothing, "number", None)  # unsigned ones may be too large
    if kind.is_floating():
        return Times(_whole_float(column), nothing, "number", None)
    text = column.cast("string").strip()
    rows = text.name("time").as_table()
    first = first_row(rows.filter(rows.time.re_search(_NUMBER) | rows.time.re_search(_DATE))).get("time")
    if first is None or re.match(_NUMBER, first):
        return Times(_whole_number(text), nothing, "number", first)
    seconds, nanosecond = _moment(text)
    return Times(seconds, nanosecond, "date", first)


def why_no_time(value: str | None, times: Times) -> str:
    """What is wrong with a value that is no time of a log."""
    other = _DATE if times.kind == "number" else _NUMBER
    if value is not None and times.first is not None and re.match(other, value.strip()):
        kinds = ("date", "number") if times.kind == "number" else ("number", "date")
        return f"a {kinds[0]}, but the first time of the log is a {kinds[1]}; write all of them in one way"
    return "expected a whole number or a date such as 2014-07-23T10:00:00Z"


def _whole_float(number: Any) -> Any:
    whole = number.try_cast("int64")  # nothing for NaN and what is too large; fractions are rounded
    return ibis.ifelse((number.abs() < _LARGEST_EXACT) & (whole == number), whole, None)


def _whole_number(text: Any) -> Any:
    """Exact for whole numbers, with or without `.0`; null for numbers that are no whole ones."""
    plain = text.re_replace(r"\.0*$", "")
    power = ibis.ifelse(text.re_search(_NUMBER), text, None).try_cast("float64")
    return ibis.cases(
        (text.re_search(_WHOLE), text.try_cast("int64")),
        (plain.re_search(_WHOLE), plain.try_cast("int64")),
        else_=_whole_float(power),
    )


def _moment(text: Any) -> tuple[Any, Any]:
    """Seconds since 1970-01-01 UTC, and nanoseconds."""
    day, clock, fraction, zone = (text.re_extract(_DATE, group) for group in (1, 2, 3, 4))
    moment = day.concat(" ", clock.re_replace(r"\..*$", "")).strip().try_cast("timestamp")
    seconds = moment.epoch_seconds().cast("int64") - _zone_seconds(zone)
    return seconds, fraction.rpad(9, "0").cast("int64")


def _zone_seconds(zone: Any) -> Any:
    """How far a zone such as +02:00 is ahead of UTC."""
    hours = zone.re_extract(r"^[+-](\d{2})", 1).try_cast("int64").fill_null(0)
    minutes = zone.re_extract(r"^[+-]\d{2}:?(\d{2})$", 1).try_cast("int64").fill_null(0)
    return ibis.ifelse(zone.startswith("-"), -1, 1) * (hours * 3600 + minutes * 60)
