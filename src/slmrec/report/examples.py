"""Section of the report with example users and the recommendations of each model."""

from collections.abc import Iterator

import numpy as np

from slmrec.config import BASELINES
from slmrec.data.dataset import Dataset
from slmrec.files import one_line
from slmrec.inference.recommender import Recommender
from slmrec.report.parts import READ_FAULTS, Block, Example, Notice, Section, Shown, blocks_or_notice
from slmrec.report.states import Run

NUM_USERS, NUM_SHOWN, NUM_RECOMMENDED = 5, 8, 10
SHORT, LONG = 4, 40
"""Numbers of events between which example histories are drawn, if there are such histories."""


def examples(run: Run) -> Section:
    """Return the section; histories end before the validation item, so that test items are not shown."""
    lead = (
        "Users drawn at random, with the recommendations of each model before they chose the item of the validation "
        "split. This item is marked in each list that contains it."
    )
    blocks: list[Block] = list(run.notices(*run.trained))
    if (run.root / "prepare").is_dir():
        blocks += blocks_or_notice("example users", lambda: _blocks(run))
    return Section("examples", "Example users", lead, blocks)


def _blocks(run: Run) -> Iterator[Block]:
    recommenders: dict[str, Recommender] = {}
    for name, folder in run.models.items():
        if name not in BASELINES:
            try:
                recommenders[name] = Recommender.from_pretrained(folder)
            except READ_FAULTS as error:
                yield Notice("broken", f"{name}: {one_line(error, 400)}")
    if recommenders:
        yield from _examples(Dataset.load(run.root / "prepare"), recommenders, run)


def _examples(dataset: Dataset, recommenders: dict[str, Recommender], run: Run) -> Iterator[Example]:
    samples = dataset.held_out("valid")
    rows = _draw_users(samples.lengths(np.arange(len(samples))), run.config.seed)
    starts, ends, users = samples.spans(rows)
    titles, item_ids = dataset.titles, dataset.item_ids
    events = [
        item_ids.take(dataset.flat[start : end + 1] - 1).to_pylist() for start, end in zip(starts, ends, strict=True)
    ]
    histories, targets = [items[:-1] for items in events], [items[-1] for items in events]
    title_of = {} if titles is None else dict(zip(item_ids.to_pylist(), titles.to_pylist(), strict=True))
    lists = {
        model: recommender.recommend(histories, k=NUM_RECOMMENDED).to_lists()
        for model, recommender in recommenders.items()
    }
    for place, (user, history, target) in enumerate(zip(users, histories, targets, strict=True)):
        yield Example(
            str(dataset.user_ids[int(user)].as_py()) if run.shows_user_ids else str(place + 1),
            [Shown(_name(title_of, item)) for item in history[-NUM_SHOWN:]],
            max(0, len(history) - NUM_SHOWN),
            Shown(_name(title_of, target)),
            [
                (model, [Shown(_name(title_of, item), item == target) for item, _ in own[place]])
                for model, own in lists.items()
            ],
        )


def _draw_users(lengths: np.ndarray, seed: int) -> np.ndarray:
    """Draw the sample numbers of the example users."""
    fitting = np.flatnonzero((lengths >= SHORT) & (lengths <= LONG))
    rows = fitting if len(fitting) else np.arange(len(lengths))
    return np.sort(np.random.default_rng(seed).choice(rows, min(NUM_USERS, len(rows)), replace=False))


def _name(title_of: dict[object, str | None], item_id: object) -> str:
    return title_of.get(item_id) or f"item {item_id}"
