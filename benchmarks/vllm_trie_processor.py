"""The catalog as a logits processor inside vLLM (V1 runner): what its own beam search needs to list items only.

    vllm serve MODEL --logits-processors vllm_trie_processor:TrieProcessor --logprobs-mode processed_logits \
        --max-logprobs -1 --additional-config '{"genrec": "trie.npz"}'

A baseline of benchmarks/serving_vllm.py, no way to serve: other requests of such a server get wrong log-probabilities.
For prompts of ``<s>`` and whole items of one length; the codes of a beam are what stands behind the last whole item.
"""

from __future__ import annotations

import numpy as np
import torch
from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality


class TrieProcessor(LogitsProcessor):
    """Replaces a row by its log-softmax over the whole vocabulary, -inf where the catalog has no such item."""

    def __init__(self, vllm_config, device, is_pin_memory):
        arrays = np.load(vllm_config.additional_config["genrec"])
        self._items = arrays["tokens_NL"]  # sorted
        self._length = self._items.shape[1]
        self._known: dict[tuple[int, ...], torch.Tensor] = {}
        self._rows: dict[int, tuple[list[int], list[int]]] = {}

    def is_argmax_invariant(self):
        """It forbids tokens."""
        return False

    def update_state(self, batch_update):
        """Keep the tokens of every row of the batch."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._rows.pop(index, None)
        for index, _, prompt, output in batch_update.added:
            self._rows[index] = (prompt or [], output)
        for a, b, how in batch_update.moved:
            left, right = self._rows.pop(a, None), self._rows.pop(b, None)
            if left is not None:
                self._rows[b] = left
            if right is not None and how == MoveDirectionality.SWAP:
                self._rows[a] = right

    def apply(self, logits):
        """Log-probabilities of the children, nothing else."""
        rows, columns = [], []
        for row, (prompt, output) in self._rows.items():
            tokens = [*prompt[-self._length :], *output]
            n = (len(prompt) + len(output) - 1) % self._length
            children = self._children(tuple(tokens[len(tokens) - n :]))
            rows.append(torch.full_like(children, row))
            columns.append(children)
        if not rows:
            return logits
        row, column = torch.cat(rows), torch.cat(columns)
        taken = logits[row, column] - logits.logsumexp(-1)[row]
        out = torch.full_like(logits, float("-inf"))
        out[row, column] = taken
        return out

    def _children(self, prefix):
        found = self._known.get(prefix)
        if found is None:
            items = self._items
            for level, token in enumerate(prefix):
                items = items[
                    np.searchsorted(items[:, level], token) : np.searchsorted(items[:, level], token, "right")
                ]
            found = self._known[prefix] = torch.from_numpy(np.unique(items[:, len(prefix)]).astype(np.int64))
        return found
