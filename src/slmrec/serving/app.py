"""What the server answers under each address."""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from slmrec.serving.admission import Admission
from slmrec.serving.batching import Batcher
from slmrec.serving.bodies import limit_of, read_json_body, until_gone
from slmrec.serving.engine import Engine, Found
from slmrec.serving.examples import Example
from slmrec.serving.limits import Limits
from slmrec.serving.loading import Loaded
from slmrec.serving.messages import MAX_FOUND, ModelName, Query, ReloadRequest, request_adapter, told
from slmrec.serving.observation import Observations
from slmrec.serving.openapi import document
from slmrec.serving.refusals import (
    BusyError,
    ConflictError,
    InvalidError,
    MalformedError,
    NotAllowedError,
    RefusalError,
)
from slmrec.serving.reload import Reloader

Handler = Callable[[Request], Awaitable[Response]]
_NOTHING: TypeAdapter[Any] = TypeAdapter(ReloadRequest)
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class Served:
    """A model and the folder that it came from."""

    folder: Path
    loaded: Loaded


@dataclass
class Tally:
    """Requests for recommendations."""

    accepted: int = 0
    answered: int = 0


@dataclass
class Server:
    """The state behind the addresses."""

    models: Mapping[ModelName, Served]
    limits: Limits
    token: str | None = None
    examples: Sequence[Example] = ()
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self.engines: dict[ModelName, Engine] = {
            name: Engine(served.loaded, self.limits) for name, served in self.models.items()
        }
        self._batchers = {
            name: Batcher(self._compute(name), self.limits.max_batch, engine.read_ahead)
            for name, engine in self.engines.items()
        }
        self._reloaders = {name: Reloader(self.engines[name], served.folder) for name, served in self.models.items()}
        self._admission = Admission(self.limits.max_waiting)
        self._observations = Observations()
        self._observations.watch(self.engines, lambda: self._admission.num_waiting)
        self._adapter = request_adapter(self.limits)
        self._document = to_json(document(self.limits))

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            self._route("/recommend", self._recommend, "POST"),
            self._route("/items", self._items),
            self._route("/examples", self._examples),
            self._route("/model", self._model),
            self._route("/reload", self._reload, "POST"),
            self._route("/metrics", self._metrics),
            self._route("/health", self._health, is_open=True),
            self._route("/ready", self._ready, is_open=True),
            self._route("/openapi.json", self._openapi, is_open=True),
            self._route("/", _page("page.html"), is_open=True),
            self._route("/docs", _page("docs.html"), is_open=True),
        ]
        return Starlette(routes=routes, lifespan=self._lifespan, exception_handlers={HTTPException: _no_such_address})

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        for batcher in self._batchers.values():
            batcher.start()
        yield
        for batcher in self._batchers.values():
            await asyncio.to_thread(batcher.stop)

    def _compute(self, name: ModelName) -> Callable[[list[Sequence[Query]]], Sequence[list[Found] | RefusalError]]:
        def compute(requests: list[Sequence[Query]]) -> Sequence[list[Found] | RefusalError]:
            self._observations.batch(name, sum(len(queries) for queries in requests))
            return self.engines[name].answer(requests)

        return compute

    def _route(self, path: str, handler: Handler, method: str = "GET", is_open: bool = False) -> Route:
        async def answer(request: Request) -> Response:
            started = time.perf_counter()
            try:
                if not is_open:
                    self._check_token(request)
                response = await handler(request)
            except RefusalError as refusal:
                response = _refused(refusal)
            self._observations.request(path, response.status_code, time.perf_counter() - started)
            return response

        return Route(path, answer, methods=[method])

    def _check_token(self, request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if self.token is not None and not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
            raise NotAllowedError("the token is missing or wrong; send the header Authorization: Bearer TOKEN")

    async def _recommend(self, request: Request) -> Response:
        started = time.perf_counter()
        model = self._chosen(request)
        with self._admission.room(1):  # before the body, so that what is shed costs little
            queries, is_many = self._parsed(await read_json_body(request, self.limits))
            with self._admission.room(len(queries) - 1):
                self.tally.accepted += 1
                try:
                    found = await until_gone(request, self._batchers[model].submit(queries, self.limits.timeout_s))
                except RefusalError:
                    self.tally.answered += 1
                    raise
                self.tally.answered += 1
        self._observations.found(found)
        time_ms = 1e3 * (time.perf_counter() - started)
        answers = [answer.written(model, time_ms) for answer in found]
        return _json({"answers": answers} if is_many else answers[0])

    def _chosen(self, request: Request) -> ModelName:
        name = request.query_params.get("model", "student")
        for served in self.models:
            if name == served:
                return served
        if name == "teacher":
            raise InvalidError("no teacher is served; start the server with --teacher DIR")
        raise InvalidError(f"model is {name[:50]!r}, expected student or teacher")

    def _parsed(self, body: bytes) -> tuple[list[Query], bool]:
        asked = _read(self._adapter, body)
        return ([asked], False) if isinstance(asked, Query) else (asked.requests, True)

    async def _items(self, request: Request) -> Response:
        limit = limit_of(request, "limit", 10, MAX_FOUND)
        serving = self.engines["student"].serving
        found = serving.titles.find(request.query_params.get("q", "")[:200], limit)
        return _json({"items": [serving.catalogue.described(item) for item in found]})

    async def _examples(self, _: Request) -> Response:
        catalogue = self.engines["student"].serving.catalogue
        users = [
            {
                "user_id": example.user_id,
                "history": [catalogue.described(item) for item in catalogue.known(example.history)],
            }
            for example in self.examples
        ]
        return _json({"users": users})

    async def _model(self, _: Request) -> Response:
        return _json({name: engine.serving.loaded.describe() for name, engine in self.engines.items()})

    async def _reload(self, request: Request) -> Response:
        _read(_NOTHING, await read_json_body(request, self.limits))
        outcomes: dict[str, str] = {}
        for name, reloader in self._reloaders.items():
            try:
                outcomes[name] = await reloader.reload()
            except ConflictError:
                self._observations.reload(name, "refused")
                raise
            self._observations.reload(name, outcomes[name])
        return _json(outcomes)

    async def _metrics(self, _: Request) -> Response:
        return Response(self._observations.written(), media_type="text/plain; version=0.0.4")

    async def _health(self, _: Request) -> Response:
        return _json({"status": "alive"})

    async def _ready(self, _: Request) -> Response:
        if not all(batcher.is_running for batcher in self._batchers.values()):
            raise BusyError("not ready: the model is not being served")
        return _json({"status": "ready"})

    async def _openapi(self, _: Request) -> Response:
        return Response(self._document, media_type="application/json")


def _read(adapter: TypeAdapter[Any], body: bytes) -> Any:
    try:
        return adapter.validate_json(body)
    except ValidationError as error:
        kinds = {fault["type"] for fault in error.errors(include_url=False, include_context=False)}
        kind = MalformedError if "json_invalid" in kinds else InvalidError
        raise kind(told(error)) from None


def _page(name: str) -> Handler:
    text = (files("slmrec.serving") / name).read_text(encoding="utf-8")

    async def page(_: Request) -> Response:
        return HTMLResponse(text, headers=_PAGE_HEADERS)

    return page


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(to_json(content), status, dict(headers or {}), "application/json")


def _refused(refusal: RefusalError) -> Response:
    return _json({"error": str(refusal)}, refusal.status, refusal.headers)


async def _no_such_address(request: Request, error: Exception) -> Response:
    """404 and 405."""
    assert isinstance(error, HTTPException)
    return _json({"error": f"{request.method} {request.url.path}: {error.detail}"}, error.status_code, error.headers)
