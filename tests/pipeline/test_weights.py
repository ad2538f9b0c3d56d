"""Weights of the models in an ensemble, fitted on validation."""

from collections.abc import Sequence

import pytest
import torch

from slmrec.config import DecoderSettings
from slmrec.data.dataset import Dataset, Samples
from slmrec.evaluation.metrics import ranking_metrics
from slmrec.evaluation.rank import EncoderScorer, evaluate_scorer
from slmrec.models.backbone import Backbone, random_decoder
from slmrec.models.build import build_decoder
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.ensemble import Ensemble
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.pipeline.ensemble_weights import SHARES, fit_weights

LLAMA = {
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def decoder(num_items: int, seed: int) -> DecoderRecommender:
    torch.manual_seed(seed)
    backbone = Backbone(random_decoder(LLAMA), torch.zeros(0, 8), torch.zeros(0, 8))
    settings = DecoderSettings(backbone="random", backbone_config=LLAMA, lora=None, num_layers=1, max_history_items=6)
    vectors = torch.randn(num_items + 1, 4)
    return build_decoder(settings, backbone, vectors, None, section="finetune", train_items=True).eval()


def sasrec(num_items: int, seed: int) -> SasRec:
    torch.manual_seed(seed)
    return SasRec(SasRecConfig(num_items=num_items, hidden_size=4, max_history_items=6)).eval()


def quality(model: Ensemble | DecoderRecommender, samples: Samples) -> float:
    protocol = "full_history_excluded"
    ranks = evaluate_scorer(EncoderScorer(model), samples, batch_size=256, protocols=(protocol,))
    return ranking_metrics(ranks[protocol])["ndcg@10"]


def mixture(models: Sequence[DecoderRecommender | SasRec], weights: Sequence[float]) -> Ensemble:
    names = ("decoder", "sasrec", "other")[: len(models)]
    return Ensemble.of(dict(zip(names, models, strict=True)), dict(zip(names, weights, strict=True)))


def test_each_model_has_the_best_weight_after_those_before_it(tiny_dataset: Dataset) -> None:
    held_out = tiny_dataset.held_out("valid")
    first, second, third = (make(tiny_dataset.num_items, seed) for seed, make in enumerate((decoder, sasrec, decoder)))
    weights = fit_weights([first, second, third], held_out)
    assert sum(weights) == pytest.approx(1)
    with_second = [quality(mixture([first, second], [1 - share, share]), held_out) for share in SHARES]
    share = SHARES[with_second.index(max(with_second))]

    def of_three(last: float) -> list[float]:
        return [(1 - last) * (1 - share), (1 - last) * share, last]

    with_third = [quality(mixture([first, second, third], of_three(last)), held_out) for last in SHARES]
    last = SHARES[with_third.index(max(with_third))]
    assert weights == pytest.approx(of_three(last))
    assert max(with_third) >= max(with_second) >= with_second[0] == quality(first, held_out)


def test_a_model_that_adds_nothing_has_weight_0(tiny_dataset: Dataset) -> None:
    only = decoder(tiny_dataset.num_items, 0)
    assert fit_weights([only, only], tiny_dataset.held_out("valid")) == [1.0, 0.0]
