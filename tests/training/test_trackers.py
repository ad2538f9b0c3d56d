"""Live view: losses in the bar or in log lines, the curves of the log in the trackers, and missing trackers."""

import inspect
import json
import logging
from pathlib import Path

import pytest
import yaml
from accelerate import tracking

from slmrec.commands.main import main
from slmrec.config.load import load_config
from slmrec.errors import ConfigError
from slmrec.training.trackers import STEPS_BETWEEN, Live, Trackers


def test_the_bar_tells_losses_by_term_and_the_last_validation() -> None:
    live = Live("distill", Trackers(), shown=False)
    with live:
        live.begin(1, 3)
        live.step(1, {"loss": 2.0, "ce": 1.5}, 0.1)
        live.step(2, {"loss": 4.0, "ce": 2.5}, 0.1)
        [task] = live._bar.tasks
        assert task.description == "distill epoch 1: loss 3.0000, ce 2.0000" and (task.completed, task.total) == (2, 3)
        live.validated(2, {"ndcg@10": 0.25})
        live.begin(2, 3)
        [task] = live._bar.tasks
        assert task.description == "distill epoch 2; valid NDCG@10 0.2500" and task.completed == 0
        live.step(3, {"loss": 1.0, "ce": 0.5}, 0.1)
        assert live.means == {"loss": 1.0, "ce": 0.5}


def test_a_notebook_or_file_gets_log_lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "slmrec")
    monkeypatch.setattr("slmrec.training.trackers._SECONDS_BETWEEN_LINES", 0.0)
    for shown in (False, True):
        with Live("distill", Trackers(), shown) as live:
            live.begin(1, 3)
            live.step(1, {"loss": 2.0}, 0.1)
            assert live._bar.disable
    assert caplog.messages == ["distill epoch 1: loss 2.0000 (1 of 3 steps)"]


@pytest.mark.heavy
def test_tensorboard_gets_the_curves_of_the_log(tiny_recipe: str, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(yaml.safe_load(tiny_recipe) | {"report_to": ["tensorboard"]}), encoding="utf-8")
    run = tmp_path / "run"
    for stage in ("prepare", "pretrain"):
        assert (
            main([stage, "--config", str(recipe), "--output", str(run), "pretrain.sasrec.train.num_train_epochs=8"])
            == 0
        )
    lines = [json.loads(line) for line in (run / "pretrain" / "sasrec" / "training" / "log.jsonl").open()]
    events = accumulator.EventAccumulator(str(run / "tensorboard" / "pretrain.sasrec"))
    events.Reload()
    validated = [(point.step, point.value) for point in events.Scalars("valid/ndcg_10")]
    assert validated == [(line["step"], pytest.approx(line["valid/ndcg@10"])) for line in lines]
    losses = events.Scalars("train/loss")
    assert [point.step for point in losses] == list(range(STEPS_BETWEEN, lines[-1]["step"] + 1, STEPS_BETWEEN))
    assert losses[-1].value < losses[0].value
    assert events.Scalars("learning_rate")[0].value == pytest.approx(5e-3)


@pytest.mark.heavy
def test_reporting_redoes_no_stage(tiny_recipe: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "slmrec")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny_recipe, encoding="utf-8")
    command = ["--config", str(recipe), "--output", str(tmp_path / "run")]
    for stage in ("prepare", "pretrain"):
        assert main([stage, *command]) == 0
    caplog.clear()
    assert main(["pretrain", *command, "report_to=[tensorboard]"]) == 0
    assert "pretrain/sasrec: unchanged, nothing to do" in caplog.text


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio", "tensorboard"])
def test_every_tracker_is_asked_for_what_it_knows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signature = inspect.signature(tracking.LOGGER_TYPE_TO_CLASS[name].__init__)
    asked = []

    class Asked:
        def __init__(self, **settings: object) -> None:
            signature.bind(self, **settings)
            asked.append(settings)

        def start(self) -> None:
            asked.append({"started": name})

        def store_init_configuration(self, values: dict[str, object]) -> None:
            asked.append(values)

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, name, Asked)
    monkeypatch.setattr("slmrec.training.trackers.get_available_trackers", lambda: [name])
    config = load_config("tiny", ["prepare.input=https://ann:secret@host/log.csv"])
    Trackers((name,), tmp_path / "beauty", config.model_dump(mode="json")).start("distill")
    assert asked[1] == {"started": name}
    assert asked[2]["pretrain.sasrec.train.learning_rate"] == 5e-3 and asked[2]["distill.weights.kl"] == 1.0
    assert asked[2]["evaluate.protocols"] == '["full_history_excluded", "full"]'
    assert "secret" not in str(asked[2]) and all(
        isinstance(value, bool | float | int | str) for value in asked[2].values()
    )
    assert "beauty/distill" in asked[0].values() or asked[0]["logging_dir"] == tmp_path / "beauty" / "tensorboard"


def test_a_tracker_that_is_not_installed_is_told_before_training(
    tiny_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("slmrec.training.trackers.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ConfigError, match="report_to names wandb, which is not installed; run: pip install wandb"):
        Trackers(("tensorboard", "wandb"), tmp_path).check()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny_recipe, encoding="utf-8")
    command = ["--config", str(recipe), "--output", str(tmp_path / "run")]
    assert main(["prepare", *command]) == 0
    assert main(["pretrain", *command, "report_to=[wandb]"]) == 2
    assert "pip install wandb" in capsys.readouterr().err and not (tmp_path / "run" / "pretrain" / "sasrec").exists()


def test_an_unknown_tracker_is_refused(tiny_recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny_recipe, encoding="utf-8")
    assert main(["prepare", "--config", str(recipe), "--output", str(tmp_path / "run"), "report_to=[excel]"]) == 2
    assert "excel" in capsys.readouterr().err
