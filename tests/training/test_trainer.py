"""Training loop: exact resumption, the best epoch, frozen parameters, non-finite values, and step sizes."""

import json
import logging
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slmrec.config import DecoderTraining, TrainConfig
from slmrec.data.dataset import Samples
from slmrec.errors import DataError, TrainingError
from slmrec.evaluation.metrics import ranks_of_targets
from slmrec.models.sasrec import SasRec, SasRecConfig
from slmrec.training.batch_size import memory_remedies
from slmrec.training.losses import NextItemLoss
from slmrec.training.optimization import schedule
from slmrec.training.prefetch import with_batches
from slmrec.training.samples import TrainingSamples
from slmrec.training.trainer import fit
from slmrec.training.training_state import TrainingProgress
from slmrec.types import Batch, LossTerms

SETTINGS = TrainConfig(
    learning_rate=1e-2,
    num_train_epochs=4,
    per_device_train_batch_size=4,
    warmup_steps=2,
    early_stopping_patience=9,
    bf16=False,
)
LIMITED = SETTINGS.model_copy(update={"max_minutes": 0.5})
AVERAGED = SETTINGS.model_copy(update={"ema_decay": 0.5})


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


def train(trained: SasRec, folder: Path, validation: Validation, settings: TrainConfig = SETTINGS) -> TrainingProgress:
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
        folder = tmp_path / str(settings.ema_decay)
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


