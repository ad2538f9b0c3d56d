"""Checks of a request before its body is read: the host that it is meant for, and its query parameters."""

import re
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from slmrec.files import one_line
from slmrec.serving.http.errors import (
    InvalidRequestError,
    MisdirectedRequestError,
    RequestError,
    error_response,
)

ANY_HOST = "*"
_LOCAL_NAME = "localhost"
_WILDCARDS = ("", "0.0.0.0", "::")


def _check_digits(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch("-?(0|[1-9][0-9]*)", value, re.ASCII):
        raise PydanticCustomError("int_parsing", "Input should be a valid integer")
    return value


QueryInteger = Annotated[int, BeforeValidator(_check_digits)]
"""Integer of a query parameter, in the form of JSON: without spaces, signs or a fraction such as `5.0`."""


class AllowedHosts:
    """Hosts for which a server answers.

    A page of another origin can reach a server on the loopback interface if the name of its host is made to resolve to
    this machine (DNS rebinding). Its requests then carry that name in the header `Host`. Addresses cannot be rebound.

    Args:
        bound: Name or address that the server listens on.
        further: Further names, such as that of a proxy; `*` allows all.

    Example:
        >>> hosts = AllowedHosts("127.0.0.1", ["shop.example"])
        >>> [hosts.allows(host) for host in ("localhost:8000", "shop.example", "evil.example", "10.0.0.1")]
        [True, True, False, False]
    """

    def __init__(self, bound: str = "127.0.0.1", further: Iterable[str] = ()) -> None:
        self._names = {bound.lower(), _LOCAL_NAME, *(name.lower().rstrip(".") for name in further)}
        address = _address(bound)
        self._is_local = bound.lower() == _LOCAL_NAME or (address is not None and address.is_loopback)
        if bound in _WILDCARDS:
            self._names.add(socket.gethostname().lower())

    def allows(self, host: str) -> bool:
        """Return whether the value of a header `Host` is allowed, whatever its port."""
        if ANY_HOST in self._names:
            return True
        name, separator, port = host.rpartition(":")
        if not separator or not port.isdecimal():
            name = host
        name = name.lower().rstrip(".").removeprefix("[").removesuffix("]")
        if name in self._names or name.endswith(f".{_LOCAL_NAME}"):
            return True
        address = _address(name)
        return address is not None and (address.is_loopback or not self._is_local)


def _address(name: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(name)
    except ValueError:
        return None


class HostCheck:
    """ASGI application that answers only requests that are meant for an allowed host."""

    def __init__(self, app: ASGIApp, hosts: AllowedHosts) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        error = self._error(scope) if scope["type"] == "http" else None
        await (self._app if error is None else error_response(error))(scope, receive, send)

    def _error(self, scope: Scope) -> RequestError | None:
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if not hosts and scope["http_version"] == "1.0":
            return None
        if len(hosts) != 1:
            return MisdirectedRequestError(f"the request has {len(hosts)} headers Host, expected one")
        if self._hosts.allows(hosts[0]):
            return None
        host = one_line(hosts[0], 100)
        return MisdirectedRequestError(
            f"Host is {host!r}, for which this server does not answer; use its address, or start it with "
            f"--allow-host {host or 'NAME'}"
        )


def check_parameters(request: Request, allowed: Iterable[str], repeatable: Iterable[str] = ()) -> QueryParams:
    """Return the query parameters of a request.

    Raises:
        InvalidRequestError: A parameter is unknown, is given twice, or is not valid UTF-8.
    """
    parameters, known = request.query_params, [*allowed, *repeatable]
    names = [name for name, _ in parameters.multi_items()]
    for name, value in parameters.multi_items():
        shown = one_line(name, 50)
        if name not in known:
            expected = f"expected {' or '.join(known)}" if known else "expected none"
            raise InvalidRequestError(f"{shown}: unknown query parameter, {expected}")
        if names.count(name) > 1 and name not in repeatable:
            raise InvalidRequestError(f"{shown}: the query parameter is given {names.count(name)} times, expected once")
        if "\ufffd" in value or "\0" in value:
            raise InvalidRequestError(f"{shown}: the value is not valid text in UTF-8")
    return parameters
