"""Reading of request bodies within the limits, and cancellation when the client disconnects."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from slmrec.serving.http_errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    ClientDisconnectedError,
    UnsupportedMediaTypeError,
)
from slmrec.serving.limits import Limits

T = TypeVar("T")


async def read_json_body(request: Request, limits: Limits) -> bytes:
    """Return the raw body of a request with the content type application/json.

    The content type is required for security: a page of another origin cannot send it without a CORS preflight
    request, which this server never grants.

    Args:
        request: The request, whose body has not been read yet.
        limits: Bounds of the size of the body and of the time until it has arrived.

    Returns:
        The body, at most `limits.max_body_bytes` long.

    Raises:
        UnsupportedMediaTypeError: The content type differs.
        BodyTooLargeError: The body is too large.
        BodyTimeoutError: The body did not arrive in time.
    """
    content_type = request.headers.get("content-type", "none").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise UnsupportedMediaTypeError(f"Content-Type is {content_type[:100]}, expected application/json")
    if int(request.headers.get("content-length", "0")) > limits.max_body_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.timeout_s):
            return await _read(request, limits)
    except TimeoutError:
        raise BodyTimeoutError(f"the body did not arrive within {limits.timeout_s:g} s") from None


async def _read(request: Request, limits: Limits) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limits.max_body_bytes:
            raise _too_large(limits)
    return bytes(body)


def _too_large(limits: Limits) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body has more than {limits.max_body_bytes} bytes; send fewer histories per request")


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