class Reading(nn.Module):
    """One weight that is 0, so that a loss may be anything that validation is told."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.weight, self.error = nn.Parameter(torch.zeros(1)), error

    def forward(self, batch: Batch) -> LossTerms:
        if self.error:
            raise self.error
        return LossTerms(self.weight.sum(), {})


@pytest.mark.parametrize(
    ("die_at", "expected"),
    [
        (
            1,
            r"pretrain: validation before the first step: scores of users.*; nothing has been trained yet, so",
        ),
        (
            2,
            r"pretrain: validation at step 4 with learning rate \d\.\d\de-0\d: scores of users \(counted from 0\) 7: "
            r".*; the state before this epoch is kept; lower pretrain\.train\.learning_rate or raise pretrain",
        ),
    ],
)
def test_scores_that_are_no_numbers_are_told_with_stage_step_and_rate(
    tmp_path: Path, die_at: int, expected: str
) -> None:
    calls = iter(range(1, 9))

    def validate() -> dict[str, float]:
        if next(calls) == die_at:
            ranks_of_targets(
                torch.full((1, 3), torch.nan), torch.ones(1, dtype=torch.int64), np.zeros(1), np.array([7])
            )
        return {"ndcg@10": 0.1}

    with pytest.raises(TrainingError, match=expected):
        fit(Reading(), samples(), SETTINGS, validate=validate, folder=tmp_path, seed=1, name="pretrain")


def test_memory_that_ends_is_told_with_a_remedy(tmp_path: Path) -> None:
    broken = Reading(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(TrainingError, match=r"finetune: out of memory at step 0 with 4 samples at once; set finet"):
        fit(broken, samples(), SETTINGS, validate=Validation(), folder=tmp_path, seed=1, name="finetune")


def test_remedies_name_settings_of_the_section() -> None:
    auto = "set pretrain.sasrec.train.per_device_train_batch_size=auto with reference_batch_size"
    assert memory_remedies("pretrain.sasrec", SETTINGS) == auto
    decoder = DecoderTraining(per_device_train_batch_size="auto", reference_batch_size=8)
    remedies = memory_remedies("finetune", decoder)
    assert remedies.startswith("lower finetune.train.reference_batch_size, repeat with --force")
    assert remedies.endswith(", set finetune.train.gradient_checkpointing=true")


def changed(**values: object) -> TrainConfig:
    return TrainConfig.model_validate(SETTINGS.model_dump() | values)


def test_another_batch_takes_the_square_root_of_the_rate(tmp_path: Path) -> None:
    settings = changed(reference_batch_size=16, gradient_accumulation_steps=2, warmup_steps=0)
    done = train(model(), tmp_path / "scaled", Validation(), settings)
    assert (done.samples_per_step, done.samples_at_once) == (8, 4)
    assert done.peak_learning_rate == pytest.approx(1e-2 * 0.5**0.5)
    by_hand, scaled = model(), model()
    train(by_hand, tmp_path / "hand", Validation(), changed(learning_rate=5e-3))
    train(scaled, tmp_path / "root", Validation(), changed(reference_batch_size=16))
    assert all(torch.equal(a, b) for a, b in zip(by_hand.parameters(), scaled.parameters(), strict=True))


AUTO = {"per_device_train_batch_size": "auto", "reference_batch_size": 4}


def test_auto_is_the_whole_batch_where_it_fits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "slmrec")
    auto, whole = model(), model()
    done = train(auto, tmp_path / "auto", Validation(), changed(**AUTO))
    message = "pretrain: 4 samples per step, 4 at once; learning rate 1.00e-02 (1.00e-02 for 4 samples)"
    assert message in caplog.messages
    assert (done.samples_at_once, done.samples_per_step, done.peak_learning_rate) == (4, 4, 1e-2)
    train(whole, tmp_path / "whole", Validation())
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), auto.parameters(), strict=True))


def test_pieces_of_any_size_take_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of one step have unequal numbers of positions, which all weigh alike."""
    flat, ends = np.tile(np.arange(1, 9), 4), np.arange(3, 19)
    starts = ends - 1 - ends % 4
    data = TrainingSamples(Samples.of(flat, starts, ends, np.arange(len(ends))), 5, True)

    def trained(at_once: int) -> SasRec:
        monkeypatch.setattr("slmrec.training.trainer.largest_that_fits", lambda *arguments: at_once)
        torch.manual_seed(0)
        own = SasRec(SasRecConfig(num_items=8, hidden_size=8, dropout=0.0, max_history_items=5))
        folder, settings = tmp_path / str(at_once), changed(**AUTO | {"reference_batch_size": 6})
        fit(NextItemLoss(own), data, settings, validate=Validation(), folder=folder, seed=1, name="pretrain")
        return own

    whole = trained(6)
    for at_once in (1, 2, 4):
        for a, b in zip(whole.parameters(), trained(at_once).parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_resumed_training_keeps_its_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slmrec.training.trainer.largest_that_fits", lambda *arguments: 3)
    whole = model()
    train(whole, tmp_path / "whole", Validation(), changed(**AUTO))
    with pytest.raises(KeyboardInterrupt):
        train(model(), tmp_path / "cut", Validation(die_after=3), changed(**AUTO))
    monkeypatch.setattr("slmrec.training.trainer.largest_that_fits", lambda *arguments: pytest.fail("measured again"))
    resumed = model()
    done = train(resumed, tmp_path / "cut", Validation(*np.linspace(0.1, 0.5, 9)[3:]), changed(**AUTO))
    assert done.samples_at_once == 3
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


class TwoModels(nn.Module):
    """Loss of two models of one parameter each, the gradient of one of which is 1,000 times the other's."""

    def __init__(self, apart: tuple[str, ...]) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        self.clipped_apart = apart
        for model in (self.student, self.teacher):
            nn.init.zeros_(model.weight)

    def forward(self, batch: Batch) -> LossTerms:
        total = self.student.weight.sum() + 1000 * self.teacher.weight.sum()
        return LossTerms(total, {})


@pytest.mark.parametrize(("apart", "norms"), [((), [0.001, 1.0]), (("teacher.",), [1.0, 1.0])])
def test_gradients_are_clipped_together_unless_the_loss_says_apart(
    apart: tuple[str, ...], norms: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, seen = TwoModels(apart), list[list[float]]()

    def step(optimizer: torch.optim.AdamW) -> None:
        seen.append([float(model.weight.grad.norm()) for model in (loss.student, loss.teacher)])

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    settings = SETTINGS.model_copy(update={"max_steps": 1, "num_train_epochs": 1})
    fit(loss, samples(), settings, validate=Validation(), folder=tmp_path, seed=1, name="distill")
    assert seen == [pytest.approx(norms, rel=1e-3)]


def test_schedules() -> None:
    assert [schedule(step, 0, 4, "linear") for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert [schedule(step, 2, 9, "constant") for step in range(4)] == [0.5, 1.0, 1.0, 1.0]
    assert schedule(5, 0, 10, "cosine") == pytest.approx(0.5)


class Clock:
    """A clock that moves on by a second whenever it is read."""

    now = 0.0

    def perf_counter(self) -> float:
        self.now += 1
        return self.now


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_training_ends_in_time_with_its_schedule(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock, rates = Clock(), list[float]()
    monkeypatch.setattr("slmrec.training.trainer.time", clock)
    adamw = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *given: (rates.append(self.param_groups[0]["lr"]), adamw(self, *given))[1],
    )
    settings = LIMITED.model_copy(update={"num_train_epochs": 50, "lr_scheduler_type": kind})
    with caplog.at_level(logging.INFO, "slmrec"):
        progress = train(model(), tmp_path, Validation(0.1, 0.2, 0.5, 0.3), settings)
    assert progress.reached_max_minutes and progress.best_epoch == 2 and 3 <= progress.epoch < 9
    assert progress.seconds <= 33 and "max_minutes (0.50) are over in epoch" in caplog.text
    if kind != "constant":
        assert rates[3:] == sorted(rates[3:], reverse=True) and rates[-1] < 0.1 * rates[2]
    assert train(model(), tmp_path, Validation(), settings).step == progress.step  # nothing more after a resumption


def test_a_limit_that_is_not_reached_changes_nothing(tmp_path: Path) -> None:
    free, limited = model(), model()
    train(free, tmp_path / "free", Validation())
    progress = train(limited, tmp_path / "limited", Validation(), SETTINGS.model_copy(update={"max_minutes": 60}))
    assert not progress.reached_max_minutes and progress.epoch == 4
    for name, value in free.state_dict().items():
        assert torch.equal(value, limited.state_dict()[name]), name


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches made in a thread, as for a GPU, without pinned memory."""
    made = partial(with_batches, device=torch.device("cuda"))
    monkeypatch.setattr("slmrec.training.trainer.with_batches", lambda steps, collate, _: made(steps, collate))
    monkeypatch.setattr(Batch, "pinned", lambda batch: batch)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["train/loss"] for line in (folder / "log.jsonl").open()]


def test_batches_made_ahead_of_time_change_nothing(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    plain, other = model(), model()
    train(plain, tmp_path / "plain", Validation())
    request.getfixturevalue("ahead")
    with pytest.raises(KeyboardInterrupt):
        train(model(), tmp_path / "ahead", Validation(die_after=2))
    train(other, tmp_path / "ahead", Validation(*np.linspace(0.1, 0.5, 9)[2:]))
    assert losses(tmp_path / "ahead") == losses(tmp_path / "plain")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in plain.state_dict().items())


@pytest.mark.usefixtures("ahead")
def test_an_error_in_the_thread_of_batches_reaches_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def collate(data: TrainingSamples, rows: Any) -> Batch:
        assert threading.current_thread().name.startswith("batches")
        raise DataError("a part of the data is gone")

    monkeypatch.setattr(TrainingSamples, "unchanged", collate)
    with pytest.raises(DataError, match="a part of the data is gone"):
        train(model(), tmp_path, Validation())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]
