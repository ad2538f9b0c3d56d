"""Losses against hand-worked values and naive re-implementations; every distillation term teaches."""

from typing import Any

import numpy as np
import pytest
import torch
from encoding import encode
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from slmrec.config import DistillConfig, DistillWeights, TrainConfig
from slmrec.config.distill import ListWeights
from slmrec.data.dataset import Samples
from slmrec.data.teacher_lists import TeacherLists
from slmrec.training import terms as distillation_terms
from slmrec.training.block_heads import block_heads
from slmrec.training.divergences import cosine_loss, norm_loss
from slmrec.training.full_softmax import CatalogueLoss, sampled_cross_entropy
from slmrec.training.item_sampler import ItemSampler
from slmrec.training.list_targets import ListTargets
from slmrec.training.losses import DistillationLoss, NextItemLoss
from slmrec.training.samples import TrainingSamples
from slmrec.training.teacher import LiveTeacher
from slmrec.training.terms import (
    TERMS,
    DistillationOutputs,
    DistillationTerm,
    TermInputs,
    needs_states,
    needs_teacher,
)
from slmrec.types import Batch, Encoded, Histories


class Linear(nn.Module):
    """A model of two blocks that reads only the newest item."""

    num_items, max_history_items = 5, 4

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.hidden_size = width
        self.items = nn.Embedding(6, 3)
        self.first, self.second, self.score = nn.Linear(3, width), nn.Linear(width, width), nn.Linear(width, 3)

    def item_vectors(self) -> Tensor:
        return self.items.weight

    def encode(self, histories: Histories, *, every_position: bool = False, num_blocks: int = 0) -> Encoded:
        newest = histories.items[torch.arange(len(histories.items)), histories.lengths - 1]
        first = self.first(self.items(newest)).tanh()
        second = self.second(first).tanh()
        return Encoded(self.score(second), (first, second) if num_blocks else ())


BATCH = Batch(
    Histories(torch.tensor([[1, 2], [3, 0]]), torch.tensor([2, 1])), torch.tensor([4, 5]), False, torch.tensor([0, 1])
)
SAMPLES = Samples.of(np.array([1, 2, 4, 3, 5]), np.array([0, 3]), np.array([2, 4]), np.array([0, 1]))
LISTS = ListTargets(
    TeacherLists(np.array([0, 2, 3]), np.array([3, 1, 2]), np.array([1, 2, 1]), None),
    TrainingSamples(SAMPLES, 4, False),
    ListWeights(),
)
COUNTS = np.array([0, 5, 4, 3, 2, 1])
SAMPLED = TrainConfig(loss="sampled_softmax", num_sampled=3)
NO_TERMS = dict.fromkeys(TERMS, 0.0)


def settings_of(online: bool = False, **weights: float) -> DistillConfig:
    mode = "online" if online else "offline"
    lists = "lists.csv" if weights.get("lists") else None
    return DistillConfig.model_validate({"mode": mode, "num_blocks": 2, "weights": NO_TERMS | weights, "lists": lists})


def distillation(
    online: bool = False, width: int = 4, loss: CatalogueLoss | None = None, **weights: float
) -> DistillationLoss:
    settings, teacher = settings_of(online, **weights), Linear(4, 1)
    heads = block_heads(teacher, 2) if weights.get("block_kl") else None
    return DistillationLoss(
        Linear(width, 0), LiveTeacher(teacher), settings, loss or CatalogueLoss(), COUNTS, LISTS, heads
    )


def test_terms_and_weights_have_the_same_names() -> None:
    assert list(TERMS) == list(DistillWeights.model_fields)
    assert all(TERMS[name].name == name for name in TERMS)
    for name, term in TERMS.items():
        weights = DistillWeights.model_validate(NO_TERMS | {name: 1.0})
        assert weights.needs_states == bool(term.needs_states), name


@pytest.mark.parametrize("term", [name for name in TERMS if name != "block_kl"])  # which needs `multiple`
def test_each_term_alone_changes_the_students_gradients(term: str) -> None:
    loss = distillation(**{term: 1.0})
    terms = loss(BATCH)
    assert list(terms.parts) == [term]
    terms.total.backward()
    moved = [value.grad.abs().sum().item() for value in loss.student.parameters() if value.grad is not None]
    assert sum(moved) > 0
    assert all(value.grad is None for value in loss.teacher.parameters())


