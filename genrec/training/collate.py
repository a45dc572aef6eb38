"""Samples to padded token arrays, with the place of every symbol that carries a loss.

Axes: N items, M tokens of an item (L, or L + 1 with the end of ragged identifiers), B samples of a batch,
T token columns, P positions that carry a loss.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from genrec.data.histories import Histories
from genrec.decoding.index import CatalogIndex
from genrec.decoding.scorer import Prompts
from genrec.models.prompting import Layout, build_prompts, item_tokens
from genrec.training.dataset import Samples, TrainingData
from genrec.training.losses import parent_nodes

Int64 = npt.NDArray[np.int64]


class Collator:
    """Builds the model inputs of a batch of samples (internal).

    Decoder-only: one sequence per sample, the prompt of all its items; every item token is predicted from the
    position before it. Encoder-decoder: the encoder reads the prompt of all items but the last, the decoder
    is fed its start token and the last item's tokens, each predicted at its own position. Padding is on the
    right in both, where causal attention never looks at it. A decoder whose vocabulary has no ``<s>`` (and no user
    tokens) learns nothing of the first token of a sample.
    """

    def __init__(self, data: TrainingData, layout: Layout, decoder_start: int = 0) -> None:
        codes = data.codes
        index = CatalogIndex.build(codes)
        self.data, self.layout, self._start = data, layout, decoder_start
        self._tokens_NM = item_tokens(codes, data.token_map)
        self._users_UM = data.users_UM
        self._real_NM = data.token_map.real(self._tokens_NM)
        self._symbols_NM = index.path_codes(np.arange(codes.n_items))
        self._nodes_NM = parent_nodes(index)
        self.item_lengths_N: Int64 = self._real_NM.sum(axis=1)
        # nothing stands before the first item to predict its first token from
        self._bare = layout == "decoder" and data.token_map.bos_id is None and self._users_UM is None

    @property
    def target_apart(self) -> bool:
        """The last item of a sample is only a target, not an input."""
        return self.layout == "encoder"

    def n_targets(self, samples: Samples) -> int:
        """Number of symbols that carry a loss."""
        first = samples.ends - 1 if self.target_apart else samples.starts + samples.only_read
        predicted = Histories.from_slices(samples.items, first, samples.ends)
        return int(self.item_lengths_N[predicted.items].sum()) - len(samples) * int(self._bare)

    def __call__(self, samples: Samples) -> dict[str, Any]:
        """Model inputs and targets.

        input_ids int64 ``[B, T]``; attention_mask int64 ``[B, T]`` and decoder_input_ids int64 ``[B, M]`` for
        encoder-decoders; positions int64 ``[P]`` into the flattened hidden states, sorted by level; targets
        int64 ``[P]`` symbols; nodes int64 ``[P]`` index nodes before them; level_counts: how many per level.
        """
        items = samples.items
        if not self.target_apart:
            whole = Histories.from_slices(items, samples.starts, samples.ends)
            tokens_BT, length_B = _right_padded(self._prompts(whole, samples))
            own_B = np.bincount(whole.rows(), weights=self.item_lengths_N[whole.items], minlength=len(whole))
            inputs = {"input_ids": _tensor(tokens_BT[:, :-1])}
            before_B = length_B - own_B.astype(np.int64) - 1
            return inputs | self._targets(whole, tokens_BT.shape[1] - 1, before_B, samples.only_read)
        prompts = self._prompts(Histories.from_slices(items, samples.starts, samples.ends - 1), samples)
        target_B = items[samples.ends - 1]
        start_B1 = np.full((len(samples), 1), self._start, dtype=np.int64)
        inputs = {
            "input_ids": _tensor(prompts.tokens_BT),
            "attention_mask": _tensor(prompts.mask_BT),
            "decoder_input_ids": _tensor(np.hstack([start_B1, self._tokens_NM[target_B, :-1]])),
        }
        target = Histories(np.arange(len(samples) + 1), target_B)
        none_B = np.zeros(len(samples), np.int64)
        return inputs | self._targets(target, self._tokens_NM.shape[1], none_B, none_B)

    def _prompts(self, items: Histories, samples: Samples) -> Prompts:
        own = None if self._users_UM is None else self._users_UM[samples.rows]
        return build_prompts(self.layout, items, self._tokens_NM, self.data.token_map, own)

    def _targets(self, items: Histories, width: int, before_B: Int64, only_read_B: Int64) -> dict[str, Any]:
        """Each token of ``items`` is predicted in column ``before + its place in the row`` of ``width``.

        What stands before the items may be longer in some rows than in others: users have codes or do not. The first
        ``only_read`` items of a row carry no loss.
        """
        real = self._real_NM[items.items]
        row = np.repeat(items.rows(), real.sum(axis=1))
        length_B = np.bincount(row, minlength=len(items))
        column = before_B[row] + np.arange(len(row)) - (np.cumsum(length_B) - length_B)[row]
        level = np.nonzero(real)[1]
        order = np.argsort(level, kind="stable")
        place = np.arange(len(items.items)) - items.offsets[:-1][items.rows()]
        learned = np.repeat(place >= only_read_B[items.rows()], real.sum(axis=1))
        order = order[(learned & (column >= 0))[order]]
        return {
            "positions": _tensor((row * width + column)[order]),
            "targets": _tensor(self._symbols_NM[items.items][real][order]),
            "nodes": _tensor(self._nodes_NM[items.items][real][order]),
            "level_counts": np.bincount(level[order], minlength=real.shape[1]).tolist(),
        }


def _right_padded(prompts: Prompts) -> tuple[Int64, Int64]:
    """The same prompts with their padding on the right, int64 ``[B, T]``, and their lengths ``[B]``."""
    length_B = prompts.mask_BT.sum(axis=1)
    tokens_BT = np.zeros_like(prompts.tokens_BT)
    tokens_BT[np.arange(tokens_BT.shape[1]) < length_B[:, None]] = prompts.tokens_BT[prompts.mask_BT]
    return tokens_BT, length_B


def _tensor(values: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
