"""Whether a log can be prepared, and all that is wrong with it."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from slmrec.config.load import load_config
from slmrec.data.describe import date, time_unit
from slmrec.data.engine import connected, value
from slmrec.data.logs.read import Events, read_events
from slmrec.data.logs.row_errors import Reject, counts
from slmrec.errors import DataError
from slmrec.pipeline.prepare import arguments

_SHOWN = 10
"""Faulty rows that are shown."""


def validate(file: str, overrides: list[str]) -> None:
    """Reads a log as `prepare` would, and prints what was found; nothing is written.

    Args:
        file: the log.
        overrides: `prepare.key=value`, how it is read.

    Raises:
        DataError: it cannot be read, or has rows that are no events.
    """
    given = [*overrides, f"prepare.input={json.dumps(file, ensure_ascii=False)}", 'prepare.on_bad_row="skip"']
    settings = load_config(None, given).prepare
    with TemporaryDirectory(prefix="slmrec-") as name:
        folder = Path(name)
        with connected(settings.engine, folder, settings.memory_limit) as engine:
            log = read_events(engine, folder, file, arguments(settings)["reading"])
            _show(file, log, settings.min_user_events)
    if log.rejects:
        raise DataError(
            f"{file}: {len(log.rejects):,} rows are no events; mend them, or prepare with --on-bad-row skip, which "
            "leaves them out"
        )
    print(f"{file}: all rows are events")


def _show(file: str, log: Events, min_user_events: int) -> None:
    console = Console(markup=False, emoji=False)  # what the file holds stays as it is
    table = Table("", "", title=file, show_header=False)
    for name, text in (log.layout | _facts(log, min_user_events)).items():
        table.add_row(name, text if isinstance(text, str) else f"{text:,}")
    console.print(table)
    if log.rejects:
        console.print(_faults(log.rejects))


def _facts(log: Events, min_user_events: int) -> dict[str, Any]:
    events = log.table
    users = events.group_by("user_id").aggregate(size=events.count())
    times = {"first": value(events.timestamp.min()), "last": value(events.timestamp.max())}
    distinct = events.select("user_id", "item_id", "timestamp", "nanosecond").distinct()
    number = value(events.count())
    facts = {
        "events": number,
        "users": value(users.count()),
        f"users of fewer than {min_user_events} events": value((users["size"] < min_user_events).sum().fill_null(0)),
        "items": value(events.item_id.nunique()),
        "duplicates (same user, item and time)": number - value(distinct.count()),
    }
    if times["first"] is None:
        return facts | {"times": "none"}
    unit = time_unit(max(abs(time) for time in times.values()))
    told = {f"{end} time (UTC, if in {unit})": date(time, unit, "s") for end, time in times.items()}
    coarser = value((events.timestamp > 0).ifelse(events.timestamp, None).min())
    if coarser is not None and time_unit(coarser) != unit:
        told["look out"] = f"the smallest time, {coarser}, looks like {time_unit(coarser)}: are the units mixed?"
    return facts | told


def _faults(rejects: list[Reject]) -> Table:
    table = Table("file", "line", "column", "value", "what", title="rows that are no events")
    for reject in rejects[:_SHOWN]:
        value_ = repr(reject.value)
        shown = value_ if len(value_) <= 40 else f"{value_[:37]}..."
        table.add_row(reject.file.name, str(reject.line), reject.column or "", shown, reject.reason)
    if len(rejects) > _SHOWN:
        table.add_row("...", "", "", "", "")
    for reason, number in counts(rejects).items():
        table.add_row("in all", f"{number:,}", "", "", reason)
    return table
