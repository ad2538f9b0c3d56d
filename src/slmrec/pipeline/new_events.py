"""Evaluation of a finished run on a later log, without training."""

import logging
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from slmrec.config import Config
from slmrec.data.dataset import Dataset, Ints, Samples
from slmrec.data.event_times import EventTimes
from slmrec.data.prepare import prepare_dataset
from slmrec.errors import CheckpointError, DataError
from slmrec.evaluation.candidates import is_sampled
from slmrec.evaluation.metrics import ranking_metrics
from slmrec.evaluation.rank import EncoderScorer, evaluate_scorer
from slmrec.models.folder import load_recommender
from slmrec.pipeline.evaluate import model_folders
from slmrec.pipeline.prepare import as_file
from slmrec.storage.cache import local
from slmrec.types import PER_SECOND, Unit

_LOG = logging.getLogger(__name__)
WITHOUT_FILTERS = {
    **{"min_user_events": 1, "min_item_events": 1, "max_history": None, "split": "leave_one_out"},
    **{"items": None, "items_id_col": None, "title_col": None, "item_columns": ()},
}
"""Settings of `prepare` under which no event is removed because it is rare or old."""


class Events(NamedTuple):
    """Events in any order."""

    users: Ints
    items: Ints
    times: Ints
    """Times in one unit; zeros if there are none."""
    is_new: Any

    def take(self, rows: Any) -> "Events":
        """Return some of the events."""
        return Events(*(values[rows] for values in self))


def evaluate_events(events: Any, config: Config, output: Path) -> dict[str, Any]:
    """Rank the last event of each user of a later log by all models of a run.

    The history of a user consists of the user's events in the run and the earlier events of the later log. Events that
    the run knows already are counted once, and events of items that it does not know are left out. The log is read with
    the settings of the run's `prepare`, without its filters of rare users and items.

    Args:
        events: Path, URI or table.
        config: Settings of the run.
        output: Folder of the run.

    Returns:
        Results in the form of `evaluate/metrics.json`, of protocols that rank the whole catalogue, and the numbers of
        ranked users and of events of unknown items.

    Raises:
        DataError: The log cannot be read, or no user has a newer event and an earlier one.
        CheckpointError: A model has another catalogue than the run's data.
    """
    dataset = Dataset.load(output / "prepare")
    with TemporaryDirectory(prefix="slmrec-") as name:
        log, folder = as_file(events, Path(name) / "events"), Path(name) / "new"
        folder.mkdir()
        try:
            prepare_dataset(config.prepare.model_copy(update=WITHOUT_FILTERS), folder, str(local(log)))
        except DataError as error:
            raise DataError(str(error).replace(f"{name}/", "the table given as ")) from None
        samples, num_unknown = _samples(dataset, Dataset.load(folder), config)
    if not len(samples):
        raise DataError(
            f"no user has a newer event of an item that the run knows, and an earlier event; {num_unknown} events are "
            f"of items that the run does not know; give events after those of {output / 'prepare'}"
        )
    _LOG.info("evaluate: %s users with newer events, %s events of unknown items", len(samples), num_unknown)
    protocols = tuple(name for name in config.evaluate.protocols if not is_sampled(name)) or ("full_history_excluded",)
    ranks = _ranks(dataset, samples, protocols, config, output)
    primary = config.evaluate.primary_protocol
    return {
        "primary": primary if primary in protocols else protocols[0],
        "protocols": {
            protocol: {
                "settings": {"split": "newer events", "eval_mode": "full", "exclude_history": protocol != "full"},
                "models": {name: ranking_metrics(of_model[protocol]) for name, of_model in ranks.items()},
            }
            for protocol in protocols
        },
        "num_users": len(samples),
        "num_events_of_unknown_items": num_unknown,
    }


def _ranks(
    dataset: Dataset, samples: Samples, protocols: tuple[str, ...], config: Config, output: Path
) -> dict[str, dict[str, Ints]]:
    """Return the ranks by model and protocol."""
    ranks, device = {}, "cuda" if torch.cuda.is_available() else "cpu"
    for name, folder in model_folders(config, output).items():
        model, vocabulary = load_recommender(folder)
        if not vocabulary.item_ids.equals(dataset.item_ids):
            raise CheckpointError(f"{folder}: its items are not those of {output / 'prepare'}; train it again")
        scorer = EncoderScorer(model.to(device))
        ranks[name] = evaluate_scorer(scorer, samples, batch_size=config.evaluate.batch_size, protocols=protocols)
    return ranks


