"""A model in an unmodified vLLM server elsewhere, asked through ``/v1/completions``."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from genrec.errors import ConfigError
from genrec.models.engine_scorer import Ask, Float32
from genrec.serving.engines import MAX_IDS, Read, answers_of, by_id, failed, reads_of
from genrec.serving.patience import patience, waited_for
from genrec.serving.problems import Problem

TRIES = 3
PROMPTS_AT_ONCE = 64
"""Prompts of one call."""
_AGAIN = (429, 502, 503, 504)


class HttpEngine:
    """An :class:`~genrec.models.engine_scorer.Engine` behind a URL (internal).

    The ids of a call hold for all its prompts, so prompts whose ids together are few enough share a call. Calls that
    meet a busy or absent server are made again, three times in all, until nobody waits.

    url: of the server, ``http://HOST:PORT``, with or without ``/v1``. model: what the server calls it (an adapter has a
    name of its own); None = the first it lists. key: shown as ``Authorization: Bearer KEY``. connections: calls at a
    time. Raises ConfigError where there is no such server or model.
    """

    def __init__(self, url: str, *, model: str | None = None, key: str | None = None, connections: int = 16) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ConfigError(f"--url: expected http://HOST:PORT or https://…, got {url!r}")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._at = (parts.hostname, parts.port)
        self._path = parts.path.rstrip("/").removesuffix("/v1") + "/v1"
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._pool = ThreadPoolExecutor(connections, thread_name_prefix="genrec-engine")
        self._idle: list[http.client.HTTPConnection] = []
        self.model, self._max_len = self._served(url, model)

    def logprobs(self, asks: Sequence[Ask]) -> list[Float32]:
        """See the protocol. Raises Problem: 400 for a prompt that is too long, 503 where the server fails, 504."""
        reads, until = reads_of(asks, self._max_len), patience().deadline
        values: list[list[float]] = [[] for _ in reads]
        calls: list[tuple[list[int], Future[list[list[float]]]]] = []
        try:
            for places in _groups(reads):
                calls.append((places, self._pool.submit(self._read, [reads[place] for place in places], until)))
            for places, call in calls:
                rows = waited_for(call)
                for place, row in zip(places, rows, strict=True):
                    values[place] = row
        finally:
            for _, call in calls:
                call.cancel()
        return answers_of(asks, values)

    def close(self) -> None:
        """End the threads and the connections."""
        self._pool.shutdown(cancel_futures=True)
        while self._idle:
            self._idle.pop().close()

    def _served(self, url: str, model: str | None) -> tuple[str, int]:
        try:
            listed = self._call("GET", "/models", None, time.monotonic() + 10)["data"]
            known = {each["id"]: each.get("max_model_len") for each in listed}
        except (Problem, KeyError, TypeError, AttributeError) as error:
            hint = "start it with: vllm serve FOLDER (genrec export RUN FOLDER --merge); its key is GENREC_ENGINE_KEY"
            self.close()
            raise ConfigError(f"--url: no vLLM server answers at {url}", hint=hint) from error
        name = model or next(iter(known), "")
        if name not in known:
            self.close()
            raise ConfigError(f"--engine-model: the server at {url} has no model {name!r}: {sorted(known)}")
        lengths = [each for each in known.values() if each]  # an adapter has none of its own
        return name, int(known[name] or min(lengths, default=2**31))

    def _read(self, reads: Sequence[Read], until: float) -> list[list[float]]:
        ids = sorted({each for read in reads for each in read.ids})
        body = {
            "model": self.model,
            "prompt": [read.tokens for read in reads],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 1,
            "logprob_token_ids": ids,
            "return_tokens_as_token_ids": True,
        }
        found = self._call("POST", "/completions", body, until)
        try:
            choices = sorted(found["choices"], key=lambda choice: choice["index"])
            rows = [choice["logprobs"]["top_logprobs"][0] for choice in choices]
            tables = [
                {int(name.removeprefix("token_id:")): float(value) for name, value in row.items()} for row in rows
            ]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise failed(f"an answer of another form ({type(error).__name__}: {error})") from None
        if len(tables) != len(reads):
            raise failed(f"{len(tables)} answers to {len(reads)} prompts")
        return [by_id(read.ids, [*table], [*table.values()]) for read, table in zip(reads, tables, strict=True)]

    def _call(self, method: str, path: str, body: Any, until: float) -> Any:
        """The JSON of an answer; made again where that may help."""
        raw = None if body is None else json.dumps(body).encode()
        why = "nobody waits any more"
        for number in range(TRIES):
            left = until - time.monotonic()
            if left <= 0:
                break
            try:
                status, found = self._once(method, path, raw, left)
            except (OSError, http.client.HTTPException) as error:
                why = f"{type(error).__name__}: {error}"
            else:
                if status == 200:
                    return _json(found)
                why = f"status {status}"
                if status not in _AGAIN:
                    break
            time.sleep(min(0.1 * 2**number, max(0.0, until - time.monotonic())))
        raise failed(why)

    def _once(self, method: str, path: str, raw: bytes | None, left: float) -> tuple[int, bytes]:
        """Status and body, over a connection that was used before if there is one."""
        line = self._idle.pop() if self._idle else self._connection()
        try:
            line.timeout = left
            if line.sock is not None:
                line.sock.settimeout(left)
            line.request(method, self._path + path, raw, self._headers)
            answer = line.getresponse()
            status, found = answer.status, answer.read()
        except BaseException:
            line.close()
            raise
        self._idle.append(line)
        return status, found

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._at
        if self._tls is None:
            return http.client.HTTPConnection(host, port)
        return http.client.HTTPSConnection(host, port, context=self._tls)


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        raise failed("an answer that is no JSON") from None


def _groups(reads: Sequence[Read]) -> Iterator[list[int]]:
    """Places of reads whose ids together are few enough for one call."""
    places: list[int] = []
    ids: set[int] = set()
    for place, read in enumerate(reads):
        if places and (len(places) >= PROMPTS_AT_ONCE or len(ids.union(read.ids)) > MAX_IDS):
            yield places
            places, ids = [], set()
        places.append(place)
        ids.update(read.ids)
    if places:
        yield places
