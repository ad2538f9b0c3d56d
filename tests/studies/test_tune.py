"""The search for settings: what is varied, and trials that are pruned, resumed and written as YAML."""

import json
import sys
from pathlib import Path

import pytest
from runs import refused

from slmrec.commands.main import main
from slmrec.config.load import load_config
from slmrec.studies.search_space import search_space


def test_the_space_of_a_student_holds_what_its_recipe_uses() -> None:
    space = {one.key: one for one in search_space(load_config("words", []), "distill")}
    assert set(space) == {
        "distill.train.learning_rate",
        "distill.student.dropout",
        "distill.student.num_hidden_layers",
        "distill.kl_temperature",
    }
    rate = space["distill.train.learning_rate"]
    assert (rate.value, rate.low, rate.high, rate.log) == (2e-3, 5e-4, 8e-3, True)
    assert space["distill.student.num_hidden_layers"].is_integer


def test_only_the_proportions_of_loss_terms_are_searched() -> None:
    keys = [one.key for one in search_space(load_config("tiny", []), "distill")]
    assert [key for key in keys if ".weights." in key] == [
        f"distill.weights.{name}" for name in ("cosine", "norm", "multiple", "kl")
    ]


def test_every_value_of_a_recipe_lies_in_its_range() -> None:
    for name, stage, model in (("words", "pretrain", "text"), ("smollm2", "finetune", None), ("toys", "distill", None)):
        space = search_space(load_config(name, []), stage, model)
        assert space and all(one.low <= one.value <= one.high and one.low < one.high for one in space)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "finetune", "--config", "words"], "finetune.backbone is null"),
        (["--stage", "pretrain", "--config", "words"], "choose one with --model NAME"),
        (["--stage", "pretrain", "--model", "bert", "--config", "words"], "--model is 'bert'"),
        (["--stage", "distill", "--model", "text", "--config", "words"], "--model is 'text'"),
        (["--trials", "0", "--config", "tiny"], "--trials is 0"),
        (["--time-budget", "soon", "--config", "tiny"], "soon"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("slmrec.studies.tune._optuna", lambda: None)
    assert message in refused(["tune", *arguments, "--output", str(tmp_path / "out")], capsys)
    assert not (tmp_path / "out" / "prepare").exists()


def test_without_optuna_the_message_names_the_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    error = refused(["tune", "--config", "tiny", "--output", str(tmp_path / "out")], capsys)
    assert "pip install 'slmrec[tune]'" in error


@pytest.mark.heavy
def test_a_search_is_pruned_resumed_and_written(
    shop_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    optuna = pytest.importorskip("optuna")
    output = tmp_path / "out"
    tiny = ["--config", "tiny", "--input", str(shop_file), "--output", str(output)]
    arguments = ["tune", *tiny, "--stage", "pretrain", "pretrain.sasrec.train.num_train_epochs=3"]
    assert main([*arguments, "--trials", "1"]) == 0
    backend = optuna.storages.journal.JournalFileBackend(str(output / "tune" / "journal.log"))
    storage = optuna.storages.JournalStorage(backend)

    def trials() -> list[optuna.trial.FrozenTrial]:
        return list(optuna.load_study(study_name="pretrain/sasrec", storage=storage).trials)

    assert trials()[0].params["pretrain.sasrec.train.learning_rate"] == 5e-3  # the recipe is the first trial
    killed = optuna.load_study(study_name="pretrain/sasrec", storage=storage).ask()  # as by a call that was killed
    killed.suggest_float("pretrain.sasrec.train.learning_rate", 1.25e-3, 2e-2, log=True)
    assert main([*arguments, "--trials", "5"]) == 0
    states = [trial.state.name for trial in trials()]
    assert sum(state in ("COMPLETE", "PRUNED") for state in states) == 5 and "RUNNING" not in states
    rates = [trial.params["pretrain.sasrec.train.learning_rate"] for trial in trials()]
    assert rates[1] in rates[2:]  # which is tried again
    best = max(trial.value for trial in trials() if trial.state.name == "COMPLETE")
    assert all(len(trial.intermediate_values) == 3 for trial in trials() if trial.state.name == "COMPLETE")
    folders = list((output / "tune" / "trials").glob("*/pretrain/sasrec"))
    assert len(folders) == 1  # that of the best trial
    assert json.loads((folders[0] / "metrics.json").read_text())["valid/ndcg@10"] == pytest.approx(best)
    config = load_config(str(output / "tune" / "best.yaml"), [])
    shown = max(trials(), key=lambda trial: trial.value if trial.state.name == "COMPLETE" else -1)
    assert config.pretrain["sasrec"].train.learning_rate == shown.params["pretrain.sasrec.train.learning_rate"]
    error = refused([*arguments, "--trials", "6", "seed=7"], capsys)
    assert "other settings" in error and "--force" in error
    assert main([*arguments, "--trials", "2", "--time-budget", "1s", "--force"]) == 0  # one trial is always finished
    assert [trial.state.name for trial in trials()].count("COMPLETE") >= 1
