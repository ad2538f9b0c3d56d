"""Raw files as tables of events, and of items' titles.

A table of events has `user_id` and `item_id` (text, as given), `timestamp` (whole number or null), `nanosecond` (of
dates that are finer than a second, else 0) and `row`. A user's events are in the order of these last three.

Everything is an Ibis expression, so that the engine can be another one; `connect` is the only place that chooses it.
"""

import glob
import re
from pathlib import Path
from typing import Any

import duckdb
import ibis
from ibis.expr.types import Column, Table

from slmrec.data.files import DELIMITERS, Format, Source, first_bad_json, header, inspect, plain_name, unpacked
from slmrec.errors import DataError

DEFAULT_COLUMNS = {"user_col": "user_id", "item_col": "item_id", "time_col": "timestamp"}
_MAX_LINE_BYTES = 2**25
_ZONE = r"Z|UTC|[+-]\d{2}(?::?\d{2})?"
_DATE = rf"^(\d{{4}}-\d{{1,2}}-\d{{1,2}})(?:[T ](\d{{1,2}}:\d{{2}}(?::\d{{2}}(?:\.(\d{{1,9}}))?)?) ?({_ZONE})?)?$"
"""Day, time of the day, digits of the fraction of a second, zone."""


def connect(spill: Path) -> Any:
    """The engine: DuckDB, embedded.

    Args:
        spill: the folder for what does not fit in memory.
    """
    return ibis.duckdb.connect(temp_directory=str(spill))


def keep(engine: Any, table: Table) -> Table:
    """The table, computed once and kept in the engine."""
    return engine.create_table(ibis.util.gen_name("slmrec"), table, temp=True)


def value(scalar: Any) -> Any:
    """What an expression of one value comes to."""
    return scalar.to_pyarrow().as_py()


def read_events(
    engine: Any, spill: Path, path: Path, format: Format = "auto", *, user_col: str, item_col: str, time_col: str
) -> Table:
    """The events of a file.

    Whole numbers are timestamps as they are, in whatever unit; dates become seconds since 1970-01-01 UTC, and a date
    without a zone is UTC.

    Args:
        engine: from `connect`.
        spill: a folder for temporary files.
        path: the file.
        format: `auto` goes by the name or the first line.
        user_col: the column of users; like the next two, for tables only, and refused of another name otherwise.
        item_col: the column of items.
        time_col: the column of times.

    Raises:
        DataError: the file cannot be read as events; the message names the file, the line or row, and the value.
    """
    wanted = {"user_col": user_col, "item_col": item_col, "time_col": time_col}
    source = inspect(path, format, wanted.values())
    if source.kind == "sequences":
        _refuse_columns(source, wanted)
        return _events_of_lines(engine, source)
    return _events_of_table(engine, source, _columns(engine, spill, source, wanted), wanted)


def read_titles(engine: Any, spill: Path, path: Path, *, id_col: str, title_col: str) -> Table:
    """`item_id`, `title` (the first one of the id, or null) and `num_titles` (different ones) of a table of items.

    Raises:
        DataError: the file cannot be read, or has no such columns, or an id is missing.
    """
    source = inspect(path, "auto", (id_col, title_col))
    if source.kind == "sequences":
        raise DataError(f"{path}: is no table; expected one of items (.csv, .tsv, .parquet or .jsonl, plain or .gz)")
    table = _columns(engine, spill, source, {"items_id_col": id_col, "title_col": title_col})
    item_id, title = _id(source, id_col, table.items_id_col), table.title_col.cast("string").nullif("")
    rows = _computed(engine, source, table.select(item_id=item_id, title=title, row=ibis.row_number() + 1))
    _refuse_empty(source, rows, "item_id", id_col)
    groups = rows.group_by("item_id")
    return keep(engine, groups.aggregate(title=rows.title.first(order_by=rows.row), num_titles=rows.title.nunique()))


def _refuse_columns(source: Source, wanted: dict[str, str]) -> None:
    for option, column in wanted.items():
        if column != DEFAULT_COLUMNS[option]:
            raise DataError(
                f"{source.path}: prepare.{option} is {column!r}, but one user a line has no columns; leave it out, or "
                "set prepare.format if the file is a table"
            )


def _events_of_lines(engine: Any, source: Source) -> Table:
    """Of one user a line; `row` is the place in the line."""
    lines = engine.read_csv(
        _exactly(source.path),
        header=False,
        auto_detect=False,
        columns={"line": "VARCHAR"},
        delim="",
        quote="",
        escape="",
        comment="",
        strict_mode=False,
        null_padding=True,
        max_line_size=_MAX_LINE_BYTES,
        compression=_compression(source),
    )
    words = lines.line.fill_null("").re_replace(r"[ \t]+", " ").strip().split(" ")
    users = lines.select(user_id=words[0], item_id=words[1:], line=ibis.row_number() + 1)
    users = _computed(engine, source, users)
    _refuse_lines(source, users)
    events = users.unnest("item_id", offset="row")
    nothing = ibis.null().cast("int64")
    return keep(engine, events.select("user_id", "item_id", timestamp=nothing, nanosecond=0, row=events["row"]))


