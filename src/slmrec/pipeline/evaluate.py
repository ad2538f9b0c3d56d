"""All models side by side on the test split; the only place that reads it."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors.numpy import save_file

from slmrec.config import Config, EvaluateConfig
from slmrec.data.batching import by_length
from slmrec.data.dataset import Dataset, Ints, Samples
from slmrec.data.item_vectors import read_item_vectors
from slmrec.errors import CheckpointError
from slmrec.evaluation.diversity import Lists, list_means, list_metrics
from slmrec.evaluation.metrics import ranking_metrics
from slmrec.evaluation.rank import (
    TOP_K,
    EncoderScorer,
    Scorer,
    draw_negatives,
    evaluate_scorer,
    protocol_name,
    throughput,
)
from slmrec.models.baselines import LastItemCooccurrence, Popularity
from slmrec.models.card import Measured
from slmrec.models.folder import load_recommender, note_measured
from slmrec.models.loader import Model
from slmrec.pipeline.stage import ORDER, Stage, Task

PRIMARY = "full_history_excluded"
SHOWN = ("hit@1", "hit@5", "hit@10", "hit@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr")
SHOWN_OF_LISTS = ("coverage@10", "novelty@10", "gini@10", "ild@10", "popularity_lift@10")
_NO_METRICS = {"users_per_second", "num_parameters"}
Lines = dict[str, dict[str, dict[str, float]]]
"""Metrics of each model and protocol."""
Measure = Callable[[Lists], dict[str, float]]
"""The metrics of the top lists of a model."""
Extra = Callable[[Dataset], dict[str, Scorer]]


def build(task: Task, extra: Extra = lambda dataset: {}) -> dict[str, float]:
    """Ranks the test items by every model, and writes the contract's files, and the figures into the models' cards.

    Args:
        task: the run.
        extra: further scorers to show beside the models, such as the oracle of simulated data.
    """
    settings = task.config.evaluate
    dataset = Dataset.load(task.output / "prepare")
    models = _models(task, dataset)
    counts = dataset.train_counts()
    scorers: dict[str, Scorer] = {
        **_baselines(dataset, counts, settings),
        **{name: EncoderScorer(model) for name, model in models.items()},
        **extra(dataset),
    }
    samples = dataset.held_out("test")
    ranks, of_lists = _ranks(task, dataset, samples, scorers, _measure(task, samples, counts, dataset.num_items))
    sizes = {name: models[name].num_parameters() if name in models else 0 for name in scorers}
    content = _report(task, dataset, ranks, of_lists, sizes, _speeds(settings, samples, scorers))
    (task.folder / "metrics.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    user_ids = dataset.user_ids.take(pa.array(samples.users()))
    _write_ranks(task.folder / "per_user.parquet", user_ids, ranks)
    _write_users(task.folder / "users.parquet", user_ids, samples, counts)
    _write_cards(task, models, content, len(samples))
    return {}


def show(folder: Path) -> None:
    """Prints the tables of an evaluation."""
    content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    console = Console(width=max(Console().width, 118))
    for name, protocol in content["protocols"].items():
        console.print(_table(name, protocol))
    of_lists = _table_of_lists(content["protocols"])
    if of_lists.row_count:
        console.print(of_lists)


def teacher_folder(output: Path, brought: str | None) -> Path:
    """The folder of a run's teacher: trained together with the student, brought from elsewhere, or fine-tuned."""
    online = output / "distill" / "teacher"
    return online if online.exists() else Path(brought) if brought else output / "finetune"


def _baselines(dataset: Dataset, counts: Ints, settings: EvaluateConfig) -> dict[str, Scorer]:
    makers: dict[str, Callable[[], Scorer]] = {
        "popularity": lambda: Popularity(counts),
        "cooccurrence": lambda: LastItemCooccurrence(dataset),
    }
    return {name: make() for name, make in makers.items() if name in (settings.models or makers)}


def _folders(task: Task) -> dict[str, Path]:
    """Of the models to be ranked."""
    folders = {
        "sasrec": task.output / "pretrain",
        "companion": task.output / "companion",
        "teacher": teacher_folder(task.output, task.config.distill.teacher),
        "student": task.output / "distill",
    }
    if task.config.pretrain.item_vectors:
        del folders["sasrec"]  # the vectors were brought; no SASRec was trained
    if task.config.companion is None:
        del folders["companion"]
    return {name: folder for name, folder in folders.items() if name in (task.config.evaluate.models or folders)}


