"""Log-probabilities of several items after one history, with gradients: it is read once, whatever their number.

Axes: B queries, C candidates, A tokens of an item, T prompt columns, X = C·(A - 1) or C·A fed columns, S all columns,
N items, P positions of one level, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genrec.decoding.index import CatalogIndex
from genrec.decoding.interface import Normalize
from genrec.decoding.scorer import Prompts
from genrec.errors import ConfigError
from genrec.item_tokenizers.codes import ItemCodes
from genrec.models.head import check_output, output_scale, output_weight
from genrec.models.prompting import item_tokens
from genrec.training.losses import CodeLoss, parent_nodes
from genrec.training.precision import attention_kernel
from genrec.vocab.token_map import TokenMap

Int64 = npt.NDArray[np.int64]


class SymbolLogProbs(CodeLoss):
    """The terms of :class:`CodeLoss` one by one: log-probabilities under the same softmax (internal)."""

    def of_level(self, level: int, hidden_PD: Tensor, weight_VD: Tensor, target_P: Tensor, node_P: Tensor) -> Tensor:
        """Log-probability of each target symbol of one level, float32 ``[P]``; arguments as in :class:`CodeLoss`."""
        symbols_S: Tensor = getattr(self, f"symbols_{level}")
        if self.softmax == "vocab":
            return -F.cross_entropy((hidden_PD @ weight_VD.T).float(), symbols_S[target_P], reduction="none")
        logits_PS = (hidden_PD @ weight_VD[symbols_S].T).float()
        if self.softmax == "level":
            return -F.cross_entropy(logits_PS, target_P, reduction="none")
        child_PC = self._children(level, node_P)
        picked_PC = logits_PS.gather(1, child_PC.clamp(min=0)).masked_fill(child_PC < 0, float("-inf"))
        return logits_PS.gather(1, target_P[:, None])[:, 0] - picked_PC.logsumexp(1)


class CandidateLogProbs(nn.Module):
    """``forward(model, prompts, items) -> log-probability of every code`` (internal).

    One sequence per query holds the prompt and, behind it, all candidates, none of which sees another: each continues
    the prompt at the same position. With a T5 the prompt is what the encoder reads, and the candidates stand side by
    side in the decoder; its positions are relative, so a candidate that only sees itself is where it would be alone.
    The sum over the codes of an item equals ``GenerativeRecommender.score`` under the same softmax.
    """

    def __init__(self, codes: ItemCodes, token_map: TokenMap, softmax: Normalize) -> None:
        super().__init__()
        index = CatalogIndex.build(codes)
        self.symbols = SymbolLogProbs(token_map, softmax, codes=codes)
        self._tokens_NA = item_tokens(codes, token_map).astype(np.int64)
        self._real_NA = token_map.real(self._tokens_NA)
        self._symbols_NA = index.path_codes(np.arange(codes.n_items))
        self._nodes_NA = parent_nodes(index)

    def forward(self, model: Any, prompts: Prompts, items_BC: Int64) -> Tensor:
        """Log-probabilities float32 ``[B, C, A]``: 0 behind the end of short identifiers and where the item is -1.

        model: in evaluation mode; its gradients flow unless the caller says otherwise.
        """
        encodes = bool(model.config.is_encoder_decoder)
        with attention_kernel():
            hidden_BSD, column_CA = (self._encoder_decoder if encodes else self._decoder)(model, prompts, items_BC)
        hidden_RD, weight_VD = hidden_BSD.flatten(0, 1), output_weight(model)
        real_BCA = self._real_NA[items_BC] & (items_BC >= 0)[..., None]
        out = torch.zeros(real_BCA.size, dtype=torch.float32, device=hidden_RD.device)
        for level in range(real_BCA.shape[2]):
            row, candidate = np.nonzero(real_BCA[:, :, level])
            item = items_BC[row, candidate]
            at, target, node = (
                _on(hidden_RD, each)
                for each in (
                    row * hidden_BSD.shape[1] + column_CA[candidate, level],
                    self._symbols_NA[item, level],
                    self._nodes_NA[item, level],
                )
            )
            found_P = self.symbols.of_level(level, hidden_RD[at], weight_VD, target, node)
            place = np.ravel_multi_index((row, candidate, np.full(len(row), level)), real_BCA.shape)
            out = out.index_copy(0, _on(out, place), found_P)
        return out.view(real_BCA.shape)

    def _decoder(self, model: Any, prompts: Prompts, items_BC: Int64) -> tuple[Tensor, Int64]:
        """Hidden states ``[B, T + X, D]``, and the column that predicts each token, ``[C, A]``."""
        n_prompt, (n_items, n_fed) = prompts.mask_BT.shape[1], (items_BC.shape[1], self._tokens_NA.shape[1] - 1)
        fed_BX = self._tokens_NA[items_BC][:, :, :n_fed].reshape(len(items_BC), -1)
        before_BT = np.maximum(prompts.mask_BT.cumsum(1) - 1, 0)
        place_BX = before_BT[:, -1:] + 1 + np.tile(np.arange(n_fed), n_items)
        real_BS = np.hstack([prompts.mask_BT, np.ones(fed_BX.shape, dtype=np.bool_)])
        sees_SS = np.tri(real_BS.shape[1], dtype=np.bool_)
        sees_SS[n_prompt:, n_prompt:] &= _same_block(n_items, n_fed)
        # padding sees itself, so that nothing is NaN
        sees_BSS = (sees_SS & real_BS[:, None, :]) | np.eye(len(sees_SS), dtype=np.bool_)
        decoder = model.get_decoder()
        states = decoder(
            input_ids=_on(model, np.hstack([prompts.tokens_BT, fed_BX])),
            attention_mask=_mask(model, sees_BSS[:, None]),
            position_ids=_on(model, np.hstack([before_BT, place_BX])),
            use_cache=False,
        ).last_hidden_state
        column_CA = n_prompt + np.arange(n_items)[:, None] * n_fed + np.arange(-1, n_fed)
        column_CA[:, 0] = n_prompt - 1
        return states, column_CA

    def _encoder_decoder(self, model: Any, prompts: Prompts, items_BC: Int64) -> tuple[Tensor, Int64]:
        """Hidden states ``[B, X, D]``, and the column that predicts each token, ``[C, A]``."""
        n_items, length = items_BC.shape[1], self._tokens_NA.shape[1]
        fed_BCA = np.full((*items_BC.shape, length), model.config.decoder_start_token_id, dtype=np.int64)
        fed_BCA[:, :, 1:] = self._tokens_NA[items_BC][:, :, :-1]
        sees_XX = np.tri(n_items * length, dtype=np.bool_) & _same_block(n_items, length)
        real_BT = _on(model, prompts.mask_BT.astype(np.int64))
        encoded = model.get_encoder()(input_ids=_on(model, prompts.tokens_BT), attention_mask=real_BT)
        states = model.get_decoder()(
            input_ids=_on(model, fed_BCA.reshape(len(items_BC), -1)),
            attention_mask=_mask(model, sees_XX[None, None]),
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=real_BT,
            use_cache=False,
        ).last_hidden_state
        return states * output_scale(model), np.arange(n_items * length).reshape(n_items, length)


def check_candidates(model: Any) -> None:
    """Raise ConfigError for a model whose attention takes no mask of ours, or whose head is no matrix (internal)."""
    check_output(model)
    if model.config._attn_implementation not in ("sdpa", "eager"):
        raise ConfigError(
            f"attention: expected sdpa or eager, got {model.config._attn_implementation!r}, which takes no masks",
            hint="load the model with attn_implementation='sdpa'",
        )


def _same_block(n_blocks: int, size: int) -> npt.NDArray[np.bool_]:
    """Whether two of ``n_blocks * size`` places are in the same block, bool ``[X, X]``."""
    block = np.repeat(np.arange(n_blocks), size)
    same: npt.NDArray[np.bool_] = block[:, None] == block
    return same


def _mask(model: Any, sees_B1SS: npt.NDArray[np.bool_]) -> Tensor:
    """As the attention of the model wants it: True = attend, or what is added to the scores."""
    sees = torch.from_numpy(np.ascontiguousarray(sees_B1SS)).to(model.device)
    if model.config._attn_implementation == "sdpa":
        return sees
    return torch.zeros(sees.shape, dtype=model.dtype, device=sees.device).masked_fill(
        ~sees, torch.finfo(model.dtype).min
    )


def _on(like: Any, values: Int64) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.device)
