"""Progress of long loops: a bar on a terminal, occasional log lines in notebooks and log files; result tables."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LOG = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 30.0
tables_printed: ContextVar[bool] = ContextVar("tables_printed", default=True)
"""Whether evaluations and reports print their tables."""


@contextmanager
def without_tables() -> Iterator[None]:
    """Print no tables of results in the context, whose caller shows the results itself.

    Example:
        >>> with without_tables():
        ...     tables_printed.get()
        False
    """
    token = tables_printed.set(False)
    try:
        yield
    finally:
        tables_printed.reset(token)


@contextmanager
def progress(description: str, total: int | None = None, num_alike: int = 1) -> Iterator[Callable[[int], None]]:
    """Show the progress of a loop while the context is open.

    A terminal shows a bar, which disappears at the end. A notebook or a file gets a log line at most every 30 seconds;
    rich's own display in notebooks would need ipywidgets. Nothing is shown where the logger is not enabled for INFO.

    Args:
        description: the text before the bar, for example `distill: teacher outputs`.
        total: the number of steps, or None if it is unknown.
        num_alike: the number of processes that advance as fast as this one, which shows the steps of all.

    Yields:
        A function that advances the display by a number of steps.

    Example:
        >>> with progress("evaluate: users", total=100) as advance:
        ...     for _ in range(10):
        ...         advance(10)
    """
    console = get_console()
    if not _LOG.isEnabledFor(logging.INFO):
        yield lambda steps: None
    elif console.is_terminal and not console.is_jupyter:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
            task = bar.add_task(description, total=total)
            yield lambda steps: bar.advance(task, steps * num_alike)
    else:
        advance = _log_lines(description, total)
        yield lambda steps: advance(steps * num_alike)


def _log_lines(description: str, total: int | None) -> Callable[[int], None]:
    done, start = 0, time.monotonic()
    last = start

    def advance(steps: int) -> None:
        nonlocal done, last
        done += steps
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            _LOG.info("%s: %s", description, f"{done:,}" if total is None else _estimate(done, total, now - start))

    return advance


def _estimate(done: int, total: int, seconds: float) -> str:
    """Return the progress and the time left, given the seconds so far.

    Example:
        >>> _estimate(500, 2000, 60), _estimate(9, 10, 90)
        ('500 of 2,000, about 3 min left', '9 of 10, about 10 s left')
    """
    left = seconds * (total - done) / max(done, 1)
    shown = f"{left / 60:.0f} min" if left >= 120 else f"{left:.0f} s"
    return f"{done:,} of {total:,}" + (f", about {shown} left" if done < total else "")
