"""Errors that the server answers with an HTTP status and a JSON body `{"error": text}`."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic_core import to_json
from starlette.responses import Response


class RequestError(Exception):
    """Request that cannot be answered; the message is sent to the client."""

    status: ClassVar[int] = 500
    headers: ClassVar[Mapping[str, str]] = {}


class MalformedJsonError(RequestError):
    """The body is not valid JSON."""

    status = 400


class UnauthorizedError(RequestError):
    """The token is missing or wrong."""

    status = 401
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}


class BodyTimeoutError(RequestError):
    """The body did not arrive in time."""

    status = 408
    headers: ClassVar[Mapping[str, str]] = {"Connection": "close"}


class ConflictError(RequestError):
    """A reload is already running, or the model folder cannot be loaded."""

    status = 409


class BodyTooLargeError(RequestError):
    """The body is larger than allowed."""

    status = 413
    headers: ClassVar[Mapping[str, str]] = {"Connection": "close"}


class UnsupportedMediaTypeError(RequestError):
    """The Content-Type of the body is not application/json."""

    status = 415


class MisdirectedRequestError(RequestError):
    """The header Host names a host for which the server does not answer."""

    status = 421


class InvalidRequestError(RequestError):
    """The request does not satisfy the schema or a limit, or names an unknown candidate or model."""

    status = 422


class ClientDisconnectedError(RequestError):
    """The client closed the connection before the answer; the response is never sent."""

    status = 499


class InternalError(RequestError):
    """The computation failed; the log of the server holds the traceback."""

    status = 500


class OverloadedError(RequestError):
    """The server is overloaded or not ready; nothing was computed. Retry after the time in the Retry-After header."""

    status = 503
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}


def error_response(error: RequestError) -> Response:
    """Return the answer to a request that cannot be answered."""
    return Response(to_json({"error": str(error)}), error.status, dict(error.headers), "application/json")
