"""The whole pipeline in Python: all steps, then the report."""

import logging
from pathlib import Path

from slmrec.auto.choose import Choice
from slmrec.auto.dry_run import show_plan
from slmrec.auto.hardware import use_free_threads
from slmrec.auto.request import Request, choose_for
from slmrec.config import Config
from slmrec.locks import run_locked
from slmrec.pipeline.run import run_steps
from slmrec.processes import on_main
from slmrec.report import INSTALL, missing_libraries
from slmrec.storage.cache import localized, uris_named
from slmrec.storage.runs import opened_run

_LOG = logging.getLogger(__name__)


@uris_named()
def run(config: Config, output: Path | str, force: bool = False) -> None:
    """Execute all steps that are not done, show the models side by side, and write the report.

    Args:
        config: All settings.
        output: Output folder of the run, a path or URI.
        force: Redo finished steps.

    Raises:
        StorageError: A URI cannot be read or written.
        CheckpointError: Another process writes into the folder, or a backbone cannot be found; this is checked before
            the first step begins.

    Example:
        >>> run(config, output / "run")  # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
        full_history_excluded: leave_one_out, test split, ranked among all items, history excluded
        ...
        >>> (output / "run" / "report.html").is_file()
        True
    """
    use_free_threads()
    with opened_run(output) as folder, run_locked(folder):
        run_steps(localized(config), folder, force)
        on_main(lambda: write_report(folder))


@uris_named()
def run_chosen(request: Request, output: Path | str, force: bool = False, *, started: float | None = None) -> Choice:
    """Execute all steps with settings that are chosen for the data, the hardware and the time.

    They are logged, each with its reason, and written to `config.yaml` in `output`, which reproduces the run. Another
    call with the same request on the same data takes them from there.

    Args:
        request: Log, settings of the user, time and memory.
        output: Output folder of the run.
        force: Choose again, and redo finished steps.
        started: Value of `time.monotonic` when the time of the request began; None: now.

    Returns:
        The settings.

    Raises:
        ConfigError: A setting of the user belongs to those that are chosen, or there are several processes.
    """
    use_free_threads()
    with opened_run(output) as folder, run_locked(folder):
        choice = choose_for(request, folder, force, started=started)
        run(choice.config, folder, force)
    return choice


def write_report(output: Path, always: bool = False) -> None:
    """Write the report of a run, or log how to install the libraries that it needs.

    Args:
        output: Output folder of the run.
        always: Write it even if the existing report belongs to the same steps.

    Example:
        >>> run(config, output / "run")  # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
        full_history_excluded: leave_one_out, test split, ranked among all items, history excluded
        ...
        >>> write_report(output / "run")  # nothing to do: the report belongs to these steps
    """
    if missing := missing_libraries():
        _LOG.info("report: needs %s; %s, then `slmrec report %s`", ", ".join(missing), INSTALL, output)
        return
    from slmrec.report.page import report, report_if_changed

    (report if always else report_if_changed)(output)


def plan(config: Config, output: Path, force: bool = False) -> None:
    """Show the steps that `run` would execute and their cost; nothing is written.

    Args:
        config: All settings.
        output: Output folder of the run.
        force: Show the plan of a run that redoes finished steps.

    Example:
        >>> plan(config, output / "planned")  # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
        what `slmrec run` would do
        ...
    """
    show_plan(localized(config), output, force)
