"""Score of the items of the history that is fitted on validation after training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from slmrec import prepare
from slmrec.config import Config, SasRecModel, SasRecStudent, TrainConfig
from slmrec.data.batching import collate
from slmrec.data.dataset import Samples
from slmrec.models.loader import load_model
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.pipeline.pretrain import build
from slmrec.pipeline.repeat_score import MAX_SCORE, fit_repeat_score
from slmrec.pipeline.stage import Task
from slmrec.training.losses import NextItemLoss
from slmrec.types import Batch, Histories

SIZES = {"hidden_size": 4, "max_history_items": 6, "dropout": 0.0, "positions": "from_oldest"}


def model_of(num_items: int, form: str = "fitted") -> SasRec:
    torch.manual_seed(0)
    model = SasRec(SasRecConfig(num_items=num_items, repeat_score=form, **SIZES)).eval()
    with torch.no_grad():
        model.item_embeddings.weight.normal_()
    return model


def likelihood(model: SasRec, samples: Samples) -> float:
    """Log-likelihood of the targets among all items, by the scores of the model as callers compute them."""
    batch = collate(samples, np.arange(len(samples)), model.max_history_items)
    with torch.no_grad():
        encoded = model.encode(batch.histories)
        scores: Tensor = encoded.users @ model.item_vectors().T
        scores.scatter_add_(1, encoded.bonus.items, encoded.bonus.scores)
    scores[:, 0] = -torch.inf
    return float(scores.log_softmax(dim=1).gather(1, batch.targets[:, None]).double().sum())


def users_of(histories: list[list[int]]) -> Samples:
    """Samples whose target is the last item of each history."""
    items = np.array([item for history in histories for item in history], np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(history) for history in histories])])
    return Samples.of(items, offsets[:-1], offsets[1:] - 1, np.arange(len(histories)))


def test_no_other_score_makes_the_targets_more_likely() -> None:
    """Some targets are in the history, some of these twice, and two histories are longer than the model reads."""
    samples = users_of([[1, 2, 3], [4, 4, 4], [5, 6, 5], [7, 1, 2, 3, 4, 5, 6, 7], [2, 9, 9, 1, 3, 8, 7, 8], [3, 8]])
    model = model_of(9)
    model.set_repeat_score(5.0)  # is ignored
    found = fit_repeat_score(model, samples)
    assert abs(found) < MAX_SCORE - 1
    best = likelihood(model, samples)
    for step in (-0.05, 0.05):
        model.set_repeat_score(found + step)
        assert likelihood(model, samples) < best


def test_items_that_are_never_chosen_again_leave_every_list() -> None:
    model, samples = model_of(9), users_of([[1, 2, 3], [4, 5, 6], [2, 2, 9]])
    assert fit_repeat_score(model, samples) == pytest.approx(-MAX_SCORE)
    batch = collate(samples, np.arange(3), 6)
    encoded = model.encode(batch.histories)
    scores = (encoded.users @ model.item_vectors().T).scatter_add(1, encoded.bonus.items, encoded.bonus.scores)
    outside = torch.ones_like(scores, dtype=torch.bool).scatter(1, batch.histories.items, False)
    outside[:, 0] = False
    history = scores.gather(1, batch.histories.items)
    assert history.max() < scores[outside].min()


def test_targets_that_are_always_chosen_again_lead_every_list() -> None:
    assert fit_repeat_score(model_of(9), users_of([[1, 2, 1], [4, 5, 4]])) == pytest.approx(MAX_SCORE)


def test_training_ignores_the_score() -> None:
    batch = Batch(Histories(torch.tensor([[1, 2], [3, 4]]), torch.tensor([2, 2])), torch.tensor([1, 5]), False)
    fitted, none = model_of(9), model_of(9, "none")
    fitted.set_repeat_score(-8.0)
    losses = [float(NextItemLoss(model.train())(batch).total) for model in (fitted, none)]
    assert losses[0] == losses[1]
    assert not fitted.repeat_scores.requires_grad
    assert fitted.eval().encode(batch.histories).bonus.scores.unique().tolist() == [-8.0]


def test_a_base_model_is_saved_with_its_score(shop_file: Path, tmp_path: Path) -> None:
    """All weights but the score are those of a training without one."""
    trained = {}
    for form in ("none", "fitted"):
        values = {"kind": "sasrec", **SIZES, "repeat_score": form, "train": {"num_train_epochs": 1}}
        config = Config.model_validate(
            {"pretrain": {"sasrec": values}, "finetune": {"item_vectors": "sasrec"}, "seed": 3}
        )
        folder = tmp_path / form
        (folder / "pretrain" / "sasrec").mkdir(parents=True)
        prepare(shop_file, folder / "prepare")
        facts = build(Task(config, folder, folder / "pretrain" / "sasrec", "sasrec"))
        trained[form] = load_model(folder / "pretrain" / "sasrec"), facts
    (none, _), (fitted, facts) = trained["none"], trained["fitted"]
    own = fitted.state_dict()
    assert float(fitted.age_scores()) == pytest.approx(facts["repeat_score"], abs=1e-4)
    assert facts["repeat_score"] != 0
    own.pop("repeat_scores")
    for name, value in none.state_dict().items():
        assert torch.equal(own[name], value)


def test_epochs_that_are_chosen_by_full_are_ranked_with_the_score(shop_file: Path, tmp_path: Path) -> None:
    prepare(shop_file, tmp_path / "prepare")
    values = {
        "kind": "sasrec",
        **SIZES,
        "repeat_score": "fitted",
        "train": {"num_train_epochs": 3, "learning_rate": 0.02},
    }
    protocols = {"primary_protocol": "full", "protocols": ["full"]}
    config = Config.model_validate(
        {"pretrain": {"sasrec": values}, "finetune": {"item_vectors": "sasrec"}, "evaluate": protocols}
    )
    task = Task(config, tmp_path, tmp_path / "pretrain" / "sasrec", "sasrec")
    facts = build(task)
    lines = (task.folder / "training" / "log.jsonl").read_text().splitlines()
    reached = [json.loads(line)["valid/ndcg@10"] for line in lines]
    assert facts["best_epoch"] > 0
    assert facts["valid/ndcg@10"] == pytest.approx(max(reached), abs=1e-6)


def test_settings_that_cannot_use_it_are_refused() -> None:
    with pytest.raises(ValueError, match="a student learns the score of repeats from its teacher"):
        SasRecStudent(repeat_score="fitted")
    sampled = TrainConfig(loss="sampled_softmax", num_sampled=8).model_dump(exclude_unset=True)
    assert SasRecModel(repeat_score="fitted", train=sampled).repeat_score == "fitted"
