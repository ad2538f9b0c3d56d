"""Popularity and co-occurrence as models: equal to naive counts, independent of the batch, saved and opened."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from slmrec import Recommender
from slmrec.data.dataset import Dataset
from slmrec.evaluation.rank import EncoderScorer, evaluate_scorer
from slmrec.models.baselines import BASELINES, Cooccurrence, Popularity, build_baseline
from slmrec.models.folder import save_recommender
from slmrec.models.item_tables import append_items, item_rows
from slmrec.models.loader import load_model, save_model
from slmrec.models.model import Model
from slmrec.types import Histories

# Train: {1, 2, 3}, {1, 2}, {2, 4}, {3}; the two events after them are held out.
HISTORIES = [[1, 2, 3, 5, 5], [1, 2, 5, 5], [2, 4, 2, 5, 1], [3, 5, 1]]


def dataset_of(histories: list[list[int]], num_items: int) -> Dataset:
    return Dataset(
        flat=np.concatenate(histories).astype(np.int64),
        offsets=np.cumsum([0, *map(len, histories)]),
        users=pa.table({"user_id": [f"u{user}" for user in range(len(histories))]}),
        items=pa.table({"item_id": [f"i{item}" for item in range(1, num_items + 1)]}),
        fingerprint="test",
    )


def histories_of(*histories: list[int], width: int = 0) -> Histories:
    items = torch.zeros(len(histories), max(width, *map(len, histories)), dtype=torch.long)
    for row, history in enumerate(histories):
        items[row, : len(history)] = torch.tensor(history)
    return Histories(items, torch.tensor([len(history) for history in histories]))


def scores_of(model: Model, histories: Histories, every_position: bool = False) -> Tensor:
    """(N, V+1) the scores, without that of padding."""
    encoded = model.encode(histories, every_position=every_position)
    scores = encoded.users @ model.item_vectors().T
    if encoded.bonus is not None:
        scores = scores.scatter_add(1, encoded.bonus.items, encoded.bonus.scores)
    return scores[:, 1:]


def test_popularity_is_the_train_count() -> None:
    model = Popularity.of(dataset_of(HISTORIES, 5))
    assert scores_of(model, histories_of([1], [4, 5])).tolist() == [[2, 4, 2, 1, 0]] * 2
    assert (model.num_items, model.max_history_items) == (5, 1)


def test_cooccurrence_is_that_worked_out_by_hand() -> None:
    scores = scores_of(Cooccurrence.of(dataset_of(HISTORIES, 5)), histories_of([4, 3, 1], [2], [1, 5]))
    shares = np.array([2, 4, 2, 1, 0]) / 8  # popularity, at most 1/2
    # with 1: 2 twice, 3 once; with 2: 1 twice, 3 once, 4 once; 5 occurs in no train history
    expected = np.array([[0, 2, 1, 0, 0], [2, 0, 1, 1, 0], [0, 0, 0, 0, 0]]) + shares
    assert scores.numpy() == pytest.approx(expected)


def test_cooccurrence_breaks_ties_by_popularity_and_never_passes_a_count() -> None:
    # With 1: 2 and 3 once each, and 3 is the more popular; 4, which is never with 1, is the most popular.
    histories = [[1, 2, 5, 5], [1, 3, 5, 5], [3, 4, 5, 5], *[[4, 5, 5]] * 50]
    scores = scores_of(Cooccurrence.of(dataset_of(histories, 5)), histories_of([1]))[0]
    assert scores[2] > scores[1] > scores[3]


def naive_counts(histories: list[list[int]], num_items: int) -> np.ndarray:
    """(V+1, V+1) the number of users whose train history has both items."""
    counts = np.zeros((num_items + 1, num_items + 1))
    for basket in (set(history[:-2]) for history in histories):
        for first in basket:
            for second in basket - {first}:
                counts[first, second] += 1
    return counts


@given(
    st.lists(st.lists(st.integers(1, 6), min_size=3, max_size=8), min_size=1, max_size=8),
    st.sampled_from([1, 2, 4096]),
)
def test_cooccurrence_agrees_with_a_naive_count(histories: list[list[int]], max_neighbours: int) -> None:
    model = Cooccurrence.of(dataset_of(histories, 6), max_neighbours)
    scores = scores_of(model, histories_of(*([last] for last in range(1, 7))))
    counts = naive_counts(histories, 6)
    popularity = Counter(item for history in histories for item in history[:-2])
    for last in range(1, 7):
        order = sorted(range(1, 7), key=lambda item: (-counts[last, item], -popularity[item], item))
        kept = {item for item in order[:max_neighbours] if counts[last, item]}
        for item in range(1, 7):
            assert int(scores[last - 1, item - 1]) == (counts[last, item] if item in kept else 0)


def test_held_out_events_do_not_count() -> None:
    changed = [[*history[:-2], 4, 3] for history in HISTORIES]
    for build in BASELINES.values():
        one, other = (
            scores_of(build(dataset_of(data, 5)), histories_of([1], [2], [3])) for data in (HISTORIES, changed)
        )
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", BASELINES)
def test_a_score_depends_on_neither_batch_nor_padding(name: str) -> None:
    model, users = build_baseline(name, dataset_of(HISTORIES, 5)), ([1], [3, 2], [4], [5])
    together = scores_of(model, histories_of(*users))
    assert torch.equal(together, torch.cat([scores_of(model, histories_of(user)) for user in users]))
    assert torch.equal(together, scores_of(model, histories_of(*users, width=7)))
    prefixes = scores_of(model, histories_of([1], [3], [3, 2], [4], [5]))
    assert torch.equal(scores_of(model, histories_of(*users, width=7), every_position=True), prefixes)


@pytest.mark.parametrize("name", BASELINES)
def test_a_saved_model_is_the_same(name: str, tmp_path: Path) -> None:
    model = build_baseline(name, dataset_of(HISTORIES, 5))
    save_model(model, tmp_path)
    loaded, histories = load_model(tmp_path), histories_of([1], [2], [5])
    assert type(loaded) is type(model) and torch.equal(scores_of(loaded, histories), scores_of(model, histories))


@pytest.mark.parametrize("name", BASELINES)
def test_items_can_be_added(name: str) -> None:
    model, histories = build_baseline(name, dataset_of(HISTORIES, 5)), histories_of([1], [2], [5])
    before = scores_of(model, histories)
    append_items(model, item_rows(model)[[2, 2]])
    after = scores_of(model, histories_of([1], [2], [5], [7]))
    assert model.num_items == 7 and torch.equal(after[:3, :5], before)
    assert torch.equal(after[3], after[2])  # neither 5 nor 7 co-occurs with an item


@pytest.mark.parametrize("name", BASELINES)
def test_a_folder_recommends(name: str, tiny_dataset: Dataset, tmp_path: Path) -> None:
    model = build_baseline(name, tiny_dataset)
    save_recommender(model, tiny_dataset, tmp_path, name, {})
    ids = tiny_dataset.item_ids.to_pylist()
    answer = Recommender.from_pretrained(tmp_path).recommend([[ids[4]]], 3, filter_seen=False).to_lists()[0]
    scores, items = scores_of(model, histories_of([5]))[0].topk(3)
    assert [score for _, score in answer] == pytest.approx(scores.tolist())
    assert answer[0][0] == ids[int(items[0])] or scores[0] == scores[1]


def test_baselines_can_be_evaluated() -> None:
    dataset = dataset_of(HISTORIES, 5)
    samples = dataset.held_out("valid")
    for build in BASELINES.values():
        # Targets 5, 5, 5, 5 and the least popular item: last among 5.
        ranks = evaluate_scorer(EncoderScorer(build(dataset)), samples, batch_size=3, protocols=("full",))
        assert ranks["full"].tolist() == [4, 4, 4, 4]
