"""The OpenAPI document, from the messages."""

from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from slmrec.serving import messages
from slmrec.serving.limits import Limits
from slmrec.serving.refusals import (
    BusyError,
    ConflictError,
    InvalidError,
    MalformedError,
    NotAllowedError,
    NotJsonError,
    RefusalError,
    SlowBodyError,
    TooLargeError,
)
from slmrec.version import __version__

_REFERENCE = "#/components/schemas/{model}"
_TOKEN: tuple[type[RefusalError], ...] = (NotAllowedError,)
_BODY = (*_TOKEN, MalformedError, SlowBodyError, TooLargeError, NotJsonError, InvalidError, BusyError)


def document(limits: Limits) -> dict[str, Any]:
    """OpenAPI 3.1 of a server with these limits."""
    given: dict[str, type[BaseModel]] = {model.__name__: model for model in _MESSAGES}
    adapters = {name: TypeAdapter(model) for name, model in given.items()}
    asked = [("Asked", "validation", messages.request_adapter(limits))]
    answered = [(name, "serialization", adapter) for name, adapter in adapters.items()]
    schemas, found = TypeAdapter.json_schemas(
        [*asked, *answered],  # type: ignore[list-item]
        ref_template=_REFERENCE,
        schema_generator=GenerateJsonSchema,
    )
    body = schemas["Asked", "validation"]
    return {
        "openapi": "3.1.0",
        "info": {"title": "slmrec", "version": __version__, "description": _ABOUT},
        "paths": {
            "/recommend": {"post": _recommend(body)},
            "/items": {"get": _items()},
            "/examples": {"get": _get("Example users of the page", "ExampleUsers", _TOKEN)},
            "/model": {"get": _get("What is loaded", "Models", _TOKEN)},
            "/reload": {"post": _reload()},
            "/health": {"get": _get("Whether the process is alive", "Status", ())},
            "/ready": {"get": _get("Whether it answers", "Status", (BusyError,))},
            "/metrics": {"get": _metrics()},
        },
        "components": {
            "schemas": found.get("$defs", {}),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


_ABOUT = "Next items for histories. Every refusal is {error: text}; 503 says in Retry-After when to try again."
_MESSAGES: tuple[type[BaseModel], ...] = (
    messages.Answer,
    messages.Answers,
    messages.FoundItems,
    messages.ExampleUsers,
    messages.Models,
    messages.Status,
    messages.Outcomes,
    messages.ReloadRequest,
    messages.Problem,
)


def _operation(summary: str, answer: Any, refusals: tuple[type[RefusalError], ...], **more: Any) -> dict[str, Any]:
    problem = {"application/json": {"schema": _schema("Problem")}}
    refused = {str(kind.status): {"description": str(kind.__doc__), "content": problem} for kind in refusals}
    return {"summary": summary, "responses": {"200": {"description": "OK", "content": answer}, **refused}, **more}


def _schema(name: str) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=name)}


def _get(summary: str, answer: str, refusals: tuple[type[RefusalError], ...], **more: Any) -> dict[str, Any]:
    return _operation(summary, {"application/json": {"schema": _schema(answer)}}, refusals, **more)


def _recommend(body: dict[str, Any]) -> dict[str, Any]:
    which = {"name": "model", "in": "query", "schema": {"enum": ["student", "teacher"], "default": "student"}}
    answer = {"application/json": {"schema": {"anyOf": [_schema("Answer"), _schema("Answers")]}}}
    asked = {"required": True, "content": {"application/json": {"schema": body}}}
    summary = "The best next items of one history, of many, or of a session"
    return _operation(summary, answer, _BODY, parameters=[which], requestBody=asked)


def _items() -> dict[str, Any]:
    words = {"name": "q", "in": "query", "schema": {"type": "string"}, "description": "words of the title, or the id"}
    limit = {
        "name": "limit",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1, "maximum": messages.MAX_FOUND, "default": 10},
    }
    return _get("Items by title", "FoundItems", (*_TOKEN, InvalidError), parameters=[words, limit])


def _reload() -> dict[str, Any]:
    answer = {"application/json": {"schema": _schema("Outcomes")}}
    refusals = (*_TOKEN, MalformedError, SlowBodyError, ConflictError, TooLargeError, NotJsonError, InvalidError)
    asked = {"required": True, "content": {"application/json": {"schema": _schema("ReloadRequest")}}}
    return _operation("Loads the model folders again, if they changed", answer, refusals, requestBody=asked)


def _metrics() -> dict[str, Any]:
    return _operation("For Prometheus", {"text/plain": {"schema": {"type": "string"}}}, _TOKEN)
