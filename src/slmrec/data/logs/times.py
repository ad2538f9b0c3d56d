"""Times of events: numbers and dates as seconds and nanoseconds since 1970-01-01 UTC, units, and dates for display."""

import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple

import ibis
import numpy as np
from ibis.expr.types import Column, Table

from slmrec.config.prepare import PrepareConfig
from slmrec.data.engine import first_row, keep
from slmrec.data.logs.time_formats import compact_hint, guess_hint
from slmrec.errors import DataError
from slmrec.types import PER_SECOND, Unit

UNIT_NAMES: dict[Unit, str] = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_NANOSECONDS = 10**9
_LIMITS: dict[Unit, int] = {unit: 10**11 * per_second for unit, per_second in PER_SECOND.items()}
"""Times of a unit are smaller; in seconds, this is the year 5138."""
_SMALLEST = 10**8
"""Smaller numbers have no unit of their own: they are counters, or times close to 1970."""

_ZONE = r"Z|UTC|[+-]\d{2}(?::?\d{2})?"
_DATE = rf"^(\d{{4}}-\d{{1,2}}-\d{{1,2}})(?:[T ](\d{{1,2}}:\d{{2}}(?::\d{{2}}(?:[.,](\d{{1,9}}))?)?) ?({_ZONE})?)?$"
"""Groups: day, time of day, digits of the fraction of a second, time zone."""
_WHOLE = r"^[+-]?[0-9]+$"
_DECIMAL = r"^([+-]?[0-9]+)(?:[.,]([0-9]*))?$"
"""Groups: the whole number, and the digits after the point or the comma."""
_SCIENTIFIC = r"^[+-]?[0-9]+(?:\.[0-9]*)?[eE][+-]?[0-9]+$"
_NUMBER = r"^[+-]?[0-9]+(?:[.,][0-9]*)?(?:[eE][+-]?[0-9]+)?$"
_THOUSANDS = r"^[+-]?[1-9][0-9]{0,2}(?:,[0-9]{3})+$"
_DECIMAL_COMMA = r"^[+-]?[0-9]*,[0-9]+$"
_LARGE = r"^[+-]?(?:[0-9]{9,}(?:[.,][0-9]*)?|[0-9]+(?:\.[0-9]*)?[eE][+-]?[0-9]+)$"
"""Numbers that may be large enough to have a unit of their own."""
_MAX_EXACT_FLOAT = {32: 2.0**24, 64: 2.0**53}
_NUM_SAMPLES = 1000


class ParsedTimes(NamedTuple):
    """A parsed column of times."""

    columns: dict[str, Column]
    """What `with_times` needs of each row."""
    is_invalid: Column
    """True if a value is not a time, or not of the kind or the unit of the others."""
    kind: Literal["number", "date"]
    """The kind of the first time, which applies to the whole log."""
    first: str | None = None
    """The first time as text; None if there is none, or if it has another type."""
    unit: Unit | None = None
    """The unit of numbers; None for dates, and where each number has its own."""
    example: str | None = None
    """A time that decided the unit."""
    hint: Callable[[], str] = str
    """Returns the setting that reads the times, if they are dates in another notation."""


def parse_times(column: Column, name: str, settings: PrepareConfig) -> ParsedTimes:
    """Parse a column of numbers, dates or text.

    Args:
        column: the times.
        name: the name of the column, for messages.
        settings: the unit of numbers, and the notation of dates.

    Raises:
        DataError: a setting does not apply to the column.
    """
    dtype = column.type()
    if settings.time_format is not None:
        return _formatted(column, name, settings.time_format)
    if dtype.is_integer():
        whole = column.try_cast("int64")
        return _numbers(name, whole, ibis.literal(0.0), whole.isnull(), whole, None, settings)
    text = column.cast("string").strip()
    if dtype.is_floating():
        text = ibis.ifelse(column.abs() < _MAX_EXACT_FLOAT[dtype.nbytes * 8], text, None)  # larger ones are rounded
    rows = text.name("time").as_table()
    first = first_row(rows.filter(rows.time.re_search(_NUMBER) | rows.time.re_search(_DATE))).get("time")
    if first is None or re.match(_NUMBER, first):
        whole = _whole(text)
        is_invalid = whole.isnull() | text.re_search(_THOUSANDS)
        times = _numbers(name, whole, _fraction(text), is_invalid, text, first, settings)
        return times if first is not None else times._replace(hint=cache(lambda: guess_hint(_samples(rows))))
    if settings.time_unit != "auto":
        raise _without_effect(name, "time_unit", settings.time_unit, f"are dates, such as {first!r}")
    seconds, nanosecond = _date_parts(text)
    return ParsedTimes({"timestamp": seconds, "nanosecond": nanosecond}, seconds.isnull(), "date", first)


