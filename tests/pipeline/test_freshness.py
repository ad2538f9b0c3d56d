"""Steps are redone when, and only when, something that their result depends on has changed."""

import json
from pathlib import Path

import pytest
from runs import STEPS, contents, refused

from slmrec.commands.main import main
from slmrec.config.load import load_config
from slmrec.errors import DataError
from slmrec.models.folder import load_recommender, note_measured
from slmrec.pipeline.stage import Task, _content, _fingerprint, is_outdated
from slmrec.pipeline.table import Step, stage_named
from slmrec.training.trainer import _Trainer


def redone(messages: pytest.LogCaptureFixture) -> list[str]:
    """Return the steps that were executed since the last call."""
    steps = [record.getMessage().split(":")[0] for record in messages.records if ": done in " in record.getMessage()]
    messages.clear()
    return steps


def test_a_finished_run_does_nothing_and_says_so(
    finished: Path, config: Path, messages: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    monkeypatch.setattr(_Trainer, "run", lambda self: pytest.fail("trained again"))
    assert main(["run", "--config", str(config), "--output", str(finished)]) == 0
    assert messages.text.count("unchanged, nothing to do") == len(STEPS)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_changed_setting_redoes_its_step_and_those_after_it(
    common: list[str], messages: pytest.LogCaptureFixture
) -> None:
    assert main(["run", *common, "distill.weights.kl=0.5"]) == 0
    assert redone(messages) == ["distill", "evaluate"]
    assert main(["run", *common, "distill.weights.kl=0.5", "pretrain.other.hidden_size=8"]) == 0
    assert redone(messages) == ["pretrain/other", "evaluate"]  # no teacher uses the other model


def test_a_step_that_was_made_from_an_earlier_one_is_not_used(
    output: Path, common: list[str], capsys: pytest.CaptureFixture[str], messages: pytest.LogCaptureFixture
) -> None:
    assert main(["pretrain", *common, "pretrain.sasrec.hidden_size=8"]) == 0
    for stage in ("distill", "evaluate"):
        error = refused([stage, *common], capsys)
        expected = f"{output / 'finetune'} was made from an earlier pretrain/sasrec; run `slmrec run`, or `slmrec finet"
        assert expected in error
    assert main(["finetune", *common]) == 0
    error = refused(["evaluate", *common], capsys)
    assert f"{output / 'distill'} was made from an earlier finetune; run `slmrec run`, or `slmrec distill` fir" in error
    redone(messages)
    assert main(["run", *common, "pretrain.sasrec.hidden_size=8"]) == 0
    assert "evaluate: student ranks the test items of 80 users" in messages.text
    assert redone(messages) == ["distill", "evaluate"]
    assert "HR@20" in capsys.readouterr().out


def test_a_model_card_redoes_no_step(output: Path) -> None:
    before = _content(output)
    for folder in (output / "finetune", output / "distill"):
        model, _ = load_recommender(folder)
        assert note_measured(folder, model, ())
        assert "Protocol" not in (folder / "README.md").read_text(encoding="utf-8")
    assert _content(output) == before
    (output / "finetune" / "about.json").unlink()
    assert not note_measured(output / "finetune", model, ())
    assert _content(output) != before  # a README of other programs counts


def test_a_backbone_is_identified_by_its_files_or_by_its_hub_id(tmp_path: Path) -> None:
    def fingerprint(source: str) -> str:
        return _fingerprint(Step(stage_named("finetune")), load_config(None, [f"finetune.backbone={source}"]), {})

    assert fingerprint("meta-llama/Llama-2-7b-hf") == fingerprint("meta-llama/Llama-2-7b-hf")
    (tmp_path / "config.json").write_text("{}")
    before = fingerprint(str(tmp_path))
    assert fingerprint(str(tmp_path)) == before
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    assert fingerprint(str(tmp_path)) != before


def test_a_base_model_depends_on_its_own_settings_and_its_item_text_alone() -> None:
    text = "item_text={one: {source: any}, two: {source: any}}"
    models = "pretrain={sasrec: {}, text: {kind: decoder, item_text: one}, more: {kind: decoder, item_text: two}}"

    def fingerprints(*overrides: str) -> list[str]:
        config = load_config(None, [text, models, *overrides])
        return [_fingerprint(step, config, {}) for step in stage_named("pretrain").steps(config)]

    before = fingerprints()
    assert len(set(before)) == 5

    def changed(*overrides: str) -> list[bool]:
        return [one != other for one, other in zip(fingerprints(*overrides), before, strict=True)]

    assert changed("pretrain.sasrec.dropout=0.1") == [False, False, True, False, False]
    assert changed("item_text.one.layer=3") == [False, False, False, True, False]
    assert changed("finetune.num_layers=4") == [False] * 5
    assert changed("seed=7") == [True] * 5


def outdate(folder: Path) -> None:
    """Make the folder of a stage look as version 0.1 left it."""
    folder.mkdir(exist_ok=True)
    record = {"fingerprint": "x", "upstream": {}, "done": True, "version": "0.1.0"}
    (folder / "stage.json").write_text(json.dumps(record), encoding="utf-8")


def fail(task: Task) -> dict[str, float]:
    raise DataError("cannot start")


@pytest.mark.parametrize("stage", ["prepare", "pretrain", "finetune", "distill", "evaluate"])
def test_folders_of_version_0_1_are_refused_and_made_again(
    stage: str, output: Path, common: list[str], capsys: pytest.CaptureFixture[str], finished: Path
) -> None:
    outdate(output / stage)
    stale = output / stage / "model.safetensors"
    if stage == "pretrain":
        stale.write_bytes(b"of version 0.1")
    for command in (stage, "run"):
        error = refused([command, *common], capsys)
        assert f"{output / stage}: made by version 0.1.0" in error and f"run `slmrec {stage} --force`" in error
    if stage in ("prepare", "finetune"):
        error = refused(["distill", *common], capsys)
        assert f"{output / stage}: made by version 0.1.0" in error
    if stage == "pretrain":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("slmrec.pipeline.pretrain.build", fail)
            assert "cannot start" in refused([stage, *common, "--force"], capsys)
        assert stale.exists() and (output / stage / "stage.json").exists()  # until the new ones are complete
        assert main([stage, *common, "--force"]) == 0
        assert not stale.exists() and not (output / stage / "stage.json").exists()
        assert contents(output / stage) == contents(finished / stage)


def test_only_versions_before_0_2_are_outdated() -> None:
    versions = ("0.1.0", "0.1.7", "0.2.0", "0.10.0", "1.0.0", None)
    assert [is_outdated(version) for version in versions] == [True, True, False, False, False, False]