def _refuse_lines(source: Source, users: Table) -> None:
    last = users.filter(users.user_id != "").line.max()  # blank lines at the end do no harm
    bare = _first(users.filter((users.item_id.length() == 0) & (users.line <= last.as_scalar())), "line")
    if bare:
        raise DataError(
            f"{source.path}: line {bare['line']}: {bare['user_id']!r} has no items, expected `user item item ...`; "
            "remove the line, or set prepare.format if the file is a table"
        )
    earlier = users.line.min().over(group_by=users.user_id)
    named = users.filter(users.user_id != "").mutate(earlier=earlier)
    again = _first(named.filter(named.line > named.earlier), "line")
    if again:
        raise DataError(
            f"{source.path}: line {again['line']}: user {again['user_id']!r} has line {again['earlier']} already, "
            "expected one line a user; join the lines, or, if each is one event, add a header and set prepare.format"
        )


def _columns(engine: Any, spill: Path, source: Source, wanted: dict[str, str]) -> Table:
    """The wanted columns, named by their options; text, but for parquet, which has types."""
    table = _open_parquet(engine, spill, source) if source.kind == "parquet" else None
    names = header(source) if table is None else list(table.columns)
    places = {option: _place(source, names, option, column) for option, column in wanted.items()}
    if source.kind == "jsonl":
        table = _open_jsonl(engine, source, [names[place] for place in places.values()])
        return table.select(**{option: table[names[place]] for option, place in places.items()})
    if table is None:
        table = _open_csv(engine, source, len(names))
    return table.select(**{option: table[place] for option, place in places.items()})


def _open_parquet(engine: Any, spill: Path, source: Source) -> Table:
    try:
        return engine.read_parquet(_exactly(unpacked(source, spill)))
    except duckdb.Error as error:
        raise _explain(source, error) from None


def _open_jsonl(engine: Any, source: Source, keys: list[str]) -> Table:
    columns, compression = dict.fromkeys(keys, "VARCHAR"), _compression(source)
    return engine.read_json(_exactly(source.path), format="newline_delimited", columns=columns, compression=compression)


def _open_csv(engine: Any, source: Source, num_columns: int) -> Table:
    return engine.read_csv(
        _exactly(source.path),
        header=True,
        auto_detect=False,
        columns={f"column{place}": "VARCHAR" for place in range(num_columns)},
        delim=DELIMITERS[source.kind],
        quote='"',
        escape='"',
        comment="",
        compression=_compression(source),
    )


def _place(source: Source, names: list[str], option: str, column: str) -> int:
    exact = [place for place, name in enumerate(names) if name == column]
    places = exact or [place for place, name in enumerate(names) if plain_name(name) == column]
    if not places:
        raise DataError(
            f"{source.path}: no column {column!r}; it has {', '.join(names)}; set prepare.{option} to one of them"
            + _advice(source, names, option)
        )
    if len(places) > 1:
        raise DataError(f"{source.path}: {len(places)} columns are named {column!r}, expected one; rename the others")
    return places[0]


def _advice(source: Source, names: list[str], option: str) -> str:
    if source.kind in DELIMITERS and any(name[:1].isdigit() for name in names):
        return "; does the file lack a header? begin it with one"
    if option == "time_col":
        return "; if there is no such column, add one that numbers the events in their order"
    return ""


def _events_of_table(engine: Any, source: Source, table: Table, wanted: dict[str, str]) -> Table:
    raw = table.select(
        user_id=_id(source, wanted["user_col"], table.user_col),
        item_id=_id(source, wanted["item_col"], table.item_col),
        time=table.time_col.cast("string").strip(),
        row=ibis.row_number() + 1,
    )
    events = _computed(engine, source, raw.mutate(**_times(raw.time)))
    if not value(events.count()):
        raise DataError(f"{source.path}: has columns but no rows; expected one event a row")
    _refuse_empty(source, events, "user_id", wanted["user_col"])
    _refuse_empty(source, events, "item_id", wanted["item_col"])
    _refuse_times(source, events, wanted["time_col"])
    return events.select("user_id", "item_id", "timestamp", "nanosecond", "row")


