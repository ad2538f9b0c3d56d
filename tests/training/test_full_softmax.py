"""The chunked losses and rankings against naive ones that hold every score."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from slmrec.config import TrainConfig
from slmrec.topk import best_columns, by_columns, top_k
from slmrec.training import full_softmax as catalogue
from slmrec.training.divergences import catalogue_divergence
from slmrec.training.full_softmax import ItemSampler, catalogue_cross_entropy, sampled_cross_entropy
from slmrec.types import ItemBonus

NUM_ITEMS, NUM_ROWS, WIDTH = 23, 7, 5
Loss = Callable[[Tensor, Tensor], Tensor]


def chunks_of(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(catalogue, "MAX_CHUNK_SCORES", rows * (NUM_ITEMS + 1))


def vectors(dtype: torch.dtype, seed: int = 0, width: int = WIDTH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    users = torch.randn(NUM_ROWS, width, dtype=dtype, generator=generator)
    return users, torch.randn(NUM_ITEMS + 1, width, dtype=dtype, generator=generator)


TARGETS = torch.tensor([1, NUM_ITEMS, 4, 4, 9, 2, 17])


def cross_entropy(users: Tensor, items: Tensor) -> Tensor:
    return catalogue_cross_entropy(users, items, TARGETS)


def cross_entropy_with_padding(users: Tensor, items: Tensor) -> Tensor:
    return catalogue_cross_entropy(users, items, TARGETS, include_padding=True)


def smoothed_cross_entropy(users: Tensor, items: Tensor) -> Tensor:
    return catalogue_cross_entropy(users, items, TARGETS, label_smoothing=0.2)


def divergence(users: Tensor, items: Tensor) -> Tensor:
    teacher = vectors(users.dtype, seed=1, width=3)
    return catalogue_divergence(users, items, *teacher, temperature=3.0)


def naive_cross_entropy(users: Tensor, items: Tensor) -> Tensor:
    return F.cross_entropy(users @ items[1:].T, TARGETS - 1)


def naive_cross_entropy_with_padding(users: Tensor, items: Tensor) -> Tensor:
    return F.cross_entropy(users @ items.T, TARGETS)


def naive_smoothed_cross_entropy(users: Tensor, items: Tensor) -> Tensor:
    return F.cross_entropy(users @ items[1:].T, TARGETS - 1, label_smoothing=0.2)


def naive_divergence(users: Tensor, items: Tensor) -> Tensor:
    teacher_users, teacher_items = vectors(users.dtype, seed=1, width=3)
    p = (teacher_users @ teacher_items[1:].T / 3).softmax(dim=1)
    q = (users @ items[1:].T / 3).softmax(dim=1)
    return (p * (p.log() - q.log())).sum(dim=1).mean() * 9


LOSSES = pytest.mark.parametrize(
    ("loss", "naive"),
    [
        pytest.param(cross_entropy, naive_cross_entropy, id="cross_entropy"),
        pytest.param(cross_entropy_with_padding, naive_cross_entropy_with_padding, id="with_padding"),
        pytest.param(smoothed_cross_entropy, naive_smoothed_cross_entropy, id="smoothed"),
        pytest.param(divergence, naive_divergence, id="divergence"),
    ],
)


def loss_and_gradients(loss: Loss, users: Tensor, items: Tensor, weight: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    users, items = (value.clone().requires_grad_() for value in (users, items))
    value = loss(users, items)
    return value.detach(), *torch.autograd.grad(weight * value, (users, items))


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@LOSSES
@pytest.mark.parametrize("rows", [1, 3, NUM_ROWS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradients_are_those_of_the_full_matrix(
    monkeypatch: pytest.MonkeyPatch, loss: Loss, naive: Loss, rows: int, dtype: torch.dtype
) -> None:
    chunks_of(monkeypatch, rows)
    found = loss_and_gradients(loss, *vectors(dtype), weight=2.5)
    expected = loss_and_gradients(naive, *vectors(dtype), weight=2.5)
    assert all(value.dtype == dtype for value in found)
    assert all(relative(*pair) <= 1e-6 for pair in zip(found, expected, strict=True))


@LOSSES
def test_gradients_are_the_slopes(monkeypatch: pytest.MonkeyPatch, loss: Loss, naive: Loss) -> None:
    chunks_of(monkeypatch, 3)
    assert torch.autograd.gradcheck(loss, [value.requires_grad_() for value in vectors(torch.float64)])


@LOSSES
def test_a_chunk_holds_at_least_one_row(monkeypatch: pytest.MonkeyPatch, loss: Loss, naive: Loss) -> None:
    monkeypatch.setattr(catalogue, "MAX_CHUNK_SCORES", 1)
    assert relative(loss(*vectors(torch.float64)), naive(*vectors(torch.float64))) <= 1e-6


@LOSSES
def test_bfloat16_products_stay_close_and_results_are_float32(
    monkeypatch: pytest.MonkeyPatch, loss: Loss, naive: Loss
) -> None:
    chunks_of(monkeypatch, 1)  # as many roundings as there can be
    with torch.autocast("cpu", torch.bfloat16):
        found = loss_and_gradients(loss, *vectors(torch.float32))
    expected = loss_and_gradients(naive, *vectors(torch.float32))
    assert all(value.dtype == torch.float32 for value in found)
    assert relative(found[0], expected[0]) > 0  # the products were in bfloat16
    assert all(relative(*pair) <= 1e-2 for pair in zip(found, expected, strict=True))


def test_gradients_of_items_add_up_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 a sum stops growing where the next summand is below 1/256 of it."""
    num_rows = 2048
    users, items = torch.ones(num_rows, 1), torch.zeros(3, 1, requires_grad=True)
    monkeypatch.setattr(catalogue, "MAX_CHUNK_SCORES", 2)
    with torch.autocast("cpu", torch.bfloat16):
        catalogue_cross_entropy(users, items, torch.ones(num_rows, dtype=torch.int64)).backward()
    assert items.grad is not None
    assert items.grad.flatten().tolist() == pytest.approx([0, -0.5, 0.5], rel=1e-6)


