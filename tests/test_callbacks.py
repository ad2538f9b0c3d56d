"""Callbacks of a run: what they are told, and runs that one of them stops."""

from pathlib import Path
from typing import Any

import pytest

import slmrec
from slmrec import Callback, Config
from slmrec.errors import ConfigError
from slmrec.files import sha256


class Recorder(Callback):
    """Notes every call, and stops a run after an epoch."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.stop_after = stop_after

    def on_stage_start(self, stage: str) -> None:
        self.calls.append(("start", stage))

    def on_epoch_end(self, stage: str, epoch: int, metrics: dict[str, float]) -> None:
        assert metrics["epoch"] == epoch and 0 <= metrics["valid/ndcg@10"] <= 1 and metrics["train/loss"] > 0
        assert {type(value) for value in metrics.values()} == {int, float}
        metrics.clear()  # a copy
        self.calls.append(("epoch", stage, epoch))
        if epoch == self.stop_after:
            raise RuntimeError("enough")

    def on_stage_end(self, stage: str, metrics: dict[str, float]) -> None:
        assert metrics["wall_s"] >= 0
        self.calls.append(("end", stage))


class OnlyEpochs(Callback):
    epochs = 0

    def on_epoch_end(self, stage: str, epoch: int, metrics: dict[str, float]) -> None:
        self.epochs += 1


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr("slmrec.run.write_report", lambda output: None)
    sasrec = {"hidden_size": 8, "train": {"num_train_epochs": 3}, "max_history_items": 20}
    return Config.model_validate(
        {
            "pretrain": {"sasrec": sasrec},
            "finetune": {"ensemble": []},
            "distill": {"teacher": None},
            "evaluate": {"protocols": ["full_history_excluded"], "timing_users": 10},
        }
    )


def whole(stage: str) -> list[tuple[str, str]]:
    return [("start", stage), ("end", stage)]


def test_a_run_that_a_callback_stops_is_resumed(shop_file: Path, config: Config, tmp_path: Path) -> None:
    stopping, going_on, other, never = Recorder(stop_after=2), Recorder(), OnlyEpochs(), Recorder()
    with pytest.raises(RuntimeError, match="enough"):
        slmrec.fit(shop_file, config=config, output=tmp_path / "run", callbacks=[other, stopping])
    epochs = [("epoch", "pretrain/sasrec", epoch) for epoch in (1, 2, 3)]
    before = [call for stage in ("prepare", "pretrain/popularity", "pretrain/cooccurrence") for call in whole(stage)]
    assert stopping.calls == [*before, ("start", "pretrain/sasrec"), *epochs[:2]] and other.epochs == 2
    assert not list((tmp_path / "run").rglob("*.lock")) and not (tmp_path / "run" / "pretrain" / "sasrec").exists()

    run = slmrec.fit(shop_file, config=config, output=tmp_path / "run", callbacks=(going_on,))
    after = [("start", "pretrain/sasrec"), epochs[2], ("end", "pretrain/sasrec"), *whole("evaluate")]
    assert going_on.calls == after
    whole_run = slmrec.fit(shop_file, config=config, output=tmp_path / "whole")
    weights = [sha256(one.folder / "pretrain" / "sasrec" / "model.safetensors") for one in (run, whole_run)]
    assert weights[0] == weights[1]

    slmrec.fit(shop_file, config=config, output=tmp_path / "run", callbacks=[never])
    assert never.calls == [] and len(going_on.calls) == len(after)


@pytest.mark.parametrize(
    ("callbacks", "expected"),
    [
        (Recorder(), "callbacks is a Recorder; expected a list"),
        ([Recorder], r"callbacks\[0\] is the class Recorder; give an object"),
        ([Recorder(), 3], r"callbacks\[1\] is a int; derive its class from slmrec\.Callback"),
        ([print], r"callbacks\[0\] is a builtin_function_or_method; derive"),
    ],
)
def test_no_callbacks(callbacks: Any, expected: str, shop_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=expected):
        slmrec.fit(shop_file, output=tmp_path / "run", callbacks=callbacks)
    assert not (tmp_path / "run").exists()
