"""What of vLLM the endpoint touches, without vLLM: a client that answers from a model, and the modules it imports."""

from __future__ import annotations

import asyncio
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from genrec.models.engine_scorer import Ask
from genrec.testing.engines import ModelEngine

FINAL_ONLY = "final only"


def vllm_modules() -> dict[str, ModuleType]:
    """Stand-ins for ``sys.modules``: as much of vLLM as :class:`genrec.serving.vllm_engine.VllmEngine` imports."""
    inputs, params = ModuleType("vllm.inputs"), ModuleType("vllm.sampling_params")
    inputs.tokens_input = lambda ids: {"type": "token", "prompt_token_ids": ids}  # type: ignore[attr-defined]
    params.RequestOutputKind = SimpleNamespace(FINAL_ONLY=FINAL_ONLY)  # type: ignore[attr-defined]
    params.SamplingParams = lambda **given: Namespace(**given)  # type: ignore[attr-defined]
    return {"vllm": ModuleType("vllm"), "vllm.inputs": inputs, "vllm.sampling_params": params}


def missing_modules() -> dict[str, ModuleType]:
    """Those of :func:`vllm_modules` that are not installed here."""
    return {name: module for name, module in vllm_modules().items() if name not in sys.modules}


@dataclass
class FakeClient:
    """An ``EngineClient`` over a model in this process.

    It answers as vLLM does: column 0 is the sampled token, rows are padded with id 0 and -inf, more than 128 ids are
    refused. hold: requests wait until it is set, None = no waiting; aborted, lora: of all requests so far; now, most:
    requests at the same time. before:
    called with every request's tokens; what it raises is the engine's failure.
    """

    model: Any
    hold: asyncio.Event | None = None
    before: Callable[[list[int]], None] = lambda tokens: None
    started: int = 0
    now: int = 0
    most: int = 0
    aborted: int = 0
    lora: list[Any] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    model_config: Any = None
    vllm_config: Any = None

    async def generate(
        self, prompt: dict[str, Any], params: Any, request_id: str, *, lora_request: Any = None
    ) -> AsyncIterator[Any]:
        """One token, with the log-probabilities that were asked for."""
        assert params.max_tokens == 1 and params.output_kind == FINAL_ONLY and params.flat_logprobs
        if len(params.logprob_token_ids) > 128:
            raise ValueError("too many logprob_token_ids")
        self.started += 1
        self.lora.append(lora_request)
        self.widths.append(len(params.logprob_token_ids))
        tokens = prompt["prompt_token_ids"]
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0)
            if self.hold is not None:
                await self.hold.wait()
            self.before(tokens)
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        finally:
            self.now -= 1
        every = ModelEngine(self.model).logprobs([Ask(tokens, [], np.arange(self.model.config.vocab_size))])[0]
        best, ids = int(every.argmax()), params.logprob_token_ids
        found = SimpleNamespace(
            token_ids=[best, *ids, 0, 0],
            logprobs=[float(every[best]), *(float(each) for each in every[ids]), -np.inf, -np.inf],
        )
        yield SimpleNamespace(outputs=[SimpleNamespace(logprobs=found)])