def test_bfloat16_users_against_float32_items() -> None:
    users, items = vectors(torch.float32)
    own, table = users.bfloat16().requires_grad_(), items.clone().requires_grad_()
    value = cross_entropy(own, table)
    value.backward()
    assert value.dtype == torch.float32
    assert own.grad is not None and table.grad is not None
    assert (own.grad.dtype, table.grad.dtype) == (torch.bfloat16, torch.float32)
    assert value.item() == pytest.approx(naive_cross_entropy(own.detach().float(), items).item(), rel=1e-6)


class Products(TorchDispatchMode):
    """Counts matrix products and the largest tensor made."""

    def __init__(self) -> None:
        super().__init__()
        self.num, self.largest = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.num += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_, torch.ops.aten.addmm)
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result


@pytest.mark.parametrize(("users_learn", "items_learn", "expected"), [(1, 1, 3), (1, 0, 2), (0, 1, 2), (0, 0, 1)])
def test_what_is_frozen_costs_nothing(users_learn: bool, items_learn: bool, expected: int) -> None:
    users, items = vectors(torch.float32)
    users.requires_grad_(bool(users_learn))
    items.requires_grad_(bool(items_learn))
    with Products() as products:
        value = cross_entropy(users, items)
        if users_learn or items_learn:
            value.backward()
    assert products.num == expected
    assert (users.grad is not None, items.grad is not None) == (users_learn, items_learn)
    assert value.requires_grad == bool(users_learn or items_learn)


def test_without_gradients_only_the_loss_is_computed() -> None:
    users, items = (value.requires_grad_() for value in vectors(torch.float32))
    with Products() as products, torch.no_grad():
        assert not cross_entropy(users, items).requires_grad
    assert products.num == 1


@LOSSES
def test_no_tensor_holds_all_scores(monkeypatch: pytest.MonkeyPatch, loss: Loss, naive: Loss) -> None:
    chunks_of(monkeypatch, 1)
    users, items = (value.requires_grad_() for value in vectors(torch.float32))
    with Products() as products:
        loss(users, items).backward()
    assert products.largest <= (NUM_ITEMS + 1) * WIDTH < NUM_ITEMS * NUM_ROWS


