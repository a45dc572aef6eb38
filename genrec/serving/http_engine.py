"""A model in an unmodified vLLM server elsewhere, asked through ``/v1/completions``."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from genrec import artifacts
from genrec.errors import ConfigError
from genrec.models.bundle import bundle_folder
from genrec.models.engine_scorer import Ask, Float32
from genrec.models.engine_weights import Held, weights_of
from genrec.serving.engines import MAX_IDS, Read, answers_of, by_id, failed, reads_of
from genrec.serving.patience import patience, waited_for
from genrec.serving.problems import Problem
from genrec.serving.served_weights import check_adapter, check_weights
from genrec.serving.settings import can_be_shown, is_loopback

log = logging.getLogger(__name__)

TRIES = 3
PROMPTS_AT_ONCE = 64
"""Prompts of one call."""
IDLE_SECONDS = 2.0
"""How long a connection is kept without a call: vLLM closes it after five."""
_AGAIN = (429, 502, 503, 504)


@dataclass(eq=False)
class _Wait:
    """What somebody waits for: until when, and the connections on which it is under way."""

    until: float
    lines: set[http.client.HTTPConnection] = field(default_factory=set)
    over: bool = False

    @property
    def left(self) -> float:
        """Seconds; 0 where nobody waits any more."""
        return 0.0 if self.over else max(0.0, self.until - time.monotonic())

    def end(self) -> None:
        """Nobody waits: what is under way ends at once, however slowly the server sends."""
        self.over = True
        for line in list(self.lines):
            with contextlib.suppress(OSError):
                # not the method of a TLS socket, which another thread may be reading
                socket.socket.shutdown(line.sock, socket.SHUT_RDWR)


class HttpEngine:
    """An :class:`~genrec.models.engine_scorer.Engine` behind a URL (internal).

    The ids of a call hold for all its prompts, so prompts whose ids together are few enough share a call. Calls that
    meet a busy or absent server are made again, three times in all, until nobody waits; then those under way are ended.

    url: of the server, ``http://HOST:PORT``, with or without ``/v1``. model: what the server calls it (an adapter has a
    name of its own); None = the one it lists. key: shown as ``Authorization: Bearer KEY``. connections: calls at a
    time. Raises ConfigError where there is no such server or model.
    """

    def __init__(self, url: str, *, model: str | None = None, key: str | None = None, connections: int = 16) -> None:
        parts, host = _address(url)
        if key is not None and not can_be_shown(key):
            raise ConfigError("GENREC_ENGINE_KEY: expected printable ASCII characters without spaces")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._at = (host, parts.port)
        self._path = parts.path.rstrip("/").removesuffix("/v1") + "/v1"
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._pool = ThreadPoolExecutor(connections, thread_name_prefix="genrec-engine")
        self._idle: list[tuple[float, http.client.HTTPConnection]] = []  # and since when
        self.model, self._max_len, self._folders = self._served(url, model)

    def logprobs(self, asks: Sequence[Ask]) -> list[Float32]:
        """See the protocol. Raises Problem: 400 for a prompt that is too long, 503 where the server fails, 504."""
        reads, wait = reads_of(asks, self._max_len), _Wait(patience().deadline)
        values: list[list[float]] = [[] for _ in reads]
        calls: list[tuple[list[int], Future[list[list[float]]]]] = []
        try:
            for places in _groups(reads):
                calls.append((places, self._pool.submit(self._read, [reads[place] for place in places], wait)))
            for places, call in calls:
                rows = waited_for(call)
                for place, row in zip(places, rows, strict=True):
                    values[place] = row
        finally:
            for _, call in calls:
                call.cancel()
            wait.end()
        return answers_of(asks, values)

    def check(self, run: Path) -> None:
        """Compare the model's weights with those of a run, where its folders lie on this machine; else warn of it.

        Raises FingerprintMismatch for others.
        """
        model, adapter = self._folders
        if not is_loopback(self._at[0]) or model is None or not model.is_absolute() or not model.is_dir():
            log.warning(
                "NOBODY CHECKS that the model %s of that server is the one of %s: its folder is not seen from here. "
                "Lists are wrong where it is another one",
                self.model,
                run,
            )
            return
        held, manifest = Held.of(model), artifacts.read(bundle_folder(run.resolve()), verify=False)
        check_weights(held, weights_of(manifest), run)
        check_adapter(model, manifest.path / "model", adapter, held)

    def close(self) -> None:
        """End the threads and the connections."""
        self._pool.shutdown(cancel_futures=True)
        self._drop_idle()

    def _served(self, url: str, model: str | None) -> tuple[str, int, tuple[Path | None, Path | None]]:
        """Name and longest prompt of the model, its folder and its adapter's, as the server says."""
        try:
            listed = self._call("GET", "/models", None, _Wait(time.monotonic() + 10))["data"]
            known = {each["id"]: each for each in listed}
            lengths = [each["max_model_len"] for each in listed if each.get("max_model_len")]
        except (Problem, KeyError, TypeError, ValueError, AttributeError) as error:
            hint = "start it with: vllm serve FOLDER (genrec export RUN FOLDER --merge); its key is GENREC_ENGINE_KEY"
            self.close()
            raise ConfigError(f"--url: no vLLM server answers at {url}", hint=hint) from error
        if model is None and len(known) > 1:
            self.close()
            raise ConfigError(f"--engine-model: the server at {url} has several models", hint=f"one of {sorted(known)}")
        name = model or next(iter(known), "")
        if name not in known:
            self.close()
            raise ConfigError(f"--engine-model: the server at {url} has no model {name!r}: {sorted(known)}")
        one, above = known[name], known.get(known[name].get("parent"))
        folder, adapter = (one, None) if above is None else (above, one)  # an adapter has no length of its own
        folders = [None if each is None or not each.get("root") else Path(each["root"]) for each in (folder, adapter)]
        return name, int(one.get("max_model_len") or min(lengths, default=2**31)), (folders[0], folders[1])

    def _read(self, reads: Sequence[Read], wait: _Wait) -> list[list[float]]:
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
        found = self._call("POST", "/completions", body, wait)
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

    def _call(self, method: str, path: str, body: Any, wait: _Wait) -> Any:
        """The JSON of an answer; made again where that may help."""
        raw = None if body is None else json.dumps(body).encode()
        why = "nobody waits any more"
        for number in range(TRIES):
            if not wait.left:
                break
            try:
                status, found = self._once(method, path, raw, wait)
            except (OSError, http.client.HTTPException) as error:
                why = f"{type(error).__name__}: {error}"
            else:
                if status == 200:
                    return _json(found)
                why = f"status {status}"
                if status not in _AGAIN:
                    break
            time.sleep(min(0.1 * 2**number, wait.left))
        raise failed(why)

    def _once(self, method: str, path: str, raw: bytes | None, wait: _Wait) -> tuple[int, bytes]:
        """Status and body, over a connection that was used before if there is one that the server has not closed."""
        line = self._idle_line()
        if line is not None:
            try:
                return self._asked(line, method, path, raw, wait)
            except (OSError, http.client.HTTPException):
                self._drop_idle()  # what closed one has closed the others
        return self._asked(self._connection(), method, path, raw, wait)

    def _asked(
        self, line: http.client.HTTPConnection, method: str, path: str, raw: bytes | None, wait: _Wait
    ) -> tuple[int, bytes]:
        """Status and body over this connection, which is kept for the next call."""
        try:
            line.timeout = wait.left or 0.001  # of each wait for bytes; their sum is bounded by the end of the wait
            if line.sock is None:
                line.connect()
            line.sock.settimeout(line.timeout)
            wait.lines.add(line)
            if not wait.left:
                raise TimeoutError("nobody waits any more")
            line.request(method, self._path + path, raw, self._headers)
            answer = line.getresponse()
            status, found = answer.status, answer.read()
        except BaseException:
            line.close()
            raise
        finally:
            wait.lines.discard(line)
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
        self._drop_idle()
        return None

    def _drop_idle(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop()[1].close()

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._at
        if self._tls is None:
            return http.client.HTTPConnection(host, port)
        return http.client.HTTPSConnection(host, port, context=self._tls)


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
