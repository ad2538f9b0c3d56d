"""`slmrec update`: train the shipped model of a run further on newer events, or take the last update back."""

import argparse
from typing import Any

from slmrec.commands.locations import location
from slmrec.commands.parsers import new_command
from slmrec.errors import ConfigError

_EPILOG = (
    "Examples: slmrec update out/shop --input monday.csv --items items.csv --time-budget 5m\n"
    "          slmrec update out/shop --rollback\n"
    "The log may hold events that the run knows already, or be the whole log again. OUT/best leads to the new model\n"
    "if it is no worse on the newest events; a server that was started on OUT/best takes it when it reloads."
)


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    text = "train the shipped model of a run further on newer events, and ship it if it is no worse"
    update = new_command(subparsers, "update", text, run, _EPILOG)
    update.add_argument("output", type=location, metavar="OUT", help="folder of a finished run")
    update.add_argument("--input", type=location, help="log with the newer events, of the same columns as the run's")
    update.add_argument("--items", type=location, help="table of items; new ones join the catalogue")
    update.add_argument(
        "--time-budget", metavar="TIME", help="time that the update may take, such as 90s (default: 2m)"
    )
    update.add_argument("--rollback", action="store_true", help="ship the model before the last update again")


def run(options: argparse.Namespace) -> None:
    """Update a run, or take an update back."""
    given = [name for name in ("input", "items", "time_budget") if getattr(options, name) is not None]
    if options.rollback:
        if given:
            raise ConfigError(
                f"--rollback takes the last update back, and --{given[0].replace('_', '-')} makes a new one"
            )
        from slmrec.updates.versions import rollback

        rollback(options.output)
        return
    if options.input is None:
        raise ConfigError("--input is missing: give the log with the newer events, or --rollback")
    from slmrec.updates.update import update

    update(options.output, options.input, options.items, time_budget=options.time_budget)
