"""Connections: those on which a request does not arrive are cut, those that come while the server stops are told so.

uvicorn waits for ever for the end of a request's headers, and while it stops it leaves new connections in the queue of
the socket. (The time of a body is counted by :func:`genrec.serving.guard.body_of`.)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from genrec.serving.problems import Problem

log = logging.getLogger(__name__)

STOPPING = Problem(503, "the server is shutting down", code="shutting_down", retry_after=1)
NO_HTTP = Problem(400, "this is no HTTP request, or its headers are too large", code="invalid_http")
_LARGEST_HEAD = 65_536


def impatient(seconds: float, idle: float) -> type[H11Protocol]:
    """uvicorn's protocol, with a limit to the time in which a request's headers arrive (internal).

    seconds: from the first moment of a connection, or from the end of the answer before; ``idle`` more there, which is
    how long uvicorn keeps a connection on which nothing comes.
    """

    class Impatient(H11Protocol):
        _cut: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._arm(seconds)

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def handle_events(self) -> None:
            before = self.cycle
            super().handle_events()
            if self.cycle is not before:
                self._disarm()  # the headers are here

        def on_response_complete(self) -> None:
            answered = self.cycle
            self._arm(seconds + idle)
            super().on_response_complete()
            if self.cycle is not answered:  # the next request was there already
                self._disarm()

        def send_400_response(self, msg: str) -> None:
            """What is no HTTP is answered as every other error is."""
            headers, body = NO_HTTP.written()
            raw = [(name.encode(), value.encode()) for name, value in {**headers, "connection": "close"}.items()]
            for event in (h11.Response(status_code=400, headers=raw), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def _arm(self, after: float) -> None:
            self._disarm()
            self._cut = self.loop.call_later(after, self._too_slow)

        def _disarm(self) -> None:
            if self._cut is not None:
                self._cut.cancel()
                self._cut = None

        def _too_slow(self) -> None:
            if self.transport is not None and not self.transport.is_closing():
                log.info("a connection on which no request arrived is cut")
                self.transport.abort()

    return Impatient


class Stopping(asyncio.Protocol):
    """Answers 503 to whatever comes (internal)."""

    def __init__(self, seconds: float = 1.0) -> None:
        self._seconds, self._read, self._done = seconds, b"", False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Give the client some time to say what it wants: a close before that would lose the answer."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        asyncio.get_running_loop().call_later(self._seconds, self._close)

    def data_received(self, data: bytes) -> None:
        """Answer when the headers have ended; a body is thrown away until the client closes."""
        if self._done:
            return
        self._read += data
        if b"\r\n\r\n" not in self._read and len(self._read) < _LARGEST_HEAD:
            return
        self._done = True
        headers, body = STOPPING.written()
        lines = ["HTTP/1.1 503 Service Unavailable", "connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _close(self) -> None:
        if not self._transport.is_closing():
            self._transport.close()


async def refuse_while(stop: Callable[[], Any], at: Any) -> None:
    """Run ``await stop()`` while new connections on a listening socket are answered 503 (internal)."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Stopping, sock=at.dup())
    try:
        await stop()
    finally:
        server.close()
