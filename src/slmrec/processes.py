"""The processes of one run, as started by torchrun, `accelerate launch` or srun: the only door to torch.distributed.

Every process executes the same steps. The main process alone prepares, writes, logs and reports; the others wait for it
in `on_main` and `barrier`. With one process every function here is a plain call, and torch is not imported.
"""

import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from slmrec import errors
from slmrec.errors import ConfigError, SlmrecError
from slmrec.launcher import check_methods, number_of, translate_slurm

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")
MAX_WAIT = timedelta(days=30)
"""Longest wait for the main process, which may prepare data for hours; a process that ends is noticed at once."""
_FAILURES, _EXIT_CODE = "slmrec/failures", "slmrec/exit_code"
_SECONDS_TO_NOTICE = 5.0
"""Time that a failed main process leaves to the others to read its exit code, which it may hold for them."""
_control: list[Any] = []
"""The group (gloo) for waiting and for small messages, and the store of exit codes; empty before `start`."""


def num_processes() -> int:
    """Return the number of processes of this run.

    Raises:
        ConfigError: The environment is incomplete.

    Example:
        >>> num_processes(), rank(), is_main()
        (1, 0, True)
    """
    translate_slurm()
    number = number_of("WORLD_SIZE", 1)
    if number > 1 and "RANK" not in os.environ:
        raise ConfigError(
            f"WORLD_SIZE is {number}, but RANK is not set; start the processes with torchrun, accelerate launch or "
            "srun, or unset WORLD_SIZE"
        )
    return max(1, number)


def rank() -> int:
    """Return the number of this process, from 0."""
    return number_of("RANK", 0) if num_processes() > 1 else 0


def is_main() -> bool:
    """Return whether this is the main process, the one that writes and reports."""
    return rank() == 0


def num_local() -> int:
    """Return the number of processes of this run on this machine."""
    return number_of("LOCAL_WORLD_SIZE", num_processes()) if num_processes() > 1 else 1


def refuse_several(what: str) -> None:
    """Refuse something that works in one process only.

    Args:
        what: The command.

    Raises:
        ConfigError: There are several processes.
    """
    if (number := num_processes()) > 1:
        raise ConfigError(
            f"{what} works in one process, but WORLD_SIZE is {number}; start it without torchrun, accelerate launch or "
            "srun"
        )


def start() -> None:
    """Connect with the other processes of the run, unless that has been done or there are none.

    Raises:
        ConfigError: They cannot be reached, or the machine has fewer GPUs than processes.
    """
    if num_processes() == 1 or _control:
        return
    check_methods()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else a lost process is also reported as a warning of C++
    import torch
    from torch import distributed

    has_gpu = torch.cuda.is_available()
    if has_gpu and num_local() > torch.cuda.device_count():
        raise ConfigError(
            f"{num_local()} processes on a machine with {torch.cuda.device_count()} GPUs; start one process for each "
            "GPU, or set CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    if has_gpu:
        torch.cuda.set_device(number_of("LOCAL_RANK", rank() % num_local()))
    try:
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if has_gpu else "gloo")
        group = distributed.new_group(backend="gloo", timeout=MAX_WAIT)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"process {rank()} of {num_processes()} cannot reach the others ({reason}); check MASTER_ADDR and "
            "MASTER_PORT, and that all processes were started"
        ) from None
    _control.extend((group, distributed.distributed_c10d._get_default_store()))


def stop(failed: bool = False) -> None:
    """Disconnect from the other processes; they notice at once if they still wait for this one."""
    if not _control:
        return
    from torch import distributed

    _, store = _control
    _control.clear()
    distributed.destroy_process_group()
    deadline = time.monotonic() + _SECONDS_TO_NOTICE
    while failed and is_main() and time.monotonic() < deadline and store.add(_FAILURES, 0) < num_processes():
        time.sleep(0.05)


def fail(exit_code: int) -> int | None:
    """Tell the other processes that this one fails, so that only the first one reports its error.

    Args:
        exit_code: Exit code of this process.

    Returns:
        None if this process is the first and reports; otherwise the exit code of the first, to exit with in silence.
    """
    if not _control:  # before `start`, all processes of a machine fail alike
        is_one = os.environ.get("WORLD_SIZE", "1") == "1"
        return None if is_one or os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0" else exit_code
    store = _control[1]
    try:
        if store.add(_FAILURES, 1) == 1:
            store.set(_EXIT_CODE, str(exit_code))
            return None
        return int(store.get(_EXIT_CODE))
    except RuntimeError:  # the process that holds the store was killed
        return None


