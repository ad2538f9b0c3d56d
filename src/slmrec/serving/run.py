"""Start of the server: loads the models, listens, and stops or reloads on a signal."""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import resource
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import uvicorn

from slmrec.errors import ConfigError
from slmrec.files import printable, read_text
from slmrec.serving.app import create_app
from slmrec.serving.examples import read_examples
from slmrec.serving.experiment import ExposureLog, Split
from slmrec.serving.http.connections import Connection, HttpConfig
from slmrec.serving.http.errors import ConflictError
from slmrec.serving.http.head import AllowedHosts
from slmrec.serving.limits import Limits
from slmrec.serving.loading import load
from slmrec.serving.messages import ModelName
from slmrec.serving.server import ServedModel, Server

_GRACE_S = 5
_BACKLOG = 128
_SPARE_DESCRIPTORS = 32
_SECONDS_BETWEEN_WARNINGS = 60.0
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_LOG = logging.getLogger(__name__)


def serve(
    folders: Mapping[ModelName, Path],
    limits: Limits,
    *,
    host: str,
    port: int,
    token_file: Path | None,
    examples: Path | None,
    allowed_hosts: Sequence[str] = (),
    num_threads: int | None,
    device: str | None = None,
    split: float | None = None,
    salt: str = "slmrec",
    exposures: Path | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; requests that were accepted before the signal are answered.

    SIGHUP reloads the models whose folders changed.

    Args:
        folders: Folders of the models by name; the first one answers if a request names none.
        limits: Limits of the server.
        host: Address to listen on.
        port: Port to listen on; 0 chooses a free one.
        token_file: File with the token that requests must send; None disables authentication.
        examples: JSON Lines file of example users for the demo page.
        allowed_hosts: Names in the header `Host` that are allowed besides localhost and `host`; `*` allows all. It has
            no effect with a token.
        num_threads: CPU threads of the model; None leaves the choice to PyTorch.
        device: Device of the models, as in `Recommender.from_pretrained`.
        split: Share of the users to whom the second of two models answers; None: the first model answers everyone.
        salt: Text that is hashed with the user id for the split.
        exposures: Folder for a log of the answers; None: they are not logged.

    Raises:
        CheckpointError: A model folder is incomplete or damaged.
        ConfigError: The address cannot be used, the token file is invalid, or the device does not exist.
        DataError: The example users cannot be read.
    """
    terminals = [stream for stream in range(3) if os.isatty(stream)]
    early_hangups: list[int] = []
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, _: early_hangups.append(number))
    token = _read_token(token_file) if token_file is not None else None
    users = read_examples(examples) if examples is not None else []
    division = None if split is None else Split.of(list(folders), split, salt)
    log = None if exposures is None else ExposureLog(exposures)
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    models = {name: ServedModel(folder, load(folder, device)) for name, folder in folders.items()}
    hosts = AllowedHosts(host, allowed_hosts)
    server = Server(models, _within_descriptors(limits), token, users, division, log, hosts)
    with _listen(host, port) as listener:
        url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        server.url = url
        title = printable(server.models[server.default].loaded.name)
        _LOG.info("serve: %s serves the model %s; stop it with Ctrl-C or SIGTERM", url, title)
        if token is None and host not in {"127.0.0.1", "::1", "localhost"}:
            _LOG.warning("serve: everyone who can reach this address can use it; --token-file FILE requires a token")
        gc.freeze()  # the model and its catalogue stay in memory, so garbage collection need not scan them
        run_until_signalled(HttpServer(server, terminals), listener, early_hangups)
    counter = server.counter
    _LOG.info("serve: stopped; %d requests accepted, %d answered", counter.accepted, counter.answered)


class HttpServer(uvicorn.Server):
    """HTTP server of one application, with bounded connections and a quiet log.

    Clients cannot fill the log: what they send wrongly is answered and not logged.

    Args:
        server: The application.
        terminals: Streams that were terminals at the start; the server stops when one of them is closed.
    """

    def __init__(self, server: Server, terminals: Sequence[int] = ()) -> None:
        config = HttpConfig(
            create_app(server),
            server.limits,
            lifespan="on",
            access_log=False,
            log_level="error",
            server_header=False,
            proxy_headers=False,
            headers=[("x-content-type-options", "nosniff")],
            backlog=_BACKLOG,  # also the number of connections that asyncio accepts at once
            timeout_graceful_shutdown=int(server.limits.timeout_s) + _GRACE_S,
        )
        super().__init__(config)
        self._server, self._reloading, self._reloads = server, asyncio.Lock(), set[asyncio.Task[None]]()
        self._terminals = terminals
        self._warned_at = -_SECONDS_BETWEEN_WARNINGS

    def hang_up(self) -> None:
        """Reload the models whose folders changed; stop if the terminal that started the server was closed."""
        if not all(map(os.isatty, self._terminals)):
            self.should_exit = True
            return
        reload = asyncio.create_task(self._reload())
        self._reloads.add(reload)  # the loop keeps weak references alone
        reload.add_done_callback(self._reloads.discard)

    async def _reload(self) -> None:
        async with self._reloading:  # a signal during a reload may announce a still newer model
            try:
                outcomes = await self._server.reload_models()
            except ConflictError as error:
                _LOG.warning("serve: SIGHUP: %s", error)
                return
        _LOG.info("serve: SIGHUP: %s", ", ".join(f"{name} {outcome}" for name, outcome in outcomes.items()))

    async def _serve(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._handle_exception)
        expiry = asyncio.create_task(self._expire_connections())
        try:
            await super()._serve(sockets)
        finally:
            expiry.cancel()

    async def _expire_connections(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            for connection in list(self.server_state.connections):
                assert isinstance(connection, Connection)
                connection.expire()

    def _handle_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, ConnectionError):  # a client left
            return
        if not (isinstance(error, OSError) and error.errno in _EXHAUSTED):
            loop.default_exception_handler(context)
        elif loop.time() - self._warned_at >= _SECONDS_BETWEEN_WARNINGS:
            self._warned_at = loop.time()
            _LOG.warning(
                "serve: a connection cannot be accepted (%s); it waits until others are closed. Lower "
                "--max-connections or raise the limit of the system (ulimit -n)",
                error.strerror,
            )


def run_until_signalled(http_server: HttpServer, listener: socket.socket, early_hangups: Sequence[int] = ()) -> None:
    """Serve until SIGTERM or SIGINT, and reload on SIGHUP, which is ignored if the process was started so (`nohup`).

    Args:
        http_server: The server.
        listener: Socket that listens.
        early_hangups: Signals SIGHUP that came while the models were loaded.
    """
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal again after it has stopped
        signal.signal(number, lambda *_: None)

    async def run() -> None:
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, http_server.hang_up)
        for _ in early_hangups:
            http_server.hang_up()
        await http_server.serve(sockets=[listener])

    asyncio.run(run())


def _within_descriptors(limits: Limits) -> Limits:
    """Raise the number of files that the process may open to what the limits need, or lower the limits."""
    num_others = sum(1 for _ in Path("/dev/fd").iterdir()) + _BACKLOG + _SPARE_DESCRIPTORS
    needed = limits.max_connections + num_others
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return limits
    highest = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
        soft = highest
    if soft >= needed:
        return limits
    possible = max(1, soft // 4, soft - num_others)
    _LOG.warning(
        "serve: at most %d connections instead of %d, since the process may open only %d files (ulimit -n)",
        *(possible, limits.max_connections, soft),
    )
    return replace(limits, max_connections=possible)


def _read_token(path: Path) -> str:
    try:
        token = read_text(path).strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--token-file {path} cannot be read ({reason}); give a file with one line") from None
    if not token.isascii() or not token.isprintable() or " " in token or not token:
        raise ConfigError(f"--token-file {path} contains no valid token; write one line of ASCII without spaces")
    return token


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen on {host}:{port} ({reason}); choose another --host or --port") from None
