"""Keep Hugging Face ``generate`` inside the catalog, for users who want its loop.

Our own search is several times faster and gives the same items; this is for sampling and other strategies.

Axes: R rows (batch times beams), T tokens, V vocabulary, K children.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor

from genrec.decoding.index import CatalogIndex
from genrec.decoding.select import DeviceIndex, children
from genrec.errors import DataError
from genrec.vocab.token_map import TokenMap


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
                hint="set max_new_tokens to CatalogIndex.depth",
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
