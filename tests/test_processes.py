"""The environment of the launchers, and functions of several processes in a single one."""

import os

import pytest
from runs import refused

from slmrec import processes
from slmrec.errors import ConfigError

LAUNCHED = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
SLURM = {
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4,2",
    "SLURM_STEP_NODELIST": "gpu[07,11-12]",
    "SLURM_JOB_ID": "123456",
    "SLURM_CPUS_PER_TASK": "8",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without a launcher; what a test or the program adds to it is removed afterwards."""
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def launched(environment: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        environment.setenv(name, value)


def test_one_process_is_the_main_process_and_calls_are_plain(environment: pytest.MonkeyPatch) -> None:
    assert (processes.num_processes(), processes.rank(), processes.num_local(), processes.is_main()) == (1, 0, 1, True)
    processes.start()
    processes.barrier()
    with processes.main_first() as values:
        assert values == []
    assert processes.smallest(3) == 3
    assert processes.fail(2) is None


def test_the_variables_of_torchrun(environment: pytest.MonkeyPatch) -> None:
    launched(environment, LAUNCHED | {"LOCAL_WORLD_SIZE": "1"})
    assert (processes.num_processes(), processes.rank(), processes.num_local(), processes.is_main()) == (2, 1, 1, False)
    assert list(processes.share("abcde")) == ["b", "d"]
    assert list(processes.share("abcde", on_one_machine=True)) == []
    assert processes.fail(2) == 2  # the first process of the machine reports


def test_the_variables_of_srun(environment: pytest.MonkeyPatch) -> None:
    launched(environment, SLURM | {"MASTER_PORT": "4000"})
    assert (processes.num_processes(), processes.rank(), processes.num_local()) == (6, 5, 4)
    set_now = ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    assert [os.environ[name] for name in set_now] == ["1", "gpu07", "4000", "8"]


@pytest.mark.parametrize("values", [SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, SLURM | LAUNCHED, {"SLURM_NTASKS": "4"}])
def test_srun_of_one_task_and_torchrun_in_srun_are_left_alone(
    values: dict[str, str], environment: pytest.MonkeyPatch
) -> None:
    launched(environment, values)
    assert processes.num_processes() == int(values.get("WORLD_SIZE", 1))
    assert "MASTER_ADDR" not in os.environ


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK is not set; start the processes with torchrun"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two' in the environment, expected a whole number"),
        (
            LAUNCHED | {"ACCELERATE_USE_FSDP": "true"},
            "accelerate launch set ACCELERATE_USE_FSDP to 'true', expected fals",
        ),
        (LAUNCHED, "process 1 of 2 cannot reach the others .*; check MASTER_ADDR and MASTER_PORT"),
    ],
)
def test_an_environment_that_cannot_work_is_told(
    values: dict[str, str], message: str, environment: pytest.MonkeyPatch
) -> None:
    launched(environment, values)
    with pytest.raises(ConfigError, match=message):
        processes.start()


@pytest.mark.parametrize(
    "command",
    [
        ["serve", "--model", "m"],
        ["recommend", "--model", "m", "--history", "a"],
        ["demo", "--output", "o"],
        ["ablate", "--output", "o"],
        ["cold", "--output", "o"],
        ["depth", "--output", "o"],
        ["run", "--dry-run", "--output", "o"],
        ["compare", "a", "b"],
    ],
    ids=lambda command: command[0],
)
def test_commands_of_one_process_are_refused_in_several(
    command: list[str], environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launched(environment, {"WORLD_SIZE": "4", "RANK": "0"})
    environment.setattr(processes, "start", lambda: None)
    name = "run --dry-run" if command[0] == "run" else command[0]
    error = refused(command, capsys)
    assert error == (
        f"slmrec: slmrec {name} works in one process, but WORLD_SIZE is 4; start it without torchrun, accelerate "
        "launch or srun\n"
    )
