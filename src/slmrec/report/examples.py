"""Some users, and what each model would have recommended to them."""

from collections.abc import Iterator

import numpy as np

from slmrec.data.dataset import Dataset
from slmrec.inference.recommender import Recommender
from slmrec.report.parts import READ_FAULTS, Block, Example, Notice, Section, Shown, tried
from slmrec.report.states import MODELS, Run

NUM_USERS, NUM_SHOWN, NUM_RECOMMENDED = 5, 8, 10
FEW, MANY = 4, 40
"""Events of the histories that users are picked from, if there are such."""


def examples(run: Run) -> Section:
    """The models' lists side by side, before the validation item: the test split is read by `evaluate` alone."""
    lead = (
        "Users picked at random, with what each model would have recommended before they chose the item of the "
        "validation split. That item is marked wherever it was found."
    )
    blocks: list[Block] = list(run.notices("pretrain", "finetune", "distill"))
    if (run.root / "prepare").is_dir():
        blocks += tried("example users", lambda: _blocks(run))
    return Section("examples", "Example users", lead, blocks)


def _blocks(run: Run) -> Iterator[Block]:
    recommenders: dict[str, Recommender] = {}
    for model in MODELS:
        folder = run.model_folder(model)
        if folder.is_dir():
            try:
                recommenders[model] = Recommender.from_pretrained(folder)
            except READ_FAULTS as error:
                yield Notice("broken", f"{model}: {' '.join(str(error).split())[:400]}")
    if recommenders:
        yield from _examples(Dataset.load(run.root / "prepare"), recommenders, int(run.settings.get("seed", 0)))


def _examples(dataset: Dataset, recommenders: dict[str, Recommender], seed: int) -> Iterator[Example]:
    samples = dataset.held_out("valid")
    rows = _pick(samples.lengths(np.arange(len(samples))), seed)
    starts, ends, users = samples.spans(rows)
    titles, item_ids = dataset.titles, dataset.item_ids
    read = [
        item_ids.take(dataset.flat[start : end + 1] - 1).to_pylist() for start, end in zip(starts, ends, strict=True)
    ]
    histories, chosen = [items[:-1] for items in read], [items[-1] for items in read]
    known = {} if titles is None else dict(zip(item_ids.to_pylist(), titles.to_pylist(), strict=True))
    lists = {
        model: recommender.recommend(histories, k=NUM_RECOMMENDED).to_lists()
        for model, recommender in recommenders.items()
    }
    for place, (user, history, following) in enumerate(zip(users, histories, chosen, strict=True)):
        yield Example(
            str(dataset.user_ids[int(user)].as_py()),
            [Shown(_name(known, item)) for item in history[-NUM_SHOWN:]],
            max(0, len(history) - NUM_SHOWN),
            Shown(_name(known, following)),
            [
                (model, [Shown(_name(known, item), item == following) for item, _ in found[place]])
                for model, found in lists.items()
            ],
        )


def _pick(lengths: np.ndarray, seed: int) -> np.ndarray:
    """Rows of some users, always the same ones of a seed."""
    fitting = np.flatnonzero((lengths >= FEW) & (lengths <= MANY))
    rows = fitting if len(fitting) else np.arange(len(lengths))
    return np.sort(np.random.default_rng(seed).choice(rows, min(NUM_USERS, len(rows)), replace=False))


def _name(titles: dict[object, str | None], item_id: object) -> str:
    return titles.get(item_id) or f"item {item_id}"
