"""Reading of request bodies within the limits, and cancellation when the client disconnects."""

import asyncio
import json
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from slmrec.files import one_line
from slmrec.serving.http.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    ClientDisconnectedError,
    InvalidRequestError,
    MalformedJsonError,
    UnsupportedMediaTypeError,
)
from slmrec.serving.limits import Limits

T = TypeVar("T")
_MAX_OBJECTS, _MAX_FIELDS = 10_000, 100


class Bodies:
    """Bodies of requests that are arriving; the oldest one is given up when all together are too large."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._sizes: dict[asyncio.Timeout, int] = {}
        """Bytes that have arrived, by the time limit of the body; oldest body first."""

    async def read_json(self, request: Request) -> bytes:
        """Return the raw body of a request with the content type application/json.

        The content type is required for security: a page of another origin cannot send it without a CORS preflight
        request, which this server never grants.

        Args:
            request: The request, whose body has not been read yet.

        Returns:
            The body, at most `max_body_bytes` long.

        Raises:
            UnsupportedMediaTypeError: The content type differs.
            BodyTooLargeError: The body is too large.
            BodyTimeoutError: The body did not arrive in time.
            ClientDisconnectedError: The client left before the body had arrived.
        """
        content_type = request.headers.get("content-type", "none").partition(";")[0].strip().lower()
        if content_type != "application/json":
            shown = one_line(content_type, 100)
            raise UnsupportedMediaTypeError(f"Content-Type is {shown}, expected application/json")
        if int(request.headers.get("content-length", "0")) > self._limits.max_body_bytes:
            raise self._too_large()
        deadline = asyncio.timeout(self._limits.timeout_s)
        try:
            async with deadline:
                return await self._read(request, deadline)
        except ClientDisconnect:
            raise ClientDisconnectedError("the client disconnected") from None
        except TimeoutError:
            raise BodyTimeoutError(
                f"the body did not arrive within {self._limits.timeout_s:g} s, or slower than those of others"
            ) from None
        finally:
            self._sizes.pop(deadline, None)

    async def _read(self, request: Request, deadline: asyncio.Timeout) -> bytes:
        body = bytearray()
        self._sizes[deadline] = 0
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._limits.max_body_bytes:
                raise self._too_large()
            if deadline in self._sizes:
                self._sizes[deadline] = len(body)
                self._give_up_oldest()
        return bytes(body)

    def _give_up_oldest(self) -> None:
        while sum(self._sizes.values()) > self._limits.max_unsent_bytes:
            oldest = next(iter(self._sizes))
            del self._sizes[oldest]
            if not oldest.expired():
                oldest.reschedule(asyncio.get_running_loop().time())

    def _too_large(self) -> BodyTooLargeError:
        limit = self._limits.max_body_bytes
        return BodyTooLargeError(f"the body has more than {limit} bytes; send fewer histories per request")


def check_json(body: bytes) -> None:
    """Raise an error unless a body is JSON without duplicate fields, and of few objects with few fields.

    Collecting the faults of a body takes far more time and memory than parsing it; these bounds keep them few.

    Raises:
        MalformedJsonError: The body is not valid JSON in UTF-8.
        InvalidRequestError: A field occurs twice, or there are too many objects or fields.
    """
    num_objects = 0

    def check_object(pairs: list[tuple[str, Any]]) -> None:
        nonlocal num_objects
        num_objects += 1
        if num_objects > _MAX_OBJECTS:
            raise InvalidRequestError(f"the body has more than {_MAX_OBJECTS} objects; send fewer per request")
        if len(pairs) > _MAX_FIELDS:
            raise InvalidRequestError(f"an object of the body has {len(pairs)} fields, at most {_MAX_FIELDS} allowed")
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            duplicate = next(name for name in names if names.count(name) > 1)
            raise InvalidRequestError(f"{one_line(duplicate, 50)}: the field is given twice in one object")

    def refuse_constant(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    try:
        json.loads(body.decode(), object_pairs_hook=check_object, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedJsonError(f"Invalid JSON: {one_line(error)}") from None


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine; cancel it if the client disconnects first.

    Args:
        request: The request, whose body must have been read.
        work: The computation of the answer.

    Raises:
        ClientDisconnectedError: The client disconnected.
    """
    task, disconnected = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            raise ClientDisconnectedError("the client disconnected")
        return task.result()
    finally:
        disconnected.cancel()
