"""Raw logs to the data-set folder."""

import json
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from slmrec.config import Config, PrepareConfig, load_config
from slmrec.data.engine import one_line
from slmrec.data.items import ItemsReading
from slmrec.data.prepare import prepare_dataset
from slmrec.data.rules import Rules
from slmrec.data.sources import Reading
from slmrec.errors import ConfigError, DataError
from slmrec.stages.folders import Stage, Task, run_stage


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
        given = {"input": _as_file(log, Path(folder) / "log.parquet")}
        if items is not None:
            given["items"] = _as_file(items, Path(folder) / "items.parquet")
        overrides = [
            f"prepare.{name}={json.dumps(value, ensure_ascii=False, default=str)}"
            for name, value in (settings | given).items()
        ]
        return run_stage(STAGE, load_config(None, overrides), Path(output), target=Path(output))


def _as_file(table: Any, path: Path) -> str:
    if isinstance(table, str | Path):
        return str(table)
    from_pandas = type(table).__module__.startswith("pandas")
    try:
        arrow = pa.Table.from_pandas(table, preserve_index=False) if from_pandas else pa.table(table)
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
        _say(f"events left out by {by_rule}; of {users:,} users and {items:,} items none is left")
    if counts["num_rejected_rows"]:
        _say(f"{counts['num_rejected_rows']:,} rows were no events: see rejected.parquet, and dataset.json for reasons")
    leaked = counts.get("num_test_before_last_train")
    if settings.split == "leave_one_out" and leaked:
        _say(
            f"leave_one_out looks into the future: {leaked:,} of {counts['num_test_targets']:,} test events precede "
            "the last training event; prepare.split=temporal does not"
        )
    cold = counts["num_cold_test_targets"]
    if cold:
        _say(f"{cold:,} test events are of items that occur in no training event")


def _before(output: Path) -> str:
    path = output / "prepare" / "config.yaml"
    if not path.is_file():
        return ""
    return f" (the same as before: {yaml.safe_load(path.read_text(encoding='utf-8'))['prepare']['input']})"


def _sources(config: Config) -> tuple[str | None, ...]:
    return config.prepare.input, config.prepare.items


STAGE = Stage("prepare", lambda config: (), build, _sources)
