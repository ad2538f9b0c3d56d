"""Argument parsers that the commands share."""

import argparse
import logging
from collections.abc import Callable
from typing import Any

RunCommand = Callable[[argparse.Namespace], None]


def new_command(
    subparsers: Any, name: str, text: str, run: RunCommand | None = None, epilog: str | None = None
) -> argparse.ArgumentParser:
    """Return the parser of a new command.

    Args:
        subparsers: the action returned by `add_subparsers`.
        name: name of the command.
        text: one line of help, shown by `slmrec --help` and by the command itself.
        run: function that runs the command with its options; None for a command that only has commands of its own.
        epilog: examples and notes, shown after the options as they are.
    """
    command: argparse.ArgumentParser = subparsers.add_parser(
        name, help=text, description=text, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.set_defaults(parser=command, run=run, in_several_processes=False)
    add_logging_options(command)
    return command


def add_logging_options(parser: argparse.ArgumentParser) -> None:
    """Add `--quiet` and `--verbose`; both set the option `level`, which is absent if neither is given."""
    group = parser.add_mutually_exclusive_group()
    for name, level, text in (
        ("--quiet", logging.WARNING, "show no progress messages, only results, warnings and errors"),
        ("--verbose", logging.DEBUG, "show details as well"),
    ):
        group.add_argument(name, dest="level", action="store_const", const=level, default=argparse.SUPPRESS, help=text)


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add --device, the device on which a trained model answers."""
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")


def add_split_option(parser: argparse.ArgumentParser) -> None:
    """Add --split, which says on which held-out items models are compared."""
    text = "held-out items to decide by (default: valid; the test split is read only when it is named)"
    parser.add_argument("--split", choices=("valid", "test"), default="valid", help=text)