def decimal_number(column: Column) -> Any:
    """Return the numbers of a column, with a decimal point or comma; null for other texts, such as 1,234."""
    if not column.type().is_string():
        return column.try_cast("float64")
    text = column.strip()
    has_comma = text.re_search(_DECIMAL_COMMA) & ~text.re_search(_THOUSANDS)
    return ibis.ifelse(has_comma, text.replace(",", "."), text).try_cast("float64")


def with_times(engine: Any, rows: Table, times: ParsedTimes) -> Table:
    """Replace the columns of `ParsedTimes` by `timestamp` and `nanosecond`.

    `timestamp` has the seconds since 1970-01-01 UTC, rounded down, and `nanosecond` the rest, with a fraction where the
    log has one.
    """
    if "moment" in times.columns:
        seconds, nanosecond = _date_parts(rows.moment)
        return keep(engine, rows.mutate(timestamp=seconds, nanosecond=nanosecond).drop("moment"))
    if times.kind == "date":
        return rows
    unit, whole = times.unit, rows.whole
    per_second: Any = PER_SECOND[unit] if unit else _by_size(whole, PER_SECOND)
    rest = whole % per_second  # has the sign of the number
    seconds = whole if unit == "s" else ((whole - rest) / per_second).round().cast("int64") - (rest < 0).cast("int64")
    rest = ibis.ifelse(rest < 0, rest + per_second, rest)
    nanosecond = (rest * float(_NANOSECONDS) + rows.fraction) / per_second
    seconds = ibis.ifelse(nanosecond < 0, seconds - 1, seconds)
    nanosecond = ibis.ifelse(nanosecond < 0, nanosecond + float(_NANOSECONDS), nanosecond)
    return rows.mutate(timestamp=seconds, nanosecond=nanosecond).drop("whole", "fraction")


def invalid_time_reason(value: str | None, times: ParsedTimes) -> str:
    """Return why a value is not a valid time of a log."""
    text = (value or "").strip()
    other_kind = _DATE if times.kind == "number" else _NUMBER
    if times.first is not None and re.match(other_kind, text):
        kinds = ("date", "number") if times.kind == "number" else ("number", "date")
        return f"a {kinds[0]}, but the first time of the log is a {kinds[1]}; write all times in one way"
    if times.unit and times.example and (unit := _unit_of(text)) and unit != times.unit:
        return (
            f"looks like {UNIT_NAMES[unit]}, but times of the log such as {times.example} are "
            f"{UNIT_NAMES[times.unit]}; set prepare.time_unit=mixed to convert each time by its size, or to the "
            "unit of all of them"
        )
    expected = "a date" if "moment" in times.columns else "a number or a date such as 2014-07-23T10:00:00Z"
    return f"expected {expected}{times.hint()}"


