"""Messages of the package on the terminal."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from slmrec.files import printable
from slmrec.processes import is_main
from slmrec.storage.cache import named

_WARNING_PREFIX = "slmrec: warning: "


@contextmanager
def messages_shown(level: int) -> Iterator[None]:
    """Show log records of `slmrec` while the context is open: plain lines on stdout, warnings on stderr.

    Python programs that import slmrec are not affected; they configure `logging` themselves. Of several processes the
    main process alone shows messages.

    Args:
        level: lowest level of the records that are shown, for example `logging.INFO`.
    """
    logger = logging.getLogger("slmrec")
    handler, level_before = _TerminalHandler(), logger.level
    logger.addHandler(handler)
    logger.setLevel(level if is_main() else logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level_before)
        logger.removeHandler(handler)


class _TerminalHandler(logging.Handler):
    """Writes messages without control characters; resolves `sys.stdout` and `sys.stderr` at each record."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = "\n".join(map(printable, named(record.getMessage()).split("\n")))
            if record.levelno >= logging.WARNING:
                print(f"{_WARNING_PREFIX}{text}", file=sys.stderr, flush=True)
            else:
                print(text, flush=True)
        except Exception:
            self.handleError(record)
