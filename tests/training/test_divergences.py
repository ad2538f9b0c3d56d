"""Divergences of the student's scores from the teacher's against naive ones that hold every score."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from slmrec.config import DistillConfig
from slmrec.errors import ConfigError
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.training import full_softmax
from slmrec.training.divergences import (
    Compare,
    catalogue_divergence,
    popularity_groups,
    top_k_and_rest,
    within_groups,
)
from slmrec.training.full_softmax import CatalogueLoss
from slmrec.training.losses import DistillationLoss
from slmrec.training.teacher import LiveTeacher
from slmrec.types import ItemBonus

NUM_ITEMS, NUM_ROWS, TEMPERATURE = 11, 5, 2.0
GROUPS = [torch.tensor([0, 4, 9]), torch.tensor([1, 2, 3]), torch.tensor([5, 6, 7, 8, 10])]
CHOSEN = torch.tensor([[1, 1, 0], [2, 3, 4], [0, 0, 0], [11, 5, 6], [9, 0, 0]])
KL_ONLY = {"ce": 0, "cosine": 0, "norm": 0, "multiple": 0}


def top_3_of(p: Tensor, q: Tensor) -> Tensor:
    best = F.one_hot(p.topk(3).indices, NUM_ITEMS).sum(dim=1).bool()
    rows = []
    for own_p, own_q, is_best in zip(p.exp(), q.exp(), best, strict=True):
        parts = [torch.cat([own[is_best], own[~is_best].sum()[None]]) for own in (own_p, own_q)]
        rows.append((parts[0] * (parts[0] / parts[1]).log()).sum())
    return torch.stack(rows).mean()


def in_groups(p: Tensor, q: Tensor) -> Tensor:
    parts = []
    for group in GROUPS:
        own_p, own_q = (part[:, group].exp() / part[:, group].exp().sum(dim=1, keepdim=True) for part in (p, q))
        parts.append((own_p * (own_p / own_q).log()).sum(dim=1).mean())
    return torch.stack(parts).mean()


COMPARED = pytest.mark.parametrize(
    ("compare", "naive"),
    [
        pytest.param(top_k_and_rest(3), top_3_of, id="top_k"),
        pytest.param(within_groups(GROUPS), in_groups, id="groups"),
    ],
)


def vectors(seed: int, width: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    users = torch.randn(NUM_ROWS, width, dtype=torch.float64, generator=generator)
    return users, torch.randn(NUM_ITEMS + 1, width, dtype=torch.float64, generator=generator)


@COMPARED
@pytest.mark.parametrize("rows", [1, 3, NUM_ROWS])
def test_divergence_and_gradients_are_those_of_all_scores(
    compare: Compare, naive: Callable[[Tensor, Tensor], Tensor], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_softmax, "MAX_CHUNK_SCORES", rows * (NUM_ITEMS + 1))
    added, teacher_added = (torch.randn(CHOSEN.shape, dtype=torch.float64) for _ in range(2))
    teacher = vectors(seed=1, width=3)

    def fast(users: Tensor, items: Tensor, values: Tensor) -> Tensor:
        bonus, teacher_bonus = ItemBonus(CHOSEN, values), ItemBonus(CHOSEN, teacher_added)
        return catalogue_divergence(
            users, items, *teacher, TEMPERATURE, bonus=bonus, teacher_bonus=teacher_bonus, compare=compare
        )

    def slow(users: Tensor, items: Tensor, values: Tensor) -> Tensor:
        scores = [
            (left @ right.T).scatter_add(1, CHOSEN, more * (CHOSEN > 0))[:, 1:] / TEMPERATURE
            for left, right, more in ((*teacher, teacher_added), (users, items, values))
        ]
        return naive(*(one.log_softmax(dim=1) for one in scores)) * TEMPERATURE**2

    results = []
    for loss in (fast, slow):
        inputs = [value.clone().requires_grad_() for value in (*vectors(seed=0), added)]
        total = loss(*inputs)
        results.append([total, *torch.autograd.grad(total, inputs)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_the_share_of_a_group_is_left_alone() -> None:
    """A constant that is added to all scores of a group changes neither the divergence nor its gradients."""
    student, teacher = (torch.randn(NUM_ROWS, NUM_ITEMS, dtype=torch.float64) for _ in range(2))
    items = torch.cat([torch.zeros(1, NUM_ITEMS), torch.eye(NUM_ITEMS)]).double()  # user vectors are the scores

    def loss_and_gradient(shift: float) -> tuple[Tensor, Tensor]:
        scores = student.clone()
        scores[:, GROUPS[1]] += shift
        scores.requires_grad_()
        loss = catalogue_divergence(scores, items, teacher, items, TEMPERATURE, compare=within_groups(GROUPS))
        loss.backward()
        assert scores.grad is not None
        return loss.detach(), scores.grad

    (loss, gradient), (moved_loss, moved_gradient) = loss_and_gradient(0), loss_and_gradient(3)
    torch.testing.assert_close(loss, moved_loss)
    torch.testing.assert_close(gradient, moved_gradient)
    for group in GROUPS:
        torch.testing.assert_close(gradient[:, group].sum(dim=1), torch.zeros(NUM_ROWS, dtype=torch.float64))
        assert gradient[:, group].abs().sum() > 0


def test_scores_outside_of_the_top_k_keep_their_proportions() -> None:
    """A student that is far off gets finite gradients, which move the rest together."""
    items = torch.cat([torch.zeros(1, 5), torch.eye(5)])
    teacher, student = torch.tensor([[9.0, 8.0, 0.0, 0.0, 0.0]]), torch.tensor([[200.0, -200.0, 1.0, 2.0, 3.0]])
    student.requires_grad_()
    catalogue_divergence(student, items, teacher, items, 1.0, compare=top_k_and_rest(2)).backward()
    assert student.grad is not None and student.grad.isfinite().all()
    rest = student.grad[0, 2:]
    torch.testing.assert_close(rest / rest.sum(), torch.tensor([1.0, 2.0, 3.0]).softmax(dim=0))


def test_groups_have_equally_many_events() -> None:
    counts = np.array([0, 6, 1, 1, 3, 1, 0])
    assert [group.tolist() for group in popularity_groups(counts, 2)] == [[0], [1, 2, 3, 4, 5]]
    assert [group.tolist() for group in popularity_groups(counts, 4)] == [[0], [3], [1, 2, 4, 5]]
    assert [group.tolist() for group in popularity_groups(np.zeros(3, np.int64), 4)] == [[0, 1]]


@pytest.mark.parametrize("top_k", [8, 9])
def test_a_top_k_of_all_items_is_refused(top_k: int) -> None:
    model = SasRec(SasRecConfig(num_items=8, hidden_size=4))
    settings = DistillConfig.model_validate({"weights": KL_ONLY | {"kl": 1}, "kl_top_k": top_k})
    with pytest.raises(ConfigError, match=f"distill.kl_top_k is {top_k}, but the catalogue has 8 items; give a small"):
        DistillationLoss(model, LiveTeacher(model), settings, CatalogueLoss())


def test_groups_need_counts() -> None:
    model = SasRec(SasRecConfig(num_items=8, hidden_size=4))
    settings = DistillConfig.model_validate({"weights": KL_ONLY | {"stratified_kl": 1}})
    with pytest.raises(ValueError, match="stratified_kl needs item_counts"):
        DistillationLoss(model, LiveTeacher(model), settings, CatalogueLoss())
