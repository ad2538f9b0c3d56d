"""Section of the report about efficiency: cost and quality of each model, as in the table of the paper."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slmrec.report.parts import Block, Column, Grid, Section, Value, blocks_or_notice
from slmrec.report.states import Run, read_json, read_log

METRICS = {"hit@1": "HR@1", "hit@5": "HR@5", "ndcg@5": "NDCG@5", "mrr": "MRR"}
COSTS = (
    Column("model"),
    Column("split"),
    Column("layers", "d"),
    Column("parameters", ",d"),
    Column("trainable", ",d"),
    Column("training to best [s]", ",.1f"),
    Column("inference [s / 1,000 users]", ".3f"),
    Column("peak memory [MB]", ",.0f"),
    Column("weights on disk [MB]", ",.1f"),
)


def efficiency(run: Run) -> Section:
    """Return the section."""
    states = [*run.trained, run.states["evaluate"]]
    blocks: list[Block] = [notice for notice in run.notices(*states) if notice.fault != "interrupted"]
    blocks += blocks_or_notice("the efficiency table", lambda: [table(run)])
    lead = (
        "As in the table of the paper. Training time is that of the epochs up to the best one; peak memory is that of "
        "the training process; inference encodes the history, scores all items and finds the ten best, in batches."
    )
    return Section("efficiency", "Efficiency", lead, blocks)


def table(run: Run) -> Grid:
    """Return a table with a row for each model, and for each depth of the study of depth; unknown values are empty.

    Raises:
        CheckpointError: A file of the run is damaged.
    """
    names = [(protocol, metric) for protocol in _protocols(run) for metric in METRICS]
    rows = [_model_row(run, model, names) for model in run.models]
    rows += [_depth_row(run, point, study["split"], names) for study in _depth(run) for point in study["trained"]]
    metrics = (Column(METRICS[metric], ".4f", protocol) for protocol, metric in names)
    note = "Weights on disk are those in the folder of the model; with adapters, these are the adapters alone."
    return Grid("efficiency", "Efficiency", (*COSTS, *metrics), rows, note)


def _protocols(run: Run) -> list[str]:
    """Return the sampled protocol and one full protocol, as far as they were evaluated."""
    if not run.evaluation:
        return []
    names, primary = list(run.evaluation["protocols"]), run.evaluation["primary"]
    sampled = [name for name in names if name.startswith("sampled")]
    full = [name for name in (primary, *names) if not name.startswith("sampled")]
    return [*sampled[:1], *full[:1]]


def _model_row(run: Run, model: str, names: list[tuple[str, str]]) -> tuple[Value, ...]:
    folder = run.models[model]
    metrics = _training_metrics(run, folder)
    evaluated = _evaluated(run, model)
    primary = evaluated.get(run.evaluation["primary"], {}) if evaluated else {}
    speed = primary.get("users_per_second")
    return (
        model,
        run.split,
        metrics.get("num_layers"),
        metrics.get("num_parameters", primary.get("num_parameters")),
        metrics.get("num_trainable_parameters"),
        _seconds_to_best(folder, metrics),
        1_000 / speed if speed else None,
        metrics.get("peak_rss_mb"),
        _weights_mb(folder),
        *(evaluated.get(protocol, {}).get(metric) for protocol, metric in names),
    )


def _training_metrics(run: Run, folder: Path) -> dict[str, Any]:
    """Return the metrics of the step that trained a model; a teacher may come from another run."""
    for name, state in run.states.items():
        if folder == run.root / name:
            return state.metrics
    return read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}


def _evaluated(run: Run, model: str) -> dict[str, dict[str, Any]]:
    """Return the metrics of a model by protocol."""
    protocols = run.evaluation["protocols"].items() if run.evaluation else ()
    return {name: protocol["models"][model] for name, protocol in protocols if model in protocol["models"]}


def _seconds_to_best(folder: Path, metrics: dict[str, Any]) -> float | None:
    if "best_epoch" not in metrics or not (folder / "training" / "log.jsonl").is_file():
        return None
    return next((row.get("seconds") for row in read_log(folder) if row["epoch"] == metrics["best_epoch"]), None)


def _weights_mb(folder: Path) -> float | None:
    files = [*folder.glob("model*.safetensors"), *folder.glob("adapter_model*.safetensors")]
    return sum(file.stat().st_size for file in files) / 1e6 if files else None


def _depth(run: Run) -> Iterator[dict[str, Any]]:
    path = run.output / "depth" / "depth.json"
    if path.is_file():
        yield read_json(path)


def _depth_row(run: Run, point: dict[str, Any], split: str, names: list[tuple[str, str]]) -> tuple[Value, ...]:
    metrics, folder = point.get("metrics") or {}, run.output / "depth" / point["name"] / "finetune"
    return (
        f"depth {point['name']}",
        split,
        point.get("num_layers"),
        point.get("num_parameters"),
        point.get("num_trainable_parameters"),
        _seconds_to_best(folder, point),
        point.get("infer_s_per_1000_users"),
        point.get("peak_rss_mb"),
        _weights_mb(folder),
        *(metrics.get(protocol, {}).get(metric) for protocol, metric in names),
    )
