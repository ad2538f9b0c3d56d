"""Losses against hand-worked values and naive re-implementations; every distillation term teaches."""

import doctest
from typing import Any

import pytest
import torch
from encoding import encode
from torch import Tensor, nn
from torch.nn import functional as F

from slmrec.training import losses
from slmrec.training.full_softmax import ItemSampler, sampled_cross_entropy
from slmrec.training.losses import DistillationLoss, LiveTeacher, NextItemLoss
from slmrec.types import Batch, Encoded, Histories

TERMS = ("ce", "cosine", "norm", "multiple", "kl")


class Linear(nn.Module):
    """A model of two blocks that reads the newest item alone."""

    num_items, max_history_items = 5, 4

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.items = nn.Embedding(6, 3)
        self.first, self.second, self.score = nn.Linear(3, width), nn.Linear(width, width), nn.Linear(width, 3)

    def item_vectors(self) -> Tensor:
        return self.items.weight

    def encode(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        newest = histories.items[torch.arange(len(histories.items)), histories.lengths - 1]
        first = self.first(self.items(newest)).tanh()
        second = self.second(first).tanh()
        return Encoded(self.score(second), (first, second) if num_blocks else ())


BATCH = Batch(Histories(torch.tensor([[1, 2], [3, 0]]), torch.tensor([2, 1])), torch.tensor([4, 5]), False)


def distillation(weights: dict[str, float], online: bool = False, width: int = 4, **more: Any) -> DistillationLoss:
    return DistillationLoss(
        Linear(width, 0),
        LiveTeacher(Linear(4, 1)),
        widths=(width, 4),
        item_width=3,
        num_blocks=2,
        weights=weights,
        online=online,
        **more,
    )


def test_examples_of_the_module() -> None:
    assert doctest.testmod(losses).attempted >= 2
    assert doctest.testmod(losses).failed == 0


@pytest.mark.parametrize("term", TERMS)
def test_each_term_alone_changes_the_students_gradients(term: str) -> None:
    loss = distillation({term: 1.0})
    terms = loss(BATCH)
    assert list(terms.parts) == [term]
    terms.total.backward()
    moved = [value.grad.abs().sum().item() for value in loss.student.parameters() if value.grad is not None]
    assert sum(moved) > 0
    assert all(value.grad is None for value in loss.teacher.parameters())


@pytest.mark.parametrize("term", TERMS[1:])
def test_each_term_adds_to_the_gradient_of_cross_entropy(term: str) -> None:
    def gradient(weights: dict[str, float]) -> Tensor:
        torch.manual_seed(3)
        loss = distillation(weights)
        loss(BATCH).total.backward()
        return loss.student.first.weight.grad.clone()

    assert not torch.allclose(gradient({"ce": 1.0}), gradient({"ce": 1.0, term: 1.0}))


def test_normalized_states_have_no_length() -> None:
    student, teacher = (encode(model, BATCH, 2).hidden_states for model in (Linear(4, 0), Linear(4, 1)))
    pairs = list(zip(student, teacher, strict=True))
    unit = sum((F.normalize(own, dim=1) - F.normalize(other, dim=1)).norm(dim=1).mean() for own, other in pairs)
    raw = sum((own - other).norm(dim=1).mean() for own, other in pairs)
    found = [distillation({"norm": 1.0}, normalized_states=wanted)(BATCH).total for wanted in (True, False)]
    torch.testing.assert_close(torch.stack(found), torch.stack([unit, raw]))
    assert not torch.allclose(found[0], found[1])


def test_smoothed_labels_enter_every_cross_entropy() -> None:
    for weights in ({"ce": 1.0}, {"multiple": 1.0}):
        torch.manual_seed(0)
        plain = distillation(weights)(BATCH).total
        torch.manual_seed(0)
        assert distillation(weights, label_smoothing=0.3)(BATCH).total != plain
    model = Linear(4, 0)
    users, items = encode(model, BATCH).users, model.item_vectors()
    expected = F.cross_entropy(users @ items[1:].T, BATCH.targets - 1, label_smoothing=0.3)
    torch.testing.assert_close(NextItemLoss(model, label_smoothing=0.3)(BATCH).total, expected)
    with pytest.raises(ValueError, match="label_smoothing with a sampler"):
        NextItemLoss(model, ItemSampler(torch.ones(6), 1.0), 2, label_smoothing=0.3)


def test_weights_scale_terms_and_zero_leaves_one_out() -> None:
    single = distillation({"ce": 0.0, "cosine": 1.0, "norm": 0.0, "multiple": 0.0, "kl": 0.0})
    assert len(single.adapters) == 0
    assert distillation({"multiple": 1.0}).adapters[0].weight.shape == (3, 4)
    assert distillation({"cosine": 3.0})(BATCH).total.item() == pytest.approx(3 * single(BATCH).total.item(), rel=1e-5)


def test_other_widths_meet_through_a_projection() -> None:
    loss = distillation({"cosine": 1.0, "norm": 1.0}, width=2)
    loss(BATCH).total.backward()
    assert loss.projection.weight.shape == (4, 2)
    assert loss.projection.weight.grad.abs().sum() > 0


def test_offline_teacher_is_frozen_and_stays_in_eval_mode() -> None:
    loss = distillation({"ce": 1.0, "kl": 1.0}).train()
    assert not loss.teacher.training and loss.student.training
    assert not any(value.requires_grad for value in loss.teacher.parameters())


def test_online_teacher_learns_from_its_own_cross_entropy_alone() -> None:
    with_terms = distillation({"ce": 1.0, "cosine": 1.0, "norm": 1.0, "multiple": 1.0, "kl": 1.0}, online=True)
    terms = with_terms(BATCH)
    terms.total.backward()
    alone = NextItemLoss(Linear(4, 1))
    alone(BATCH).total.backward()
    assert "teacher_ce" in terms.parts
    assert torch.allclose(with_terms.teacher.model.first.weight.grad, alone.model.first.weight.grad)


def test_a_teacher_without_states_is_an_error_not_a_missing_term() -> None:
    loss = distillation({"cosine": 1.0})
    loss.num_teacher_blocks = 0
    with pytest.raises(ValueError, match="zip"):
        loss(BATCH)


def test_what_is_frozen_in_an_online_teacher_stays_frozen() -> None:
    teacher = Linear(4, 1)
    teacher.items.requires_grad_(False)
    DistillationLoss(
        Linear(4, 0), LiveTeacher(teacher), widths=(4, 4), item_width=3, num_blocks=2, weights={"ce": 1.0}, online=True
    )
    assert not teacher.items.weight.requires_grad and teacher.first.weight.requires_grad


SAMPLER = ItemSampler(torch.tensor([0, 5, 4, 3, 2, 1]), 0.5)


def test_a_sampler_replaces_the_catalogue_by_fresh_draws() -> None:
    loss = NextItemLoss(Linear(4, 0), SAMPLER, 3)
    torch.manual_seed(5)
    found = [loss(BATCH).total.item() for _ in range(2)]
    torch.manual_seed(5)
    users, items = encode(loss.model, BATCH).users, loss.model.item_vectors()
    draws = [SAMPLER.draw(3) for _ in range(2)]
    expected = [sampled_cross_entropy(users, items, BATCH.targets, drawn, SAMPLER.log_q).item() for drawn in draws]
    assert found == expected and found[0] != found[1]


@pytest.mark.parametrize("online", [False, True])
def test_a_sampler_serves_every_cross_entropy_of_distillation(online: bool) -> None:
    drawn = []

    class Recorder(ItemSampler):
        def draw(self, num: int) -> Tensor:
            drawn.append(num)
            return super().draw(num)

    loss = DistillationLoss(
        Linear(4, 0),
        LiveTeacher(Linear(4, 1)),
        widths=(4, 4),
        item_width=3,
        num_blocks=2,
        weights=dict.fromkeys(TERMS, 1.0),
        online=online,
        sampler=Recorder(torch.ones(6), 0.0),
        num_sampled=7,
    )
    loss(BATCH).total.backward()
    assert drawn == [7] * (3 if online else 2)  # the user vector, the one inner block, and a teacher that learns
    assert loss.student.first.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("sampler", "num_sampled"), [(None, 4), (SAMPLER, 0)])
