"""Weights of the models in an ensemble, fitted jointly on validation under the primary protocol."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from slmrec.config import Config
from slmrec.data.dataset import Dataset
from slmrec.models.ensemble import Ensemble
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.pipeline.ensemble_weights import (
    Vectors,
    fit_factor,
    fit_weights,
    mixture_ndcg,
    model_vectors,
    score_deviation,
)
from slmrec.pipeline.stage import Task
from slmrec.pipeline.validation import Validation, validation

PROTOCOLS = ("full_history_excluded", "full", "sampled_5")


def users_of(dataset: Dataset, protocol: str = "full_history_excluded", max_users: int = 0) -> Validation:
    protocols = ("full_history_excluded", protocol) if protocol != "full_history_excluded" else (protocol,)
    config = Config.model_validate({"evaluate": {"primary_protocol": protocol, "protocols": protocols}})
    return validation(Task(config, Path(), Path()), dataset, max_users)


def sasrec(num_items: int, seed: int, scale: float = 1.0) -> SasRec:
    torch.manual_seed(seed)
    model = SasRec(SasRecConfig(num_items=num_items, hidden_size=4, max_history_items=6)).eval()
    with torch.no_grad():
        model.item_embeddings.weight.normal_().mul_(scale)
    return model


def models_of(dataset: Dataset, num: int = 3) -> list[SasRec]:
    return [sasrec(dataset.num_items, seed) for seed in range(num)]


def mixture(models: Sequence[SasRec], weights: Sequence[float], users: Validation) -> Ensemble:
    factors = [weight / model_vectors(model, users).deviation for model, weight in zip(models, weights, strict=True)]
    names = [f"model_{number}" for number in range(len(models))]
    return Ensemble.of(dict(zip(names, models, strict=True)), dict(zip(names, factors, strict=True))).eval()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_mixtures_are_rated_as_the_evaluation_rates_their_ensemble(tiny_dataset: Dataset, protocol: str) -> None:
    models, users = models_of(tiny_dataset), users_of(tiny_dataset, protocol)
    vectors = [model_vectors(model, users) for model in models]
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5], [0.0, 0.55, 0.45]])
    qualities = mixture_ndcg(vectors, weights, users)
    for row, quality in zip(weights.tolist(), qualities, strict=True):
        assert quality == pytest.approx(users.metrics(mixture(models, row, users))["ndcg@10"], abs=1e-6)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scores_of_the_history_count_for_the_items_that_are_read(tiny_dataset: Dataset, protocol: str) -> None:
    """A model reads 2 items, so that older items of the history have no such score."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 4, "max_history_items": 2, "repeat_score": "scalar"}
    repeats = SasRec(SasRecConfig(num_items=tiny_dataset.num_items, **sizes)).eval()
    with torch.no_grad():
        repeats.item_embeddings.weight.normal_()
        repeats.repeat_scores.fill_(0.2)
    users = users_of(tiny_dataset, protocol)
    assert users.samples.lengths(np.arange(len(users.samples))).max() > 2
    (quality,) = mixture_ndcg([model_vectors(repeats, users)], torch.ones(1, 1), users)
    assert quality == pytest.approx(users.metrics(repeats)["ndcg@10"], abs=1e-6)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_single_model_and_no_neighbour_is_better(tiny_dataset: Dataset, protocol: str) -> None:
    users = users_of(tiny_dataset, protocol)
    vectors = [model_vectors(model, users) for model in models_of(tiny_dataset)]
    weights = fit_weights(vectors, users)
    assert sum(weights) == pytest.approx(1) and min(weights) >= 0
    neighbours = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1 / 3, 1 / 3, 1 / 3]]
    for source in range(3):
        for target in range(3):
            if source != target and weights[source] >= 0.05:
                moved = list(weights)
                moved[source] -= 0.05
                moved[target] += 0.05
                neighbours.append(moved)
    best, *others = mixture_ndcg(vectors, torch.tensor([weights, *neighbours]), users)
    assert best >= max(others) - 1e-9


def test_the_size_of_logits_decides_nothing(tiny_dataset: Dataset) -> None:
    users, models = users_of(tiny_dataset), models_of(tiny_dataset)
    loud = [models[0], models[1], sasrec(tiny_dataset.num_items, 2, scale=1000.0)]
    plain = fit_weights([model_vectors(model, users) for model in models], users)
    assert fit_weights([model_vectors(model, users) for model in loud], users) == plain


def test_a_useless_model_has_weight_0_whichever_its_place(tiny_dataset: Dataset) -> None:
    users = users_of(tiny_dataset)
    samples, num_items = users.samples, tiny_dataset.num_items
    ends = samples.spans(torch.arange(len(samples)).numpy())[1]
    perfect = Vectors(torch.eye(num_items + 1)[samples.flat[ends].astype(int)], torch.eye(num_items + 1), 1.0)
    noise = model_vectors(sasrec(num_items, 0), users)
    for vectors in ([perfect, noise], [noise, perfect]):
        assert mixture_ndcg(vectors, torch.tensor([fit_weights(vectors, users)]), users) == [pytest.approx(1.0)]
    assert fit_weights([perfect], users) == [1.0]


def test_the_factor_is_the_likeliest_one(tiny_dataset: Dataset) -> None:
    users = users_of(tiny_dataset, "full")
    samples, num_items = users.samples, tiny_dataset.num_items
    ends = samples.spans(torch.arange(len(samples)).numpy())[1]
    targets = torch.from_numpy(samples.flat[ends].astype(int))
    torch.manual_seed(0)
    vectors = Vectors(
        torch.eye(num_items + 1)[targets] + torch.randn(len(targets), num_items + 1), torch.eye(num_items + 1), 1.0
    )

    def likelihood(factor: float) -> float:
        scores = (factor * vectors.users @ vectors.items.T)[:, 1:]
        return float(torch.log_softmax(scores, dim=1).gather(1, targets[:, None] - 1).mean())

    factor = fit_factor([vectors], [1.0], users)
    finest = max((likelihood(0.1 * 1.05**power), 0.1 * 1.05**power) for power in range(140))[1]
    assert math.isclose(factor, finest, rel_tol=0.25)
    assert likelihood(factor) >= likelihood(finest) - 1e-3


def test_deviations_are_those_of_the_scores_within_a_user() -> None:
    torch.manual_seed(0)
    users, items = torch.randn(20, 3), torch.randn(50, 3) + 5
    expected = (users @ items.T).var(dim=1, unbiased=False).mean().sqrt()
    assert score_deviation(users, items) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_validation_ranks_under_the_primary_protocol(tiny_dataset: Dataset, protocol: str) -> None:
    users = users_of(tiny_dataset, protocol, max_users=30)
    assert users.protocol == protocol and len(users.samples) == 30
    assert (users.negatives is not None) == protocol.startswith("sampled_")
    assert 0 <= users.metrics(sasrec(tiny_dataset.num_items, 0))["ndcg@10"] <= 1


def test_the_protocol_that_is_reported_first_is_not_the_other_one(tiny_dataset: Dataset) -> None:
    model = sasrec(tiny_dataset.num_items, 1)
    found = {protocol: users_of(tiny_dataset, protocol).metrics(model)["ndcg@10"] for protocol in PROTOCOLS}
    assert len(set(found.values())) == len(PROTOCOLS)