def is_lost(error: Exception) -> bool:
    """Return whether an error says that another process of the run has ended."""
    if num_processes() == 1 or not isinstance(error, RuntimeError):
        return False
    from torch import distributed

    return isinstance(error, distributed.DistError) or "gloo" in str(error) or "Connection" in str(error)


def on_main(function: Callable[[], T]) -> T:
    """Call a function on the main process alone, and return its result on all.

    Args:
        function: Function whose result can be written as JSON.

    Raises:
        SlmrecError: The function raised it; all processes do.

    Example:
        >>> on_main(lambda: 2 + 3)
        5
    """
    with main_first() as announce:
        if is_main():
            announce.append(function())
    return announce[0]  # type: ignore[no-any-return]


@contextmanager
def main_first() -> Iterator[list[Any]]:
    """Execute the context on the main process, and then on the others, which find what the main process has written.

    Yields:
        A list; the others find in it what the main process has put there, which must be JSON.

    Raises:
        SlmrecError: The main process raised it; all processes do.
    """
    values: list[Any] = []
    if not is_main():
        outcome = json.loads(_broadcast())
        if "error" in outcome:
            raise getattr(errors, outcome["error"])(outcome["message"])
        values.extend(outcome["values"])
    try:
        yield values
    except SlmrecError as error:
        if is_main():
            _broadcast(json.dumps({"error": type(error).__name__, "message": str(error)}))
        raise
    if is_main():
        _broadcast(json.dumps({"values": values}) if num_processes() > 1 else "")


def barrier() -> None:
    """Wait until all processes are here."""
    if num_processes() > 1:
        total(_zero())


def total(values: "Tensor") -> "Tensor":
    """Return the sum of a tensor over all processes; arrays to which each process adds some rows become whole.

    Args:
        values: The values of this process; the shape is the same everywhere.
    """
    if num_processes() == 1:
        return values
    from torch import distributed

    start()
    summed = values.detach().cpu().clone()
    distributed.all_reduce(summed, group=_control[0])
    return summed.to(values.device)


def smallest(value: int) -> int:
    """Return the smallest value of all processes.

    Example:
        >>> smallest(4)
        4
    """
    if num_processes() == 1:
        return value
    values = _zero().repeat(num_processes())
    values[rank()] = value
    return int(total(values).min())


def share(parts: Iterable[T], on_one_machine: bool = False) -> Iterator[T]:
    """Yield every n-th part, n being the number of processes, from that of this process on.

    Args:
        parts: Parts of a task, the same on all processes.
        on_one_machine: Divide them among the processes on the machine of the main process only.

    Example:
        >>> list(share("abc"))
        ['a', 'b', 'c']
    """
    number = num_local() if on_one_machine else num_processes()
    return islice(parts, rank(), None, number) if rank() < number else iter(())


def device() -> "torch.device":
    """Return the device of this process: its GPU, or the CPU."""
    import torch

    start()
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def parallel(module: "nn.Module", may_skip_parameters: bool = False) -> "nn.Module":
    """Return a module whose backward pass averages the gradients of all processes (DDP); it starts from equal weights.

    Args:
        module: The module, on the device of this process.
        may_skip_parameters: True if a backward pass may leave trainable parameters without gradient.
    """
    if num_processes() == 1 or not any(value.requires_grad for value in module.parameters()):
        return module
    from torch.nn.parallel import DistributedDataParallel

    start()
    with warnings.catch_warnings():  # `broadcast_buffers` has another name from torch 2.13
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            module,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=may_skip_parameters,
        )


def not_reduced(module: "nn.Module") -> AbstractContextManager[None]:
    """Return a context in which the gradients of a module of `parallel` stay those of this process."""
    no_sync = getattr(module, "no_sync", None)
    return nullcontext() if no_sync is None else no_sync()


def _broadcast(text: str = "") -> str:
    """Return the text of the main process."""
    if num_processes() == 1:
        return text
    import torch
    from torch import distributed

    start()
    content = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
    size = torch.tensor(len(content))
    distributed.broadcast(size, 0, group=_control[0])
    content = content if is_main() else torch.zeros(int(size), dtype=torch.uint8)
    distributed.broadcast(content, 0, group=_control[0])
    return bytes(content.tolist()).decode()


def _zero() -> "Tensor":
    import torch

    return torch.zeros(1, dtype=torch.int64)
