"""Evaluation of all models side by side; the only place that reads the test split, unless `--split test` is given."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import save_file

from slmrec.config import BASELINES, Config, EvaluateConfig
from slmrec.data.batching import by_length
from slmrec.data.dataset import Dataset, Ints, Samples
from slmrec.errors import CheckpointError, DataError
from slmrec.evaluation.candidates import check_negatives, constant_metrics, draw_negatives, is_sampled
from slmrec.evaluation.diversity import Lists, list_means, list_metrics
from slmrec.evaluation.metrics import ranking_metrics
from slmrec.evaluation.rank import TIE_SEED, TOP_K, EncoderScorer, Scorer, evaluate_scorer, throughput
from slmrec.files import write_json
from slmrec.models.card import Measured
from slmrec.models.folder import load_recommender, note_measured
from slmrec.models.model import Model
from slmrec.pipeline.evaluation_tables import constant_note, show
from slmrec.pipeline.finetune import teacher_item_vectors
from slmrec.pipeline.stage import Task
from slmrec.pipeline.validation import validation
from slmrec.processes import is_main, num_processes, on_main, total
from slmrec.progress import progress

__all__ = ["build", "model_folders", "show"]

_LOG = logging.getLogger(__name__)
_COSTS = {"users_per_second", "num_parameters"}
"""Entries of a model's results that are no metrics."""
_COVERAGE = f"coverage@{TOP_K}"
VALIDATION_RANKS = "validation_ranks.parquet"
"""File with the ranks of validation items under the primary protocol, by which the verdict decides."""
MAX_VERDICT_USERS = 50_000
"""Maximum number of validation users whose items are ranked for the verdict alone."""
Split = Literal["test", "valid"]
Metrics = dict[str, float]
Ranks = dict[str, dict[str, Ints]]
"""0-based ranks of the targets, by model and protocol."""


class Results(NamedTuple):
    """Ranks of all models on one split, and, in the main process, the metrics of their lists."""

    samples: Samples
    ranks: Ranks
    list_metrics: dict[str, dict[str, Metrics]]
    """Metrics of the top lists, by model and protocol."""


def build(task: Task) -> dict[str, float]:
    """Rank the held-out items by every model; write metrics, ranks, and the figures in the cards of the models."""
    settings, dataset = task.config.evaluate, Dataset.load(task.output / "prepare")
    models = _load_models(task, dataset)
    scorers: dict[str, Scorer] = {name: EncoderScorer(model) for name, model in models.items()}
    sizes = {name: model.num_parameters() for name, model in models.items()}
    speeds = on_main(lambda: _speeds(settings, dataset.held_out(settings.splits[0]), scorers))
    validation_ranks = None
    for split in settings.splits:
        results = _rank(task, dataset, split, scorers)
        if split == "valid":
            validation_ranks = results.samples, results.ranks
        if not is_main():
            continue
        content = _content(task.config, dataset, split, results, sizes, speeds)
        for name, protocol in content["protocols"].items():
            if note := constant_note(name, protocol):
                _LOG.warning("evaluate: %s", note)
        suffix = "" if split == "test" else f"_{split}"
        write_json(task.folder / f"metrics{suffix}.json", content)
        user_ids = dataset.user_ids.take(pa.array(results.samples.users()))
        _write_ranks(task.folder / f"per_user{suffix}.parquet", user_ids, results.ranks)
        _write_users(task.folder / f"users{suffix}.parquet", user_ids, results.samples, dataset.train_counts())
        if split == "test":
            _write_cards(task, models, content, len(results.samples))
    for_verdict = validation_ranks or _rank_validation(task, dataset, models)
    if is_main() and for_verdict:
        samples, ranks = for_verdict
        primary = {name: {settings.primary_protocol: own[settings.primary_protocol]} for name, own in ranks.items()}
        _write_ranks(task.folder / VALIDATION_RANKS, dataset.user_ids.take(pa.array(samples.users())), primary)
    return {}


