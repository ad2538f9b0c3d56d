"""The command line. Exit code 0: done; 1: an error of slmrec; 2: an error of the user; 130: interrupted."""

import argparse
import io
import logging
import os
import select
import sys
import traceback
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from types import TracebackType

from slmrec import processes
from slmrec.commands import (
    compare,
    config,
    data,
    demo,
    export,
    import_reference,
    items,
    recommend,
    report,
    serve,
    stages,
    update,
)
from slmrec.commands.locations import opened
from slmrec.commands.logs import messages_shown
from slmrec.commands.parsers import add_logging_options
from slmrec.config.secrets import redacted
from slmrec.errors import SlmrecError
from slmrec.files import printable
from slmrec.folders import disk_errors_reported
from slmrec.storage.cache import named
from slmrec.version import __version__

_COMMANDS = (stages, demo, recommend, serve, update, compare, report, data, config, import_reference, export, items)
"""Modules of the commands, in the order of `slmrec --help`."""
_LOST = "another process of this run has ended; run the same command again to continue where it stopped"


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the command and its options; those of the process if None.

    Returns:
        The exit code.
    """
    exit_code = 1
    try:
        with nullcontext() if processes.is_main() else redirect_stderr(io.StringIO()):  # the usage is shown once
            options = _parse(arguments)
        places = (getattr(options, name, None) for name in ("output", "folder"))
        output = next((Path(str(place)) for place in places if place), Path("the output"))
        if not options.in_several_processes:
            processes.refuse_several(f"slmrec {options.command}")
        processes.start()
        with messages_shown(getattr(options, "level", logging.INFO)), disk_errors_reported(output), opened(options):
            options.run(options)
        exit_code = 0
    except SlmrecError as error:
        exit_code = _report(str(error), 2)
    except BrokenPipeError:
        if not _is_reader_gone():
            raise
        exit_code = 0
    except KeyboardInterrupt:
        exit_code = _report("interrupted; run the same command again to continue where it stopped", 130)
    except Exception as error:
        if processes.is_lost(error):
            exit_code = _report(_LOST, 1)
        elif (earlier := processes.fail(1)) is None:
            raise
        else:
            exit_code = earlier
    finally:
        processes.stop(failed=exit_code != 0)
    return exit_code


def _is_reader_gone() -> bool:
    """Return whether the reader of the results has closed the pipe, as `| head` does; the rest is then discarded."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _report(message: str, exit_code: int) -> int:
    """Print a message unless another process of the run has reported before, and return the exit code."""
    if (earlier := processes.fail(exit_code)) is not None:
        return earlier
    print(f"slmrec: {printable(redacted(named(message)))}", file=sys.stderr)
    return exit_code


def entry() -> None:
    """Run the command of this process and exit: the console script `slmrec`."""
    sys.excepthook = _print_traceback
    sys.exit(main())


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an error of slmrec; a driver's message may contain the URL of a connection."""
    print(redacted("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(prog="slmrec", description="Distil an LLM-based sequential recommender.")
    parser.add_argument("--version", action="version", version=f"slmrec {__version__}")
    add_logging_options(parser)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(subparsers)
    return parser


def _is_setting(text: str) -> bool:
    return "=" in text and not text.startswith("-")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    options, unknown = command_parser().parse_known_args(arguments)
    if hasattr(options, "overrides"):  # argparse takes settings before or after the options, not both
        options.overrides += [text for text in unknown if _is_setting(text)]
        unknown = [text for text in unknown if not _is_setting(text)]
    if unknown:  # argparse itself would show the usage of `slmrec`, not of the command
        options.parser.error(redacted(f"unrecognized arguments: {' '.join(unknown)}"))
    return options
