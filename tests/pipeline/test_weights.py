"""What the members of an ensemble weigh."""

import pytest
import torch
from slmrec.pipeline.ensemble import SHARES, shares

from slmrec.data.dataset import Dataset, Samples
from slmrec.evaluation.metrics import ranking_metrics
from slmrec.evaluation.rank import EncoderScorer, evaluate_scorer
from slmrec.models.backbone import Backbone, random_decoder
from slmrec.models.build import build_decoder
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.ensemble import Ensemble
from slmrec.models.sasrec import SasRec, SasRecConfig

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
    vectors = torch.randn(num_items + 1, 4)
    settings = {
        "source": "random",
        "lora": None,
        "positions": "contiguous",
        "max_history_items": 6,
        "item_dropout": 0.0,
    }
    return build_decoder(backbone, (0,), vectors, train_items=True, **settings).eval()


def sasrec(num_items: int, seed: int) -> SasRec:
    torch.manual_seed(seed)
    return SasRec(SasRecConfig(num_items=num_items, hidden_size=4, max_history_items=6)).eval()


def quality(model: Ensemble | DecoderRecommender, samples: Samples) -> float:
    protocol = "full_history_excluded"
    found = evaluate_scorer(EncoderScorer(model), samples, batch_size=256, protocols=(protocol,))
    return ranking_metrics(found[protocol])["ndcg@10"]


def test_each_member_has_the_share_that_is_best_after_those_before_it(tiny_dataset: Dataset) -> None:
    held_out = tiny_dataset.held_out("valid")
    first, second, third = (make(tiny_dataset.num_items, seed) for seed, make in enumerate((decoder, sasrec, decoder)))
    weights = shares([first, second, third], held_out)
    assert sum(weights) == pytest.approx(1)
    with_second = [quality(Ensemble.of(first, [second], [share]), held_out) for share in SHARES]
    share = SHARES[with_second.index(max(with_second))]
    with_third = [quality(Ensemble.of(first, [second, third], [(1 - last) * share, last]), held_out) for last in SHARES]
    last = SHARES[with_third.index(max(with_third))]
    assert weights == pytest.approx([(1 - last) * (1 - share), (1 - last) * share, last])
    assert max(with_third) >= max(with_second) >= with_second[0] == quality(first, held_out)


def test_a_member_that_adds_nothing_has_no_share(tiny_dataset: Dataset) -> None:
    only = decoder(tiny_dataset.num_items, 0)
    assert shares([only, only], tiny_dataset.held_out("valid")) == [1.0, 0.0]
