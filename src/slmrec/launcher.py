"""The environment that torchrun, `accelerate launch` or srun gives to the processes of a run."""

import os
import re

from slmrec.errors import ConfigError

_SUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": ("false",),
    "ACCELERATE_USE_FSDP": ("false",),
    "ACCELERATE_USE_MEGATRON_LM": ("false",),
    "ACCELERATE_USE_TP": ("false",),
    "ACCELERATE_MIXED_PRECISION": ("no", "bf16"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1",),
    "ACCELERATE_DYNAMO_BACKEND": ("no",),
}
"""Variables of accelerate that choose how a training works, and their values that the training of slmrec follows."""


def check_methods() -> None:
    """Refuse options of `accelerate launch` that would have no effect.

    Raises:
        ConfigError: There is one.
    """
    for name, supported in _SUPPORTED.items():
        if (value := os.environ.get(name, supported[0])).lower() not in supported:
            raise ConfigError(
                f"accelerate launch set {name} to {value!r}, expected {' or '.join(supported)}; start it without this "
                "option (batches, precision and train.fsdp are settings of slmrec)"
            )


def number_of(name: str, default: int) -> int:
    """Return a variable that holds a whole number.

    Raises:
        ConfigError: It holds something else.
    """
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise ConfigError(f"{name} is {text!r} in the environment, expected a whole number; correct it, or unset it")
    return int(text)


def translate_slurm() -> None:
    """Set the variables of torchrun from those of srun, where a step of SLURM has several tasks."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if "WORLD_SIZE" in os.environ or tasks == "1" or "SLURM_PROCID" not in os.environ:
        return
    given = {
        "WORLD_SIZE": tasks,
        "RANK": os.environ["SLURM_PROCID"],
        "LOCAL_RANK": os.environ.get("SLURM_LOCALID", "0"),
    }
    local = re.match(r"\d+", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))  # such as 4(x2),3
    job = number_of("SLURM_JOB_ID", 0) + number_of("SLURM_STEP_ID", 0)
    defaults = {
        "LOCAL_WORLD_SIZE": local[0] if local else tasks,
        "MASTER_ADDR": first_host(os.environ.get("SLURM_STEP_NODELIST", "localhost")),
        "MASTER_PORT": str(20000 + job % 20000),
        "OMP_NUM_THREADS": os.environ.get("SLURM_CPUS_PER_TASK", "1"),
    }
    os.environ.update(given | {name: value for name, value in defaults.items() if name not in os.environ})


def first_host(nodes: str) -> str:
    """Return the first host of a list of SLURM.

    Example:
        >>> first_host("gpu[003-010,12],cpu1"), first_host("a1,a2")
        ('gpu003', 'a1')
    """
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes)[0])
