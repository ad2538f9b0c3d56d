"""The command line in several processes, which are forked from one that has imported the rest."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from slmrec.commands.main import main

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "slmrec.commands.main",
        *(f"slmrec.pipeline.{name}" for name in ("prepare", "pretrain", "finetune", "distill", "evaluate", "run")),
        "slmrec.models.sasrec",
        "torch._dynamo",
        "transformers.models.llama.modeling_llama",
        "launching",
    ]
)
Change = Callable[[int], None]
"""Function that changes a process before its command starts, given its rank."""


class Ended(NamedTuple):
    exit_code: int | None
    """Negative: the number of the signal that ended it."""
    output: str
    error: str


def launch(arguments: list[str], folder: Path, change: Change | None = None, number: int = 2) -> list[Ended]:
    """Execute a command in several processes, and return how each of them ended."""
    port = _free_port()
    started = [
        _CONTEXT.Process(target=_run, args=(rank, number, port, arguments, folder, change)) for rank in range(number)
    ]
    try:
        for process in started:
            process.start()
        for process in started:
            process.join(400)
    finally:
        for process in started:
            if process.is_alive():
                process.kill()
                process.join()
    texts = [[(folder / f"{name}{rank}").read_text() for name in ("out", "err")] for rank in range(number)]
    return [Ended(process.exitcode, *text) for process, text in zip(started, texts, strict=True)]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _run(rank: int, number: int, port: int, arguments: list[str], folder: Path, change: Change | None) -> None:
    import torch

    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
    os.environ.update({name: str(value) for name, value in (place | {"MASTER_PORT": port}).items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    for descriptor, name in ((1, "out"), (2, "err")):
        with (folder / f"{name}{rank}").open("w") as stream:
            os.dup2(stream.fileno(), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
    if change is not None:
        change(rank)
    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)