def _models(task: Task, dataset: Dataset) -> dict[str, Model]:
    models: dict[str, Model] = {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, folder in _folders(task).items():
        model, vocabulary = load_recommender(folder)
        models[name] = model.to(device)
        if not vocabulary.item_ids.equals(dataset.item_ids):
            raise CheckpointError(
                f"{folder}: trained on another data set than {task.output / 'prepare'}; train it anew"
            )
    return models


def _ranks(
    task: Task, dataset: Dataset, samples: Samples, scorers: dict[str, Scorer], measured: Measure
) -> tuple[dict[str, Any], Lines]:
    """The ranks of each model, and the metrics of its top lists, from the same pass; lists are not kept."""
    settings, negatives = task.config.evaluate, None
    if "sampled" in settings.protocols:
        negatives = draw_negatives(dataset, settings.num_negatives, task.config.seed, samples.users())
        save_file({"negatives": negatives}, task.folder / "negatives.safetensors")
    ranks, of_lists = {}, {}
    with Progress(transient=True) as progress:
        for name, scorer in scorers.items():
            print(f"evaluate: {name} ranks the test items of {len(samples)} users", flush=True)
            bar = progress.add_task(f"evaluate {name}", total=len(samples))
            lists: dict[str, Lists] = {}
            ranks[name] = evaluate_scorer(
                scorer,
                samples,
                batch_size=settings.batch_size,
                protocols=settings.protocols,
                negatives=negatives,
                top_lists=partial(_keep, lists, len(samples)),
                progress=lambda number, bar=bar: progress.advance(bar, number),  # type: ignore[misc]
            )
            of_lists[name] = {protocol: measured(found) for protocol, found in lists.items()}
    return ranks, of_lists


def _keep(lists: dict[str, Lists], num_samples: int, protocol: str, rows: Ints, items: Ints) -> None:
    lists.setdefault(protocol, np.zeros((num_samples, TOP_K), np.int32))[rows] = items


def _measure(task: Task, samples: Samples, counts: Ints, num_items: int) -> Measure:
    """What measures the lists of any model; distances between items are those of the vectors that pretrain left."""
    whole = by_length(samples, task.config.evaluate.batch_size, np.iinfo(np.int64).max)
    total = sum(list_means(batch.histories.items.numpy(), counts).sum() for _, batch in whole)
    path = task.output / "pretrain" / "item_vectors.safetensors"
    vectors = read_item_vectors(path, num_items).numpy() if path.exists() else None
    return lambda lists: list_metrics(lists, counts, float(total) / len(samples), vectors)


def _speeds(settings: EvaluateConfig, samples: Samples, scorers: dict[str, Scorer]) -> dict[str, float]:
    timed = samples.take(np.arange(min(settings.timing_users, len(samples))))
    print(f"evaluate: the speed of all models over {len(timed)} users", flush=True)
    return throughput(scorers, timed, batch_size=settings.batch_size)


def _report(
    task: Task,
    dataset: Dataset,
    ranks: dict[str, Any],
    of_lists: Lines,
    sizes: dict[str, int],
    speeds: dict[str, float],
) -> dict[str, Any]:
    """The content of metrics.json."""
    protocols = {}
    for name in _names(task.config.evaluate):
        models = {
            model: ranking_metrics(by[name])
            | of_lists[model].get(name, {})
            | {"users_per_second": round(speeds[model], 1), "num_parameters": sizes[model]}
            for model, by in ranks.items()
        }
        settings = _protocol_settings(task.config.evaluate, name, dataset.split_rule, task.config.seed)
        protocols[name] = {"settings": settings, "models": models}
    return {"primary": PRIMARY if PRIMARY in protocols else next(iter(protocols)), "protocols": protocols}


def _write_cards(task: Task, models: dict[str, Model], content: dict[str, Any], num_users: int) -> None:
    """What was found of the run's own models goes into their folders; what is linked or brought is another run's."""
    home = task.output.resolve()
    for name, folder in _folders(task).items():
        if not folder.resolve().is_relative_to(home):
            continue
        measured = _measured(content, name, num_users, models[name].num_items)
        if not note_measured(folder, models[name], measured):
            print(f"evaluate: {folder} is of an earlier version; its card stays without these figures", flush=True)


def _measured(content: dict[str, Any], name: str, num_users: int, num_items: int) -> tuple[Measured, ...]:
    """Of one model, the primary protocol first."""
    names = sorted(content["protocols"], key=lambda protocol: protocol != content["primary"])
    return tuple(
        Measured(
            protocol,
            content["protocols"][protocol]["settings"],
            {key: v for key, v in content["protocols"][protocol]["models"][name].items() if key not in _NO_METRICS},
            num_users,
            num_items,
            "slmrec evaluate --config RUN/evaluate/config.yaml --output RUN",
        )
        for protocol in names
    )


def _names(settings: EvaluateConfig) -> list[str]:
    return [protocol_name(protocol, settings.num_negatives) for protocol in settings.protocols]


def _protocol_settings(settings: EvaluateConfig, protocol: str, split_rule: str, seed: int) -> dict[str, Any]:
    sampled = protocol.startswith("sampled")
    return {
        "split": f"{split_rule}, test",
        "eval_mode": "sampled" if sampled else "full",
        "exclude_history": protocol != "full",
        "num_negatives": settings.num_negatives if sampled else None,
        "ties": "broken at random, alike for all models",
        "seed": seed,
    }


def _write_ranks(path: Path, user_ids: pa.Array, ranks: dict[str, Any]) -> None:
    tables = [
        pa.table(
            {
                "user_id": user_ids,
                "model": pa.repeat(model, len(user_ids)),
                "protocol": pa.repeat(protocol, len(user_ids)),
                "rank": pa.array(found),
            }
        )
        for model, by in ranks.items()
        for protocol, found in by.items()
    ]
    pq.write_table(pa.concat_tables(tables), path)


def _write_users(path: Path, user_ids: pa.Array, samples: Samples, counts: Ints) -> None:
    """What users can be told apart by: how much was read of them, and how often the target was seen in training."""
    lengths, targets = [], []
    for rows in samples.chunks():
        starts, ends, _ = samples.spans(rows)
        lengths.append(ends - starts)
        targets.append(counts[samples.flat[ends]])
    columns = {"history_length": np.concatenate(lengths), "target_count": np.concatenate(targets)}
    pq.write_table(pa.table({"user_id": user_ids} | columns), path)


def _table(name: str, protocol: dict[str, Any]) -> Table:
    settings = protocol["settings"]
    against = f"{settings['num_negatives']} sampled negatives" if settings["num_negatives"] else "all items"
    history = "excluded" if settings["exclude_history"] else "not excluded"
    table = Table(title=f"{name}: {settings['split']} split, against {against}, history {history}")
    table.add_column("model")
    for metric in SHOWN:
        table.add_column(metric.replace("hit", "HR").replace("ndcg", "NDCG").replace("mrr", "MRR"), justify="right")
    table.add_column("parameters", justify="right")
    table.add_column("users/s", justify="right")
    for model, values in protocol["models"].items():
        cells = [f"{values[metric]:.4f}" for metric in SHOWN]
        table.add_row(model, *cells, f"{values['num_parameters']:,}", f"{values['users_per_second']:,.0f}")
    return table


def _table_of_lists(protocols: dict[str, Any]) -> Table:
    """Beyond accuracy: a line for each model under each protocol that gives lists."""
    table = Table(title=f"the top {TOP_K} of each user, whether right or not")
    table.add_column("protocol")
    table.add_column("model")
    for metric in SHOWN_OF_LISTS:
        table.add_column(metric.replace("popularity_lift", "popularity lift"), justify="right")
    for name, protocol in protocols.items():
        for model, values in protocol["models"].items():
            if "coverage@10" in values:
                cells = [f"{values[metric]:.4f}" if metric in values else "-" for metric in SHOWN_OF_LISTS]
                table.add_row(name, model, *cells)
    return table


def needs(config: Config) -> tuple[str, ...]:
    """The stages before it; a teacher that is brought replaces finetune."""
    left_out = {"companion": config.companion is None, "finetune": config.distill.teacher is not None}
    return tuple(name for name in ORDER if name != "evaluate" and not left_out.get(name))


STAGE = Stage("evaluate", needs, build)