@pytest.mark.parametrize("term", list(TERMS)[1:])
def test_each_term_adds_to_the_gradient_of_cross_entropy(term: str) -> None:
    def gradient(**weights: float) -> Tensor:
        torch.manual_seed(3)
        loss = distillation(**weights)
        loss(BATCH).total.backward()
        return loss.student.first.weight.grad.clone()

    base = {"ce": 1.0} | ({"multiple": 1.0} if term == "block_kl" else {})
    assert not torch.allclose(gradient(**base), gradient(**base, **{term: 1.0}))


class ProductLoss(DistillationTerm):
    """Mean of the product of scores of the targets, scaled by a parameter of the term."""

    name = "product"
    needs_scores = ("student", "teacher")

    def __init__(self, inputs: TermInputs) -> None:
        super().__init__(inputs)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, outputs: DistillationOutputs) -> Tensor:
        student, teacher = (
            (output.users * output.items[outputs.targets]).sum(dim=1) for output in (outputs.student, outputs.teacher)
        )
        return self.scale.squeeze() * (student * teacher.detach()).mean()


class ProductWeights(DistillWeights):
    product: float = Field(0.5, ge=0)
    """Weight of the product of scores."""


def test_a_new_term_is_a_class_and_a_default_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(distillation_terms.TERMS, ProductLoss.name, ProductLoss)
    settings = DistillConfig(weights=ProductWeights(ce=0, cosine=0, norm=0, multiple=0))
    loss = DistillationLoss(Linear(4, 0), LiveTeacher(Linear(4, 1)), settings, CatalogueLoss())
    optimizer = torch.optim.SGD([value for value in loss.parameters() if value.requires_grad], lr=0.1)
    before = loss.student.score.weight.detach().clone()
    terms = loss(BATCH)
    assert terms.parts.keys() == {"product"} and terms.total == 0.5 * terms.parts["product"]
    terms.total.backward()
    optimizer.step()
    assert loss(BATCH).total < terms.total
    assert not torch.equal(loss.student.score.weight, before)
    assert loss.terms["product"].scale.item() != 1.0
    assert all(value.grad is None for value in loss.teacher.parameters())


def test_settings_tell_what_the_terms_need() -> None:
    assert not needs_teacher(settings_of(ce=1.0, multiple=1.0))
    assert needs_teacher(settings_of(kl=1.0)) and not needs_states(settings_of(kl=1.0), "teacher")
    assert needs_states(settings_of(multiple=1.0), "student")
    assert not needs_states(settings_of(multiple=1.0), "teacher")
    assert needs_states(settings_of(norm=1.0), "teacher")


def test_models_without_states_are_distilled_by_their_scores() -> None:
    """Neither the hidden size nor states of the models are read."""
    student, teacher = Linear(4, 0), Linear(4, 1)
    for model in (student, teacher):
        del model.hidden_size
    settings = settings_of(ce=1.0, kl=1.0)
    loss = DistillationLoss(student, LiveTeacher(teacher), settings, CatalogueLoss())
    assert loss.num_student_blocks == loss.num_teacher_blocks == 0
    loss(BATCH).total.backward()
    assert student.first.weight.grad is not None


def test_a_teacher_that_no_term_reads_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = distillation(ce=1.0, multiple=1.0)
    monkeypatch.setattr(loss.teacher, "outputs", lambda *_: pytest.fail("the teacher was asked"))
    assert loss(BATCH).parts.keys() == {"ce", "multiple"}


def test_smoothed_labels_enter_every_cross_entropy() -> None:
    smoothed = CatalogueLoss(TrainConfig(label_smoothing_factor=0.3))
    for term in ("ce", "multiple"):
        torch.manual_seed(0)
        plain = distillation(**{term: 1.0})(BATCH).total
        torch.manual_seed(0)
        assert distillation(loss=smoothed, **{term: 1.0})(BATCH).total != plain
    model = Linear(4, 0)
    users, items = encode(model, BATCH).users, model.item_vectors()
    expected = F.cross_entropy(users @ items[1:].T, BATCH.targets - 1, label_smoothing=0.3)
    torch.testing.assert_close(NextItemLoss(model, smoothed)(BATCH).total, expected)


