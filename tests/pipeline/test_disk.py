"""A read-only and a full disk at every command that writes: one line, exit code 2, and the old result is kept."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from slmrec.commands.main import main

RUN = ("prepare", "pretrain", "finetune", "distill", "evaluate", "run")
COMMANDS: dict[str, Callable[[Path, Path], list[object]]] = {
    **{name: lambda run, _, name=name: [name, "--output", run, "--force"] for name in RUN},
    "report": lambda run, _: ["report", run],
    "recommend": lambda run, given: [
        *("recommend", "--model", run / "distill", "--input", given / "histories.txt", "--k", 40),
        *("--output", run.parent / "recs.parquet", "--keep-seen"),
    ],
    "export": lambda run, _: [
        *("export", "--format", "faiss", "--model", run / "distill", "--output", run.parent / "index")
    ],
    "items": lambda run, given: ["items", "add", "--model", run / "distill", "--items", given / "new.csv"],
    "demo": lambda run, _: ["demo", "--output", run.parent / "demo"],
}


@pytest.fixture
def disk(small_disk: Path) -> Path:
    """The small disk, with room for a run."""
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    return small_disk


def contents(folder: Path) -> dict[str, bytes]:
    """The files that are seen; what a command needs to continue is hidden."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


@pytest.mark.parametrize("state", ["read-only", "full"])
@pytest.mark.parametrize(
    "name", [name if name != "report" else pytest.param(name, marks=pytest.mark.heavy) for name in COMMANDS]
)
def test_a_disk_that_takes_nothing_keeps_the_old_result(
    name: str,
    state: str,
    finished: Path,
    config: Path,
    disk: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if name == "export":
        pytest.importorskip("faiss", reason="faiss is not installed")
    run = disk / "run"
    shutil.copytree(finished, run)
    (disk / "recs.parquet").write_bytes(b"old")
    (tmp_path / "histories.txt").write_text("".join(f"u{user} i01 i02\n" for user in range(500)), encoding="utf-8")
    (tmp_path / "new.csv").write_text('item_id,like\nnew,"[""i01""]"\n', encoding="utf-8")
    before = contents(disk)
    if state == "full":
        free = shutil.disk_usage(disk).free
        (disk / ".filler").write_bytes(bytes(max(0, free - (2**12 if name == "export" else 2**14))))
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    command = [str(word) for word in COMMANDS[name](run, tmp_path)]
    assert main([*command, *(["--config", str(config)] if name in RUN else []), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("slmrec: ") and error.count("\n") == 1
    assert ("Read-only file system" if state == "read-only" else "No space left on device") in error
    assert contents(disk) == before
