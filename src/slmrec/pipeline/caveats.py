"""Sentences about the log: what makes the results of an evaluation doubtful, and what could make a model better."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from slmrec.config import Config
from slmrec.data.dataset import Dataset, Ints, Samples
from slmrec.files import read_json
from slmrec.pipeline.decision import METRIC_NAME, Floats
from slmrec.pipeline.table import steps

MUCH = 0.1
"""Share of events, users or items from which a fact is worth a warning."""
TIMES_OF_EQUAL_SHARE = 3
"""How many times the share of all equals a user or item must have, too, so that small logs give no warnings."""
MAX_TRAINING_EVENTS = 1_000_000
"""Number of training events whose times are compared with those of the targets; evenly spaced ones stand for all."""


def warnings_about(dataset: Dataset, samples: Samples, values: Floats, model: str, protocol: str) -> Iterator[str]:
    """Yield warnings about repeated items, later training events, and users or items with much of the log.

    Args:
        dataset: The data set.
        samples: Validation samples.
        values: NDCG@10 of the shipped model for each sample.
        model: Name of the shipped model.
        protocol: Primary protocol.
    """
    yield from _repeated(samples, values, model, protocol)
    yield from _later(dataset, samples)
    yield from _dominant(dataset)


def _repeated(samples: Samples, values: Floats, model: str, protocol: str) -> Iterator[str]:
    """Yield a warning if many users had the item of validation before; what that means depends on the protocol."""
    seen = _is_seen(samples)
    if seen.mean() < MUCH:
        return
    share = f"{seen.mean():.0%} of the validation items were seen by their user before"
    if protocol != "full":
        yield (
            f"{share}, but {protocol} leaves the history out of the lists, so none of these can be recommended; for "
            f"lists that repeat items set evaluate.primary_protocol=full, for new items alone prepare.repeats=drop."
        )
        return
    new = f" and {values[~seen].mean():.4f} where it is new" if not seen.all() else ""
    yield (
        f"{share}, and {protocol} recommends them again: the {METRIC_NAME} of {model} is {values[seen].mean():.4f} on "
        f"these{new}."
    )


def _is_seen(samples: Samples) -> np.ndarray:
    """Return (num,) bool: the target occurs in the history."""
    seen = np.zeros(len(samples), bool)
    for rows in samples.chunks():
        starts, ends, _ = samples.spans(rows)
        seen[rows] = [samples.flat[end] in samples.flat[start:end] for start, end in zip(starts, ends, strict=True)]
    return seen


def _later(dataset: Dataset, samples: Samples) -> Iterator[str]:
    """Yield a warning if many training events are later than the items that are predicted.

    A split by time has none. Under leave-one-out, the newest training event of any user is later than nearly all
    targets of any log, so the share of later events is measured instead.
    """
    if dataset.times is None or dataset.split_rule == "temporal":
        return
    events = np.unique(np.linspace(0, len(dataset.flat) - 1, MAX_TRAINING_EVENTS).astype(np.int64))
    owners = np.searchsorted(dataset.offsets, events, side="right") - 1
    training = np.sort(dataset.times.stored[events[events < dataset.offsets[owners + 1] - 2]])
    if not len(training):
        return
    targets = np.concatenate([dataset.times.stored[samples.spans(rows)[1]] for rows in samples.chunks()])
    share = float(1 - np.searchsorted(training, targets, side="right").mean() / len(training))
    if share >= MUCH:
        yield (
            f"Models learn from the future: on average {share:.0%} of the training events are later than the item to "
            "predict, as the last events of each user are held out, whenever they were; in use there are no such "
            "events, so results will be lower. prepare.split=temporal evaluates without them."
        )


def _dominant(dataset: Dataset) -> Iterator[str]:
    """Yield a warning for a user and for an item with a large share of the events."""
    of_users = np.diff(dataset.offsets)
    if share := _large_share(of_users):
        yield (
            f"One user has {share:.0%} of all events ({int(of_users.max()):,}): a robot, a till or a test account "
            "teaches the models its own habits; remove it from the log, or set prepare.max_history."
        )
    of_items = dataset.train_counts()[1:]
    if share := _large_share(of_items):
        item_id = dataset.item_ids[int(of_items.argmax())].as_py()
        yield (
            f"Item {item_id!r} has {share:.0%} of the training events ({int(of_items.max()):,}): nearly every list "
            "will show it; remove it from the log if it is no item to recommend, such as postage or a bag."
        )


def _large_share(counts: Ints) -> float:
    """Return the largest share of a sum; 0 unless it is large, and several times as large as if all were equal."""
    share = float(counts.max() / max(1, counts.sum()))
    return share if share >= max(MUCH, TIMES_OF_EQUAL_SHARE / len(counts)) else 0.0


def improvements(config: Config, output: Path, dataset: Dataset, samples: Samples, ship: str) -> Iterator[str]:
    """Yield what could make the model better: text, longer histories, more time or events.

    Args:
        config: Settings of the run.
        output: Folder of the run.
        dataset: The data set.
        samples: Validation samples.
        ship: Name of the shipped model.
    """
    if config.pretrain:
        yield from _text(config, dataset)
    yield from _longer_histories(config, samples, ship)
    yield from _more_time(config, output)


def _text(config: Config, dataset: Dataset) -> Iterator[str]:
    titles = dataset.titles
    if titles is None or titles.null_count > len(titles) / 2:
        have = "the items have no titles" if titles is None else "most items have no title"
        yield f"Text could make it better: {have}; give them with --items FILE."
    elif not config.item_text:
        yield "Text could make it better: no model of this run reads the titles of the items; --config words does."


def _longer_histories(config: Config, samples: Samples, ship: str) -> Iterator[str]:
    window = _window(config, ship)
    if window is None:
        return
    lengths = np.concatenate([samples.lengths(rows) for rows in samples.chunks()])
    share = float((lengths > window).mean())
    if share >= MUCH:
        yield (
            f"Longer histories could make it better: it reads the {window} newest items, and {share:.0%} of the users "
            f"have more; raise max_history_items of its models."
        )


def _window(config: Config, model: str) -> int | None:
    """Return the number of items that a model reads; None for a baseline, and for one of another run."""
    if model in config.pretrain:
        return config.pretrain[model].max_history_items
    return config.finetune.max_history_items if model in ("teacher", "student") and config.trains_teacher else None


def _more_time(config: Config, output: Path) -> Iterator[str]:
    stopped = [step.folder for step in steps(config) if _metrics(output / step.folder).get("reached_max_minutes")]
    if stopped:
        yield f"More time could make it better: max_minutes stopped the training of {', '.join(stopped)}."
    elif _read(output / "choice.json").get("is_cut"):
        yield "More time could make it better: --time-budget allowed fewer models or epochs than the recipe has."
    elif not config.pretrain:
        yield "More events could make it better: no model was trained that learns from longer histories."


def _metrics(folder: Path) -> dict[str, Any]:
    return _read(folder / "metrics.json")


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}
