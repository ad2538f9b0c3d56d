"""`slmrec compare`: statistics of the difference between two evaluated models."""

import argparse
from typing import Any

from slmrec.commands.locations import location
from slmrec.commands.parsers import add_split_option, new_command

_EPILOG = (
    "Examples: slmrec compare out/beauty out/seed1\n"
    "          slmrec compare out/beauty out/beauty --model teacher --model-b student --metric mrr\n"
    "Differences are B - A, user by user; docs/statistics.md explains how to read them."
)


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    text = "compare two evaluated models: differences, intervals, tests, groups of users"
    compare = new_command(subparsers, "compare", text, run, _EPILOG)
    compare.add_argument("run_a", type=location, metavar="RUN_A", help="folder of an evaluated run")
    compare.add_argument("run_b", type=location, metavar="RUN_B", help="folder of another evaluated run, or the same")
    compare.add_argument("--model", default="student", help="model of RUN_A (default: student)")
    compare.add_argument("--model-b", help="model of RUN_B (default: the same name as in RUN_A)")
    compare.add_argument("--protocol", help="for example full (default: the primary protocol of RUN_A)")
    compare.add_argument(
        "--metric", action="append", help="for example hit@5; repeatable, the first one is also shown by user group"
    )
    add_split_option(compare)
    compare.add_argument("--output", type=location, help="JSON file for the numbers")


def run(options: argparse.Namespace) -> None:
    """Compare the two models and show the tables."""
    from slmrec.studies.compare import METRICS, compare

    compare(
        options.run_a,
        options.run_b,
        model=options.model,
        model_b=options.model_b,
        protocol=options.protocol,
        metrics=tuple(options.metric or METRICS),
        split=options.split,
        output=options.output,
    )
