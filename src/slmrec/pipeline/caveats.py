"""Sentences about the log: what makes the results of an evaluation doubtful, and what could make a model better."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from slmrec.config import Config
from slmrec.data.dataset import Dataset, Ints, Samples
from slmrec.evaluation.metrics import user_metrics
from slmrec.files import read_json
from slmrec.pipeline.decision import METRIC, METRIC_NAME, Difference, Floats
from slmrec.pipeline.table import steps

MUCH = 0.1
"""Share of events, users or items from which a fact is worth a warning."""
TIMES_OF_EQUAL_SHARE = 3
"""How many times the share of all equals a user or item must have, too, so that small logs give no warnings."""
MAX_TRAINING_EVENTS = 1_000_000
"""Number of training events whose times are compared with those of the targets; evenly spaced ones stand for all."""
MAX_RANKED_USERS, MAX_RANKED_ITEMS = 4_000, 10**9
"""Numbers of users, and of items in all, that are ranked to measure what later events give away; evenly spaced users
stand for all."""
NUM_DRAWS = 5
"""Number of random orders of the events whose results are averaged."""


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
    yield from _later(dataset, samples, hides_history=protocol != "full")
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


def _later(dataset: Dataset, samples: Samples, hides_history: bool) -> Iterator[str]:
    """Yield a warning if training events that are later than the items to predict make these easier to predict.

    A split by time has none. Under leave-one-out nearly every log has many, which say little by themselves: where
    tastes and catalogue stay the same, later events are no better than earlier ones. So popularity, counted from the
    events before each target, is compared with popularity counted from as many random ones.
    """
    if dataset.times is None or dataset.split_rule == "temporal":
        return
    events = np.unique(np.linspace(0, len(dataset.flat) - 1, MAX_TRAINING_EVENTS).astype(np.int64))
    owners = np.searchsorted(dataset.offsets, events, side="right") - 1
    events = events[events < dataset.offsets[owners + 1] - 2]
    if not len(events):
        return
    events = events[np.argsort(dataset.times.stored[events], kind="stable")]
    times, items = dataset.times.stored[events], dataset.flat[events]
    targets = np.concatenate([dataset.times.stored[samples.spans(rows)[1]] for rows in samples.chunks()])
    share = float(1 - np.searchsorted(times, targets, side="right").mean() / len(times))
    if share < MUCH:
        return
    most = max(1, min(MAX_RANKED_USERS, MAX_RANKED_ITEMS // ((1 + NUM_DRAWS) * dataset.num_items)))
    order = np.argsort(targets, kind="stable")
    rows = order[np.unique(np.linspace(0, len(order) - 1, most).astype(np.int64))]
    numbers = np.searchsorted(times, targets[rows], side="left")
    generator = np.random.default_rng(0)
    past, *draws = (
        user_metrics(_popularity_ranks(own, numbers, samples, rows, dataset.num_items, hides_history))[METRIC]
        for own in (items, *(generator.permutation(items) for _ in range(NUM_DRAWS)))
    )
    random = np.mean(draws, axis=0)
    difference = Difference.of(random, past)
    if difference.low > 0 and difference.value >= MUCH * past.mean():
        yield (
            f"Models learn from the future, and that flatters them: on average {share:.0%} of the training events are "
            f"later than the item to predict. From the events before it, popularity has an {METRIC_NAME} of "
            f"{past.mean():.4f}; from as many random ones {random.mean():.4f} ({difference}). In use there are no "
            "later events, so results will be lower; prepare.split=temporal evaluates without them."
        )


def _popularity_ranks(
    items: Ints, numbers: Ints, samples: Samples, rows: Ints, num_items: int, hides_history: bool
) -> Ints:
    """Return the ranks of the targets of some samples by popularity, counted for each from the first events of a list.

    Args:
        items: Items of the events.
        numbers: (n,) number of events that count for each sample; it never falls.
        samples: The samples.
        rows: (n,) rows of these samples.
        num_items: Size of the catalogue.
        hides_history: True if the items of the history are not ranked.
    """
    counts, ranks = np.zeros(num_items + 1, np.int32), np.zeros(len(rows), np.int64)
    starts, ends, _ = samples.spans(rows)
    for place, (start, end, stop) in enumerate(zip(starts, ends, numbers, strict=True)):
        np.add.at(counts, items[numbers[place - 1] if place else 0 : stop], 1)
        own, target = counts.copy(), samples.flat[end]
        own[0] = -1
        if hides_history:
            own[samples.flat[start:end]] = -1
        num_equal = np.count_nonzero(own == own[target]) - 1
        ranks[place] = np.count_nonzero(own > own[target]) + num_equal // 2
    return ranks


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
