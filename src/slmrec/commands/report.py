"""`slmrec report`: a finished run as one HTML page."""

import argparse
from typing import Any

from slmrec.commands.locations import location
from slmrec.commands.parsers import new_command
from slmrec.errors import ConfigError

_EPILOG = (
    "Example: slmrec report out/beauty\n"
    "Where something is missing or broken, the page names the command that creates it. See docs/report.md."
)


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    text = "write a run as one page: figures, tables and examples"
    report = new_command(subparsers, "report", text, run, _EPILOG)
    report.add_argument("folder", type=location, metavar="OUT", help="folder of a run, or of an ablation")
    where = "the page (default: OUT/report.html); figures and tables go into a folder of that name without .html"
    report.add_argument("--output", type=location, metavar="FILE.html", help=where)
    text = "name the example users by their ids (default: by the numbers 1 to 5)"
    report.add_argument("--show-user-ids", action="store_true", help=text)


def run(options: argparse.Namespace) -> None:
    """Write the page.

    Raises:
        ConfigError: a library of the extra `plots` is missing.
    """
    from slmrec.report import INSTALL, missing_libraries

    if missing := missing_libraries():
        raise ConfigError(f"report needs {', '.join(missing)}; install with: {INSTALL}")
    from slmrec.report.page import report

    report(options.folder, options.output, options.show_user_ids)
