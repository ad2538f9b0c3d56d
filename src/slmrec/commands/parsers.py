"""Argument parsers that the commands share."""

import argparse
import logging
import re
from collections.abc import Callable
from typing import Any

from slmrec.errors import ConfigError

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


def seconds_of(text: str | None) -> float | None:
    """Return a duration such as 90s, 20m or 1h30m in seconds; None if none is given.

    Raises:
        ConfigError: It is not a duration, or 0.

    Example:
        >>> seconds_of("1h30m")
        5400.0
    """
    return _amount(text, "--time-budget", "a duration such as 90s, 20m, 2h or 1h30m", {"h": 3600, "m": 60, "s": 1})


def bytes_of(text: str | None) -> int | None:
    """Return a size such as 8g or 800m in bytes; None if none is given.

    Raises:
        ConfigError: It is not a size, or 0.

    Example:
        >>> bytes_of("1.5g") == 3 * 2**29
        True
    """
    size = _amount(text, "--memory", "a size such as 8g or 800m", {"t": 2**40, "g": 2**30, "m": 2**20}, r"(?:i?b)?")
    return None if size is None else int(size)


def _amount(text: str | None, option: str, expected: str, units: dict[str, int], suffix: str = "") -> float | None:
    """Return the sum of numbers with units, the largest unit first, each at most once."""
    if text is None:
        return None
    parts = "".join(rf"(?:(\d{{1,9}}(?:\.\d{{1,9}})?)\s*{unit}{suffix})?\s*" for unit in units)
    found = re.fullmatch(parts, text.strip().lower(), re.ASCII)
    total = (
        sum(float(number or 0) * size for number, size in zip(found.groups(), units.values(), strict=True))
        if found
        else 0
    )
    if not total:
        raise ConfigError(f"{option} is {text!r}; expected {expected}")
    return total
