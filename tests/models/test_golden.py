"""Our model with the reference's recorded weights gives the reference's recorded outputs, to 1e-4 relative."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoding import encode
from torch import Tensor

from slmrec.config import DistillConfig
from slmrec.evaluation.metrics import ranking_metrics, ranks_of_targets
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.reference import decoder_of_reference
from slmrec.training.divergences import cosine_loss, norm_loss
from slmrec.training.full_softmax import CatalogueLoss, catalogue_cross_entropy
from slmrec.training.losses import DistillationLoss
from slmrec.training.teacher import LiveTeacher
from slmrec.training.terms import TERMS
from slmrec.types import Batch, Histories

RELATIVE = 1e-4
Recorded = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def recorded(shared: Path) -> Recorded:
    with np.load(shared / "golden" / "reference.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def settings(shared: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((shared / "golden" / "reference.json").read_text(encoding="utf-8"))
    return content


def state_dict_of(recorded: Recorded, role: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(f"{role}/"): torch.from_numpy(value)
        for key, value in recorded.items()
        if key.startswith(f"{role}/")
    }


def interval_state_dict(recorded: Recorded) -> dict[str, Tensor]:
    """Every second layer and the norm of the teacher's LLaMA, with the student's adapters and heads."""
    llm, own = "llama_model.base_model.model.", state_dict_of(recorded, "student")
    for key, value in state_dict_of(recorded, "teacher").items():
        if key == f"{llm}norm.weight":
            own[key] = value
        layer = re.match(rf"{re.escape(llm)}layers\.(\d+)\.", key)
        if layer and int(layer[1]) % 2 == 0 and "lora_" not in key:
            own[key.replace(layer[0], f"{llm}layers.{int(layer[1]) // 2}.")] = value
    return own


def build(recorded: Recorded, settings: dict[str, Any], weights: dict[str, Tensor]) -> DecoderRecommender:
    return decoder_of_reference(
        weights,
        settings["llama_config"],
        prompt_ids=recorded["io/instruct_ids"].tolist(),
        response_ids=recorded["io/response_ids"].tolist(),
        max_history_items=settings["max_len"],
        lora_alpha=settings["lora"]["alpha"],
    )


@pytest.fixture(scope="module")
def teacher(recorded: Recorded, settings: dict[str, Any]) -> DecoderRecommender:
    return build(recorded, settings, state_dict_of(recorded, "teacher"))


@pytest.fixture(scope="module")
def student(recorded: Recorded, settings: dict[str, Any]) -> DecoderRecommender:
    return build(recorded, settings, state_dict_of(recorded, "student"))


@pytest.fixture(scope="module")
def batch(recorded: Recorded) -> Batch:
    padded = recorded["io/inputs"]
    lengths = (padded > 0).sum(axis=1)
    items = np.zeros_like(padded)
    for row, length in enumerate(lengths):
        items[row, :length] = padded[row, padded.shape[1] - length :]
    items, lengths, targets = (torch.from_numpy(value) for value in (items, lengths, recorded["io/answers"][:, 0]))
    return Batch(Histories(items, lengths), targets, every_position=False)


def assert_close(ours: Tensor | float, theirs: np.ndarray) -> None:
    expected = torch.as_tensor(theirs, dtype=torch.float64)
    found = torch.as_tensor(ours, dtype=torch.float64)
    assert found.shape == expected.shape
    assert float((found - expected).norm() / expected.norm()) <= RELATIVE


@torch.no_grad()
def test_user_vectors(
    recorded: Recorded, teacher: DecoderRecommender, student: DecoderRecommender, batch: Batch
) -> None:
    assert_close(encode(teacher, batch).users, recorded["teacher_out/user_vector"])
    assert_close(encode(student, batch).users, recorded["student_out/user_vector"])


@torch.no_grad()
@pytest.mark.parametrize(("role", "depth"), [("teacher", 8), ("student", 4)])
def test_every_hidden_state(
    recorded: Recorded, request: pytest.FixtureRequest, batch: Batch, role: str, depth: int
) -> None:
    blocks = encode(request.getfixturevalue(role), batch, num_blocks=depth).hidden_states
    assert len(blocks) == depth
    for layer, state in enumerate(blocks, 1):
        assert_close(state, recorded[f"{role}_out/hidden_last/{layer}"])


@torch.no_grad()
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_cross_entropy_and_sampled_logits(
    recorded: Recorded, request: pytest.FixtureRequest, batch: Batch, role: str
) -> None:
    model = request.getfixturevalue(role)
    users, items = encode(model, batch).users, model.item_vectors()
    assert_close(
        catalogue_cross_entropy(users, items, batch.targets, include_padding=True), recorded[f"{role}_out/loss_ce"]
    )
    candidates = torch.from_numpy(np.concatenate([recorded["io/answers"], recorded["io/negatives"]], axis=1))
    logits = torch.einsum("bd,bcd->bc", users, items[candidates])
    assert_close(logits, recorded[f"{role}_out/sampled_logits"])
    if role == "teacher":
        ranks = ranks_of_targets(logits, torch.zeros(len(logits), dtype=torch.long), np.full(len(logits), 0.5))
        ours = ranking_metrics(ranks)
        for name in ("hit@1", "hit@5", "ndcg@5", "hit@10", "ndcg@10", "mrr"):
            assert ours[name] == pytest.approx(float(recorded[f"metrics/{name}"]), rel=RELATIVE)


@torch.no_grad()
def test_distillation_terms(
    recorded: Recorded, teacher: DecoderRecommender, student: DecoderRecommender, batch: Batch
) -> None:
    def terms(**weights: float) -> Any:
        settings = DistillConfig.model_validate({"num_blocks": 4, "weights": dict.fromkeys(TERMS, 0.0) | weights})
        loss = DistillationLoss(student, LiveTeacher(teacher), settings, CatalogueLoss(include_padding=True))
        if "multiple" in weights:
            for index, adapter in enumerate(loss.terms["multiple"].adapters):
                adapter.weight.copy_(torch.from_numpy(recorded[f"student/down_layer_list.{index}.weight"]))
        return loss(batch)

    assert_close(terms(cosine=1.0).total, recorded["distill_out/cosine_per_block"].sum())
    assert_close(terms(norm=1.0).total, recorded["distill_out/l2_per_block"].sum())
    assert_close(terms(cosine=1.0, norm=0.1).total, recorded["distill_out/loss_distill_reference"])
    assert_close(terms(multiple=1.0).total, recorded["student_out/loss_multiple"])


@torch.no_grad()
def test_each_block_on_its_own(
    recorded: Recorded, teacher: DecoderRecommender, student: DecoderRecommender, batch: Batch
) -> None:
    pairs = zip(encode(student, batch, 4).hidden_states, encode(teacher, batch, 4).hidden_states, strict=True)
    cosine, norm = recorded["distill_out/cosine_per_block"], recorded["distill_out/l2_per_block"]
    for block, (student_states, teacher_states) in enumerate(pairs):
        assert_close(cosine_loss(student_states, teacher_states), cosine[block])
        assert_close(norm_loss(student_states, teacher_states), norm[block])


@torch.no_grad()
def test_interval_variant(recorded: Recorded, settings: dict[str, Any], batch: Batch) -> None:
    model = build(recorded, settings, interval_state_dict(recorded))
    assert model.num_layers == int(recorded["interval_out/num_layers"])
    assert_close(encode(model, batch).users, recorded["interval_out/user_vector"])
