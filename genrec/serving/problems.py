"""What goes wrong with a request, in the form of OpenAI's errors; nothing of the request is repeated in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class Problem(Exception):
    """An answer other than 200: ``status``, ``message``, the field at fault, a word for programs (internal).

    ``message`` is written by the server and repeats no value of the request. allow: of 405, what the route takes.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        allow: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.allow = tuple(allow)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """What HTTP asks for beside such a status: when to come back, how to show a key, what the route takes.

        After 408 and 413 the connection ends: what is left of the body is not read.
        """
        found = {}
        if self.retry_after is not None:
            found["retry-after"] = str(max(1, round(self.retry_after)))
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        if self.allow:
            found["allow"] = ", ".join(self.allow)
        if self.status in (408, 413):
            found["connection"] = "close"
        return found

    def written(self) -> tuple[dict[str, str], bytes]:
        """Headers and body of the whole answer."""
        body = json.dumps(self.body()).encode()
        return {"content-type": "application/json", "content-length": str(len(body)), **self.headers()}, body
