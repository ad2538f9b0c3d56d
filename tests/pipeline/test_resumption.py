"""A run that was interrupted in any stage ends with the same files as one that was not."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runs import STEPS, contents

from slmrec.commands.main import main

KILLED_IN = {
    "prepare": "slmrec.data.prepare._fingerprint = dead",
    "pretrain/sasrec": "Trainer._record = dead_after_an_epoch",
    "finetune": "Trainer._record = dead_after_an_epoch",
    "distill": "Trainer._record = dead_after_an_epoch",
    "distill (outputs of the teacher)": "slmrec.training.teacher_cache.by_length = dead_after_a_batch",
    "evaluate": "slmrec.pipeline.evaluate.throughput = dead",
}
KILLING = """
import os, signal, sys
import slmrec.commands.main, slmrec.data.prepare, slmrec.pipeline.evaluate, slmrec.training.teacher_cache
from slmrec.training.trainer import _Trainer as Trainer

record, by_length = Trainer._record, slmrec.training.teacher_cache.by_length

def dead(*arguments, **keywords):
    os.kill(os.getpid(), signal.SIGKILL)

def dead_after_an_epoch(trainer, *arguments):
    if trainer.name == sys.argv[1] and trainer.progress.epoch == 2:
        dead()
    record(trainer, *arguments)

def dead_after_a_batch(samples, batch_size, *arguments):
    yield next(by_length(samples, 8, *arguments))
    dead()

{patch}
slmrec.commands.main.main(sys.argv[2:])
"""


@pytest.mark.heavy
@pytest.mark.heavy
@pytest.mark.parametrize("where", KILLED_IN)
def test_a_run_killed_in_a_stage_ends_with_the_same_files(
    where: str, finished: Path, config: Path, tmp_path: Path
) -> None:
    command = ["run", "--config", str(config), "--output", str(tmp_path)]
    step = where.split(maxsplit=1)[0]
    for earlier in (*STEPS[: STEPS.index(step)], *(["teacher_outputs"] if step == "evaluate" else [])):
        shutil.copytree(finished / earlier, tmp_path / earlier)
    program = KILLING.format(patch=KILLED_IN[where])
    arguments = [sys.executable, "-c", program, step.replace("/", "."), *command]
    killed = subprocess.run(arguments, check=False, capture_output=True, timeout=250)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    folder = tmp_path / step
    partial = folder.parent / f".{folder.name}.partial"
    assert not folder.exists() and partial.exists()
    (partial / "half").mkdir()
    (partial / "half" / "written.parquet").write_bytes(b"PAR1")
    assert main(command) == 0
    ours, theirs = contents(tmp_path), contents(finished)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name] == theirs[name], name
    assert not list(tmp_path.rglob(".*"))


def test_a_teacher_whose_weights_were_not_fitted_keeps_its_training(
    common: list[str],
    output: Path,
    capsys: pytest.CaptureFixture[str],
    messages: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> list[float]:
        raise KeyboardInterrupt

    command = ["finetune", *common, "finetune.ensemble=[sasrec]"]
    with monkeypatch.context() as patched:
        patched.setattr("slmrec.pipeline.ensemble_weights.fit_weights", fail)
        assert main(command) == 130
    capsys.readouterr()
    assert main(command) == 0
    assert "after epoch" in messages.text + capsys.readouterr().out
    assert not list((output / "finetune" / "training").glob("*.safetensors"))
