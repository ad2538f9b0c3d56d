"""The loop: resumed equals uninterrupted, the best epoch is kept, what is frozen stays, the non-finite stops."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slmrec.config import TrainConfig
from slmrec.data.dataset import Samples
from slmrec.errors import TrainingError
from slmrec.losses import NextItemLoss
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.training import Progressed, TrainingSamples, fit, schedule
from slmrec.types import Batch, LossTerms

SETTINGS = TrainConfig(
    learning_rate=1e-2,
    num_train_epochs=4,
    per_device_train_batch_size=4,
    warmup_steps=2,
    early_stopping_patience=9,
    bf16=False,
)
AVERAGED = SETTINGS.model_copy(update={"average_decay": 0.5})


def samples() -> TrainingSamples:
    flat = np.tile(np.arange(1, 9), 4)
    ends = np.arange(3, 31, 2)
    return TrainingSamples(Samples.of(flat, ends - 3, ends, np.arange(len(ends))), 5, False)


def model() -> SasRec:
    torch.manual_seed(0)
    return SasRec(SasRecConfig(num_items=8, hidden_size=8, dropout=0.3, max_history_items=5))


class Validation:
    """NDCG by a script; stops the process after so many epochs."""

    def __init__(self, *values: float, die_after: int = 99) -> None:
        self.values, self.calls, self.die_after = values or tuple(np.linspace(0.1, 0.5, 9)), 0, die_after

    def __call__(self) -> dict[str, float]:
        self.calls += 1
        if self.calls > self.die_after:
            raise KeyboardInterrupt
        return {"ndcg@10": float(self.values[min(self.calls, len(self.values)) - 1])}


def train(trained: SasRec, folder: Path, validation: Validation, settings: TrainConfig = SETTINGS) -> Progressed:
    return fit(NextItemLoss(trained), samples(), settings, validate=validation, folder=folder, seed=1, name="pretrain")


@pytest.mark.parametrize("settings", [SETTINGS, AVERAGED], ids=["latest", "averaged"])
@pytest.mark.parametrize("epochs_before", [0, 1, 3])
def test_resumed_equals_uninterrupted_to_the_last_bit(
    tmp_path: Path, epochs_before: int, settings: TrainConfig
) -> None:
    whole = model()
    train(whole, tmp_path / "whole", Validation(), settings)
    with pytest.raises(KeyboardInterrupt):
        train(model(), tmp_path / "cut", Validation(die_after=epochs_before + 1), settings)
    resumed = model()
    rest = Validation(*np.linspace(0.1, 0.5, 9)[epochs_before + (1 if epochs_before else 0) :])
    train(resumed, tmp_path / "cut", rest, settings)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    logs = [[json.loads(line) for line in (tmp_path / kind / "log.jsonl").open()] for kind in ("whole", "cut")]
    assert [line["train/loss"] for line in logs[0]] == [line["train/loss"] for line in logs[1]]


def test_averaged_weights_are_validated_and_kept_but_not_trained_from(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []

    def trained(settings: TrainConfig) -> tuple[SasRec, list[dict[str, Tensor]]]:
        own, steps = model(), []
        loss = NextItemLoss(own)

        def look() -> dict[str, float]:
            seen.append({name: value.detach().clone() for name, value in own.named_parameters()})
            return {"ndcg@10": len(seen) / 100}

        loss.register_forward_pre_hook(
            lambda *_: steps.append({name: value.detach().clone() for name, value in own.named_parameters()})
        )
        folder = tmp_path / str(settings.average_decay)
        fit(loss, samples(), settings, validate=look, folder=folder, seed=1, name="pretrain")
        return own, steps

    _, plain = trained(SETTINGS)
    own, steps = trained(AVERAGED)
    for a, b in zip(plain, steps, strict=True):  # the same path: an average never steers
        assert all(torch.equal(a[name], b[name]) for name in a)
    average = steps[0]
    for number, after in enumerate(steps[1:], 1):
        decay = min(0.5, (1 + number) / (10 + number))
        average = {name: decay * value + (1 - decay) * after[name] for name, value in average.items()}
    # The last weights are not among the steps: one more average away.
    decay = min(0.5, (1 + len(steps)) / (10 + len(steps)))
    for name, value in own.named_parameters():
        last = (value - decay * average[name]) / (1 - decay)
        assert torch.equal(seen[-1][name], value)
        assert (last - steps[-1][name]).abs().max() < 0.03  # one step of Adam at 1e-2


def test_the_best_epoch_is_kept(tmp_path: Path) -> None:
    best = model()
    train(best, tmp_path / "two", Validation(), SETTINGS.model_copy(update={"num_train_epochs": 4}))
    stopped = model()
    done = train(stopped, tmp_path / "four", Validation(0.0, 0.1, 0.9, 0.2, 0.3))
    assert (done.best_epoch, done.epoch, done.best) == (2, 4, {"ndcg@10": 0.9})
    assert any(not torch.equal(a, b) for a, b in zip(best.parameters(), stopped.parameters(), strict=True))


def test_training_that_never_helps_leaves_the_start(tmp_path: Path) -> None:
    start, trained = model(), model()
    done = train(trained, tmp_path, Validation(0.5, 0.4, 0.3, 0.2, 0.1))
    assert done.best_epoch == 0
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), trained.parameters(), strict=True))


def test_early_stopping_counts_epochs_without_a_better_one(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"early_stopping_patience": 2})
    assert train(model(), tmp_path, Validation(0.1, 0.5, 0.2, 0.2, 0.9), settings).epoch == 3


def test_max_steps_ends_training(tmp_path: Path) -> None:
    assert train(model(), tmp_path, Validation(), SETTINGS.model_copy(update={"max_steps": 5})).step == 5


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    def trained(size: int, accumulated: int) -> SasRec:
        torch.manual_seed(0)
        own = SasRec(SasRecConfig(num_items=8, hidden_size=8, dropout=0.0, max_history_items=5))
        flat = np.tile(np.arange(1, 9), 4)
        ends = np.arange(3, 19, 1)
        data = TrainingSamples(Samples.of(flat, ends - 3, ends, np.arange(len(ends))), 5, False)
        settings = SETTINGS.model_copy(
            update={
                "per_device_train_batch_size": size,
                "gradient_accumulation_steps": accumulated,
                "num_train_epochs": 1,
                "warmup_steps": 0,
            }
        )
        folder = tmp_path / str(size)
        fit(NextItemLoss(own), data, settings, validate=Validation(), folder=folder, seed=1, name="pretrain")
        return own

    one, many = trained(16, 1), trained(4, 4)
    for a, b in zip(one.parameters(), many.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_frozen_parameters_are_untouched_and_the_others_change(tmp_path: Path) -> None:
    trained = model()
    trained.item_embeddings.requires_grad_(False)
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    train(trained, tmp_path, Validation())
    changed = {name for name, value in trained.state_dict().items() if not torch.equal(value, before[name])}
    # The bias of the keys moves all scores of a query alike, so it has no gradient.
    still = {name for name in before if name.endswith("key.bias")}
    assert changed | still == set(before) - {"item_embeddings.weight"} | still


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch: Batch) -> LossTerms:
        total: Tensor = self.weight.sum() * float("nan")
        return LossTerms(total, {})


def test_a_loss_that_is_not_finite_stops_with_step_rate_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"nan at step 0 with learning rate 5\.00e-03.*lower pretrain\.train\.learning_rate"
    ):
        fit(Broken(), samples(), SETTINGS, validate=Validation(), folder=tmp_path, seed=1, name="pretrain")


def test_schedules() -> None:
    assert [schedule(step, 0, 4, "linear") for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert [schedule(step, 2, 9, "constant") for step in range(4)] == [0.5, 1.0, 1.0, 1.0]
    assert schedule(5, 0, 10, "cosine") == pytest.approx(0.5)
