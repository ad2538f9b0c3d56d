"""Server: the state behind the HTTP endpoints, and their handlers."""

import asyncio
import hmac
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import fastapi
from fastapi import Request, Response
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from slmrec.files import one_line
from slmrec.inference.catalogue import ItemIdError
from slmrec.serving.admission import Admission
from slmrec.serving.batching import Batcher
from slmrec.serving.engine import Engine, Result
from slmrec.serving.examples import Example
from slmrec.serving.experiment import ExposureLog, Split
from slmrec.serving.http.body import Bodies, cancel_on_disconnect, check_json
from slmrec.serving.http.errors import (
    ConflictError,
    InvalidRequestError,
    MalformedJsonError,
    OverloadedError,
    RequestError,
    UnauthorizedError,
)
from slmrec.serving.http.head import AllowedHosts, QueryInteger, check_parameters
from slmrec.serving.limits import Limits
from slmrec.serving.loading import LoadedModel
from slmrec.serving.messages import (
    MAX_ID_CHARS,
    MAX_SEARCH_RESULTS,
    ModelName,
    Query,
    ReloadRequest,
    Text,
    describe_faults,
)
from slmrec.serving.metrics import Metrics
from slmrec.serving.queries import request_adapter
from slmrec.serving.reload import Reloader

_RELOAD_ADAPTER: TypeAdapter[Any] = TypeAdapter(ReloadRequest)
_MAX_SEARCH_CHARS = 200


@dataclass(frozen=True)
class ServedModel:
    """Loaded model and its folder."""

    folder: Path
    loaded: LoadedModel


@dataclass
class RequestCounter:
    """Counts of requests for recommendations."""

    accepted: int = 0
    answered: int = 0