@LOSSES
def test_backward_can_be_repeated_but_not_differentiated(loss: Loss, naive: Loss) -> None:
    users, items = (value.requires_grad_() for value in vectors(torch.float64))
    value = loss(users, items)
    once, twice = (torch.autograd.grad(value, items, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, twice)
    weight = torch.ones((), requires_grad=True)
    (slope,) = torch.autograd.grad(weight * loss(users, items), users, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_the_padding_item_competes_only_if_asked() -> None:
    users, items = torch.tensor([[1.0]]), torch.tensor([[100.0], [0.0], [0.0]], requires_grad=True)
    without = catalogue_cross_entropy(users, items, torch.tensor([1]))
    assert without.item() == pytest.approx(math.log(2), abs=1e-6)
    assert torch.autograd.grad(without, items)[0][0].item() == 0
    with_padding = catalogue_cross_entropy(users, items, torch.tensor([1]), include_padding=True)
    assert with_padding.item() == pytest.approx(100.0, abs=1e-3)


def test_extreme_scores_stay_finite() -> None:
    users, items = torch.tensor([[1e4]], requires_grad=True), torch.tensor([[0.0], [1.0], [-1.0]])
    value = catalogue_cross_entropy(users, items, torch.tensor([2]))
    value.backward()
    assert value.item() == pytest.approx(2e4)
    assert users.grad is not None and users.grad.item() == pytest.approx(2.0)


@pytest.mark.parametrize("rows", [1, 3, NUM_ROWS])
@pytest.mark.parametrize("kind", ["ce", "ce_with_padding", "smoothed", "kl"])
def test_a_bonus_counts_in_loss_and_gradients(monkeypatch: pytest.MonkeyPatch, kind: str, rows: int) -> None:
    chunks_of(monkeypatch, rows)
    users, items = vectors(torch.float64)
    chosen = torch.tensor([[1, 1, 0], [2, 3, 4], [0, 0, 0], [4, 5, 6], [9, 0, 0], [2, NUM_ITEMS, 2], [1, 2, 3]])
    values = torch.randn(chosen.shape, dtype=torch.float64)
    teacher_values = torch.randn(chosen.shape, dtype=torch.float64)
    teacher_users, teacher_items = vectors(torch.float64, seed=1, width=3)

    def with_bonus(users: Tensor, items: Tensor, values: Tensor) -> Tensor:
        is_item = chosen > 0
        return (users @ items.T).scatter_add(1, chosen, values * is_item)

    def fast(users: Tensor, items: Tensor, values: Tensor) -> Tensor:
        bonus = ItemBonus(chosen, values)
        if kind == "kl":
            own = {"bonus": bonus, "teacher_bonus": ItemBonus(chosen, teacher_values)}
            return catalogue_divergence(users, items, teacher_users, teacher_items, 3.0, **own)
        smoothing = 0.2 if kind == "smoothed" else 0.0
        return catalogue_cross_entropy(users, items, TARGETS, kind == "ce_with_padding", smoothing, bonus)

    def naive(users: Tensor, items: Tensor, values: Tensor) -> Tensor:
        scores = with_bonus(users, items, values)
        if kind == "kl":
            p = (with_bonus(teacher_users, teacher_items, teacher_values)[:, 1:] / 3).log_softmax(dim=1)
            q = (scores[:, 1:] / 3).log_softmax(dim=1)
            return 9 * F.kl_div(q, p, reduction="batchmean", log_target=True)
        if kind == "ce_with_padding":
            return F.cross_entropy(scores, TARGETS)
        return F.cross_entropy(scores[:, 1:], TARGETS - 1, label_smoothing=0.2 if kind == "smoothed" else 0.0)

    results = []
    for loss in (fast, naive):
        inputs = [value.clone().requires_grad_() for value in (users, items, values)]
        total = loss(*inputs)
        results.append([total, *torch.autograd.grad(total, inputs)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_items_without_events_may_be_left_out() -> None:
    """Loss and gradients are those of the other items alone, the score of items of the history included."""
    counts = np.array([0, *[1, 2] * 11, 5])
    counts[[3, 8, 20]] = 0
    seen = torch.from_numpy(np.flatnonzero(counts))
    chosen, added = torch.tensor([[1, 3, 0]] * NUM_ROWS), torch.randn(NUM_ROWS, 3, dtype=torch.float64)
    loss = catalogue.CatalogueLoss(TrainConfig(unseen_items="left_out", label_smoothing_factor=0.1), counts)

    def naive(users: Tensor, items: Tensor) -> Tensor:
        scores = (users @ items.T).scatter_add(1, chosen, added * (chosen > 0))[:, seen]
        return F.cross_entropy(scores, torch.searchsorted(seen, TARGETS), label_smoothing=0.1)

    found, expected = (
        loss_and_gradients(one, *vectors(torch.float64))
        for one in (lambda users, items: loss(users, items, TARGETS, ItemBonus(chosen, added)), naive)
    )
    assert all(relative(*pair) <= 1e-9 for pair in zip(found, expected, strict=True))
    assert found[2][[3, 8, 20]].abs().sum() == 0
    with pytest.raises(ValueError, match="unseen_items is left_out, but there are no item counts"):
        catalogue.CatalogueLoss(TrainConfig(unseen_items="left_out"))


def test_the_teacher_gets_no_gradient() -> None:
    learned, taught = vectors(torch.float32), vectors(torch.float32, seed=1)
    for value in (*learned, *taught):
        value.requires_grad_()
    catalogue_divergence(*learned, *taught, temperature=2.0).backward()
    assert all(value.grad is not None for value in learned)
    assert all(value.grad is None for value in taught)


def test_divergence_of_a_copy_is_zero() -> None:
    users, items = vectors(torch.float32)
    assert catalogue_divergence(users, items, users, items, 2.0).item() == pytest.approx(0.0, abs=1e-6)


def test_sampled_softmax_by_hand() -> None:
    """Row 0 meets item 2 twice; row 1 has item 2 as its target and meets item 3 alone."""
    users, items = torch.tensor([[1.0], [2.0]]), torch.tensor([[9.0], [0.5], [1.0], [-1.0]])
    targets, sampled = torch.tensor([1, 2]), torch.tensor([2, 3, 2])
    log_q = torch.tensor([-torch.inf, math.log(0.2), math.log(0.5), math.log(0.3)])
    plain = [math.exp(0.5) + 2 * math.e + 1 / math.e, math.exp(2) + math.exp(-2)]
    expected = (math.log(plain[0]) - 0.5 + math.log(plain[1]) - 2) / 2
    assert sampled_cross_entropy(users, items, targets, sampled, None).item() == pytest.approx(expected, rel=1e-6)
    weighted = [
        math.exp(0.5) + 2 * math.e / (3 * 0.5) + 1 / math.e / (3 * 0.3),
        math.exp(2) + math.exp(-2) / (3 * 0.3),
    ]
    expected = (math.log(weighted[0]) - 0.5 + math.log(weighted[1]) - 2) / 2
    assert sampled_cross_entropy(users, items, targets, sampled, log_q).item() == pytest.approx(expected, rel=1e-6)


def test_a_row_that_draws_only_its_target_has_no_loss() -> None:
    users, items = (value.requires_grad_() for value in vectors(torch.float32))
    value = sampled_cross_entropy(users[:1], items, torch.tensor([3]), torch.tensor([3, 3]), None)
    value.backward()
    assert value.item() == 0
    assert users.grad is not None and users.grad.abs().max() == 0


@pytest.mark.parametrize("exponent", [0.0, 0.75])
def test_many_draws_give_the_full_loss_and_its_gradient(exponent: float) -> None:
    torch.manual_seed(0)
    sampler = ItemSampler(np.arange(NUM_ITEMS + 1) ** 2, exponent)
    sampled = sampler.draw(200_000)

    def loss(users: Tensor, items: Tensor) -> Tensor:
        return sampled_cross_entropy(users, items, TARGETS, sampled, sampler.log_q)

    found = loss_and_gradients(loss, *vectors(torch.float64))
    expected = loss_and_gradients(naive_cross_entropy, *vectors(torch.float64))
    assert all(relative(*pair) <= 2e-2 for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize(("corrected", "unbiased"), [(True, True), (False, False)])
def test_correction_makes_the_sum_over_the_catalogue_unbiased(corrected: bool, unbiased: bool) -> None:
    """exp(loss + target's score) is the estimated sum of exp(score); its mean over draws is the sum itself."""
    torch.manual_seed(0)
    users, items = vectors(torch.float64)
    sampler = ItemSampler(np.arange(NUM_ITEMS + 1), 1.0)
    log_q = sampler.log_q if corrected else None
    row, target = users[:1], TARGETS[:1]
    score = users[0] @ items[TARGETS[0]]
    draws = torch.stack([sampled_cross_entropy(row, items, target, sampler.draw(64), log_q) for _ in range(500)])
    estimate, expected = (draws + score).exp().mean(), (items[1:] @ users[0]).exp().sum()
    assert (relative(estimate, expected) <= 0.05) == unbiased


def test_sampled_softmax_under_autocast() -> None:
    sampled = torch.arange(1, NUM_ITEMS + 1)

    def loss(users: Tensor, items: Tensor) -> Tensor:
        return sampled_cross_entropy(users, items, TARGETS, sampled, torch.zeros(NUM_ITEMS + 1))

    with torch.autocast("cpu", torch.bfloat16):
        found = loss_and_gradients(loss, *vectors(torch.float32))
    expected = loss_and_gradients(loss, *vectors(torch.float32))
    assert all(value.dtype == torch.float32 for value in found)
    assert all(relative(*pair) <= 1e-2 for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_the_sampler_draws_by_smoothed_counts(exponent: float) -> None:
    torch.manual_seed(0)
    sampler = ItemSampler(np.array([99, 0, 3, 8, 1]), exponent)
    weights = torch.tensor([1.0, 4.0, 9.0, 2.0]) ** exponent
    frequencies = torch.bincount(sampler.draw(100_000), minlength=5) / 100_000
    assert frequencies[0] == 0
    assert torch.allclose(frequencies[1:], weights / weights.sum(), atol=5e-3)
    assert sampler.log_q[0] == -torch.inf
    assert torch.allclose(sampler.log_q[1:].exp(), weights / weights.sum())


def test_a_seed_fixes_the_draws() -> None:
    sampler = ItemSampler(np.arange(100), 0.5)
    torch.manual_seed(7)
    first, second = sampler.draw(50), sampler.draw(50)
    torch.manual_seed(7)
    assert torch.equal(sampler.draw(50), first)
    assert not torch.equal(first, second)


def test_the_sampler_goes_beyond_the_limit_of_multinomial() -> None:
    num_items = 2**24 + 5
    sampler = ItemSampler(np.zeros(num_items + 1, np.int64), 1.0)
    drawn = sampler.draw(1000)
    assert drawn.min() >= 1 and drawn.max() <= num_items
    assert drawn.float().mean().item() == pytest.approx(num_items / 2, rel=0.1)


def test_a_point_at_the_very_end_is_the_last_item(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = ItemSampler(np.zeros(4, np.int64), 1.0)
    monkeypatch.setattr(torch, "rand", lambda num, dtype, generator: torch.ones(num, dtype=dtype))
    assert sampler.draw(1).tolist() == [3]


def naive_top_k(
    users: Tensor, items: Tensor, k: int, excluded: Tensor | None, allowed: Tensor | None
) -> list[list[tuple[float, int]]]:
    ranked = []
    for row, scores in enumerate((users @ items.T).tolist()):
        out = set() if excluded is None else set(excluded[row].tolist())
        left = [
            (-score, item)
            for item, score in enumerate(scores)
            if item > 0 and item not in out and (allowed is None or allowed[item])
        ]
        best = [(-score, item) for score, item in sorted(left)[:k]]
        ranked.append(best + [(-math.inf, 0)] * (min(k, len(items) - 1) - len(best)))
    return ranked


def pairs(scores: Tensor, items: Tensor) -> list[list[tuple[float, int]]]:
    return [list(zip(*row, strict=True)) for row in zip(scores.tolist(), items.tolist(), strict=True)]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_top_k_is_the_sorted_full_list(data: st.DataObject) -> None:
    """Small whole numbers: the scores are exact and many are equal."""
    num_rows, num_items, k = (data.draw(st.integers(1, high)) for high in (5, 12, 15))
    number = st.integers(-2, 2).map(float)
    users = torch.tensor(data.draw(st.lists(st.lists(number, min_size=2, max_size=2), min_size=5, max_size=5)))
    table = data.draw(st.lists(st.lists(number, min_size=2, max_size=2), min_size=num_items, max_size=num_items))
    items = torch.tensor([[9.0, 9.0], *table])
    item, width = st.integers(0, num_items), data.draw(st.integers(0, 6))
    rows = st.lists(st.lists(item, min_size=width, max_size=width), min_size=num_rows, max_size=num_rows)
    excluded = data.draw(st.none() | rows.map(lambda value: torch.tensor(value, dtype=torch.int64)))
    flags = st.lists(st.booleans(), min_size=num_items + 1, max_size=num_items + 1)
    allowed = data.draw(st.none() | flags.map(torch.tensor))
    expected = naive_top_k(users[:num_rows], items, k, excluded, allowed)
    for max_scores in (1, num_rows, 3 * num_rows, 2**23):
        found = top_k(users[:num_rows], items, k, excluded=excluded, allowed=allowed, max_scores=max_scores)
        assert pairs(*found) == expected


@pytest.mark.parametrize("max_scores", [1, 7, 1000, 2**23])
def test_top_k_is_torchs_where_scores_differ(max_scores: int) -> None:
    torch.manual_seed(0)
    users, items = torch.randn(30, 8, dtype=torch.float64), torch.randn(101, 8, dtype=torch.float64)
    scores, best = top_k(users, items, 10, max_scores=max_scores)
    expected = (users @ items[1:].T).topk(10, dim=1)
    assert torch.allclose(scores, expected.values)
    assert torch.equal(best, expected.indices + 1)


@pytest.mark.parametrize("num_users", [1, 20])
def test_the_layout_of_items_does_not_matter(num_users: int) -> None:
    torch.manual_seed(0)
    users, items = torch.randn(num_users, 8, dtype=torch.float64), torch.randn(101, 8, dtype=torch.float64)
    laid_out = by_columns(items)
    assert torch.equal(laid_out, items) and laid_out.T.is_contiguous()
    assert laid_out.data_ptr() != items.data_ptr()
    excluded = torch.randint(0, 101, (num_users, 3))
    found, expected = (top_k(users, table, 10, excluded=excluded) for table in (laid_out, items))
    assert torch.allclose(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("max_scores", [60, 110, 2**23])
def test_top_k_never_makes_more_scores_than_allowed(max_scores: int) -> None:
    users, items = torch.randn(20, 1), torch.randn(51, 1)
    excluded = torch.randint(0, 51, (20, 2))
    with Products() as products:
        top_k(users, items, 1, excluded=excluded, max_scores=max_scores)
    assert products.largest == min(20 * (max_scores // 20), 20 * 64)  # 50 items, in rows of aligned length


def test_top_k_scores_are_at_least_float32_and_carry_no_gradient() -> None:
    users, items = (value.bfloat16().requires_grad_() for value in vectors(torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        scores, _ = top_k(users, items, 3)
    assert scores.dtype == torch.float32 and not scores.requires_grad
    full = users.detach().float() @ items.detach().float()[1:].T
    assert torch.allclose(scores, full.topk(3, dim=1).values)


def test_top_k_of_no_users_is_empty() -> None:
    scores, best = top_k(torch.zeros(0, WIDTH), vectors(torch.float32)[1], 4)
    assert scores.shape == best.shape == (0, 4)


@pytest.mark.parametrize("max_scores", [1, 5, 2**23])
@pytest.mark.parametrize("k", [1, 2, NUM_ITEMS])
def test_nan_is_refused_with_its_row(max_scores: int, k: int) -> None:
    users, items = torch.zeros(4, WIDTH), torch.zeros(NUM_ITEMS + 1, WIDTH)
    users[2:, 0], items[1, 0] = torch.nan, 1
    with pytest.raises(ValueError, match="scores of row 2 hold NaN, expected numbers"):
        top_k(users, items, k, max_scores=max_scores)


def test_nan_among_equal_scores_is_refused() -> None:
    items = torch.tensor([[0.0], [1.0], [1.0], [1.0], [torch.nan]])
    with pytest.raises(ValueError, match="row 0 hold NaN"):
        top_k(torch.ones(1, 1), items, 2)


def test_nan_where_nothing_may_rank_is_no_matter() -> None:
    items = torch.tensor([[torch.nan], [1.0], [torch.nan], [2.0], [torch.nan]])
    allowed = torch.tensor([True, True, False, True, True])
    scores, best = top_k(torch.ones(1, 1), items, 3, excluded=torch.tensor([[4, 0]]), allowed=allowed)
    assert pairs(scores, best) == [[(2.0, 3), (1.0, 1), (-math.inf, 0)]]


@settings(deadline=None)
@given(
    scores=st.lists(st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 2.0, 2.5]), min_size=40, max_size=40), max_size=4),
    k=st.integers(1, 8),
    width=st.integers(1, 40),
)
def test_best_columns_are_the_first_of_the_best(scores: list[list[float]], k: int, width: int) -> None:
    table = torch.tensor(scores).view(-1, 40)[:, :width]
    found = best_columns(table, k)
    for row, columns in zip(table.tolist(), found.tolist(), strict=True):
        first = sorted(sorted(range(width), key=lambda column: (-row[column], column))[:k])
        finite = [column for column in first if row[column] > -math.inf]
        assert columns == sorted(columns)
        assert len(set(columns)) == min(k, width)
        assert [column for column in columns if row[column] > -math.inf] == finite


def test_best_columns_count_nan_as_best() -> None:
    scores = torch.arange(2000.0).repeat(2, 1)
    scores[1, 70] = torch.nan
    assert best_columns(scores, 2).tolist() == [[1998, 1999], [70, 1999]]
