"""What comes in with a request, within bounds."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from slmrec.serving.limits import Limits
from slmrec.serving.refusals import GoneError, InvalidError, NotJsonError, SlowBodyError, TooLargeError

Answer = TypeVar("Answer")


async def read_json_body(request: Request, limits: Limits) -> bytes:
    """The body of a request that says it is JSON.

    A page of another site cannot send that type without asking first, so that it cannot use a server behind a browser.

    Raises:
        NotJsonError: it is declared as something else.
        TooLargeError: it is larger than allowed.
        SlowBodyError: it did not arrive in time.
    """
    kind = request.headers.get("content-type", "none").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise NotJsonError(f"Content-Type is {kind[:100]}, expected application/json")
    if int(request.headers.get("content-length", "0")) > limits.max_body_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.timeout_s):
            return await _read(request, limits)
    except TimeoutError:
        raise SlowBodyError(f"the body did not arrive within {limits.timeout_s:g} s") from None


async def _read(request: Request, limits: Limits) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limits.max_body_bytes:
            raise _too_large(limits)
    return bytes(body)


def _too_large(limits: Limits) -> TooLargeError:
    return TooLargeError(f"the body has more than {limits.max_body_bytes} bytes; send fewer histories at once")


async def until_gone(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """The result of the work, which is cancelled if the client goes away; the body must have been read.

    Raises:
        GoneError: the client went away.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            raise GoneError("the client went away")
        return task.result()
    finally:
        gone.cancel()


def limit_of(request: Request, name: str, default: int, most: int) -> int:
    """A whole number among the parameters of the address.

    Raises:
        InvalidError: it is none, or out of range.
    """
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= most):
        raise InvalidError(f"{name} is {text[:50]!r}, expected a whole number from 1 to {most}")
    return int(text)
