"""The two transformers behind a parallel model: vectors in, one state for every place to predict at.

Axes: B rows, H items, P positions of an item, Q places to predict at, R states of a place, T positions, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genrec.errors import ConfigError
from genrec.models.adapters import base_of
from genrec.models.parallel_inputs import Arrangement
from genrec.models.parallel_settings import NO_POSITIONS, ParallelSettings


class ParallelBody(nn.Module):
    """A start, the items and learned queries through a decoder-only transformer, or through a T5 (internal).

    transformer: of :mod:`genrec.models.parallel_backbone`. text_ID: rows of an instruction, before the start.

    Decoder-only: one sequence (:class:`Arrangement`) under its mask. T5: the encoder reads start and items, each item's
    parts at one place of the relative positions, without a mask but padding; the decoder reads the queries, which see
    all of the history and of each other nothing. (SETRec's code adds an identity matrix to the scores there, so that
    they do see each other; here is what the paper means.) States come after the last norm, unscaled.
    """

    def __init__(self, settings: ParallelSettings, n_parts: int, transformer: Any, text_ID: Tensor) -> None:
        super().__init__()
        self.transformer = transformer
        self.encodes, self.width = bool(transformer.config.is_encoder_decoder), int(transformer.config.hidden_size)
        self.together, self.dropout = settings.together, settings.dropout
        if self.together and self.encodes:
            raise ConfigError(f"{NO_POSITIONS}; got {settings}")
        per_item = n_parts if settings.item == "slots" else 1
        if settings.readout == "queries":
            n_queries = n_parts
        else:  # one state for all heads: that of the last item where an item is one position
            n_queries = int(settings.readout == "heads" and (self.encodes or settings.item == "slots"))
        n_start = per_item if settings.together else 1
        self.arrangement = Arrangement(n_start, per_item, n_queries, counted=settings.together, n_text=len(text_ID))
        self.text = nn.Parameter(text_ID.float().clone()) if len(text_ID) else None
        self.start = nn.Parameter(torch.empty(n_start, self.width))
        self.queries = nn.Parameter(torch.empty(n_queries, self.width))

    def forward(self, items_BHPD: Tensor, lengths_B: Tensor, after_BQ: Tensor) -> Tensor:
        """States ``[B, Q, R, D]``.

        items_BHPD: the positions of every item, anything beyond a row's length. after_BQ: int64, how many items stand
        before each place to predict at; for a T5 the length of the history, Q = 1.
        """
        n_rows, n_items = items_BHPD.shape[:2]
        start = self.start if self.text is None else torch.cat([self.text, self.start])
        history_BTD = torch.cat([start.expand(n_rows, -1, -1), items_BHPD.flatten(1, 2)], dim=1)
        if self.encodes:
            return self._encoded(history_BTD, lengths_B, n_items)
        asked_BTD = self.queries.repeat(after_BQ.shape[1], 1).expand(n_rows, -1, -1)
        inputs_BTD = F.dropout(torch.cat([history_BTD, asked_BTD], dim=1), self.dropout, self.training)
        inputs_BTD = inputs_BTD.to(self.held)
        sequence = self.arrangement.of(lengths_B, n_items, after_BQ)
        states_BTD = (
            base_of(self.transformer)
            .get_decoder()(
                inputs_embeds=inputs_BTD,
                attention_mask=_added(sequence.mask(self.together), inputs_BTD.dtype)[:, None],
                position_ids=sequence.position_BT,
                use_cache=False,
            )
            .last_hidden_state
        )
        at_BQR = self.arrangement.read_at(n_items, after_BQ)
        rows = torch.arange(n_rows, device=at_BQR.device)[:, None, None]
        found: Tensor = states_BTD[rows, at_BQR]
        return found

    @property
    def held(self) -> torch.dtype:
        """How the transformer's own weights are held; other weights are float32."""
        dtype: torch.dtype = self.transformer.dtype
        return dtype

    def _encoded(self, history_BTD: Tensor, lengths_B: Tensor, n_items: int) -> Tensor:
        """One place to predict at, after the whole history: ``[B, 1, R, D]``."""
        n_rows, device = len(lengths_B), lengths_B.device
        sequence = self.arrangement.of(lengths_B, n_items, lengths_B.new_zeros((n_rows, 0)))
        transformer = base_of(self.transformer)
        encoder, decoder = transformer.get_encoder(), transformer.get_decoder()
        history_BTD = history_BTD.to(self.held)
        padding = _added(sequence.real_BT, history_BTD.dtype)[:, None, None]
        bias = _relative_bias(encoder, sequence.position_BT[0])
        memory_BTD = _stack(encoder, history_BTD, padding, bias)
        alone = _added(torch.eye(len(self.queries), dtype=torch.bool, device=device), self.held)
        together = torch.zeros(len(self.queries), dtype=torch.int64, device=device)
        asked = self.queries.expand(n_rows, -1, -1).to(self.held)
        bias = _relative_bias(decoder, together)
        return _stack(decoder, asked, alone[None, None], bias, memory_BTD, padding)[:, None]


def _added(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores: 0 where allowed, the lowest number elsewhere; every backend honours it."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def _relative_bias(stack: Any, position_T: Tensor) -> Tensor:
    """The bias of a T5's self-attention between positions with these numbers, ``[1, heads, T, T]``."""
    attention = stack.block[0].layer[0].SelfAttention
    bucket_TT = attention._relative_position_bucket(
        position_T[None, :] - position_T[:, None],
        bidirectional=not attention.is_decoder,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    bias: Tensor = attention.relative_attention_bias(bucket_TT).permute(2, 0, 1)[None]
    return bias


def _stack(
    stack: Any,
    x_BTD: Tensor,
    mask: Tensor,
    bias: Tensor,
    memory_BTD: Tensor | None = None,
    memory_mask: Tensor | None = None,
) -> Tensor:
    """A T5 stack with a mask and position bias of our own (its forward makes them from the order of its input)."""
    x_BTD, across = stack.dropout(x_BTD), None
    for block in stack.block:
        x_BTD, _, across = block(x_BTD, mask, bias, memory_BTD, memory_mask, across)
    out: Tensor = stack.dropout(stack.final_layer_norm(x_BTD))
    return out
