"""The whole pipeline in Python: all steps, then the report; `fit` begins with tables and ends with a `Run`."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from slmrec.auto.amounts import Amount, bytes_of, seconds_of
from slmrec.auto.choose import Choice
from slmrec.auto.dry_run import show_plan
from slmrec.auto.hardware import use_free_threads
from slmrec.auto.request import Request, choose_for
from slmrec.callbacks import Callback, calling
from slmrec.config import Config
from slmrec.config.load import load_config, vary
from slmrec.config.prepare import PrepareSettings
from slmrec.errors import CheckpointError, ConfigError, DataError
from slmrec.files import write_json
from slmrec.folders import disk_errors_reported, is_empty_folder
from slmrec.locks import run_locked
from slmrec.pipeline.prepare import as_file, overrides_of
from slmrec.pipeline.run import run_steps
from slmrec.processes import on_main, refuse_several
from slmrec.progress import without_tables
from slmrec.report import INSTALL, missing_libraries
from slmrec.run_folder import Run, TemporaryFolder
from slmrec.storage.cache import localized, named, uris_named
from slmrec.storage.runs import opened_run
from slmrec.version import __version__

_LOG = logging.getLogger(__name__)
_RAW, _MARK = "raw", "tables.json"
"""Folder of the tables that were given to `fit`, and the file in it that identifies it."""


@uris_named()
def fit(
    events: Any,
    items: Any = None,
    *,
    output: str | Path | None = None,
    time_budget: Amount | None = None,
    memory: Amount | None = None,
    config: Config | str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    **settings: Unpack[PrepareSettings],
) -> Run:
    """Train, evaluate and compare models on a log of events, as `slmrec run` does.

    Finished steps of the same output folder that are unchanged are skipped, and interrupted ones are resumed. Nothing
    is printed; messages go to the logger `slmrec`.

    Args:
        events: Path or URI of a log, or a table of pandas, polars, Arrow, or any object that exports Arrow data; tables
            are written as Parquet to `raw` in the output folder.
        items: Path, URI or table of items with titles and other columns.
        output: Output folder, a path or URI; None: a temporary folder that lives as long as the returned run, see
            `Run.save`.
        time_budget: Time that the run may take, in seconds or as text such as `20m`; only without `config`.
        memory: Memory that the run may use, in bytes or as text such as `8g`; only without `config`.
        config: Settings, name of a recipe, or YAML file; None: they are chosen for the data, the free hardware and the
            time.
        callbacks: Objects whose methods are called when stages begin and end, and after epochs; see `Callback`.
        settings: Settings of the section `prepare`, such as `user_col="customer"`, which replace those of `config`.

    Raises:
        ConfigError: A setting is unknown or out of range.
        DataError: The log cannot be read, or too few events are left.
        CheckpointError: Another process writes into the output folder, or it holds something else.

    Example:
        >>> import pyarrow as pa
        >>> rows = [(user, (user * 7 + place * place) % 12, place) for user in range(20) for place in range(4)]
        >>> table = pa.table(list(zip(*rows)), ["customer", "item_id", "timestamp"])
        >>> fitted = fit(table, user_col="customer")
        >>> list(fitted.models), len(fitted.models["popularity"].recommend([[7, 8]], k=3).table)
        (['popularity', 'cooccurrence'], 3)
    """
    started = time.monotonic()
    refuse_several("slmrec.fit")
    limits = seconds_of(time_budget, "time_budget"), bytes_of(memory, "memory")
    if config is not None and limits != (None, None):
        name = "memory" if time_budget is None else "time_budget"
        raise ConfigError(f"{name} chooses settings, and config gives them; leave one of the two out")
    if events is None:
        raise ConfigError("events is None; expected a path or URI of a log, or a table of pandas, polars or Arrow")
    if "input" in settings:
        raise ConfigError("input is the first argument of slmrec.fit, events; leave input out")
    temporary = TemporaryFolder() if output is None else None
    with without_tables(), calling(callbacks), opened_run(temporary.path if temporary else str(output)) as folder:
        try:
            with disk_errors_reported(folder), run_locked(folder):
                inputs = _inputs(folder, input=events, items=items)
                if config is None:
                    run_chosen(Request(tuple(overrides_of(settings, inputs)), *limits), folder, started=started)
                else:
                    run(_with_settings(config, settings, inputs), folder)
        except DataError as error:
            raw = named(f"{folder / _RAW}/")
            raise DataError(named(str(error)).replace(raw, "the table given as ")) from None
    return Run(folder, temporary)


def _inputs(folder: Path, **tables: Any) -> dict[str, str]:
    """Write the tables among the inputs into the folder of a run, and return the paths of all inputs by setting."""
    raw = folder / _RAW
    if any(not isinstance(table, str | Path | None) for table in tables.values()):
        if raw.exists() and not (raw / _MARK).is_file() and not is_empty_folder(raw):
            raise CheckpointError(
                f"{raw} exists and does not hold tables of slmrec.fit; choose another output, nothing was changed"
            )
        raw.mkdir(exist_ok=True)
        write_json(raw / _MARK, {"version": __version__})
    return {
        name: as_file(table, raw / f"{name.replace('input', 'events')}.parquet")
        for name, table in tables.items()
        if table is not None
    }


def _with_settings(config: Config | str | Path, settings: PrepareSettings, inputs: dict[str, str]) -> Config:
    if not isinstance(config, Config):
        return load_config(config, overrides_of(settings, inputs))
    changes = {f"prepare.{name}": value for name, value in (*settings.items(), *inputs.items())}
    return vary(config, changes, "slmrec.fit")


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
