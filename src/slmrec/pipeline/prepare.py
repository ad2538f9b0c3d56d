"""The stage `prepare`: raw logs to a data set."""

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

import numpy as np
import yaml

from slmrec.config import PrepareConfig
from slmrec.config.load import load_config
from slmrec.config.prepare import PrepareSettings
from slmrec.data.logs.read import few_ids
from slmrec.data.parquet import write_any_table
from slmrec.data.prepare import prepare_dataset
from slmrec.errors import ConfigError, DataError
from slmrec.pipeline.stage import Task, run_step
from slmrec.pipeline.table import stage_named
from slmrec.processes import on_main
from slmrec.storage.cache import local, localized, uris_named
from slmrec.storage.runs import opened_run

_LOG = logging.getLogger(__name__)
_REMOVED_BY = "num_removed_by_"


def build(task: Task) -> dict[str, float]:
    """Write the data set into the task's folder, and return its counts."""
    settings = localized(task.config, required=True).prepare
    if settings.input is None:
        raise ConfigError(
            f"prepare.input is not set; give --input FILE{_former_input(task.output)}, or prepare.input=FILE"
        )
    source = settings.input

    def prepare_alone() -> dict[str, float]:
        counts = prepare_dataset(settings, task.folder, source)
        _log_summary(settings, counts)
        return counts

    return on_main(prepare_alone)


@uris_named()
def prepare(log: Any, output: Path | str, items: Any = None, **settings: Unpack[PrepareSettings]) -> Path:
    """Prepare a data set from a log of events.

    Args:
        log: the path or URI (such as `s3://bucket/log.parquet`) of a file or folder, or a table of events (pandas,
            polars, Arrow, or any object that exports Arrow data).
        output: the folder of the data set, a path or URI; an existing one is replaced once the new one is complete.
        items: a path, URI or table of items with titles and other columns, optional.
        settings: settings of the section `prepare`, such as `min_user_events=5`.

    Returns:
        The folder of the data set; for a URI, its copy on this machine.

    Raises:
        ConfigError: a setting is unknown or out of range.
        DataError: the log cannot be read, or no event is left.
        StorageError: a URI cannot be read or written.

    Example:
        >>> import pyarrow as pa
        >>> from slmrec.data.dataset import Dataset
        >>> events = pa.table({"user_id": ["u"] * 3, "sku": ["a", "b", "c"], "timestamp": [1, 2, 3]})
        >>> with TemporaryDirectory() as folder:
        ...     shop = Dataset.load(prepare(events, f"{folder}/shop", item_col="sku"))
        ...     shop.num_users, shop.num_items
        (1, 3)
    """
    with TemporaryDirectory(prefix="slmrec-") as folder:
        inputs = {"input": as_file(log, Path(folder) / "log")}
        if items is not None:
            inputs["items"] = as_file(items, Path(folder) / "items")
        try:
            config = localized(load_config(None, overrides_of(settings, inputs)))
            with opened_run(output) as target:
                return run_step(stage_named("prepare").steps(config)[0], config, target, target=target)
        except DataError as error:
            raise DataError(str(error).replace(f"{folder}/", "the table given as ")) from None


def overrides_of(settings: PrepareSettings, inputs: dict[str, str]) -> list[str]:
    """Return settings of `prepare`, and its inputs, as overrides of the command line.

    Example:
        >>> overrides_of({"min_user_events": 5}, {"input": "log.csv"})
        ['prepare.min_user_events=5', 'prepare.input="log.csv"']
    """
    return [
        f"prepare.{name}={json.dumps(value, ensure_ascii=False, default=_plain)}"
        for name, value in (*settings.items(), *inputs.items())
    ]


def _plain(value: Any) -> Any:
    """Return a number of NumPy as one of Python, and other objects as text."""
    return value.item() if isinstance(value, np.generic) else str(value)


def as_file(table: Any, path: Path) -> str:
    """Write a table as Parquet, and return its path; a path or URI is returned as it is.

    Args:
        table: Path, URI, or table of pandas, polars, Arrow, or any object that exports Arrow data.
        path: File to write.

    Raises:
        DataError: It is neither a path nor a table.
    """
    if isinstance(table, str):
        return table
    if isinstance(table, Path):
        return str(local(table))
    try:
        write_any_table(table, path)
    except ValueError as error:
        raise DataError(
            f"{type(table).__name__}: not a table ({error}); expected a path, or a table of pandas, polars or Arrow "
            "whose columns each have one type"
        ) from None
    return str(path)


def _log_summary(settings: PrepareConfig, counts: dict[str, float]) -> None:
    """Log the removed events and invalid rows, the coverage of the table of items, and the split."""
    removed = {name.removeprefix(_REMOVED_BY): num for name, num in counts.items() if name.startswith(_REMOVED_BY)}
    by_rule = ", ".join(f"{name} ({getattr(settings, name)}) {num:,}" for name, num in removed.items() if num)
    if by_rule:
        users, items = counts["num_dropped_users"], counts["num_dropped_items"]
        _LOG.info(
            "prepare: events removed by %s; %s users and %s items have no events left",
            *(by_rule, f"{users:,}", f"{items:,}"),
        )
    if counts["num_rejected_rows"]:
        _LOG.info(
            "prepare: %s invalid rows skipped; see rejected.parquet and dataset.json",
            f"{counts['num_rejected_rows']:,}",
        )
    if "num_known_items" in counts:
        known, titled = counts["num_known_items"], counts.get("num_titled_items", 0)
        _LOG.info(
            "prepare: %s of %s items are in the table of items, %s with a title",
            *(f"{known:,}", f"{counts['num_items']:,}", f"{titled:,}"),
        )
    if counts.get("num_retitled_items"):
        _LOG.info(
            "prepare: %s items have several titles; the most frequent one is kept, the first of equally frequent ones",
            f"{counts['num_retitled_items']:,}",
        )
    for warning in few_ids(counts["num_users"], counts["num_items"]):
        _LOG.warning("prepare: %s", warning)
    _log_split(settings, counts)


def _log_split(settings: PrepareConfig, counts: dict[str, float]) -> None:
    train, valid, test = (counts[f"num_{name}"] for name in ("train_events", "valid_targets", "test_targets"))
    untrained, cold = counts["num_users_without_training"], counts["num_cold_test_targets"]
    _LOG.info(
        "prepare: %s: %s training events, %s validation users, %s test users; %s users without a training sample, %s "
        "test items without a training event",
        *(settings.split, f"{train:,}", f"{valid:,}", f"{test:,}", f"{untrained:,}", f"{cold:,}"),
    )
    leaked = counts.get("num_test_before_last_train")
    if settings.split == "leave_one_out" and leaked:
        _LOG.info(
            "prepare: leave_one_out looks into the future: %s of %s test events precede the last training event; "
            "prepare.split=temporal avoids this",
            *(f"{leaked:,}", f"{counts['num_test_targets']:,}"),
        )


def _former_input(output: Path) -> str:
    path = output / "prepare" / "config.yaml"
    if not path.is_file():
        return ""
    return f" (the same as before: {yaml.safe_load(path.read_text(encoding='utf-8'))['prepare']['input']})"
