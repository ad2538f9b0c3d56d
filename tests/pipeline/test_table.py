"""`PIPELINE` is the one list of stages: the command line and `run` read it, and a new stage is one more row."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from runs import STEPS

from slmrec.commands.main import main
from slmrec.config import Config
from slmrec.config.load import load_config
from slmrec.pipeline import table
from slmrec.pipeline.run import run_stage, run_steps
from slmrec.pipeline.stage import Task, pending_steps
from slmrec.pipeline.table import PIPELINE, Stage, stage_named, steps


def test_the_command_line_shows_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f"{stage.name} {stage.help}" in shown for stage in PIPELINE)
    assert [stage.name for stage in PIPELINE] == ["prepare", "pretrain", "finetune", "distill", "evaluate"]


@pytest.mark.parametrize("stage", PIPELINE, ids=lambda stage: stage.name)
def test_every_stage_has_a_command_a_section_and_a_module(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([stage.name, "--help"])
    shown = capsys.readouterr().out
    assert "--input" in shown and "--items" in shown
    assert ("--model" in shown) == (stage.models is not None)
    assert stage.name in Config.model_fields
    assert (Path(table.__file__).parent / f"{stage.name}.py").is_file()


def test_steps_follow_the_models_of_the_configuration(config: Path) -> None:
    assert [step.folder for step in steps(load_config(config, []))] == list(STEPS)
    more = load_config(config, ["pretrain.other.hidden_size=8", "distill.teacher=FOLDER"])
    expected = [*STEPS[:4], "pretrain/other", *STEPS[5:]]
    assert [step.folder for step in steps(more)] == expected


@pytest.mark.parametrize("place", [4, 5], ids=["before evaluate", "after evaluate"])
def test_a_new_stage_is_one_module_and_one_row(
    place: int, output: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def build(task: Task) -> dict[str, float]:
        calls.append(task.name)
        (task.folder / "verdict.txt").write_text("keep the student", encoding="utf-8")
        return {"verdict": 1.0}

    module = ModuleType("slmrec.pipeline.verdict")
    module.build = build  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    upstream = "distill" if place == 4 else "evaluate"
    row = Stage("verdict", "judge the student", reads=lambda config: (upstream,))
    monkeypatch.setattr(table, "PIPELINE", (*PIPELINE[:place], row, *PIPELINE[place:]))
    settings = load_config(config, [])

    def pending(settings: Config) -> list[str]:
        return [step.folder for step in pending_steps(list(steps(settings)), settings, output, force=False)]

    assert pending(settings) == (["verdict", "evaluate"] if place == 4 else ["verdict"])
    run_steps(settings, output)
    assert (output / "verdict" / "verdict.txt").is_file() and calls == ["verdict"]
    metrics = json.loads((output / "verdict" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["verdict"] == 1 and metrics["wall_s"] >= 0
    run_steps(settings, output)
    assert calls == ["verdict"] and not pending(settings)
    changed = settings.model_copy(update={"distill": settings.distill.model_copy(update={"kl_temperature": 2.0})})
    after = ["verdict", "evaluate"] if place == 4 else ["evaluate", "verdict"]
    assert pending(changed) == ["distill", *after]
    run_stage("distill", changed, output)
    if place == 5:
        run_stage("evaluate", changed, output)
    run_stage("verdict", changed, output)
    assert calls == ["verdict", "verdict"]


def test_rows_are_found_by_name() -> None:
    assert all(stage_named(stage.name) is stage for stage in PIPELINE)