def stored_unit(events: Table) -> Unit | None:
    """Return the coarsest unit that holds the times of all events; None if they have no times."""
    second = events.timestamp.notnull().any()
    finer = {
        unit: ((events.nanosecond.floor().cast("int64") % (_NANOSECONDS // per_second)) != 0).any()
        for unit, per_second in PER_SECOND.items()
    }
    row = first_row(events.aggregate(has_times=second, **finer))
    if not row["has_times"]:
        return None
    return next(unit for unit in PER_SECOND if not row[unit])


def in_unit(log: str, events: Table, unit: Unit) -> Table:
    """Return events whose `timestamp` is in a unit.

    Raises:
        DataError: a time is too far from 1970 for 64 bits.
    """
    per_second = PER_SECOND[unit]
    if unit == "s":
        return events
    furthest = 2**63 // per_second - 1
    outside = first_row(events.filter((events.timestamp > furthest) | (events.timestamp < -furthest)))
    if outside:
        raise DataError(
            f"{log}: the times need {UNIT_NAMES[unit]}, in which {date(outside['timestamp'], 's', 's')} exceeds 64 "
            "bits; round the times to seconds, or remove the row"
        )
    parts = events.nanosecond.floor().cast("int64")
    return events.mutate(timestamp=events.timestamp * per_second + _divided(parts, _NANOSECONDS // per_second))


def time_unit(largest: int) -> Unit:
    """Guess the unit of times from their magnitude.

    Seconds up to the year 5138 are recognised as seconds; finer units before March 1973 are taken for coarser ones.

    Args:
        largest: the largest absolute value, of 64 bits.

    Example:
        >>> time_unit(1_700_000_000), time_unit(1_700_000_000_000)
        ('s', 'ms')
    """
    return next(unit for unit, limit in _LIMITS.items() if largest < limit)


def date(time: int, unit: Unit, resolution: Literal["D", "s"] = "D") -> str:
    """Format a time as a date in UTC, with the resolution of a day or a second.

    Example:
        >>> date(1_405_296_000, "s"), date(-1_500, "ms", "s")
        ('2014-07-14', '1969-12-31 23:59:58')
    """
    return str(np.datetime64(time, unit).astype(f"datetime64[{resolution}]")).replace("T", " ")


def _without_effect(name: str, setting: str, given: str, times: str) -> DataError:
    return DataError(f"prepare.{setting} is {given!r}, but the times of the column {name!r} {times}; leave it out")


def _samples(rows: Table) -> list[str]:
    texts = rows.filter(rows.time.length() > 0).limit(_NUM_SAMPLES).to_pyarrow()["time"].to_pylist()
    return [text for text in texts if text is not None]


@ibis.udf.scalar.builtin(name="try_strptime", signature=(("string", "string"), "timestamp"))
def _try_strptime(text, format):  # type: ignore[no-untyped-def]
    """DuckDB's function: null for texts of another format."""
    raise NotImplementedError


def _formatted(column: Column, name: str, format: str) -> ParsedTimes:
    dtype = column.type()
    if dtype.is_floating():
        column = ibis.ifelse(column % 1 == 0, column, None).try_cast("int64")
    elif not dtype.is_string() and not dtype.is_integer():
        raise _without_effect(name, "time_format", format, f"have the type {dtype}, not text")
    text = column.cast("string").strip()
    if "." not in format:  # dates that passed through floats
        text = text.re_replace(r"^([0-9]{8,})\.0+$", r"\1")
    zoned = text.re_replace("Z$", "+0000") if "%z" in format else text
    moment = _try_strptime(zoned, format).cast("string")
    rows = text.name("time").as_table()
    hint = cache(lambda: f", as prepare.time_format={format!r} says{guess_hint(_samples(rows), format)}")
    return ParsedTimes({"moment": moment}, moment.isnull(), "date", hint=hint)


def _numbers(
    name: str, whole: Any, fraction: Any, is_invalid: Any, texts: Column, first: str | None, settings: PrepareConfig
) -> ParsedTimes:
    columns = {"whole": whole, "fraction": fraction}
    if settings.time_unit == "mixed":
        return ParsedTimes(columns, is_invalid, "number", first)
    if settings.time_unit != "auto":
        return ParsedTimes(columns, is_invalid, "number", first, settings.time_unit)
    if hint := compact_hint(_samples(texts.cast("string").name("time").as_table())):
        first = first or str(first_row(texts.name("time").as_table().dropna())["time"])
        raise DataError(
            f"the times of the column {name!r} are dates written as numbers, such as {first}, expected numbers of "
            f"seconds or dates such as 2014-07-23{hint}, or prepare.time_unit=s if they are seconds all the same"
        )
    unit, example = _common_unit(texts)
    return ParsedTimes(columns, is_invalid | ~_has_unit(whole, unit), "number", first, unit, example)


def _whole(text: Any) -> Any:
    """Return numbers rounded towards zero; null for other texts."""
    size = text.try_cast("float64").abs()
    expanded = text.try_cast("decimal(38, 9)").cast("string")
    return ibis.cases(
        (text.re_search(_WHOLE), text.try_cast("int64")),
        (text.re_search(_DECIMAL), text.re_extract(_DECIMAL, 1).try_cast("int64")),
        (
            text.re_search(_SCIENTIFIC) & (size < _MAX_EXACT_FLOAT[64]),
            expanded.re_extract(_DECIMAL, 1).try_cast("int64"),
        ),
    )


def _fraction(text: Any) -> Any:
    """Return the digits after the point, in billionths, with the sign of the number."""
    expanded = ibis.ifelse(text.re_search(_SCIENTIFIC), text.try_cast("decimal(38, 9)").cast("string"), text)
    digits = expanded.re_extract(_DECIMAL, 2)
    billionths = digits.rpad(9, "0").left(9).concat(".", digits.substr(9), "0").try_cast("float64")
    signed = ibis.ifelse(text.startswith("-"), -1.0, 1.0) * billionths
    return ibis.ifelse(text.re_search(_WHOLE), 0.0, signed)


def _by_size(whole: Any, choices: dict[Unit, int]) -> Any:
    cases = [(_is_below(whole, _LIMITS[unit]), ibis.literal(choices[unit], "int64")) for unit in ("s", "ms", "us")]
    return ibis.cases(*cases, else_=choices["ns"])


def _is_below(whole: Any, limit: int) -> Any:
    return whole.between(1 - limit, limit - 1)


def _has_unit(whole: Any, unit: Unit) -> Any:
    """Return whether the size of times is usual for a unit; numbers that are too small for any unit are."""
    if unit == "s":
        return _is_below(whole, _LIMITS[unit])
    coarser = list(PER_SECOND)[list(PER_SECOND).index(unit) - 1]
    low, high = _LIMITS[coarser], min(_LIMITS[unit], 2**63)
    return whole.between(low, high - 1) | whole.between(-high, -low) | _is_below(whole, _SMALLEST)


def _common_unit(texts: Column) -> tuple[Unit, str | None]:
    """Return the unit of most of the first times that are large enough to have one, and such a time."""
    rows = texts.name("time").as_table()
    if texts.type().is_integer():
        large = rows.filter(~_is_below(rows.time, _SMALLEST))
    else:
        large = rows.filter(rows.time.re_search(_LARGE))
    samples = [str(time) for time in large.limit(_NUM_SAMPLES).to_pyarrow()["time"].to_pylist()]
    units = [(unit, text) for text in samples if (unit := _unit_of(text))]
    if not units:
        return "s", None
    common = Counter(unit for unit, _ in units).most_common(1)[0][0]
    return common, next(text for unit, text in units if unit == common)


def _unit_of(text: str) -> Unit | None:
    """Return the unit that a number of this size has; None for small numbers, and other texts."""
    if not re.match(_NUMBER, text):
        return None
    size = abs(float(text.replace(",", ".")))
    if not _SMALLEST <= size < 2**63:
        return None
    return time_unit(int(size))


def _divided(number: Any, divisor: int) -> Any:
    """Divide whole numbers that are not negative, rounding down; engines divide as floats."""
    return ((number - number % divisor) / divisor).round().cast("int64")


def _date_parts(text: Any) -> tuple[Any, Any]:
    """Return seconds since 1970-01-01 UTC, and nanoseconds."""
    day, clock, fraction, zone = (text.re_extract(_DATE, group) for group in (1, 2, 3, 4))
    moment = day.concat(" ", clock.re_replace(r"[.,].*$", "")).strip().try_cast("timestamp")
    seconds = moment.epoch_seconds().cast("int64") - _zone_seconds(zone)
    return seconds, fraction.rpad(9, "0").cast("int64")


def _zone_seconds(zone: Any) -> Any:
    """Return the offset of a time zone such as +02:00 from UTC, in seconds."""
    hours = zone.re_extract(r"^[+-](\d{2})", 1).try_cast("int64").fill_null(0)
    minutes = zone.re_extract(r"^[+-]\d{2}:?(\d{2})$", 1).try_cast("int64").fill_null(0)
    return ibis.ifelse(zone.startswith("-"), -1, 1) * (hours * 3600 + minutes * 60)
