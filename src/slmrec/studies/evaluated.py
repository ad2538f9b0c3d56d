"""An evaluated run, read back: what a model gave each user. Knows only what `evaluate` wrote."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slmrec.errors import CheckpointError, ConfigError
from slmrec.evaluation.metrics import Floats, Ints, user_metrics
from slmrec.pipeline.stage import finished


@dataclass(frozen=True)
class Evaluated:
    """One model of a run under one protocol."""

    run: Path
    model: str
    protocol: str
    settings: dict[str, Any]
    """Of the protocol."""
    rows: pa.Table
    """`user_id`, `history_length`, `target_count` and `rank`: a user a row."""

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> Ints:
        """(num_users,) of a column of numbers."""
        return np.asarray(self.rows[name].to_numpy(), np.int64)

    @cached_property
    def metrics(self) -> dict[str, Floats]:
        """Each metric of each user."""
        return user_metrics(self.column("rank"))


def read_evaluated(run: Path, model: str, protocol: str | None = None) -> Evaluated:
    """The ranks that a model of a run got.

    Args:
        run: folder of the run.
        model: `student`, `teacher`, `sasrec`, ...
        protocol: None: the primary one of the run.

    Raises:
        CheckpointError: the run is not evaluated, or was by an earlier version.
        ConfigError: it has no such model or protocol.
    """
    folder = finished(run / "evaluate", "evaluate")
    users = folder / "users.parquet"
    if not users.is_file():
        raise CheckpointError(
            f"{users}: missing, the run was evaluated by an earlier version; run `slmrec evaluate --force` with its "
            "--config and --output"
        )
    content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    protocol = protocol or content["primary"]
    found = _choose(folder, "protocol", protocol, content["protocols"])
    _choose(folder, "model", model, found["models"])
    wanted = [("model", "==", model), ("protocol", "==", protocol)]
    ranks = pq.read_table(folder / "per_user.parquet", columns=["user_id", "rank"], filters=wanted)
    table = pq.read_table(users)
    at = pc.index_in(table["user_id"], value_set=ranks["user_id"].combine_chunks())
    if at.null_count or len(ranks) != len(table):
        raise CheckpointError(f"{folder}: its files are of different evaluations; run `slmrec evaluate --force`")
    return Evaluated(run, model, protocol, found["settings"], table.append_column("rank", ranks["rank"].take(at)))


def _choose(folder: Path, what: str, name: str, found: dict[str, Any]) -> Any:
    if name not in found:
        raise ConfigError(f"{folder}: no {what} {name!r} was evaluated; choose of: {', '.join(found)}")
    return found[name]


def in_order_of(first: Evaluated, other: Evaluated) -> Evaluated:
    """The other one with its users in the order of the first.

    Raises:
        CheckpointError: they have other users, or the same users were asked for something else.
    """
    at = _places(other.rows["user_id"], first.rows["user_id"])
    num_common = len(at) - at.null_count
    if not num_common == len(first) == len(other):
        raise CheckpointError(
            f"{first.run} has {len(first)} evaluated users and {other.run} has {len(other)}, of whom {num_common} are "
            "in both; compare runs of the same data, prepared alike"
        )
    ordered = Evaluated(other.run, other.model, other.protocol, other.settings, other.rows.take(at))
    for name in ("history_length", "target_count"):
        num_different = int(np.sum(first.column(name) != ordered.column(name)))
        if num_different:
            raise CheckpointError(
                f"{first.run} and {other.run} have the same users, but {num_different} of {len(first)} differ in their "
                f"{name}; compare runs of the same data, prepared alike"
            )
    if _settings(first) != _settings(ordered):
        raise CheckpointError(
            f"{first.run} and {other.run} were evaluated with other settings: {_settings(first)} and "
            f"{_settings(ordered)}; evaluate both alike"
        )
    return ordered


def _places(users: pa.ChunkedArray, wanted: pa.ChunkedArray) -> pa.ChunkedArray:
    """Where the wanted users are; null for those who are not there."""
    if users.type != wanted.type:
        return pa.chunked_array([pa.nulls(len(wanted), pa.int32())])
    return pc.index_in(wanted, value_set=users.combine_chunks())


def _settings(evaluated: Evaluated) -> dict[str, Any]:
    """Those that a rank depends on: the seed only draws negatives."""
    drawn = evaluated.settings.get("num_negatives") is not None
    return {name: value for name, value in evaluated.settings.items() if drawn or name != "seed"}


def label(metric: str) -> str:
    """A metric as tables call it."""
    return metric.replace("hit", "HR").replace("ndcg", "NDCG").replace("mrr", "MRR")
