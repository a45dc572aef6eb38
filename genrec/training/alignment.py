"""Alignment examples as model inputs, and a loss over words and item tokens at once.

Axes: N items, B samples of a batch, T token columns, P positions that carry a loss, V vocabulary, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from genrec.decoding.index import CatalogIndex
from genrec.item_tokenizers.codes import ItemCodes
from genrec.models.prompting import Layout
from genrec.prompts.encode import TokenRows
from genrec.training.losses import CodeLoss, parent_nodes
from genrec.vocab.token_map import TokenMap

Int64 = npt.NDArray[np.int64]


class AlignmentCollator:
    """Builds the model inputs of a batch of alignment examples (experimental).

    What :class:`genrec.training.collate.Collator` is for histories, with one level more: behind the levels of item
    tokens come the words, whose targets are token ids. Padding is on the right.
    """

    def __init__(self, codes: ItemCodes, token_map: TokenMap, layout: Layout, decoder_start: int = 0) -> None:
        index = CatalogIndex.build(codes)
        self._symbols_NM = index.path_codes(np.arange(codes.n_items))
        self._nodes_NM = parent_nodes(index)
        self._layout, self._start, self._pad = layout, decoder_start, token_map.pad_id

    def n_targets(self, rows: TokenRows) -> int:
        """Number of tokens that carry a loss."""
        return rows.n_targets

    def __call__(self, rows: TokenRows) -> dict[str, Any]:
        """Model inputs and targets, as those of :class:`genrec.training.collate.Collator`.

        Decoder-only: a token is predicted from the position before it. Encoder-decoder: the encoder reads the prompts,
        the decoder its start token and the target.
        """
        starts, ends = rows.starts, rows.offsets[1:]
        if self._layout == "decoder":
            width, before = int((ends - rows.offsets[:-1]).max()) - 1, rows.prompt_lengths - 1
            # the last token is only predicted
            inputs = {"input_ids": self._padded(rows.ids, rows.offsets[:-1], ends - 1)}
        else:
            width, before = int((ends - starts).max()), np.zeros(len(rows), np.int64)
            read = self._padded(rows.ids, rows.offsets[:-1], starts)
            fed = self._padded(rows.ids, starts, ends - 1)
            begin = np.full((len(rows), 1), self._start, np.int64)
            inputs = {
                "input_ids": read,
                "attention_mask": (np.arange(read.shape[1]) < rows.prompt_lengths[:, None]).astype(np.int64),
                "decoder_input_ids": np.hstack([begin, fed]),
            }
        return {name: torch.from_numpy(values) for name, values in inputs.items()} | self._targets(rows, width, before)

    def _padded(self, ids: npt.NDArray[np.int32], starts: Int64, ends: Int64) -> Int64:
        """Pieces of ``ids`` as rows, int64 ``[B, T]``."""
        length = ends - starts
        real = np.arange(int(length.max())) < length[:, None]
        out = np.full(real.shape, self._pad, np.int64)
        out[real] = ids[np.arange(int(length.sum())) + np.repeat(starts - (np.cumsum(length) - length), length)]
        return out

    def _targets(self, rows: TokenRows, width: int, before: Int64) -> dict[str, Any]:
        """Target ``j`` of a row is predicted in column ``before + j`` of ``width``."""
        length = rows.offsets[1:] - rows.starts
        row = np.repeat(np.arange(len(rows)), length)
        nth = np.arange(len(row)) - (np.cumsum(length) - length)[row]
        at = rows.starts[row] + nth
        item, level = rows.items[at], rows.levels[at]
        is_item = item >= 0
        depth = self._symbols_NM.shape[1]
        target = np.where(is_item, self._symbols_NM[item, level], rows.ids[at]).astype(np.int64)
        node = np.where(is_item, self._nodes_NM[item, level], 0)
        group = np.where(is_item, level, depth)
        order = np.argsort(group, kind="stable")
        return {
            "positions": torch.from_numpy((row * width + before[row] + nth)[order]),
            "targets": torch.from_numpy(target[order]),
            "nodes": torch.from_numpy(node[order]),
            "level_counts": np.bincount(group, minlength=depth + 1).tolist(),
        }


class AlignmentLoss(CodeLoss):
    """:class:`CodeLoss` for item tokens; for words, the cross-entropy over the whole vocabulary (experimental).

    The level behind the last one is that of the words: its targets are token ids. With ``softmax="vocab"`` this is
    the plain cross-entropy of a language model on the target tokens.
    """

    def _level(self, level: int, hidden_PD: Tensor, weight_VD: Tensor, target_P: Tensor, node_P: Tensor) -> Tensor:
        if level < len(self.symbols):
            return super()._level(level, hidden_PD, weight_VD, target_P, node_P)
        logits_PV = (hidden_PD @ weight_VD.T).float()
        return F.cross_entropy(logits_PV, target_P, reduction="sum", label_smoothing=self.eps)
