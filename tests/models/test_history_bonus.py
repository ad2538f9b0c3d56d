"""Scores of the items of the history: by age, in every prefix, summed in ensembles, learned, exported."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from slmrec.config import SasRecModel, TrainConfig
from slmrec.data.batching import pad_histories
from slmrec.inference.exportable import TopItems
from slmrec.inference.freeze import freeze
from slmrec.models.ensemble import Ensemble
from slmrec.models.loader import load_model, save_model
from slmrec.models.sasrec import NUM_AGES, REPEAT_SCALE, SasRec, SasRecConfig
from slmrec.training.losses import NextItemLoss
from slmrec.training.optimization import parameter_groups
from slmrec.types import Batch, Histories

NUM_ITEMS = 20


def model(form: str = "by_age", seed: int = 0) -> SasRec:
    torch.manual_seed(seed)
    config = SasRecConfig(
        NUM_ITEMS, hidden_size=8, max_history_items=12, dropout=0.0, positions="from_oldest", repeat_score=form
    )
    own = SasRec(config).eval()
    if own.repeat_scores is not None:
        with torch.no_grad():
            own.repeat_scores.copy_(-torch.arange(1.0, len(own.repeat_scores) + 1) / REPEAT_SCALE)
    return own


def scores(own: Any, histories: Histories) -> Tensor:
    encoded = own.encode(histories)
    result = encoded.users @ own.item_vectors().T
    return result if encoded.bonus is None else result.scatter_add(1, encoded.bonus.items, encoded.bonus.scores)


def dense(bonus: Any, rows: int) -> Tensor:
    return torch.zeros(rows, NUM_ITEMS + 1).scatter_add(1, bonus.items, bonus.scores)


@torch.no_grad()
def test_the_score_depends_on_the_age_and_the_oldest_share_the_last_one() -> None:
    history = list(range(1, 13))
    found = dense(model().encode(pad_histories([history, [5, 5]], 12)).bonus, 2)
    by_item = [-float(min(12 - item + 1, NUM_AGES)) for item in history]
    torch.testing.assert_close(found[0], torch.tensor([0.0, *by_item, *[0.0] * 8]))
    assert found[1, 5] == -3.0 and found[1].count_nonzero() == 1  # an item that occurs twice receives both terms
    scalar = dense(model("scalar").encode(pad_histories([history, [5]], 12)).bonus, 2)
    assert set(scalar[0, 1:13].tolist()) == {-1.0} and scalar[1, 5] == -1.0
    assert model("none").encode(pad_histories([history], 12)).bonus is None


@torch.no_grad()
@pytest.mark.parametrize("positions", ["from_newest", "from_oldest"])
def test_every_position_has_the_bonus_of_its_prefix(positions: str) -> None:
    own = SasRec(SasRecConfig(NUM_ITEMS, hidden_size=8, positions=positions, repeat_score="by_age")).eval()
    own.repeat_scores.normal_()
    every = own.encode(pad_histories([[1, 2, 1], [4, 5]], 9), every_position=True)
    prefixes = own.encode(pad_histories([[1], [1, 2], [1, 2, 1], [4], [4, 5]], 9))
    torch.testing.assert_close(dense(every.bonus, 5), dense(prefixes.bonus, 5))
    torch.testing.assert_close(every.users, prefixes.users, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_ensemble_has_the_weighted_sum_and_its_frozen_form_too(tmp_path: Path) -> None:
    members = {"a": model("scalar", 1), "b": model("by_age", 2), "c": model("none", 3)}
    own = Ensemble.of(members, {"a": 2.0, "b": 0.5, "c": 1.0}).eval()
    histories = pad_histories([[1, 2, 3], [4]], 12)
    expected = 2 * scores(members["a"], histories) + scores(members["b"], histories) / 2
    expected = expected + scores(members["c"], histories)
    torch.testing.assert_close(scores(own, histories), expected)
    save_model(own, tmp_path)
    torch.testing.assert_close(scores(load_model(tmp_path), histories), expected)
    frozen = freeze(own)
    states = [frozen.new_state(), frozen.new_state()]
    frozen.append(states, [[1, 2], [4]])
    appended = frozen.append(states[:1], [[3]])
    found = (appended.users @ own.item_vectors().T).scatter_add(1, appended.bonus.items, appended.bonus.scores)
    torch.testing.assert_close(found, expected[:1])


@torch.no_grad()
def test_an_exported_graph_adds_it() -> None:
    own, histories = model(), pad_histories([[1, 2, 3], [4]], 12)
    everything = torch.ones(NUM_ITEMS + 1, dtype=torch.bool)
    graph = TopItems(own, own.item_vectors(), everything)
    nothing = torch.zeros(2, 0, dtype=torch.int64)
    best, values = graph(histories.items, histories.lengths, nothing, everything, torch.tensor(NUM_ITEMS))
    expected = scores(own, histories)
    torch.testing.assert_close(values, expected.gather(1, best))
    assert best.sort(dim=1).values.tolist() == [list(range(1, NUM_ITEMS + 1))] * 2


@pytest.mark.parametrize("repeats", [False, True])
def test_it_learns_whether_items_are_chosen_again(repeats: bool) -> None:
    own = model("scalar").train()
    with torch.no_grad():
        own.repeat_scores.zero_()
    optimizer = torch.optim.AdamW(parameter_groups(dict(own.named_parameters()), 0.0), lr=1e-2)
    loss, generator = NextItemLoss(own), torch.Generator().manual_seed(0)
    for _ in range(30):
        items = torch.stack([torch.randperm(NUM_ITEMS, generator=generator)[:4] + 1 for _ in range(16)])
        targets = items[:, 1] if repeats else items[:, 3]
        batch = Batch(Histories(items[:, :3], torch.full((16,), 3)), targets, False)
        optimizer.zero_grad()
        loss(batch).total.backward()
        optimizer.step()
    learned = float(own.repeat_scores[0]) * REPEAT_SCALE
    assert learned > 1 if repeats else learned < -1


def test_sampled_items_are_refused_with_it() -> None:
    sampled = TrainConfig(loss="sampled_softmax", num_sampled=8).model_dump(exclude_unset=True)
    with pytest.raises(ValueError, match=r"repeat_score is scalar, but train\.loss is sampled_softmax"):
        SasRecModel(repeat_score="scalar", train=sampled)