def test_a_sampler_and_a_number_of_draws_need_each_other(sampler: ItemSampler | None, num_sampled: int) -> None:
    with pytest.raises(ValueError, match=f"num_sampled is {num_sampled}: expected items to draw if and only if"):
        NextItemLoss(Linear(4, 0), sampler, num_sampled)


def test_draws_never_hold_the_padding_item() -> None:
    with pytest.raises(ValueError, match="include_padding with a sampler"):
        DistillationLoss(
            Linear(4, 0),
            LiveTeacher(Linear(4, 1)),
            widths=(4, 4),
            item_width=3,
            num_blocks=2,
            weights={"ce": 1.0},
            include_padding=True,
            sampler=SAMPLER,
            num_sampled=4,
        )


def test_terms_of_bfloat16_states_are_computed_in_float32() -> None:
    """1,024 entries that differ by 1: a sum of squares in bfloat16 stops at 256, a distance of 16 instead of 32."""
    student, teacher = torch.full((2, 1024), 129.0, dtype=torch.bfloat16), torch.full((2, 1024), 128.0)
    for other in (teacher, teacher.to(torch.bfloat16)):
        with torch.autocast("cpu", torch.bfloat16):
            assert losses.feature_norm(student, other).item() == 32.0
            assert losses.feature_direction(student, other).abs().item() < 1e-6
            assert losses.feature_norm(student, other).dtype == torch.float32
