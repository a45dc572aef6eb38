"""Calls of one server: over connections that are kept, again where that may help, ended when nobody waits any more."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from genrec.errors import ConfigError
from genrec.serving.engines import failed
from genrec.serving.settings import can_be_shown

TRIES = 3
IDLE_SECONDS = 2.0
"""How long a connection is kept without a call: vLLM closes it after five."""
CONNECT_SECONDS = 3.0
"""How long a connection may take to be made."""
_AGAIN = (429, 502, 503, 504)


@dataclass(eq=False)
class Wait:
    """What somebody waits for: until when, and the sockets on which it is under way (internal)."""

    until: float
    sockets: set[socket.socket] = field(default_factory=set)
    over: bool = False

    @property
    def left(self) -> float:
        """Seconds; 0 where nobody waits any more."""
        return 0.0 if self.over else max(0.0, self.until - time.monotonic())

    def end(self) -> None:
        """Nobody waits: what is under way ends at once, however slowly the server sends."""
        self.over = True
        for each in list(self.sockets):
            with contextlib.suppress(OSError):
                # not the method of a TLS socket, which another thread may be reading
                socket.socket.shutdown(each, socket.SHUT_RDWR)

    @contextlib.contextmanager
    def bounded(self) -> Iterator[None]:
        """End it in time, where no other thread would: a server may send so slowly that each wait for it is short."""
        timer = threading.Timer(self.left, self.end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


class Calls:
    """Of the server at a URL, by any number of threads (internal).

    url: ``http://HOST:PORT``, with or without ``/v1``, under which paths begin. key: shown as ``Authorization: Bearer
    KEY``. Raises ConfigError for what can be neither.
    """

    def __init__(self, url: str, key: str | None) -> None:
        parts, self.host = _address(url)
        if key is not None and not can_be_shown(key):
            raise ConfigError("GENREC_ENGINE_KEY: expected printable ASCII characters without spaces")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port
        self._root = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._idle: list[tuple[float, http.client.HTTPConnection]] = []  # and since when

    def json(self, method: str, path: str, body: Any, wait: Wait) -> Any:
        """The JSON of an answer; made again where that may help."""
        raw = None if body is None else json.dumps(body).encode()
        why = "nobody waits any more"
        for number in range(TRIES):
            if not wait.left:
                break
            try:
                status, found = self.once(method, path, raw, wait)
            except (OSError, http.client.HTTPException) as error:
                why = f"{type(error).__name__}: {error}"
            else:
                if status == 200:
                    return parsed(found)
                why = f"status {status}"
                if status not in _AGAIN:
                    break
            time.sleep(min(0.1 * 2**number, wait.left))
        raise failed(why)

    def once(self, method: str, path: str, raw: bytes | None, wait: Wait) -> tuple[int, bytes]:
        """Status and body, over a connection that was used before if there is one that the server has not closed."""
        line = self._idle_line()
        if line is not None:
            try:
                return self._asked(line, method, path, raw, wait)
            except (OSError, http.client.HTTPException):
                self.close()  # what closed one has closed the others
        return self._asked(self._connection(), method, path, raw, wait)

    def _asked(
        self, line: http.client.HTTPConnection, method: str, path: str, raw: bytes | None, wait: Wait
    ) -> tuple[int, bytes]:
        """Status and body over this connection, which is kept for the next call."""
        used: socket.socket | None = None
        try:
            if line.sock is None:
                line.timeout = min(wait.left, CONNECT_SECONDS) or 0.001
                line.connect()
            used = line.sock
            assert used is not None, "it is connected"
            used.settimeout(wait.left or 0.001)  # of each wait for bytes; the end of the wait bounds their sum
            wait.sockets.add(used)
            if not wait.left:
                raise TimeoutError("nobody waits any more")
            line.request(method, self._root + path, raw, self._headers)
            answer = line.getresponse()
            status, found = answer.status, answer.read()
        except BaseException:
            line.close()
            raise
        finally:
            if used is not None:
                wait.sockets.discard(used)
        self._idle.append((time.monotonic(), line))
        return status, found

    def _idle_line(self) -> http.client.HTTPConnection | None:
        """The connection used last, where the server will still have it; the others are then older."""
        try:
            since, line = self._idle.pop()
        except IndexError:  # another thread was faster
            return None
        if time.monotonic() - since <= IDLE_SECONDS:
            return line
        line.close()
        self.close()
        return None

    def close(self) -> None:
        """Close the connections that nobody uses."""
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop()[1].close()

    def _connection(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self.host, self._port)
        return http.client.HTTPSConnection(self.host, self._port, context=self._tls)


def _address(url: str) -> tuple[SplitResult, str]:
    """The parts of a URL, and its host. Raises ConfigError, which does not repeat it: it may hold a password."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and "@" not in parts.netloc and not parts.query
        if whole and parts.hostname and parts.port != 0:
            return parts, parts.hostname
    except ValueError:  # of the port or the brackets of an address
        pass
    raise ConfigError("--url: expected http://HOST:PORT or https://HOST:PORT, without user, password and query")


def parsed(raw: bytes) -> Any:
    """The JSON of an answer. Raises Problem 503 where it is none (internal)."""
    try:
        return json.loads(raw)
    except ValueError:
        raise failed("an answer that is no JSON") from None
