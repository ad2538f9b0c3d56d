"""A peer's vectors are ranked as our own models are."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from slmrec.data.batching import collate
from slmrec.data.dataset import Dataset
from slmrec.models.folder import save_recommender
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.types import Encoded

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "evaluate_peers.py"), run_name="evaluate")


@pytest.fixture
def folders(tiny_dataset: Dataset, tmp_path: Path) -> dict[str, Path]:
    """A model of ours, and its vectors as if a peer had computed them."""
    torch.manual_seed(0)
    model = SasRec(SasRecConfig(num_items=tiny_dataset.num_items, hidden_size=8, max_history_items=50)).eval()
    samples = tiny_dataset.held_out("test")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    theirs.mkdir()
    save_recommender(model, tiny_dataset, ours, "ours", {})
    (ours / "metrics.json").write_text(json.dumps({"training_s": 1.0}), encoding="utf-8")
    (theirs / "run.json").write_text(json.dumps({"epochs": 3}), encoding="utf-8")
    with torch.no_grad():
        users = model.encode(collate(samples, np.arange(len(samples)), 50).histories).users
    items = model.item_vectors().detach().clone()
    known = torch.ones(len(items), dtype=torch.uint8)
    save_file({"users": users, "items": items, "known": known}, theirs / "vectors.safetensors")
    return {"ours": ours, "theirs": theirs}


def test_the_vectors_of_a_model_rank_as_the_model(tiny_dataset: Dataset, folders: dict[str, Path]) -> None:
    report, ranks = SCRIPT["evaluate"](tiny_dataset, folders)
    assert report["users"] == tiny_dataset.num_users
    assert report["models"]["ours"]["test"] == report["models"]["theirs"]["test"]
    assert report["models"]["ours"]["training"] == {"training_s": 1.0}
    assert report["models"]["theirs"]["training"] == {"epochs": 3}
    found = {model: [row["rank"] for row in ranks.to_pylist() if row["model"] == model] for model in folders}
    assert found["ours"] == found["theirs"] and len(found["ours"]) == 2 * tiny_dataset.num_users


def test_an_item_that_a_peer_cannot_score_comes_last() -> None:
    known = torch.tensor([0, 1, 0, 1])
    scorer = SCRIPT["VectorScorer"](torch.ones(1, 1), torch.tensor([[0.0], [-3.0], [9.0], [1.0]]), known)
    scores = scorer.score(Encoded(torch.ones(1, 1)))[0]
    assert scores[0] == -torch.inf and scores.isfinite()[1:].all()
    assert scores.argsort(descending=True).tolist() == [3, 1, 2, 0]
