"""What stands before every route: the key, the size and the time of a request, a name for it, a line in the log."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from genrec.serving.problems import Problem
from genrec.serving.settings import ServeSettings
from genrec.serving.telemetry import Metrics

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

ROUTES: dict[tuple[str, str], str] = {
    ("GET", "/health"): "open",
    ("GET", "/ready"): "key",
    ("GET", "/version"): "key",
    ("GET", "/metrics"): "key",
    ("GET", "/openapi.json"): "key",
    ("GET", "/v1/models"): "key",
    ("GET", "/v1/catalog"): "key",
    ("POST", "/v1/recommendations"): "key",
    ("POST", "/v1/admin/retire"): "admin",
    ("POST", "/v1/admin/filters"): "admin",
    ("POST", "/v1/admin/fields"): "admin",
    ("POST", "/v1/admin/reload"): "admin",
    ("POST", "/v1/admin/rollback"): "admin",
}
"""Every route and who may use it: everyone, holders of the key, holders of the admin key. Others need the key."""


class Guard:
    """ASGI middleware (internal): refuses before anything is read what may not pass.

    A request has a name (``x-request-id``), which the log and the answer carry. The log says method, route, status and
    time, and nothing that a client sent.
    """

    def __init__(self, app: Any, settings: ServeSettings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, name = time.monotonic(), uuid.uuid4().hex[:16]
        status: int | None = None
        route = scope["path"] if (scope["method"], scope["path"]) in ROUTES else "other"
        scope["state"] = {**scope.get("state", {}), "request_id": name}

        async def named(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", name.encode())]
            await send(message)

        try:
            self._admit(scope)
            await self._app(scope, receive, named)
        except Problem as problem:
            await answer(named, problem)
        except Exception:
            log.exception("request %s", name)
            if status is None:
                await answer(named, Problem(500, "an error of the server; see its log"))
        finally:
            seconds = time.monotonic() - started
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.latency.labels(route).observe(seconds)
            line = {"id": name, "method": scope["method"] if route != "other" else "-", "route": route}
            log.info(json.dumps({**line, "status": status, "ms": round(seconds * 1000, 1)}))

    def _admit(self, scope: Scope) -> None:
        """Raise Problem for a request without the right key, or with a body that says it is too large."""
        guard = ROUTES.get((scope["method"], scope["path"]), "key")
        headers = dict(scope["headers"])
        if guard == "admin" and self._settings.admin_key is None:
            raise Problem(403, "the server has no admin key: these routes are off", code="admin_off")
        wanted = {"open": None, "key": self._settings.api_key, "admin": self._settings.admin_key}[guard]
        if wanted is not None and not _same_key(headers.get(b"authorization", b""), wanted):
            raise Problem(401, "expected the header Authorization: Bearer KEY", code="invalid_api_key")
        if (scope["method"], scope["path"]) not in ROUTES:
            # the router's idea of equal paths never counts: "/v1/admin/retire\n" is no route of the table
            if taken := [method for method, path in ROUTES if path == scope["path"]]:
                raise Problem(405, "the route does not take this method", allow=taken)
            raise Problem(404, "no such route")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self._settings.max_body_bytes:
            raise too_large(self._settings)


def too_large(settings: ServeSettings) -> Problem:
    """The answer to a body over the limit (internal)."""
    return Problem(413, f"the body may have at most {settings.max_body_bytes} bytes", code="too_large")


async def body_of(receive: Receive, settings: ServeSettings) -> bytes:
    """The body of a request (internal). Raises Problem 413 as soon as it is too large, 408 where it does not come."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(settings.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Problem(400, "the connection ended within the body", code="disconnected")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > settings.max_body_bytes:
                    raise too_large(settings)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise Problem(408, f"the body did not arrive within {settings.body_seconds:g} s", code="slow_body") from None


async def answer(send: Send, problem: Problem) -> None:
    """Send a problem as the whole answer (internal)."""
    headers, body = problem.written()
    raw = [(key.encode(), value.encode()) for key, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _same_key(header: bytes, key: str) -> bool:
    """Compared in constant time."""
    return hmac.compare_digest(header, f"Bearer {key}".encode())