@dataclass
class Server:
    """Models, queues and metrics of one server."""

    models: Mapping[ModelName, ServedModel]
    limits: Limits
    token: str | None = None
    examples: Sequence[Example] = ()
    split: Split | None = None
    """Division of the users between the models; None: the default model answers."""
    exposures: ExposureLog | None = None
    """Log of the answers; None: they are not logged."""
    hosts: AllowedHosts = field(default_factory=AllowedHosts)
    """Hosts that a request may be meant for; not checked if there is a token."""
    counter: RequestCounter = field(default_factory=RequestCounter)

    url: str = "http://127.0.0.1:8000"
    """Address of the server in the examples of the documentation."""

    def __post_init__(self) -> None:
        self.default = next(iter(self.models))
        """Model that answers if a request names none; the page and the search use its catalogue."""
        self.engines: dict[ModelName, Engine] = {
            name: Engine(served.loaded, self.limits) for name, served in self.models.items()
        }
        self._batchers = {
            name: Batcher(self._compute(name), self.limits.max_batch, engine.read_ahead, self._size_of)
            for name, engine in self.engines.items()
        }
        self._reloaders = {name: Reloader(self.engines[name], served.folder) for name, served in self.models.items()}
        self._admission = Admission(self.limits.max_waiting)
        self._bodies = Bodies(self.limits)
        self.metrics = Metrics(self.engines, lambda: self._admission.num_waiting)
        self.request_adapter = request_adapter(self.limits)

    @asynccontextmanager
    async def lifespan(self, _: Any) -> AsyncIterator[None]:
        """Run the computing threads; on exit, finish all accepted requests."""
        for batcher in self._batchers.values():
            batcher.start()
        log = None if self.exposures is None else asyncio.create_task(self.exposures.run())
        yield
        for batcher in self._batchers.values():
            await asyncio.to_thread(batcher.stop)
        if log is not None and self.exposures is not None:
            log.cancel()
            await asyncio.gather(log, return_exceptions=True)
            await self.exposures.flush()

    def _size_of(self, queries: Sequence[Query]) -> int:
        """Return the number of queries that some queries count as; reasons take many more histories than lists do."""
        share = -(-self.limits.max_batch // self.limits.max_because)
        return sum(share if query.because else 1 for query in queries)

    def _compute(self, name: ModelName) -> Callable[[list[Sequence[Query]]], Sequence[list[Result] | RequestError]]:
        def compute(requests: list[Sequence[Query]]) -> Sequence[list[Result] | RequestError]:
            self.metrics.observe_batch(name, sum(len(queries) for queries in requests))
            return self.engines[name].answer(requests)

        return compute

    async def check_token(self, request: Request) -> None:
        """Raise `UnauthorizedError` unless the request carries the token of the server."""
        header = request.headers.get("authorization", "").encode()
        if self.token is not None and not hmac.compare_digest(header, f"Bearer {self.token}".encode()):
            raise UnauthorizedError("the token is missing or wrong; send the header Authorization: Bearer TOKEN")

    async def recommend(self, request: Request) -> Response:
        """Recommend the next items for one history, for several histories, or for a session."""
        started = time.perf_counter()
        await self.check_token(request)
        named = self._model_of(request)
        self._admission.check()  # before the body is read, so that a rejected request costs little
        queries, is_many = self._parse(await self._bodies.read_json(request))
        models = self._models_of(queries, named, is_many)
        with self._admission.reserve(len(queries)):
            self.counter.accepted += 1
            try:
                results = await cancel_on_disconnect(request, self._results(queries, models))
            except RequestError:
                self.counter.answered += 1
                raise
            self.counter.answered += 1
            self.metrics.observe_results(results)
            time_ms = 1e3 * (time.perf_counter() - started)
            answers: list[bytes] = []
            for query, model, result in zip(queries, models, results, strict=True):
                if answers:
                    await asyncio.sleep(0)  # a large answer must not hold up others
                answer = result.to_answer(model, time_ms)
                if self.exposures is not None and named is None:
                    self.exposures.add(query.user_id, answer)
                answers.append(to_json(answer))
        content = b'{"answers":[' + b",".join(answers) + b"]}" if is_many else answers[0]
        return Response(content, media_type="application/json")

    async def _results(self, queries: list[Query], models: list[ModelName]) -> list[Result]:
        """Return the results of the queries, each by its model."""
        rows = {name: [row for row, own in enumerate(models) if own == name] for name in dict.fromkeys(models)}
        parts = [
            self._batchers[name].submit([queries[row] for row in own], self.limits.timeout_s)
            for name, own in rows.items()
        ]
        results = dict(zip(rows, await asyncio.gather(*parts, return_exceptions=True), strict=True))
        ordered: dict[int, Result] = {}
        for name, found in results.items():
            if isinstance(found, InvalidRequestError) and len(rows) > 1:
                raise _renumbered(found, rows[name])
            if isinstance(found, BaseException):
                raise found
            ordered |= zip(rows[name], found, strict=True)
        return [ordered[row] for row in range(len(queries))]

    def _models_of(self, queries: list[Query], named: ModelName | None, is_many: bool) -> list[ModelName]:
        """Return the model of each query: the one that the request names, that of the user, or the default one."""
        if named is not None or self.split is None:
            return [named or self.default] * len(queries)
        models = []
        for number, query in enumerate(queries):
            if query.user_id is None:
                place, names = f"requests[{number}]." if is_many else "", " and ".join(self.split.models)
                raise InvalidRequestError(f"{place}user_id: required, since it decides between {names}")
            models.append(self.split.model_of(query.user_id))
        return models

    def _model_of(self, request: Request) -> ModelName | None:
        name = check_parameters(request, ["model"]).get("model")
        if name is None or name in self.models:
            return name
        hint = "; start the server with --teacher DIR" if name == "teacher" else ""
        raise InvalidRequestError(f"model is {one_line(name, 50)!r}, expected {' or '.join(self.models)}{hint}")

    def _parse(self, body: bytes) -> tuple[list[Query], bool]:
        parsed = _validate(self.request_adapter, body)
        return ([parsed], False) if isinstance(parsed, Query) else (parsed.requests, True)

    async def items(
        self,
        request: Request,
        q: Annotated[
            str, fastapi.Query(description="words of the title, or an item id", max_length=_MAX_SEARCH_CHARS)
        ] = "",
        limit: Annotated[
            QueryInteger, fastapi.Query(description="maximum number of items", ge=1, le=MAX_SEARCH_RESULTS)
        ] = 10,
        item_ids: Annotated[
            list[Text], fastapi.Query(alias="id", description="exact item ids", max_length=MAX_SEARCH_RESULTS)
        ] = [],  # noqa: B006
    ) -> dict[str, Any]:
        """Find the items whose title or id contains all words of `q`, most popular first, or describe given items.

        If there are none, one typing error in a word of at least four letters is forgiven. Unknown ids are left out.
        """
        active = self.engines[self.default].active
        if item_ids:
            if unused := {"q", "limit"}.intersection(request.query_params):
                raise InvalidRequestError(f"{min(unused)}: the parameter has no effect together with id")
            try:
                matches, is_similar = active.catalogue.known(item_ids), False
            except ItemIdError as error:
                raise InvalidRequestError(f"id: {error.value!r}: {error.reason}") from None
        else:
            matches = active.titles.find(q, limit)
            is_similar = not matches
            if is_similar:
                matches = await asyncio.to_thread(active.titles.find_similar, q, limit)
        described = [active.catalogue.described(item) for item in matches]
        return {"items": described, "similar": is_similar and bool(matches)}

    async def example_users(self) -> dict[str, Any]:
        """List the example users of the demo page."""
        catalogue = self.engines[self.default].active.catalogue
        users = [
            {
                "user_id": example.user_id,
                "history": [catalogue.described(item) for item in catalogue.known(example.history)],
                "timestamps": example.timestamps and catalogue.times_of_known(example.history, example.timestamps),
            }
            for example in self.examples
        ]
        return {"users": users}

    async def model(self) -> dict[str, Any]:
        """Describe the loaded models."""
        return {name: engine.active.loaded.describe() for name, engine in self.engines.items()}

    async def reload(self, request: Request) -> dict[str, Any]:
        """Load the model folders again if their files changed; the previous models serve until then."""
        _validate(_RELOAD_ADAPTER, await self._bodies.read_json(request))
        return await self.reload_models()

    async def reload_models(self) -> dict[str, str]:
        """Load the model folders again if their files changed, and return what happened by model.

        Raises:
            ConflictError: A folder cannot be loaded, or is being loaded; its current model keeps serving.
        """
        outcomes: dict[str, str] = {}
        for name, reloader in self._reloaders.items():
            try:
                outcomes[name] = await reloader.reload()
            except ConflictError:
                self.metrics.observe_reload(name, "refused")
                raise
            self.metrics.observe_reload(name, outcomes[name])
        return outcomes

    async def drop_session(
        self,
        session_id: Annotated[
            str, fastapi.Path(description="session, as named by the client", max_length=MAX_ID_CHARS)
        ],
    ) -> dict[str, Any]:
        """Forget a session: its history and the state of the models after it."""
        dropped = [
            name for name, engine in self.engines.items() if await asyncio.to_thread(engine.drop_session, session_id)
        ]
        return {"session_id": session_id, "models": dropped}

    async def prometheus(self) -> Response:
        """Return all metrics in the text format of Prometheus."""
        return Response(self.metrics.to_text(), media_type="text/plain; version=0.0.4")

    async def health(self) -> dict[str, str]:
        """Report that the process is alive."""
        return {"status": "alive"}

    async def ready(self) -> dict[str, str]:
        """Report whether requests are answered."""
        if not all(batcher.is_running for batcher in self._batchers.values()):
            raise OverloadedError("not ready: the server is starting or stopping")
        return {"status": "ready"}


def _renumbered(error: InvalidRequestError, rows: list[int]) -> InvalidRequestError:
    """Return the error of some of the queries with their numbers in the request."""
    found = re.match(r"requests\[(\d+)\]\.", str(error))
    number, text = (int(found[1]), str(error)[found.end() :]) if found else (0, str(error))
    return InvalidRequestError(f"requests[{rows[number]}].{text}")


def _validate(adapter: TypeAdapter[Any], body: bytes) -> Any:
    check_json(body)
    try:
        return adapter.validate_json(body)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        is_malformed = any(fault["type"] == "json_invalid" for fault in faults)
        raise (MalformedJsonError if is_malformed else InvalidRequestError)(describe_faults(faults)) from None
