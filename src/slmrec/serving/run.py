"""Start of the server: loads the models, listens, and stops on a signal."""

import asyncio
import gc
import logging
import signal
import socket
from pathlib import Path

import torch
import uvicorn

from slmrec.errors import ConfigError
from slmrec.files import printable
from slmrec.serving.app import create_app
from slmrec.serving.examples import read_examples
from slmrec.serving.limits import Limits
from slmrec.serving.loading import load
from slmrec.serving.messages import ModelName
from slmrec.serving.server import ServedModel, Server

_GRACE_S = 5
_LOG = logging.getLogger(__name__)


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
    device: str | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; requests that were accepted before the signal are answered.

    Args:
        model: Folder of the model to serve.
        teacher: Folder of a second model to compare with.
        limits: Limits of the server.
        host: Address to listen on.
        port: Port to listen on; 0 chooses a free one.
        token_file: File with the token that requests must send; None disables authentication.
        examples: JSON Lines file of example users for the demo page.
        num_threads: CPU threads of the model; None leaves the choice to PyTorch.
        device: Device of the models, as in `Recommender.from_pretrained`.

    Raises:
        CheckpointError: A model folder is incomplete or damaged.
        ConfigError: The address cannot be used, the token file is invalid, or the device does not exist.
        DataError: The example users cannot be read.
    """
    token = _read_token(token_file) if token_file is not None else None
    users = read_examples(examples) if examples is not None else []
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    folders: dict[ModelName, Path] = {"student": model}
    if teacher is not None:
        folders["teacher"] = teacher
    models = {name: ServedModel(folder, load(folder, device)) for name, folder in folders.items()}
    server = Server(models, limits, token, users)
    with _listen(host, port) as listener:
        url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        title = printable(server.models["student"].loaded.name)
        _LOG.info("serve: %s serves the model %s; stop it with Ctrl-C or SIGTERM", url, title)
        if token is None and host not in {"127.0.0.1", "::1", "localhost"}:
            _LOG.warning("serve: everyone who can reach this address can use it; --token-file FILE requires a token")
        gc.freeze()  # the model and its catalogue stay in memory, so garbage collection need not scan them
        asyncio.run(_run(server, listener))
    counter = server.counter
    _LOG.info("serve: stopped; %d requests accepted, %d answered", counter.accepted, counter.answered)


async def _run(server: Server, listener: socket.socket) -> None:
    config = uvicorn.Config(
        create_app(server),
        http="httptools",
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=int(server.limits.timeout_s) + _GRACE_S,
    )
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal again after it has stopped
        signal.signal(number, lambda *_: None)
    await uvicorn.Server(config).serve(sockets=[listener])


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"--token-file {path} cannot be read ({error.strerror}); give a file with one line") from None
    if not token.isascii() or not token.isprintable() or " " in token or not token:
        raise ConfigError(f"--token-file {path} contains no valid token; write one line of ASCII without spaces")
    return token


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen on {host}:{port} ({reason}); choose another --host or --port") from None
