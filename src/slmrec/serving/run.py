"""`slmrec serve`: from folders to a listening server."""

import asyncio
import gc
import signal
import socket
from pathlib import Path

import torch
import uvicorn

from slmrec.errors import ConfigError
from slmrec.serving.app import Served, Server
from slmrec.serving.examples import read_examples
from slmrec.serving.limits import Limits
from slmrec.serving.loading import load
from slmrec.serving.messages import ModelName

_GRACE_S = 5


def serve(
    model: Path,
    teacher: Path | None,
    limits: Limits,
    *,
    host: str,
    port: int,
    token_file: Path | None,
    examples: Path | None,
    num_threads: int | None,
) -> None:
    """Serves until it is told to stop (SIGTERM or SIGINT); what was accepted by then is answered.

    Args:
        model: folder of the model that answers.
        teacher: folder of another model, to compare with.
        limits: what is accepted at most.
        host: address to listen at.
        port: 0 for any free one.
        token_file: its text must come with every request; None: nothing need come.
        examples: json lines of users for the page.
        num_threads: of the model's products; None: as many as PyTorch takes.

    Raises:
        CheckpointError: a folder is incomplete or damaged.
        ConfigError: the port is taken, or the token file is empty.
        DataError: the examples cannot be read.
    """
    token = _token(token_file) if token_file is not None else None
    users = read_examples(examples) if examples is not None else []
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    folders: dict[ModelName, Path] = {"student": model}
    if teacher is not None:
        folders["teacher"] = teacher
    server = Server({name: Served(folder, load(folder)) for name, folder in folders.items()}, limits, token, users)
    with _listening(host, port) as bound:
        name = server.models["student"].loaded.name
        _say(f"http://{_shown(host)}:{bound.getsockname()[1]} answers with {name}; stop with Ctrl-C or SIGTERM")
        if token is None and host not in {"127.0.0.1", "::1", "localhost"}:
            _say("anyone who reaches this address may use it; --token-file FILE asks for a token")
        gc.freeze()  # the model and its catalogue stay: the collector need not look through them
        asyncio.run(_run(server, bound))
    _say(f"stopped; {server.tally.accepted} requests accepted, {server.tally.answered} answered")


async def _run(server: Server, bound: socket.socket) -> None:
    config = uvicorn.Config(
        server.app(),
        http="httptools",
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=int(server.limits.timeout_s) + _GRACE_S,
    )
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them once more when it has stopped
        signal.signal(number, lambda *_: None)
    await uvicorn.Server(config).serve(sockets=[bound])


def _token(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"--token-file {path} cannot be read ({error.strerror}); give a file with one line") from None
    if not token.isascii() or not token.isprintable() or " " in token or not token:
        raise ConfigError(f"--token-file {path} holds no token; write one line of ASCII without spaces")
    return token


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        told = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen at {host}:{port} ({told}); choose another --host or --port") from None


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _say(text: str) -> None:
    print(f"serve: {text}", flush=True)