def test_weights_scale_terms_and_zero_leaves_one_out() -> None:
    single = distillation(cosine=1.0)
    assert list(single.terms) == ["cosine"]
    assert distillation(multiple=1.0).terms["multiple"].adapters[0].weight.shape == (3, 4)
    assert distillation(cosine=3.0)(BATCH).total.item() == pytest.approx(3 * single(BATCH).total.item(), rel=1e-5)


def test_different_widths_meet_through_a_projection() -> None:
    loss = distillation(width=2, cosine=1.0, norm=1.0)
    loss(BATCH).total.backward()
    assert loss.projection.weight.shape == (4, 2)
    assert loss.projection.weight.grad.abs().sum() > 0
    assert list(distillation(width=2, kl=1.0).projection.parameters()) == []


def test_offline_teacher_is_frozen_and_stays_in_eval_mode() -> None:
    loss = distillation(ce=1.0, kl=1.0).train()
    assert not loss.teacher.training and loss.student.training
    assert not any(value.requires_grad for value in loss.teacher.parameters())


def test_online_teacher_learns_from_its_own_cross_entropy_alone() -> None:
    loss = distillation(online=True, ce=1.0, cosine=1.0, norm=1.0, multiple=1.0, kl=1.0)
    terms = loss(BATCH)
    terms.total.backward()
    alone = NextItemLoss(Linear(4, 1))
    alone(BATCH).total.backward()
    assert "teacher_ce" in terms.parts
    assert torch.allclose(loss.teacher.model.first.weight.grad, alone.model.first.weight.grad)


def test_a_teacher_without_states_is_an_error_not_a_missing_term() -> None:
    loss = distillation(cosine=1.0)
    loss.num_teacher_blocks = 0
    with pytest.raises(ValueError, match="zip"):
        loss(BATCH)


def test_what_is_frozen_in_an_online_teacher_stays_frozen() -> None:
    teacher = Linear(4, 1)
    teacher.items.requires_grad_(False)
    DistillationLoss(Linear(4, 0), LiveTeacher(teacher), settings_of(online=True, ce=1.0), CatalogueLoss())
    assert not teacher.items.weight.requires_grad and teacher.first.weight.requires_grad


def test_sampled_items_replace_the_catalogue() -> None:
    loss = NextItemLoss(Linear(4, 0), CatalogueLoss(SAMPLED, COUNTS))
    torch.manual_seed(5)
    values = [loss(BATCH).total.item() for _ in range(2)]
    torch.manual_seed(5)
    users, items = encode(loss.model, BATCH).users, loss.model.item_vectors()
    sampler = ItemSampler(COUNTS, 0.75)
    draws = [sampler.draw(3) for _ in range(2)]
    expected = [sampled_cross_entropy(users, items, BATCH.targets, drawn, sampler.log_q).item() for drawn in draws]
    assert values == expected and values[0] != values[1]


@pytest.mark.parametrize("online", [False, True])
def test_sampling_serves_every_cross_entropy_of_distillation(online: bool) -> None:
    drawn = []

    class Recorder(ItemSampler):
        def draw(self, num: int) -> Tensor:
            drawn.append(num)
            return super().draw(num)

    sampled = CatalogueLoss(SAMPLED, COUNTS)
    sampled.sampler = Recorder(COUNTS, 0.0)
    loss = distillation(online=online, loss=sampled, **dict.fromkeys(TERMS, 1.0))
    loss(BATCH).total.backward()
    assert drawn == [3] * (3 if online else 2)  # the user vector, the only inner block, and an online teacher
    assert loss.student.first.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((SAMPLED, None), "num_sampled is 3, but there are no item counts to sample by"),
        ((SAMPLED, COUNTS, True), "include_padding is true, but the padding item is never sampled"),
    ],
)
def test_sampling_needs_counts_and_excludes_padding(arguments: tuple[Any, ...], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        CatalogueLoss(*arguments)


def test_terms_of_bfloat16_states_are_computed_in_float32() -> None:
    """1,024 entries that differ by 1: a sum of squares in bfloat16 stops at 256, a distance of 16 instead of 32."""
    student, teacher = torch.full((2, 1024), 129.0, dtype=torch.bfloat16), torch.full((2, 1024), 128.0)
    for states in (teacher, teacher.to(torch.bfloat16)):
        with torch.autocast("cpu", torch.bfloat16):
            assert norm_loss(student, states).item() == 32.0
            assert cosine_loss(student, states).abs().item() < 1e-6
            assert norm_loss(student, states).dtype == torch.float32
