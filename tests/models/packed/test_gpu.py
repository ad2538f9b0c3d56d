"""The engine on a GPU: the numbers of a CPU, whichever way attention goes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench import LORA, random_batches, random_model, samples_of
from encoding import encode
from peft import LoraConfig, inject_adapter_in_model
from test_engine import build, relative

from slmrec.config.training import TrainConfig
from slmrec.inference.freeze import freeze
from slmrec.models.decoder import DecoderRecommender
from slmrec.models.packed import flex
from slmrec.pipeline.validation import Validation
from slmrec.training.batch_size import largest_that_fits
from slmrec.training.losses import NextItemLoss
from slmrec.training.memory import peak_gpu_mb, reset_peak
from slmrec.training.samples import TrainingSamples
from slmrec.training.trainer import fit
from slmrec.types import Batch, Histories

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
LENGTHS = np.random.default_rng(0).integers(1, 30, 64)
GPU = torch.device("cuda")


@pytest.fixture(params=["flex", "buckets", "one kernel", "padded"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> DecoderRecommender:
    """On the CPU, for each way that attention goes on a GPU: behind a prompt, by heads too narrow, without prompt,
    and in padded batches."""
    found = random_model(2)
    found.engine = "padded" if request.param == "padded" else "packed"
    if request.param == "buckets":
        monkeypatch.setattr(flex, "is_supported", lambda *_: False)
    if request.param == "one kernel":
        found.prefix, found.response = found.prefix[:0], found.response[:0]
    return found


def a_batch() -> Batch:
    return random_batches(LENGTHS, 32)[0]


def gradients(model: DecoderRecommender, batch: Batch) -> dict[str, torch.Tensor]:
    model.train().zero_grad()
    NextItemLoss(model)(batch).total.backward()
    return {
        name: value.grad.detach().clone().cpu() for name, value in model.named_parameters() if value.grad is not None
    }


@pytest.mark.parametrize("every_position", [False, True], ids=["newest", "every position"])
def test_user_vectors_are_those_of_the_cpu(model: DecoderRecommender, every_position: bool) -> None:
    model.eval()
    if every_position and len(model.response):
        model.response = model.response[:0]
    batch = a_batch()
    if every_position:
        targets = torch.ones(int(batch.histories.lengths.sum()), dtype=torch.int64)
        batch = Batch(batch.histories, targets, every_position=True)
    with torch.inference_mode():
        expected = encode(model, batch, num_blocks=2)
        found = encode(model.to(GPU), batch.to(GPU), num_blocks=2)
    for own, other in zip((found.users, *found.hidden_states), (expected.users, *expected.hidden_states), strict=True):
        assert relative(own.cpu(), other) <= 1e-4


def test_gradients_are_those_of_the_cpu(model: DecoderRecommender) -> None:
    batch = a_batch()
    expected = gradients(model, batch)
    found = gradients(model.to(GPU), batch.to(GPU))
    assert expected.keys() == found.keys()
    assert max(relative(found[name], value) for name, value in expected.items()) <= 1e-3


def test_bfloat16_products_stay_near(model: DecoderRecommender) -> None:
    model, batch = model.to(GPU).eval(), a_batch().to(GPU)
    with torch.inference_mode():
        exact = encode(model, batch).users
        with torch.autocast("cuda", torch.bfloat16):
            rounded = encode(model, batch).users
    assert 0 < relative(rounded.float(), exact) <= 3e-2


def test_heads_too_narrow_for_its_kernels_attend_without_them() -> None:
    model = build(head_dim=8)
    model.engine = "packed"
    batch = Batch(Histories(torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([3, 1])), torch.tensor([1, 1]), False)
    with torch.inference_mode():
        expected = encode(model, batch).users
        found = encode(model.to(GPU), batch.to(GPU)).users
    assert relative(found.cpu(), expected) <= 1e-4


def test_an_appended_event_gives_what_the_whole_history_gives() -> None:
    model = random_model(2).to(GPU)
    frozen, history = freeze(model), [5, 9, 2, 700, 31]
    states = [frozen.new_state()]
    for item in history:
        vector = frozen.append(states, [[item]]).users[0]
    items = torch.tensor([history])
    batch = Batch(Histories(items, torch.tensor([5])), torch.tensor([1]), False).to(GPU)
    with torch.inference_mode():
        assert relative(vector, encode(model, batch).users[0]) <= 1e-4


def trained(model: DecoderRecommender, folder: Path, num_epochs: int, **settings: Any) -> list[dict[str, float]]:
    """The lines of the log, one an epoch."""
    samples = samples_of(LENGTHS)
    wanted = TrainConfig(num_train_epochs=num_epochs, learning_rate=1e-3, lr_scheduler_type="constant", **settings)
    fit(
        NextItemLoss(model),
        TrainingSamples(samples, 30, every_position=False),
        wanted,
        validate=lambda: Validation(samples, "full").metrics(model),
        folder=folder,
        seed=1,
        name="finetune",
    )
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_training_learns_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"per_device_train_batch_size": 16, "bf16": False, "ema_decay": 0.9}
    once = random_model(2)
    log = trained(once, tmp_path / "once", 4, **settings)
    assert next(once.parameters()).is_cuda
    assert log[-1]["train/ce"] < 0.8 * log[0]["train/ce"]
    assert log[-1]["valid/ndcg@10"] > 0.01  # a random order of 12,101 items: 0.0004
    trained(random_model(2), tmp_path / "twice", 2, **settings)
    again = trained(random_model(2), tmp_path / "twice", 4, **settings)
    assert [line["step"] for line in again] == [line["step"] for line in log]
    assert again[-1]["train/ce"] == pytest.approx(log[-1]["train/ce"], rel=0.02)  # sums on a GPU come in any order


def test_the_peak_of_the_cards_memory_is_counted_anew_for_each_stage() -> None:
    torch.empty(64 * 2**20, dtype=torch.uint8, device=GPU)
    reset_peak()
    before = peak_gpu_mb()
    kept = torch.empty(16 * 2**20, dtype=torch.uint8, device=GPU)
    assert before is not None
    assert 16 <= (peak_gpu_mb() or 0) - before < 32
    del kept


def test_a_batch_size_is_found_within_the_cards_memory() -> None:
    free = torch.cuda.mem_get_info()[0]

    def step(size: int) -> None:
        torch.empty(int(size * free / 8), dtype=torch.uint8, device=GPU).zero_()

    found = largest_that_fits(step, 64, 0.0, GPU, "finetune", "")
    assert 2 <= found <= 8  # an eighth of the memory a sample


def test_adapters_train_in_bfloat16(tmp_path: Path) -> None:
    model = random_model(2)
    model.decoder.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(**LORA), model.decoder)
    before = random_model(2).decoder.layers[0].mlp.gate_proj.weight.detach().clone()
    log = trained(model, tmp_path, 4, per_device_train_batch_size=16, bf16=True)
    after = model.decoder.layers[0].mlp.gate_proj
    assert torch.equal(after.base_layer.weight.cpu(), before)
    assert log[-1]["train/ce"] < log[0]["train/ce"]
