"""Steps that several runs share: executed once, redone once by --force, linked, and never over other folders."""

from pathlib import Path

import pytest

from slmrec.config import Config
from slmrec.errors import CheckpointError
from slmrec.pipeline.stage import Task, run_step
from slmrec.pipeline.table import Stage, Step
from slmrec.studies.shared_steps import SharedSteps

STEP = Step(Stage("prepare", "count the calls"))
BUILT: list[Path] = []


def build(task: Task) -> dict[str, float]:
    BUILT.append(task.output)
    (task.folder / "number.txt").write_text(str(len(BUILT)), encoding="utf-8")
    return {}


@pytest.fixture(autouse=True)
def none_built() -> None:
    BUILT.clear()


def run(shared: SharedSteps, output: Path, seed: int = 0, force: bool = False) -> str:
    shared.run(STEP, Config(seed=seed), output, force, build)
    return (output / "prepare" / "number.txt").read_text(encoding="utf-8")


def test_equal_steps_are_executed_once(tmp_path: Path) -> None:
    shared = SharedSteps(tmp_path / "steps", tmp_path / "home")
    assert [run(shared, tmp_path / name) for name in ("a", "b")] == ["1", "1"]
    assert run(shared, tmp_path / "c", seed=1) == "2"
    links = [tmp_path / name / "prepare" for name in ("a", "b", "c")]
    assert all(link.is_symlink() and not link.readlink().is_absolute() for link in links)
    assert links[0].resolve() == links[1].resolve() != links[2].resolve()


def test_force_redoes_a_step_once(tmp_path: Path) -> None:
    assert run(SharedSteps(tmp_path / "steps", tmp_path / "home"), tmp_path / "a") == "1"
    again = SharedSteps(tmp_path / "steps", tmp_path / "home")
    assert [run(again, tmp_path / name, force=True) for name in ("a", "b")] == ["2", "2"]


def test_other_settings_point_the_link_elsewhere(tmp_path: Path) -> None:
    shared = SharedSteps(tmp_path / "steps", tmp_path / "home")
    assert [run(shared, tmp_path / "a", seed) for seed in (0, 1, 0)] == ["1", "2", "1"]


def test_finished_steps_of_the_home_run_are_used(tmp_path: Path) -> None:
    run_step(STEP, Config(seed=0), tmp_path / "home", build=build)
    shared = SharedSteps(tmp_path / "home" / "language" / "steps", tmp_path / "home")
    assert run(shared, tmp_path / "home" / "language" / "a") == "1" and len(BUILT) == 1
    assert (tmp_path / "home" / "language" / "a" / "prepare").resolve() == (tmp_path / "home" / "prepare").resolve()
    assert run(shared, tmp_path / "home" / "language" / "a", force=True) == "2"
    assert (tmp_path / "home" / "prepare" / "number.txt").read_text(encoding="utf-8") == "1"


def test_other_folders_and_links_stay(tmp_path: Path) -> None:
    shared = SharedSteps(tmp_path / "steps", tmp_path / "home")
    (tmp_path / "a" / "prepare").mkdir(parents=True)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "prepare").symlink_to("../thesis")
    for name in ("a", "b"):
        with pytest.raises(CheckpointError, match="is in the way of a link to "):
            run(shared, tmp_path / name)
    assert (tmp_path / "b" / "prepare").readlink() == Path("../thesis")