def _times(text: Any) -> dict[str, Any]:
    """Numbers as they are, dates as seconds and nanoseconds; anything else is null."""
    number = _whole_number(text)
    day, clock, fraction, zone = (text.re_extract(_DATE, group) for group in (1, 2, 3, 4))
    moment = day.concat(" ", clock.re_replace(r"\..*$", "")).strip().try_cast("timestamp")
    return {
        "timestamp": ibis.coalesce(number, moment.epoch_seconds().cast("int64") - _zone_seconds(zone)),
        "nanosecond": fraction.rpad(9, "0").cast("int64"),
        "is_date": number.isnull(),
    }


def _whole_number(text: Any) -> Any:
    """Exact for whole numbers, with or without `.0`; null for numbers that are no whole ones."""
    exact = text.re_replace(r"\.0*$", "")
    digits = ibis.ifelse(exact.re_search(r"^[+-]?[0-9]+$"), exact, None).try_cast("int64")
    power = ibis.ifelse(text.re_search(r"^[+-]?[0-9]+(\.[0-9]+)?[eE][+-]?[0-9]+$"), text, None).try_cast("float64")
    small = ibis.ifelse(power.abs() < 2.0**53, power, None)
    return ibis.coalesce(digits, ibis.ifelse(small == small.floor(), small, None).try_cast("int64"))


def _zone_seconds(zone: Any) -> Any:
    """How far a zone such as +02:00 is ahead of UTC."""
    hours = zone.re_extract(r"^[+-](\d{2})", 1).try_cast("int64").fill_null(0)
    minutes = zone.re_extract(r"^[+-]\d{2}:?(\d{2})$", 1).try_cast("int64").fill_null(0)
    return ibis.ifelse(zone.startswith("-"), -1, 1) * (hours * 3600 + minutes * 60)


def _id(source: Source, name: str, ids: Column) -> Column:
    """As text."""
    kind = ids.type()
    if not (kind.is_string() or kind.is_integer()):
        raise DataError(
            f"{source.path}: column {name!r} holds {kind}, expected ids that are text or whole numbers; convert the "
            "column (missing ids turn whole numbers into float64)"
        )
    return ids.cast("string")


def _refuse_empty(source: Source, rows: Table, column: str, name: str) -> None:
    bad = _first(rows.filter(rows[column].isnull() | (rows[column] == "")), "row")
    if bad:
        where = _row(source, bad["row"])
        raise DataError(
            f"{source.path}: {where}: {name} is {bad[column]!r}, expected an id; fill it in or remove the row"
        )


def _refuse_times(source: Source, events: Table, name: str) -> None:
    bad = _first(events.filter(events.timestamp.isnull()), "row")
    if bad:
        raise DataError(
            f"{source.path}: {_row(source, bad['row'])}: {name} is {bad['time']!r}, expected a whole number or a date "
            "such as 2014-07-23T10:00:00Z; mend it or remove the row"
        )
    first = _first(events, "row")
    other = _first(events.filter(events.is_date != first["is_date"]), "row")
    if other:
        kinds = ("a date", "a number") if other["is_date"] else ("a number", "a date")
        raise DataError(
            f"{source.path}: {_row(source, other['row'])}: {name} is {other['time']!r}, {kinds[0]}, but the first one "
            f"is {first['time']!r}, {kinds[1]}; write all of them in one way"
        )


def _row(source: Source, number: int) -> str:
    return f"row {number} after the header" if source.kind in DELIMITERS else f"row {number}"


def _first(table: Table, order: str) -> dict[str, Any]:
    """The first row; empty if there is none."""
    rows = table.order_by(order).limit(1).to_pyarrow().to_pylist()
    return dict(rows[0]) if rows else {}


def _computed(engine: Any, source: Source, table: Table) -> Table:
    """`keep`, when the table comes from a file."""
    try:
        return keep(engine, table)
    except duckdb.Error as error:
        raise _explain(source, error) from None


def _explain(source: Source, error: Exception) -> DataError:
    """What is wrong with a file that the engine cannot read."""
    fault = first_bad_json(source) if source.kind == "jsonl" else _csv_fault(str(error))
    reason = fault or f"cannot be read ({str(error).splitlines()[0][:200]})"
    return DataError(f"{source.path}: {reason}; expected {source.kind}, mend it or set prepare.format")


def _csv_fault(message: str) -> str | None:
    found = re.search(
        r"CSV Error on Line: (\d+)\nOriginal Line: (.*)\n(?:.*\n)*?\n*((?:Expected|Value|Maximum).*)", message
    )
    if found:
        return f"line {found[1]}: {found[2][:60]!r}: {found[3].rstrip('. ')}"
    if "state machine" in message:
        return "quotes are not closed, or lines end in different ways"
    return None


def _exactly(path: Path) -> str:
    """The path, in which the engine finds no wildcards."""
    return glob.escape(str(path))


def _compression(source: Source) -> str:
    return "gzip" if source.gzipped else "none"
