"""Samples to padded token arrays, with the place of every symbol that carries a loss.

Axes: N items, W tokens of an item (L, or L + 1 with the end of ragged identifiers), B samples of a batch,
T token columns, H header tokens, P positions that carry a loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from genrec.data.histories import Histories
from genrec.decoding.index import CatalogIndex
from genrec.training.dataset import Samples, TrainingData
from genrec.training.losses import parent_nodes

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """How a model's prompt is laid out around the items (internal).

    encoder_decoder: items are read by an encoder and the next one is written by a decoder; else one sequence.
    before, after: token ids put before and after the items of a prompt. user: a user token follows ``before``.
    decoder_start: first token of a decoder.
    """

    encoder_decoder: bool
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    user: bool = False
    decoder_start: int = 0


class Collator:
    """Builds the model inputs of a batch of samples (internal).

    Decoder-only: one sequence per sample, ``before``, user, then the tokens of all its items; every item token
    is predicted from the position before it. Encoder-decoder: the encoder reads all items but the last, the
    decoder is fed the start token and the last item's tokens, each predicted at its own position. Padding is
    on the right in both, where causal attention never looks at it.
    """

    def __init__(self, data: TrainingData, layout: Layout) -> None:
        codes, token_map = data.codes, data.token_map
        index = CatalogIndex.build(codes, np.zeros(codes.n_items, dtype=np.uint64))
        self.data, self.layout = data, layout
        self._tokens_NW: Int64 = token_map.token_ids(codes.as_int())
        self._real_NW = self._tokens_NW != token_map.pad_id
        self._symbols_NW = index.path_codes(np.arange(codes.n_items))
        self._nodes_NW = parent_nodes(index)
        per_item = self._real_NW.sum(axis=1)
        self.tokens_before: Int64 = np.concatenate([[0], np.cumsum(per_item[data.histories.items])])

    @property
    def n_levels(self) -> int:
        """Number of levels that can carry a loss: the width of an item in tokens."""
        return int(self._tokens_NW.shape[1])

    def n_targets(self, samples: Samples) -> int:
        """Number of symbols that carry a loss."""
        first = samples.ends - 1 if self.layout.encoder_decoder else samples.starts
        return int((self.tokens_before[samples.ends] - self.tokens_before[first]).sum())

    def __call__(self, samples: Samples) -> dict[str, Any]:
        """Model inputs and targets.

        input_ids int64 ``[B, T]``; attention_mask int64 ``[B, T]`` and decoder_input_ids int64 ``[B, W]`` for
        encoder-decoders; positions int64 ``[P]`` into the flattened hidden states, sorted by level; targets
        int64 ``[P]`` symbols; nodes int64 ``[P]`` index nodes before them; level_counts: how many per level.
        """
        if self.layout.encoder_decoder:
            known = Histories.from_slices(self.data.histories.items, samples.starts, samples.ends - 1)
            batch = self._encoder_inputs(known, samples)
            target = self.data.histories.items[samples.ends - 1]
            batch["decoder_input_ids"] = self._decoder_inputs(target)
            items = Histories(np.arange(len(samples) + 1), target)
            return batch | self._targets(items, self.n_levels, 0)
        items = Histories.from_slices(self.data.histories.items, samples.starts, samples.ends)
        tokens_BT, _ = self._padded(items, self._header(samples))
        input_BT = np.ascontiguousarray(tokens_BT[:, :-1])
        shift = self._header(samples).shape[1] - 1
        return {"input_ids": torch.from_numpy(input_BT)} | self._targets(items, input_BT.shape[1], shift)

    def _header(self, samples: Samples) -> Int64:
        """Tokens before the items, int64 ``[B, H]``."""
        header = np.tile(np.array(self.layout.before, dtype=np.int64), (len(samples), 1))
        if self.layout.user:
            assert self.data.user_tokens is not None
            header = np.concatenate([header, self.data.user_tokens[samples.rows][:, None]], axis=1)
        return header

    def _encoder_inputs(self, known: Histories, samples: Samples) -> dict[str, Any]:
        tokens_BT, length_B = self._padded(known, self._header(samples), len(self.layout.after))
        for nth, token in enumerate(self.layout.after):
            tokens_BT[np.arange(len(samples)), length_B + nth] = token
        mask_BT = np.arange(tokens_BT.shape[1]) < (length_B + len(self.layout.after))[:, None]
        return {
            "input_ids": torch.from_numpy(tokens_BT),
            "attention_mask": torch.from_numpy(mask_BT.astype(np.int64)),
        }

    def _decoder_inputs(self, target_B: npt.NDArray[np.int32]) -> torch.Tensor:
        """The decoder start, then all but the last token of the target; padding is never looked at."""
        start_B1 = np.full((len(target_B), 1), self.layout.decoder_start, dtype=np.int64)
        return torch.from_numpy(np.concatenate([start_B1, self._tokens_NW[target_B][:, :-1]], axis=1))

    def _padded(self, items: Histories, header_BH: Int64, spare: int = 0) -> tuple[Int64, Int64]:
        """Header and item tokens of each row, right-padded int64 ``[B, T + spare]``, and their lengths ``[B]``."""
        real = self._real_NW[items.items]
        row, column, length_B = _places(items, real)
        n_header = header_BH.shape[1]
        width = n_header + int(length_B.max(initial=0)) + spare
        tokens_BT = np.full((len(items), width), self.data.token_map.pad_id, dtype=np.int64)
        tokens_BT[:, :n_header] = header_BH
        tokens_BT[row, n_header + column] = self._tokens_NW[items.items][real]
        return tokens_BT, length_B + n_header

    def _targets(self, items: Histories, width: int, shift: int) -> dict[str, Any]:
        """Where each token of ``items`` is predicted: column ``shift + its place in the row`` of ``width``."""
        real = self._real_NW[items.items]
        row, column, _ = _places(items, real)
        level = np.nonzero(real)[1]
        order = np.argsort(level, kind="stable")
        flat = row * width + shift + column
        return {
            "positions": torch.from_numpy(flat[order]),
            "targets": torch.from_numpy(self._symbols_NW[items.items][real][order]),
            "nodes": torch.from_numpy(self._nodes_NW[items.items][real][order]),
            "level_counts": np.bincount(level, minlength=self.n_levels).tolist(),
        }


def _places(items: Histories, real: npt.NDArray[np.bool_]) -> tuple[Int64, Int64, Int64]:
    """Row and place in the row of each token (in order), and the tokens per row."""
    per_item = real.sum(axis=1)
    row = np.repeat(items.rows(), per_item)
    length_B = np.bincount(row, minlength=len(items)).astype(np.int64)
    first = np.cumsum(length_B) - length_B
    return row, np.arange(len(row)) - first[row], length_B
