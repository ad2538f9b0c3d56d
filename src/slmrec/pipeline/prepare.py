"""Raw logs to the data-set folder."""

import json
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from slmrec.config import PrepareConfig
from slmrec.config.load import load_config
from slmrec.data.engine import one_line
from slmrec.data.filters import Rules
from slmrec.data.items import ItemsReading
from slmrec.data.logs.read import Reading
from slmrec.data.prepare import prepare_dataset
from slmrec.errors import ConfigError, DataError
from slmrec.pipeline.stage import Task, run_step
from slmrec.pipeline.table import stage_named


def build(task: Task) -> dict[str, float]:
    """Writes the data set; its counts."""
    settings = task.config.prepare
    if settings.input is None:
        raise ConfigError(f"prepare.input is not set; give --input FILE{_before(task.output)}, or prepare.input=FILE")
    counts = prepare_dataset(settings.input, task.folder, **arguments(settings), say=_say)
    _tell(settings, counts)
    return counts


def prepare(log: Any, output: Path | str, items: Any = None, **settings: Any) -> Path:
    """Prepares a data set from Python; its folder.

    Args:
        log: the path of a file or folder, or a table of events (pandas, polars, Arrow, whatever exports Arrow data).
        output: the data set's folder; one that is there is replaced when the new one is whole.
        items: likewise, what is known of items.
        settings: those of `prepare`, such as `min_user_events=5`.

    Raises:
        ConfigError: a setting is unknown or out of range.
        DataError: the log cannot be read, or no event is left.

    Example:
        prepare(events, "data/shop", items=products, item_col="sku", min_item_events=5)
    """
    with TemporaryDirectory(prefix="slmrec-") as folder:
        given = {"input": _as_file(log, Path(folder) / "log")}
        if items is not None:
            given["items"] = _as_file(items, Path(folder) / "items")
        overrides = [
            f"prepare.{name}={json.dumps(value, ensure_ascii=False, default=str)}"
            for name, value in (settings | given).items()
        ]
        try:
            config = load_config(None, overrides)
            return run_step(stage_named("prepare").steps(config)[0], config, Path(output), target=Path(output))
        except DataError as error:
            raise DataError(str(error).replace(f"{folder}/", "the table given as ")) from None


def _as_file(table: Any, path: Path) -> str:
    if isinstance(table, str | Path):
        return str(table)
    if type(table).__module__.startswith("pandas"):
        table = table.reset_index() if any(table.index.names) else table.reset_index(drop=True)
    try:
        arrow = pa.table(table)
        pq.write_table(arrow, path)
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"{type(table).__name__}: no table ({one_line(error)}); expected a path, or a table of pandas, polars or "
            "Arrow whose columns each have one type"
        ) from None
    return str(path)


def arguments(settings: PrepareConfig) -> dict[str, Any]:
    """What `prepare_dataset` is to be given for settings of `prepare`."""
    chosen = settings.model_dump()
    reading = {field.name: chosen[field.name] for field in fields(Reading) if field.name in chosen}
    rules = {field.name: chosen[field.name] for field in fields(Rules)}
    items = {name: chosen[name] for name in ItemsReading._fields if name in chosen}
    return {
        "reading": Reading(**reading, needs_rating=settings.min_rating is not None),
        "rules": Rules(**rules),
        "items": ItemsReading(path=Path(settings.items), **items) if settings.items else None,
        "engine": settings.engine,
        "memory_limit": settings.memory_limit,
    }


def _say(text: str) -> None:
    print(f"prepare: {text}", flush=True)


def _tell(settings: PrepareConfig, counts: dict[str, float]) -> None:
    """What a user has to know of what was left out, and of the split."""
    removed = {name: counts.get(f"num_removed_by_{name}") for name in (field.name for field in fields(Rules))}
    by_rule = ", ".join(f"{name} ({getattr(settings, name)}) {number:,}" for name, number in removed.items() if number)
    if by_rule:
        users, items = counts["num_dropped_users"], counts["num_dropped_items"]
        _say(f"events left out by {by_rule}; no event is left of {users:,} users and {items:,} items")
    if counts["num_rejected_rows"]:
        _say(f"rows that were no events: {counts['num_rejected_rows']:,}; see rejected.parquet and dataset.json")
    if "num_known_items" in counts:
        known, titled = counts["num_known_items"], counts.get("num_titled_items", 0)
        _say(f"of {counts['num_items']:,} items {known:,} are in the table of items, {titled:,} with a title")
    _tell_split(settings, counts)


def _tell_split(settings: PrepareConfig, counts: dict[str, float]) -> None:
    train, valid, test = (counts[f"num_{name}"] for name in ("train_events", "valid_targets", "test_targets"))
    idle, cold = counts["num_users_without_training"], counts["num_cold_test_targets"]
    _say(
        f"{settings.split}: {train:,} events to train on, {valid:,} users to validate, {test:,} to test; {idle:,} "
        f"users without a training sample, {cold:,} test items that training never sees"
    )
    leaked = counts.get("num_test_before_last_train")
    if settings.split == "leave_one_out" and leaked:
        _say(
            f"leave_one_out looks into the future: {leaked:,} of {counts['num_test_targets']:,} test events precede "
            "the last training event; prepare.split=temporal does not"
        )


def _before(output: Path) -> str:
    path = output / "prepare" / "config.yaml"
    if not path.is_file():
        return ""
    return f" (the same as before: {yaml.safe_load(path.read_text(encoding='utf-8'))['prepare']['input']})"
