"""A model in the vLLM of this process, asked by requests of one token."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

from genrec.models.engine_scorer import Ask, Float32
from genrec.serving.engines import Read, answers_of, by_id, failed, reads_of
from genrec.serving.patience import waited_for

AT_ONCE = 64
"""Requests of one search that vLLM has at a time: a wide search does not stand before all others in its queue."""


class VllmEngine:
    """An :class:`~genrec.models.engine_scorer.Engine` over vLLM's ``EngineClient`` (internal).

    Each read is a request with ``logprob_token_ids``: raw log-probabilities over the whole vocabulary, whatever the
    sampling. vLLM batches what all searches ask at the time, and its prefix cache keeps the prompts. A search that is
    given up takes its requests with it.

    client: the ``EngineClient``; loop: where it runs, another thread's. lora: a ``LoRARequest``, sent with every read.
    """

    def __init__(self, client: Any, loop: asyncio.AbstractEventLoop, *, max_len: int, lora: Any = None) -> None:
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        self._client, self._loop, self._max_len, self._lora = client, loop, max_len, lora
        self._prompt, self._kind, self._params = tokens_input, RequestOutputKind.FINAL_ONLY, SamplingParams
        self._numbers = itertools.count()

    def logprobs(self, asks: Sequence[Ask]) -> list[Float32]:
        """See the protocol. Raises Problem: 400 for a prompt that is too long, 503 where vLLM fails, 504 in the end."""
        reads = reads_of(asks, self._max_len)
        return answers_of(asks, waited_for(asyncio.run_coroutine_threadsafe(self._all(reads), self._loop)))

    async def _all(self, reads: Sequence[Read]) -> list[list[float]]:
        share = asyncio.Semaphore(AT_ONCE)

        async def one(read: Read) -> list[float]:
            async with share:
                return await self._one(read)

        tasks = [asyncio.ensure_future(one(read)) for read in reads]
        try:
            return await asyncio.gather(*tasks)
        except Exception as error:
            raise failed(f"{type(error).__name__}: {error}") from error
        finally:
            for task in tasks:
                task.cancel()  # vLLM aborts a request whose generator is cancelled

    async def _one(self, read: Read) -> list[float]:
        params = self._params(
            max_tokens=1,
            temperature=0.0,
            logprob_token_ids=read.ids,
            flat_logprobs=True,
            detokenize=False,
            output_kind=self._kind,
            skip_clone=True,  # nobody else has it; vLLM would copy it with all ids
        )
        name = f"genrec-{next(self._numbers)}"
        found: Any = None
        async for each in self._client.generate(self._prompt(read.tokens), params, name, lora_request=self._lora):
            found = each.outputs[0].logprobs if each.outputs else None
        if not found:
            raise failed("a request came back without log-probabilities")
        return by_id(read.ids, found.token_ids, found.logprobs)
