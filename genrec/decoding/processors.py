"""Keep Hugging Face ``generate`` inside the catalog, for users who want its loop.

Our own search is several times faster and gives the same items; this is for sampling and other strategies.

Axes: R rows (batch times beams), T tokens, V vocabulary, K children.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from transformers import LogitsProcessor

from genrec.decoding.index import CatalogIndex
from genrec.decoding.select import DeviceIndex, children
from genrec.errors import DataError
from genrec.vocab.token_map import TokenMap

N_PREFIXES = 65_536
"""Prefixes whose continuations :func:`prefix_allowed_tokens_fn` keeps, those used last."""


def prefix_allowed_tokens_fn(
    index: CatalogIndex, token_map: TokenMap, *, prompt_length: int
) -> Callable[[int, Tensor], list[int]]:
    """For ``generate(prefix_allowed_tokens_fn=...)``: the tokens that may follow a sequence, never an empty list.

    ::

        allowed(b, ids) = tokens t for which ids[prompt_length:] + [t] begins an identifier; <pad> if there is none

    The answer depends on the sequence alone, so beams may be reordered. It says the same as
    :class:`CatalogLogitsProcessor`, which answers for all rows at once and is several times faster; this form is for
    loops that ask for one. prompt_length: as there. Raises DataError for a prefix longer than any identifier.
    Stability: experimental.
    """

    @lru_cache(maxsize=N_PREFIXES)
    def continuations(prefix: tuple[int, ...]) -> list[int]:
        node = [0]
        for level, token in enumerate(prefix):
            codes = _edge_codes(index, token_map, level, token)
            node = [max(index.step(level, node, [code]).item() for code in codes)]  # -1 = there is no such edge
        if node == [-1]:
            return [token_map.pad_id]
        codes = index.children(len(prefix), node).codes.tolist()
        return sorted(_token(index, token_map, len(prefix), code) for code in codes)

    def allowed(batch_id: int, input_ids: Tensor) -> list[int]:
        prefix = tuple(input_ids.tolist()[prompt_length:])
        if len(prefix) >= index.depth:
            raise DataError(
                f"expected at most {index.depth} tokens behind the prompt, got {len(prefix) + 1}",
                hint="prompt_length is the width of the prompts; max_new_tokens is CatalogIndex.depth",
            )
        return list(continuations(prefix))

    return allowed


class CatalogLogitsProcessor(LogitsProcessor):  # type: ignore[misc]
    """Forbid every token that leads outside the catalog.

        out[r, v] = scores[r, v]  if prefix r followed by token v is the beginning of an identifier, else -inf

    The state is computed from the whole prefix at every call, so beams may be reordered, dropped or repeated.
    A row that has ended, or that has left the catalog (``generate`` fills missing beams with such rows), may
    only go on with ``<pad>``. Raises DataError for a prefix longer than any identifier.

    prompt_length: tokens in front of the identifier: the width of the padded prompt for a decoder-only model,
    1 (the start token) for an encoder-decoder. Stability: experimental.
    """

    def __init__(
        self,
        index: CatalogIndex,
        token_map: TokenMap,
        *,
        prompt_length: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self._index = DeviceIndex(index, torch.device(device))
        self._tokens = token_map
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Masked scores ``[R, V]``; input_ids int64 ``[R, T]``."""
        prefix_RT = input_ids[:, self._prompt_length :]
        level = prefix_RT.shape[1]
        if level >= self._index.host.depth:
            raise DataError(
                f"expected at most {self._index.host.depth} tokens behind the prompt, got {level + 1}",
                hint="prompt_length is the width of the prompts; max_new_tokens is CatalogIndex.depth",
            )
        node = torch.zeros(len(prefix_RT), dtype=torch.int64, device=prefix_RT.device)
        for step in range(level):
            token, child, real = self._continuations(step, node)
            match = real & (token == prefix_RT[:, step, None])
            reached = child.gather(1, match.to(torch.uint8).argmax(1, keepdim=True)).squeeze(1)
            node = torch.where(match.any(1), reached, -1)
        token, _, real = self._continuations(level, node)
        allowed = torch.zeros(scores.shape, dtype=torch.uint8, device=scores.device)
        allowed.scatter_reduce_(1, token, real.to(torch.uint8), "amax")
        done = (node < 0) | (token == self._tokens.pad_id).logical_and(real).any(1)
        allowed[:, self._tokens.pad_id] = done.to(torch.uint8)
        return scores.masked_fill(allowed == 0, float("-inf"))

    def _continuations(self, level: int, node_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Token, child node and validity of each node's children, ``[R, K]``; passing on is ``<pad>``."""
        code, child, real = (x[:, 0] for x in children(self._index, level, node_R[:, None]))
        tokens, index = self._tokens, self._index.host
        offset = tokens.level_offset[level] if level < tokens.n_levels else 0
        token = code + offset
        if tokens.ragged:
            token = torch.where(code == index.end_code(level), tokens.eos_id, token)
            token = torch.where(code == index.pass_code(level), tokens.pad_id, token)
        return token, child, real


def _token(index: CatalogIndex, tokens: TokenMap, level: int, code: int) -> int:
    """The token of an edge."""
    if tokens.ragged and code >= index.end_code(level):
        return tokens.eos_id if code == index.end_code(level) else tokens.pad_id
    return tokens.level_offset[level] + code


def _edge_codes(index: CatalogIndex, tokens: TokenMap, level: int, token: int) -> list[int]:
    """The codes of the edges with a token, at most one of which a node has; -1 where the level has none."""
    ends = {index.end_code(level): tokens.eos_id, index.pass_code(level): tokens.pad_id} if tokens.ragged else {}
    if token in ends.values():
        return [code for code, at_end in ends.items() if at_end == token]
    if level >= tokens.n_levels or not 0 <= token - tokens.level_offset[level] < tokens.level_sizes[level]:
        return [-1]
    return [token - tokens.level_offset[level]]
