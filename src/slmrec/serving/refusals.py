"""Why a request gets no answer, as a status of HTTP."""

from collections.abc import Mapping
from typing import ClassVar


class RefusalError(Exception):
    """The request is not answered; the message says why."""

    status: ClassVar[int] = 500
    headers: ClassVar[Mapping[str, str]] = {}


class MalformedError(RefusalError):
    """The body is not JSON."""

    status = 400


class NotAllowedError(RefusalError):
    """The token is missing or wrong."""

    status = 401
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}


class SlowBodyError(RefusalError):
    """The body did not arrive in time."""

    status = 408


class ConflictError(RefusalError):
    """What is asked for is going on already, or was refused."""

    status = 409


class TooLargeError(RefusalError):
    """The body is larger than allowed."""

    status = 413


class NotJsonError(RefusalError):
    """The body is declared to be something else than JSON."""

    status = 415


class InvalidError(RefusalError):
    """The body does not say what it should."""

    status = 422


class GoneError(RefusalError):
    """The client went away; nobody reads this."""

    status = 499


class BrokenError(RefusalError):
    """A fault of ours."""

    status = 500


class BusyError(RefusalError):
    """Too much is waiting; nothing was done."""

    status = 503
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}
