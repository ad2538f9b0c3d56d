"""The score bonus of a few items in top-k search."""

import pytest
import torch

from slmrec import topk
from slmrec.topk import top_k
from slmrec.types import ItemBonus


def test_bonus_changes_the_ranking() -> None:
    users, items = torch.tensor([[1.0], [1.0]]), torch.tensor([[9.0], [1.0], [2.0], [3.0]])
    bonus = ItemBonus(torch.tensor([[1, 1], [2, 0]]), torch.tensor([[2.0, 1.0], [5.0, 50.0]]))
    assert top_k(users, items, 2)[1].tolist() == [[3, 2], [3, 2]]
    scores, best = top_k(users, items, 2, bonus=bonus)
    assert best.tolist() == [[1, 3], [2, 3]] and scores.tolist() == [[4.0, 3.0], [7.0, 3.0]]
    excluded = torch.tensor([[1], [0]])
    assert top_k(users, items, 2, excluded=excluded, bonus=bonus)[1].tolist() == [[3, 2], [2, 3]]


@pytest.mark.parametrize("max_scores", [1, 7, 60, 300, topk.MAX_RANKED_SCORES])
def test_bonus_agrees_with_the_whole_matrix_in_chunks(max_scores: int) -> None:
    generator = torch.Generator().manual_seed(0)
    users, items = (torch.randint(-3, 4, (size, 4), generator=generator).float() for size in (9, 41))
    bonus = ItemBonus(torch.randint(0, 41, (9, 5), generator=generator), torch.ones(9, 5) * 4)
    expected = (users @ items.T).scatter_add(1, *bonus)
    expected[:, 0] = -torch.inf
    scores, best = expected.sort(dim=1, descending=True, stable=True)
    found = top_k(users, items, 6, bonus=bonus, max_scores=max_scores)
    assert torch.equal(found[0], scores[:, :6]) and torch.equal(found[1], best[:, :6])
