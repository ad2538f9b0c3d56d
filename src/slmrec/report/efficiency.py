"""What each model costs beside what it gives, a line each, as in the paper's table."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slmrec.report.parts import Block, Column, Grid, Section, Value, tried
from slmrec.report.states import MODELS, TRAINED, Run, read_json, read_log

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
    """Parameters, time, memory and quality of every trained model."""
    blocks: list[Block] = [
        notice for notice in run.notices(*TRAINED, "evaluate") if notice.fault in {"broken", "out of date", "missing"}
    ]
    blocks += tried("the efficiency table", lambda: [table(run)])
    lead = (
        "As the paper's table. Training time is that of the epochs up to the one that was kept, peak memory that of "
        "the training process, and inference reads the history, scores all items and finds the ten best, in batches."
    )
    return Section("efficiency", "Efficiency", lead, blocks)


def table(run: Run) -> Grid:
    """A row for each trained model, and for each depth of the depth study; what is not known is empty.

    Raises:
        CheckpointError: a file of the run is damaged.
    """
    protocols = _protocols(run)
    names = [(protocol, metric) for protocol in protocols for metric in METRICS]
    rows = [_model_row(run, model, names) for model in MODELS if run.model_folder(model).is_dir()]
    rows += [_depth_row(run, point, depth["split"], names) for depth in _depth(run) for point in depth["trained"]]
    metrics = (Column(METRICS[metric], ".4f", protocol) for protocol, metric in names)
    note = "Weights on disk are those of the model's folder; of an adapted language model it holds the adapters alone."
    return Grid("efficiency", "Efficiency", (*COSTS, *metrics), rows, note)


def _protocols(run: Run) -> list[str]:
    """The sampled protocol and the full one, as far as they were evaluated."""
    if not run.evaluation:
        return []
    names, primary = list(run.evaluation["protocols"]), run.evaluation["primary"]
    sampled = [name for name in names if name.startswith("sampled")]
    full = [name for name in (primary, *names) if not name.startswith("sampled")]
    return [*sampled[:1], *full[:1]]


def _model_row(run: Run, model: str, names: list[tuple[str, str]]) -> tuple[Value, ...]:
    folder = run.model_folder(model)
    state = run.states.get(folder.name)
    own = state is not None and folder == run.root / folder.name  # else it was brought, or trained with the student
    metrics = state.metrics if own and state else _brought_metrics(folder)
    evaluated = _evaluated(run, model)
    primary = evaluated.get(run.evaluation["primary"], {}) if evaluated else {}
    speed = primary.get("users_per_second")
    return (
        model,
        "test",
        metrics.get("num_layers", run.settings["pretrain"]["num_hidden_layers"] if model == "sasrec" else None),
        metrics.get("num_parameters", primary.get("num_parameters")),
        metrics.get("num_trainable_parameters"),
        _seconds_to_best(folder, metrics),
        1_000 / speed if speed else None,
        metrics.get("peak_rss_mb"),
        _weights_mb(folder),
        *(evaluated.get(protocol, {}).get(metric) for protocol, metric in names),
    )


def _brought_metrics(folder: Path) -> dict[str, Any]:
    return read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}


def _evaluated(run: Run, model: str) -> dict[str, dict[str, Any]]:
    """The model's metrics by protocol."""
    found = run.evaluation["protocols"].items() if run.evaluation else ()
    return {name: protocol["models"][model] for name, protocol in found if model in protocol["models"]}


def _seconds_to_best(folder: Path, metrics: dict[str, Any]) -> float | None:
    if "best_epoch" not in metrics or not (folder / "training" / "log.jsonl").is_file():
        return None
    found = [row.get("seconds") for row in read_log(folder) if row["epoch"] == metrics["best_epoch"]]
    return found[0] if found else None


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
