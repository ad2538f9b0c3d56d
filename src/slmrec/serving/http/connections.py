"""HTTP connections with bounds on what clients send, and on what they do not read."""

import asyncio
import socket
from typing import Any

import uvicorn
from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from slmrec.serving.limits import Limits

_MAX_JOINED_BYTES = 1 << 16
_MAX_RECEIVED_BYTES = 1 << 16
"""Bytes that asyncio receives at once from one connection; its own value is four times larger."""
_MAX_DISCARDED_BYTES = 1 << 24
_MAX_PIPELINED = 16
_LINGER_S = 2.0
_MAX_REFUSED = 64
"""Connections that may be open beyond the limit until their clients have read why they are refused."""


class HttpConfig(uvicorn.Config):
    """Configuration of uvicorn for connections within the limits of a server."""

    def __init__(self, app: Any, limits: Limits, **options: Any) -> None:
        super().__init__(app, http=Connection, ws="none", **options)
        self.limits = limits


class _RefusedRequestError(Exception):
    """Request head beyond a limit; the parser passes it on as a fault of the request."""


class Connection(HttpToolsProtocol):
    """Connection of one client.

    uvicorn accepts any number of connections, waits for a request without end, and keeps what is sent and what is not
    read in memory. This class bounds all of these; `expire` must be called about once per second.
    """

    connections: set["Connection"]  # type: ignore[assignment]
    """All open connections of the server."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        assert isinstance(config, HttpConfig)
        self.limits = config.limits
        self.waiting_since: float | None = None
        """When the wait for the head of a request began; None while a request is answered."""
        self.unread_since: float | None = None
        """When the client stopped to read; None while it reads."""
        self._unread = (0, 0.0)
        """Size of the unread answers, and the time when it changed."""
        self._num_unparsed = 0
        """Bytes of an incomplete head, or of an incomplete trailer."""
        self._num_head_bytes = self._num_headers = 0
        self._refusal = (400, "the request is not valid HTTP/1.1")
        self._is_refused = False
        self._keeps_alive = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Send answers without delay; refuse the connection if there are too many."""
        connected: socket.socket = transport.get_extra_info("socket")
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.max_size = _MAX_RECEIVED_BYTES  # type: ignore[attr-defined]
        super().connection_made(_Transport(transport, self))  # type: ignore[arg-type]
        self.waiting_since = self.loop.time()
        limit = self.limits.max_connections
        num_excess = len(self.connections) - limit
        if num_excess > _MAX_REFUSED:
            self.transport.abort()
        elif num_excess > 0 and not self._make_room():
            self.refuse(
                503, f"{self.limits.max_connections} connections are open, no more are allowed; try again later"
            )

    def _make_room(self) -> bool:
        """Close the connection that has waited longest for a request; return False if there is none."""
        waiting = [each for each in self.connections if each.waiting_since is not None and each is not self]
        if waiting:
            oldest = min(waiting, key=lambda each: each.waiting_since or 0.0)
            oldest.waiting_since = None
            oldest.transport.abort()
        return bool(waiting)

    def data_received(self, data: bytes) -> None:
        """Parse data of the client; discard it if the answer refused the request that it belongs to."""
        self._num_unparsed += len(data)
        if self.transport.is_closing():
            if self._num_unparsed > _MAX_DISCARDED_BYTES:
                self.transport.abort()
            return
        super().data_received(data)
        if self._num_unparsed > self.limits.max_header_bytes and not self.transport.is_closing():
            self._refusal = self._head_too_large()
            self.send_400_response("")

    def send_400_response(self, msg: str) -> None:
        """Answer a request that the parser cannot read."""
        self.refuse(*self._refusal)

    def refuse(self, status: int, message: str) -> None:
        """Answer with an error and close the connection."""
        self._is_refused, self.waiting_since = True, None
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()  # another answer is on its way
        content = to_json({"error": message})
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            (b"connection", b"close"),
        ]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[status] + lines + b"\r\n" + content)
        self.transport.close()

    def on_message_begin(self) -> None:
        """Begin to count the head of a request."""
        super().on_message_begin()
        self._num_head_bytes = self._num_headers = 0

    def on_url(self, url: bytes) -> None:
        """Count the address of a request."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header or a trailer."""
        self._num_headers += 1
        self._count(len(name) + len(value))
        if self._num_headers > self.limits.max_headers:
            self._refusal = (431, f"the request has more than {self.limits.max_headers} headers")
            raise _RefusedRequestError
        super().on_header(name, value)

    def _count(self, num_bytes: int) -> None:
        self._num_head_bytes += num_bytes
        if self._num_head_bytes > self.limits.max_header_bytes:
            self._refusal = self._head_too_large()
            raise _RefusedRequestError

    def _head_too_large(self) -> tuple[int, str]:
        return 431, f"the address and the headers have more than {self.limits.max_header_bytes} bytes"

    def on_headers_complete(self) -> None:
        """Start to answer a request; its connection is kept only if the whole request arrives before the answer."""
        self._num_unparsed, self.waiting_since = 0, None
        if len(self.pipeline) >= _MAX_PIPELINED:
            self._refusal = (503, f"more than {_MAX_PIPELINED} requests were sent before the first was answered")
            raise _RefusedRequestError
        super().on_headers_complete()
        self._keeps_alive, self.cycle.keep_alive = self.cycle.keep_alive and self._keeps_alive, False

    def on_body(self, body: bytes) -> None:
        """Receive a part of the body."""
        self._num_unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Keep the connection for the next request unless the answer has already begun."""
        self._num_unparsed = 0
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keeps_alive
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self.waiting_since = self.loop.time()

    def shutdown(self) -> None:
        """Close the connection when the current answer is sent."""
        self._keeps_alive = False
        super().shutdown()

    def pause_writing(self) -> None:
        """Note that the client reads too slowly; bound what all such clients have not read."""
        super().pause_writing()
        self.unread_since = self.loop.time()
        slow = [each for each in self.connections if each.unread_since is not None]
        slow.sort(key=lambda each: each.unread_since or 0.0, reverse=True)
        unread = sum(each.transport.get_write_buffer_size() for each in slow)
        while unread > self.limits.max_unread_bytes and len(slow) > 1:
            oldest = slow.pop()
            unread -= oldest.transport.get_write_buffer_size()
            oldest.transport.abort()

    def resume_writing(self) -> None:
        """Note that the client reads again."""
        super().resume_writing()
        self.unread_since = None

    def has_unread_input(self) -> bool:
        """Return whether the client is still sending; a hard close could then destroy the answer on its way."""
        is_incomplete = self.cycle is not None and self.cycle.more_body
        return self._is_refused or is_incomplete or self._num_unparsed > 0 or bool(self.pipeline)

    def expire(self) -> None:
        """Close the connection if the client sent no request, or read nothing, within the time limit."""
        now, timeout_s = self.loop.time(), self.limits.timeout_s
        size = self.transport.get_write_buffer_size()
        if size != self._unread[0]:
            self._unread = (size, now)
        if size and now - self._unread[1] > timeout_s:
            self.transport.abort()
        elif self.waiting_since is not None and now - self.waiting_since > timeout_s:
            if self._num_unparsed:
                self.refuse(408, f"the head of the request did not arrive within {timeout_s:g} s")
            else:
                self.transport.close()
                self.waiting_since = None


class _Transport:
    """Transport that sends head and body of an answer together, and closes without loss of the answer."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self._transport, self._connection = transport, connection
        self._parts: list[bytes] = []
        self._is_lingering = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send data at the end of this step of the event loop, in one segment with all that is written until then."""
        if self.is_closing():
            return
        if len(data) > _MAX_JOINED_BYTES:
            self._flush()
            self._transport.write(data)
            return
        if not self._parts:
            self._connection.loop.call_soon(self._flush)
        self._parts.append(data)

    def _flush(self) -> None:
        if self._parts:
            joined = b"".join(self._parts)
            self._parts.clear()
            self._transport.write(joined)

    def is_closing(self) -> bool:
        """Return whether the connection is closed for writing."""
        return self._is_lingering or self._transport.is_closing()

    def close(self) -> None:
        """Close the connection; if the client is still sending, only after some time, so that it gets the answer."""
        if self.is_closing():
            return
        self._flush()
        if not self._connection.has_unread_input():
            self._transport.close()
            return
        self._is_lingering = True
        self._transport.write_eof()
        self._connection.flow.resume_reading()
        self._connection.loop.call_later(_LINGER_S, self._transport.abort)

    def abort(self) -> None:
        """Close the connection at once."""
        self._parts.clear()
        self._transport.abort()
