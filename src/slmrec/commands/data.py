"""`slmrec data`: describe, check and download data sets; `slmrec drift`: compare two; `slmrec forget`: remove users."""

import argparse
from pathlib import Path
from typing import Any

from slmrec.commands.locations import location
from slmrec.commands.parsers import new_command
from slmrec.commands.stages import FORMATS


def add_parser(subparsers: Any) -> None:
    """Add the commands `data describe`, `data validate`, `data fetch`, `drift` and `forget`."""
    inner = new_command(subparsers, "data", "describe, check and download data sets").add_subparsers(
        dest="data_command", required=True, metavar="COMMAND"
    )
    text = "describe a prepared data set: counts, distributions, split, leakage"
    describe = new_command(inner, "describe", text, _describe)
    describe.add_argument("folder", type=location, help="folder of a data set, or of a run")
    describe.add_argument("--output", type=location, help="picture to write (default: FOLDER/describe.png)")
    text = "check whether a log can be prepared, and list all faults"
    validate = new_command(inner, "validate", text, _validate, FORMATS)
    validate.add_argument("file", help="interaction log, a file or a folder")
    validate.add_argument("--items", help="table of items; shows which of its columns would be kept")
    validate.add_argument("overrides", nargs="*", metavar="prepare.key=value", help="settings of how the log is read")
    fetch = new_command(inner, "fetch", "download a public data set", _fetch)
    fetch.add_argument("name", nargs="?", help="name of the data set; omit it to list all")
    fetch.add_argument("--output", type=location, default=Path("data"), help="folder to download into (default: data)")
    text = "compare two prepared data sets: new items and users, shift of popularity and history lengths"
    drift = new_command(
        subparsers, "drift", text, _drift, "Example: slmrec drift out/october out/november --output drift.json"
    )
    drift.add_argument("old", type=location, metavar="OLD", help="folder of a data set, or of a run")
    drift.add_argument("new", type=location, metavar="NEW", help="folder of a later data set, or of a run")
    drift.add_argument("--output", type=location, help="JSON file for the numbers")

    forget = new_command(
        subparsers,
        "forget",
        "remove users from a run: from its data, ranks, counts, caches and reports",
        _forget,
        "Example: slmrec forget out/shop --user 4711 --user 4712\nWeights keep what they have learned; docs/data.md "
        "says what is removed, and what is not.",
    )
    forget.add_argument("folder", type=Path, metavar="OUT", help="folder of a run, or of a data set")
    forget.add_argument("--user", action="append", default=[], metavar="ID", help="id of a user; may be repeated")
    text = "file of user ids: .txt with one id a line, or a table with the column user_id"
    forget.add_argument("--users", type=location, metavar="FILE", help=text)


def _describe(options: argparse.Namespace) -> None:
    from slmrec.commands.data_sets.describe import describe

    describe(options.folder, options.output)


def _drift(options: argparse.Namespace) -> None:
    from slmrec.commands.data_sets.describe import drift

    drift(options.old, options.new, options.output)


def _forget(options: argparse.Namespace) -> None:
    from slmrec.forgetting.run import forget_users
    from slmrec.inference.history_files import read_item_ids

    listed = [] if options.users is None else read_item_ids(options.users, "user_col")
    forget_users(options.folder, [*options.user, *listed])


def _validate(options: argparse.Namespace) -> None:
    from slmrec.commands.data_sets.validate import validate

    validate(options.file, options.overrides, options.items)


def _fetch(options: argparse.Namespace) -> None:
    from slmrec.commands.data_sets.fetch import fetch, list_datasets

    if options.name:
        fetch(options.name, options.output)
    else:
        list_datasets()