def _samples(known: Dataset, new: Dataset, config: Config) -> tuple[Samples, int]:
    """Return a sample for each user whose last event is new, and the number of events of unknown items."""
    unit = _common_unit(known, new)
    newer, num_unknown = _new_events(known, new, unit)
    earlier = _known_events(known, new, unit)
    newer = newer.take(~are_among(newer, earlier)) if unit else _without_prefix(newer, earlier)
    events = Events(*(np.concatenate(pair) for pair in zip(earlier, newer, strict=True)))
    by_time = events.times if config.prepare.order == "time" else np.zeros_like(events.times)
    events = events.take(np.lexsort((events.is_new, by_time, events.users)))  # stable: the order of the log stays
    starts = np.flatnonzero(np.diff(events.users, prepend=-1))
    ends = np.append(starts[1:], len(events.users)) - 1
    chosen = np.flatnonzero(events.is_new[ends] & (starts < ends)) if len(starts) else starts
    samples = Samples.of(events.items, starts[chosen], ends[chosen], events.users[ends[chosen]])
    return replace(samples, times=EventTimes(unit, events.times) if unit else None), num_unknown


def _common_unit(known: Dataset, new: Dataset) -> Unit | None:
    """Return the finer unit of two data sets; None if one of them has no times."""
    if known.times is None or new.times is None:
        return None
    return max(known.times.unit, new.times.unit, key=PER_SECOND.__getitem__)


def _new_events(known: Dataset, new: Dataset, unit: Unit | None) -> tuple[Events, int]:
    """Return the events of known items, with the items of the run, and the number of the other events."""
    items = np.append(0, _places(new.item_ids, known.item_ids) + 1)[new.flat]
    users = np.repeat(np.arange(new.num_users), np.diff(new.offsets))
    events = Events(users, items, _times(new, np.arange(len(items)), unit), np.ones(len(items), bool))
    return events.take(items > 0), int((items == 0).sum())


def _known_events(known: Dataset, new: Dataset, unit: Unit | None) -> Events:
    """Return the run's events of the users of the new log, in their numbers there."""
    places = _places(new.user_ids, known.user_ids)
    users = np.flatnonzero(places >= 0)
    starts, ends = known.offsets[places[users]], known.offsets[places[users] + 1]
    rows = np.concatenate([np.empty(0, np.int64), *map(np.arange, starts, ends)])
    owners = np.repeat(users, ends - starts)
    items = np.asarray(known.flat[rows], np.int64)
    return Events(owners, items, _times(known, rows, unit), np.zeros(len(rows), bool))


def _times(dataset: Dataset, rows: Ints, unit: Unit | None) -> Ints:
    return np.zeros(len(rows), np.int64) if unit is None or dataset.times is None else dataset.times.at(rows, unit)


def _places(sought: pa.Array, ids: pa.Array) -> Ints:
    """Return the places (from 0) of some ids among others, -1 for those that are absent."""
    found = pc.index_in(sought.cast(pa.string()), value_set=ids.cast(pa.string()))
    return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), np.int64)


def are_among(newer: Events, earlier: Events) -> Any:
    """Return whether an event of a user, an item and a time is among the earlier ones."""

    def keys(events: Events) -> Any:
        return np.stack(events[:3], axis=1).view([(name, np.int64) for name in ("user", "item", "time")]).ravel()

    return np.isin(keys(newer), keys(earlier))


def _without_prefix(newer: Events, earlier: Events) -> Events:
    """Leave out the first events of users whose new history begins with the known one; there are no times."""
    keep = np.ones(len(newer.users), bool)
    for user in np.unique(earlier.users):  # the events of both are in the order of users
        old = earlier.items[slice(*np.searchsorted(earlier.users, (user, user + 1)))]
        first, last = np.searchsorted(newer.users, (user, user + 1))
        if np.array_equal(newer.items[first : min(last, first + len(old))], old):
            keep[first : first + len(old)] = False
    return newer.take(keep)
