"""Results of an evaluation, read from the folder of a run: the rank of every user for one model and protocol."""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slmrec.errors import CheckpointError, ConfigError
from slmrec.evaluation.metrics import Floats, Ints, user_metrics
from slmrec.pipeline.stage import finished

Split = Literal["valid", "test"]
SPLIT_NAMES: dict[str, str] = {"valid": "validation split", "test": "test split"}
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Evaluated:
    """Ranks of one model of a run under one protocol."""

    run: Path
    model: str
    protocol: str
    split: Split
    settings: dict[str, Any]
    """Settings of the protocol."""
    rows: pa.Table
    """Table with one row for each user: `user_id`, `history_length`, `target_count` and `rank`."""

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> Ints:
        """Return a column of integers (num_users,)."""
        return np.asarray(self.rows[name].to_numpy(), np.int64)

    @cached_property
    def metrics(self) -> dict[str, Floats]:
        """Metrics of each user (num_users,) by name."""
        return user_metrics(self.column("rank"))


def results_file(folder: Path, name: str, split: Split) -> Path:
    """Return the path of a file that `evaluate` writes for each split.

    Example:
        >>> results_file(Path("out/evaluate"), "metrics.json", "valid").name
        'metrics_valid.json'
    """
    stem, _, suffix = name.partition(".")
    return folder / (name if split == "test" else f"{stem}_{split}.{suffix}")


def read_evaluated(run: Path, model: str, protocol: str | None = None, split: Split = "valid") -> Evaluated:
    """Read the ranks of a model of an evaluated run.

    Args:
        run: Folder of the run.
        model: Name of the model, such as `student`, `teacher` or `sasrec`.
        protocol: Ranking protocol; None: the primary protocol of the run.
        split: Split whose held-out items were ranked.

    Raises:
        CheckpointError: The run is not evaluated, not on this split, or by an earlier version.
        ConfigError: The model or the protocol was not evaluated.
    """
    folder = finished(run / "evaluate", "evaluate")
    metrics, users, ranks = (
        results_file(folder, name, split) for name in ("metrics.json", "users.parquet", "per_user.parquet")
    )
    if not users.is_file():
        raise CheckpointError(
            f"{folder}: has no ranks of the {SPLIT_NAMES[split]}; evaluate it with `slmrec evaluate --config "
            f"{run / 'evaluate' / 'config.yaml'} --output {run} evaluate.splits=[test,valid]`"
        )
    content = json.loads(metrics.read_text(encoding="utf-8"))
    protocol = protocol or str(content["primary"])
    results = _choose(folder, "protocol", protocol, content["protocols"])
    _choose(folder, "model", model, results["models"])
    filters = [("model", "==", model), ("protocol", "==", protocol)]
    own = pq.read_table(ranks, columns=["user_id", "rank"], filters=filters)
    table = pq.read_table(users)
    places = pc.index_in(table["user_id"], value_set=own["user_id"].combine_chunks())
    if places.null_count or len(own) != len(table):
        raise CheckpointError(f"{folder}: its files are of different evaluations; run `slmrec evaluate --force`")
    rows = table.append_column("rank", own["rank"].take(places))
    return Evaluated(run, model, protocol, split, results["settings"], rows)


def _choose(folder: Path, kind: str, name: str, values: dict[str, _Value]) -> _Value:
    if name not in values:
        raise ConfigError(f"{folder}: no {kind} {name!r} was evaluated; choose from {', '.join(values)}")
    return values[name]


def in_order_of(first: Evaluated, other: Evaluated) -> Evaluated:
    """Return the second evaluation with its users in the order of the first.

    Raises:
        CheckpointError: The users, their targets, or the settings of the protocol differ.
    """
    places = _places(other.rows["user_id"], first.rows["user_id"])
    num_common = len(places) - places.null_count
    if not num_common == len(first) == len(other):
        raise CheckpointError(
            f"{first.run} has {len(first)} evaluated users and {other.run} has {len(other)}, of whom {num_common} are "
            "in both; compare runs of the same data with the same settings of prepare"
        )
    ordered = Evaluated(other.run, other.model, other.protocol, other.split, other.settings, other.rows.take(places))
    for name in ("history_length", "target_count"):
        num_different = int(np.sum(first.column(name) != ordered.column(name)))
        if num_different:
            raise CheckpointError(
                f"{first.run} and {other.run} have the same users, but {num_different} of {len(first)} differ in their "
                f"{name}; compare runs of the same data with the same settings of prepare"
            )
    if _settings(first) != _settings(ordered):
        raise CheckpointError(
            f"{first.run} and {other.run} were evaluated with different settings: {_settings(first)} and "
            f"{_settings(ordered)}; evaluate both with the same settings"
        )
    return ordered


def common_users(first: Evaluated, second: Evaluated) -> tuple[Evaluated, Evaluated]:
    """Return two evaluations of the users that both have, in the same order; their histories and targets may differ."""
    places = _places(second.rows["user_id"], first.rows["user_id"])
    common = pc.is_valid(places)
    return replace(first, rows=first.rows.filter(common)), replace(second, rows=second.rows.take(places.drop_null()))


def _places(users: pa.ChunkedArray, sought: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the rows of the sought users; null for users who are absent."""
    if users.type != sought.type:
        return pa.chunked_array([pa.nulls(len(sought), pa.int32())])
    return pc.index_in(sought, value_set=users.combine_chunks())


def _settings(evaluated: Evaluated) -> dict[str, Any]:
    """Return the settings that affect ranks; the seed matters only for sampled negatives."""
    is_sampled = evaluated.settings.get("num_negatives") is not None
    return {name: value for name, value in evaluated.settings.items() if is_sampled or name != "seed"}


def label(metric: str) -> str:
    """Return the name of a metric in tables.

    Example:
        >>> label("ndcg@10")
        'NDCG@10'
    """
    return metric.replace("hit", "HR").replace("ndcg", "NDCG").replace("mrr", "MRR")
