"""The naive side of `benchmarks/serving.py` answers what the recommender answers."""

import runpy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from servers import ITEMS, MAX_HISTORY, decoder

from slmrec import Recommender
from slmrec.models.ensemble import Ensemble
from slmrec.models.folder import Vocabulary
from slmrec.models.sasrec import SasRec, SasRecConfig

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serving.py"


def sasrec() -> SasRec:
    torch.manual_seed(0)
    return SasRec(SasRecConfig(num_items=40, hidden_size=8, max_history_items=MAX_HISTORY))


def ensemble() -> Ensemble:
    return Ensemble.of({"decoder": decoder(), "sasrec": sasrec()}, {"decoder": 0.7, "sasrec": 0.3})


MODELS = {"decoder": decoder, "sasrec": sasrec, "ensemble": ensemble}


@pytest.mark.parametrize("name", MODELS)
def test_the_naive_way_finds_the_same_items(name: str) -> None:
    recommender = Recommender(MODELS[name](), Vocabulary(pa.array(ITEMS), None, pa.array([1] * len(ITEMS))))
    script: dict[str, Any] = runpy.run_path(str(SCRIPT))
    histories = [ITEMS[:1], ITEMS[3:15], ITEMS[20:24]]
    found = recommender.recommend(histories, script["K"]).to_lists()
    naive = script["_Naive"](recommender)(histories)
    assert naive == [[ITEMS.index(item_id) + 1 for item_id, _ in user] for user in found]
