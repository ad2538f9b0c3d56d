"""The command `slmrec data validate`: checks whether a log can be prepared."""

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from slmrec.config.load import load_config
from slmrec.data.engine import engines_of, value
from slmrec.data.items import ItemRows, read_items
from slmrec.data.logs.read import Events, few_ids, large_shares, read_events
from slmrec.data.logs.row_errors import RowError, counts
from slmrec.data.logs.times import UNIT_NAMES, date, stored_unit
from slmrec.errors import DataError
from slmrec.files import printable
from slmrec.storage.cache import localized, named

_LOG = logging.getLogger(__name__)
_MAX_SHOWN = 10
"""The maximum number of invalid rows to print."""


def validate(file: str, overrides: list[str], items: str | None = None) -> None:
    """Read a log as `prepare` does and print its statistics and invalid rows; nothing is written.

    Args:
        file: the log.
        overrides: settings `prepare.key=value`.
        items: a table of items, whose columns are listed.

    Raises:
        DataError: the log or the table of items cannot be read, or has invalid rows.
    """
    inputs = [f"prepare.input={json.dumps(file, ensure_ascii=False)}", 'prepare.on_bad_row="skip"']
    inputs += [f"prepare.items={json.dumps(items, ensure_ascii=False)}"] if items else []
    settings = localized(load_config(None, [*overrides, *inputs]), required=True).prepare
    file = settings.input or file
    with TemporaryDirectory(prefix="slmrec-") as name:
        folder = Path(name)
        with engines_of(settings, folder) as (source, embedded):
            log = read_events(source, folder, file, settings, embedded)
            _print(file, log, settings.min_user_events)
            if settings.items:
                _check_items(read_items(embedded, folder, Path(settings.items), settings), settings.items)
    if log.errors:
        raise DataError(
            f"{file}: {len(log.errors):,} rows are not events; correct them, or prepare with --on-bad-row skip, which "
            "leaves them out"
        )
    print(f"{printable(named(file))}: all rows are events")


def _check_items(items: ItemRows, file: str) -> None:
    print(f"{printable(named(file))}: {items.message()}")
    if items.errors:
        raise DataError(f"{file}: {len(items.errors):,} rows are not items; {items.errors[0].message()}; correct them")


def _print(file: str, log: Events, min_user_events: int) -> None:
    console = Console(markup=False, emoji=False)  # text from the file is not markup
    table = Table("", "", title=printable(named(file)), show_header=False)
    statistics = _statistics(log, min_user_events)
    for name, fact in (log.columns | statistics).items():
        table.add_row(name, printable(fact) if isinstance(fact, str) else f"{fact:,}")
    console.print(table)
    few = [] if log.errors else few_ids(statistics["users"], statistics["items"])
    for warning in [*few, *large_shares(log.table)]:
        _LOG.warning("%s: %s", file, warning)
    if log.errors:
        console.print(_error_table(log.errors))


def _statistics(log: Events, min_user_events: int) -> dict[str, Any]:
    events = log.table
    users = events.group_by("user_id").aggregate(size=events.count())
    times = {"first": value(events.timestamp.min()), "last": value(events.timestamp.max())}
    distinct = events.select("user_id", "item_id", "timestamp", "nanosecond").distinct()
    number = value(events.count())
    statistics = {
        "events": number,
        "users": value(users.count()),
        f"users of fewer than {min_user_events} events": value((users["size"] < min_user_events).sum().fill_null(0)),
        "items": value(events.item_id.nunique()),
        "duplicates (same user, item and time)": number - value(distinct.count()),
    }
    if times["first"] is None:
        return statistics | {"times": "none"}
    statistics |= {f"{end} time (UTC)": date(time, "s", "s") for end, time in times.items()}
    unit = stored_unit(events)
    if unit is not None:
        statistics["unit of the times"] = UNIT_NAMES[unit]
    return statistics


def _error_table(errors: list[RowError]) -> Table:
    table = Table("file", "line", "column", "value", "reason", title="rows that are not events")
    for error in errors[:_MAX_SHOWN]:
        text = repr(error.value)
        shown = text if len(text) <= 40 else f"{text[:37]}..."
        name, column = printable(error.file.name), printable(error.column or "")
        table.add_row(name, str(error.line), column, shown, printable(error.reason))
    if len(errors) > _MAX_SHOWN:
        table.add_row("...", "", "", "", "")
    for reason, number in counts(errors).items():
        table.add_row("in all", f"{number:,}", "", "", printable(reason))
    return table
