"""A model in an unmodified vLLM server elsewhere, asked through ``/v1/completions``."""

from __future__ import annotations

import http.client
import json
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from genrec.errors import ConfigError, FingerprintMismatch
from genrec.models.engine_scorer import Ask, Float32
from genrec.serving.engine_watch import EngineWatch
from genrec.serving.engines import MAX_IDS, Read, answers_of, by_id, failed, gone, reads_of
from genrec.serving.http_calls import Calls, Wait, parsed
from genrec.serving.patience import patience, waited_for
from genrec.serving.problems import Problem
from genrec.serving.remote_model import RemoteModel, check_folders, check_vocabulary
from genrec.serving.settings import is_loopback

log = logging.getLogger(__name__)

PROMPTS_AT_ONCE = 64
"""Prompts of one call."""
LOOK_SECONDS = 2.0
"""How long a look whether the server is well may take."""
START_SECONDS = 10.0
"""How long it may take to say what it has."""


class HttpEngine:
    """An :class:`~genrec.models.engine_scorer.Engine` behind a URL (internal).

    The ids of a call hold for all its prompts, so prompts whose ids together are few enough share a call. Calls that
    meet a busy or absent server are made again, three times in all, until nobody waits; then those under way are ended.

    url: of the server, ``http://HOST:PORT``, with or without ``/v1``. model: what the server calls it (an adapter has a
    name of its own); None = the one it lists. key: shown as ``Authorization: Bearer KEY``. connections: calls at a
    time. Raises ConfigError where there is no such server or model.
    """

    def __init__(self, url: str, *, model: str | None = None, key: str | None = None, connections: int = 16) -> None:
        self._calls = Calls(url, key)
        self._pool = ThreadPoolExecutor(connections, thread_name_prefix="genrec-engine")
        self._waits: set[Wait] = set()
        self._watch: EngineWatch | None = None
        try:
            self._remote = self._served(url, model)
        except BaseException:
            self.close()
            raise
        self.model, self._max_len = self._remote.name, self._remote.max_len

    def logprobs(self, asks: Sequence[Ask]) -> list[Float32]:
        """See the protocol. Raises Problem: 400 for a prompt that is too long, 503 where the server fails, 504."""
        if not self.well:
            raise gone()
        reads, wait = reads_of(asks, self._max_len), Wait(patience().deadline)
        values: list[list[float]] = [[] for _ in reads]
        calls: list[tuple[list[int], Future[list[list[float]]]]] = []
        self._waits.add(wait)
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
            self._waits.discard(wait)
            wait.end()
        return answers_of(asks, values)

    @property
    def well(self) -> bool:
        """Whether the server answered when it was looked at last; true where nobody looks."""
        return self._watch is None or self._watch.well

    def check(self, run: Path) -> None:
        """Compare what the server says of its model with a run, and warn of what it does not say.

        The ids of item tokens, by ``/tokenize``; the weights, where its folders lie on this machine. Raises
        FingerprintMismatch for others.
        """
        words = check_vocabulary(self._ids_of, run, max_len=self._max_len)
        weights = is_loopback(self._calls.host) and check_folders(self._remote, run)
        if not weights:
            log.warning(
                "NOBODY CHECKS that the model %s of that server has the weights of %s: its folder is not seen from "
                "here. Lists are wrong where it has others%s",
                self.model,
                run,
                "" if words else ". Nor is its vocabulary known: /tokenize has no answer",
            )

    def watch(self, run: Path) -> None:
        """Look from now on whether the server is well; while it is not, requests fail at once, also those under way.

        Once lost, it is back when it has the same model again and :meth:`check` finds nothing wrong.
        """
        self._watch = EngineWatch(self._look, again=lambda: self.check(run), lost=self._let_go)

    def close(self) -> None:
        """End the threads and the connections."""
        if self._watch is not None:
            self._watch.close()
        self._pool.shutdown(cancel_futures=True)
        self._calls.close()

    def _let_go(self) -> None:
        for wait in list(self._waits):
            wait.end()

    def _look(self) -> None:
        """Raise where the server is not well, does not answer in time, or lists the model in another way."""
        wait = Wait(time.monotonic() + LOOK_SECONDS)
        with wait.bounded():
            status, _ = self._calls.once("GET", "/health", None, wait)
            if status not in (200, 404, 405):  # what stands between may pass on /v1 only
                raise ConnectionError(f"/health says {status}")
            status, found = self._calls.once("GET", "/v1/models", None, wait)
        if status != 200:
            raise ConnectionError(f"/v1/models says {status}")
        if RemoteModel.of(parsed(found), self.model) != self._remote:
            raise FingerprintMismatch("the server has another model now", hint="start genrec serve again to take it")

    def _served(self, url: str, model: str | None) -> RemoteModel:
        wait = Wait(time.monotonic() + START_SECONDS)
        try:
            with wait.bounded():
                listed = self._calls.json("GET", "/v1/models", None, wait)
            return RemoteModel.of(listed, model)
        except ConfigError:
            raise
        except (Problem, KeyError, TypeError, ValueError, AttributeError) as error:
            hint = "start it with: vllm serve FOLDER (genrec export RUN FOLDER --merge); its key is GENREC_ENGINE_KEY"
            raise ConfigError(f"--url: no vLLM server answers at {url}", hint=hint) from error

    def _ids_of(self, text: str) -> list[int] | None:
        """How the server reads a text; None where it does not say."""
        raw = json.dumps({"model": self.model, "prompt": text, "add_special_tokens": False}).encode()
        wait = Wait(time.monotonic() + START_SECONDS)
        try:
            with wait.bounded():
                status, found = self._calls.once("POST", "/tokenize", raw, wait)
            return [int(each) for each in json.loads(found)["tokens"]] if status == 200 else None
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            return None

    def _read(self, reads: Sequence[Read], wait: Wait) -> list[list[float]]:
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
        found = self._calls.json("POST", "/v1/completions", body, wait)
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