def _rank_validation(task: Task, dataset: Dataset, models: dict[str, Model]) -> tuple[Samples, Ranks] | None:
    """Rank the validation items under the primary protocol alone, for at most `MAX_VERDICT_USERS` users.

    Returns:
        The samples and the ranks; None if no user has a validation item.
    """
    try:
        measured_on = validation(task, dataset, MAX_VERDICT_USERS)
    except DataError:
        return None
    _LOG.info("evaluate: ranking the validation items by all models, for the verdict")
    ranks = {name: {measured_on.protocol: measured_on.ranks(model)} for name, model in models.items()}
    return measured_on.samples, ranks


def model_folders(config: Config, output: Path) -> dict[str, Path]:
    """Return the folders of all models of a run by name, in the order in which they are shown."""
    online = output / "distill" / "teacher"
    folders = {name: output / "pretrain" / name for name in (*BASELINES, *config.pretrain)}
    if config.distill.teacher is not None:
        teacher = output / "finetune" if config.trains_teacher else Path(config.distill.teacher)
        folders |= {"teacher": online if online.exists() else teacher, "student": output / "distill"}
    return {name: folder for name, folder in folders.items() if name in (config.evaluate.models or folders)}


def _load_models(task: Task, dataset: Dataset) -> dict[str, Model]:
    models: dict[str, Model] = {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, folder in model_folders(task.config, task.output).items():
        model, vocabulary = load_recommender(folder)
        models[name] = model.to(device)
        if not vocabulary.item_ids.equals(dataset.item_ids):
            raise CheckpointError(
                f"{folder}: trained on another data set than {task.output / 'prepare'}; train it again"
            )
    return models


def _rank(task: Task, dataset: Dataset, split: Split, scorers: dict[str, Scorer]) -> Results:
    """Rank the targets of a split; the metrics of the top lists come from the same pass, the lists are not kept."""
    settings, samples, negatives = task.config.evaluate, dataset.held_out(split), None
    for number in settings.sampled:
        check_negatives(dataset, number, samples.users())
        negatives = draw_negatives(dataset, number, task.config.seed, samples.users())
        if is_main():
            save_file({"negatives": negatives}, task.folder / "negatives.safetensors")
    measure = _list_measure(task, dataset, samples) if is_main() else None
    ranks, of_lists = {}, {}
    for name, scorer in scorers.items():
        _LOG.info("evaluate: %s ranks the %s items of %d users", name, split, len(samples))
        lists: dict[str, Lists] = {
            protocol: np.zeros((len(samples), TOP_K), np.int32)
            for protocol in settings.protocols
            if not is_sampled(protocol)
        }
        with progress(f"evaluate: {name}", total=len(samples), num_alike=num_processes()) as advance:
            ranks[name] = evaluate_scorer(
                scorer,
                samples,
                batch_size=settings.batch_size,
                protocols=settings.protocols,
                negatives=negatives,
                tie_seed=None if settings.ties == "as_hits" else TIE_SEED,
                top_lists=partial(_keep_lists, lists),
                progress=advance,
                shared=True,
            )
        whole = {protocol: total(torch.from_numpy(items)).numpy() for protocol, items in lists.items()}
        if measure is not None:
            of_lists[name] = {protocol: measure(items) for protocol, items in whole.items()}
    return Results(samples, ranks, of_lists)


def _keep_lists(lists: dict[str, Lists], protocol: str, rows: Ints, items: Ints) -> None:
    lists[protocol][rows] = items


def _list_measure(task: Task, dataset: Dataset, samples: Samples) -> Callable[[Lists], Metrics]:
    """Return the function that measures top lists; items are compared by the vectors that the teacher starts from."""
    counts = dataset.train_counts()
    histories = by_length(samples, task.config.evaluate.batch_size, np.iinfo(np.int64).max)
    total = sum(list_means(batch.histories.items.numpy(), counts).sum() for _, batch in histories)
    vectors = teacher_item_vectors(task.config, task.output, dataset)
    array = None if vectors is None else vectors.numpy()
    return lambda lists: list_metrics(lists, counts, float(total) / len(samples), array)


def _speeds(settings: EvaluateConfig, samples: Samples, scorers: dict[str, Scorer]) -> dict[str, float]:
    timed = samples.take(np.arange(min(settings.timing_users, len(samples))))
    _LOG.info("evaluate: measuring the speed of all models on %d users", len(timed))
    return throughput(scorers, timed, batch_size=settings.batch_size)


def _content(
    config: Config, dataset: Dataset, split: str, results: Results, sizes: dict[str, int], speeds: dict[str, float]
) -> dict[str, Any]:
    """Return the content of metrics.json."""
    protocols = {}
    for protocol in config.evaluate.protocols:
        models = {
            name: ranking_metrics(ranks[protocol])
            | results.list_metrics[name].get(protocol, {})
            | {"users_per_second": round(speeds[name], 1), "num_parameters": sizes[name]}
            for name, ranks in results.ranks.items()
        }
        settings = _protocol_settings(protocol, f"{dataset.split_rule}, {split}", config)
        constant = constant_metrics(protocol, results.samples, dataset.num_items)
        if dataset.num_items <= TOP_K and all(model.get(_COVERAGE) == 1 for model in models.values()):
            constant.append(_COVERAGE)  # each list holds all items that are left
        protocols[protocol] = {"settings": settings, "constant_metrics": constant, "models": models}
    return {"primary": config.evaluate.primary_protocol, "protocols": protocols}


_TIES = {"random": "broken at random, alike for all models", "as_hits": "counted as hits"}


def _protocol_settings(protocol: str, split: str, config: Config) -> dict[str, Any]:
    return {
        "split": split,
        "eval_mode": "sampled" if is_sampled(protocol) else "full",
        "exclude_history": protocol != "full",
        "num_negatives": int(protocol.removeprefix("sampled_")) if is_sampled(protocol) else None,
        "ties": _TIES[config.evaluate.ties],
        "seed": config.seed,
    }


def _write_cards(task: Task, models: dict[str, Model], content: dict[str, Any], num_users: int) -> None:
    """Write the results of the run's own models into their folders; linked folders belong to other runs."""
    home = task.output.resolve()
    for name, folder in model_folders(task.config, task.output).items():
        if folder.resolve().is_relative_to(home):
            note_measured(folder, models[name], _measured(content, name, num_users, models[name].num_items))


def _measured(content: dict[str, Any], name: str, num_users: int, num_items: int) -> tuple[Measured, ...]:
    """Return the results of one model, the primary protocol first."""
    protocols = sorted(content["protocols"], key=lambda protocol: protocol != content["primary"])
    return tuple(
        Measured(
            protocol,
            content["protocols"][protocol]["settings"],
            {key: v for key, v in content["protocols"][protocol]["models"][name].items() if key not in _COSTS},
            num_users,
            num_items,
            "slmrec evaluate --config RUN/evaluate/config.yaml --output RUN",
        )
        for protocol in protocols
    )


def _write_ranks(path: Path, user_ids: pa.Array, ranks: Ranks) -> None:
    tables = [
        pa.table(
            {
                "user_id": user_ids,
                "model": pa.repeat(model, len(user_ids)),
                "protocol": pa.repeat(protocol, len(user_ids)),
                "rank": pa.array(values),
            }
        )
        for model, by_protocol in ranks.items()
        for protocol, values in by_protocol.items()
    ]
    pq.write_table(pa.concat_tables(tables), path)


def _write_users(path: Path, user_ids: pa.Array, samples: Samples, counts: Ints) -> None:
    """Write the length of each user's history, and the number of training events of the target."""
    lengths, targets = [], []
    for rows in samples.chunks():
        starts, ends, _ = samples.spans(rows)
        lengths.append(ends - starts)
        targets.append(counts[samples.flat[ends]])
    columns = {"history_length": np.concatenate(lengths), "target_count": np.concatenate(targets)}
    pq.write_table(pa.table({"user_id": user_ids} | columns), path)
