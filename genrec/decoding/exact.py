"""Log-probabilities of given items, without a search.

Axes: B batch, M items per row, N items, P leaves, W prefixes fed at a time, K children, S symbols of a level.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrec.decoding.interface import Normalize
from genrec.decoding.scorer import Prompts, Scorer, StepScores
from genrec.decoding.select import DeviceIndex, broken, children
from genrec.decoding.walk import Step, Walk, blocks, leaves_of, plan
from genrec.errors import DataError

PREFIXES_AT_ONCE = 256
"""Prefixes of one row that a scorer is fed with in one step."""
ROWS_TIMES_PREFIXES = 16_384

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


def asked_items(items: npt.ArrayLike, n_rows: int, n_items: int) -> Int64:
    """Item numbers to be scored, int64 ``[M]`` or ``[B, M]``, -1 = padding (internal).

    Raises DataError for other shapes and types, and for numbers outside -1..N-1.
    """
    asked = np.asarray(items)
    if asked.shape[:-1] not in ((), (n_rows,)) or not asked.ndim or (asked.size and asked.dtype.kind not in "iu"):
        raise DataError(f"items: expected integers [{n_rows}, M] or [M], got {asked.dtype} {list(asked.shape)}")
    if asked.size and not -1 <= int(asked.min()) <= int(asked.max()) < n_items:
        raise DataError(f"items: expected numbers 0..{n_items - 1}, or -1, got {asked.min()} .. {asked.max()}")
    return asked.astype(np.int64)


@torch.inference_mode()
def score_items(
    scorer: Scorer,
    index: DeviceIndex,
    prompts: Prompts,
    items: npt.NDArray[np.integer] | None,
    *,
    normalize: Normalize,
) -> Float32:
    """Summed log-probability of the identifier of each item, float32 ``[B, M]``; -inf where the item is -1.

        score[b, m] = sum over levels of logp(code of the item | prompt b, codes before)

    The scores are those a beam search gives to the items it finds. The scorer is fed with every distinct prefix of a
    row's items once, ``PREFIXES_AT_ONCE`` of them at a time (each time from the prompt on), so memory is bounded
    whatever M is.

    items: int ``[B, M]``; ``[M]``, the same for all rows, which is cheaper to plan; None = all N of the catalog, -inf
    for those outside the index. Raises DataError for an item that is not in the index, or if the model returns infinity
    or NaN.
    """
    host = index.host
    if items is None:
        scores = score_leaves(scorer, index, prompts, None, np.arange(host.n_identifiers), normalize=normalize)
        whole = np.full((len(prompts), host.n_items), -np.inf, dtype=np.float32)
        sizes = np.diff(host.first_rank(np.arange(host.n_identifiers + 1)))
        whole[:, host.items] = np.repeat(scores, sizes, axis=1)
        return whole
    asked = np.asarray(items, dtype=np.int64)
    real = asked >= 0
    out = np.full((len(prompts), asked.shape[-1]), -np.inf, dtype=np.float32)
    leaf = leaves_of(host, asked[real])
    if asked.ndim == 1:
        leaves, place = np.unique(leaf, return_inverse=True)
        out[:, real] = score_leaves(scorer, index, prompts, None, leaves, normalize=normalize)[:, place]
    else:
        pairs, place = np.unique(np.nonzero(real)[0] * host.n_identifiers + leaf, return_inverse=True)
        rows, leaves = np.divmod(pairs, host.n_identifiers)
        out[real] = score_leaves(scorer, index, prompts, rows, leaves, normalize=normalize)[place]
    return out


@torch.inference_mode()
def score_leaves(
    scorer: Scorer, index: DeviceIndex, prompts: Prompts, rows: Int64 | None, leaves: Int64, *, normalize: Normalize
) -> Float32:
    """Scores of leaves: float32 ``[P]`` for pairs of row and leaf, ``[B, P]`` where rows is None: all rows (internal).

    rows, leaves: int64 ``[P]``, sorted by row, then leaf, without repeats.
    """
    shared = rows is None
    pair_rows = np.zeros(len(leaves), dtype=np.int64) if rows is None else rows
    width = max(1, min(PREFIXES_AT_ONCE, ROWS_TIMES_PREFIXES // max(len(prompts), 1)))
    out = np.empty((len(prompts), len(leaves)) if shared else len(leaves), dtype=np.float32)
    for block in blocks(index.host, pair_rows, leaves, width):
        present, row = np.unique(pair_rows[block], return_inverse=True)
        walk = plan(index.host, row, leaves[block])
        if shared:
            out[:, block] = _walked(scorer, index, prompts, walk, normalize)[:, walk.place]
        else:
            asked = Prompts(prompts.tokens_BT[present], prompts.mask_BT[present])
            out[block] = _walked(scorer, index, asked, walk, normalize)[row, walk.place]
    if np.isnan(out).any():
        raise DataError("the model returned inf or NaN", hint="the weights or the inputs are not finite")
    return out


def _walked(scorer: Scorer, index: DeviceIndex, prompts: Prompts, walk: Walk, normalize: Normalize) -> Float32:
    """Scores of the nodes behind the last step of a walk, float32 ``[B, M]``."""
    state, batch = scorer.start(prompts, normalize), len(prompts)
    row = torch.arange(batch, device=index.device)[:, None]
    score = torch.zeros((batch, 1), device=index.device)
    for level, step in enumerate(walk.steps):
        if level == 0:
            found = scorer.step(state, None, None)
        else:
            parents, codes = (_on(index, x).expand(batch, -1) for x in (step.fed_parents, step.fed_codes))
            found = scorer.step(state, parents, codes)
        above, slot, code = (_on(index, x) for x in (step.above, step.slot, step.code))
        total = _totals(index, level, step, found, normalize)
        value = found.values_BWS[row, slot, code]
        # a code that the model rules out stays so, also where the total is of nothing else
        added = torch.where(value == float("-inf"), value, value - total[row, slot])
        added = torch.where(broken(found, total)[row, slot], torch.nan, added)
        if step.passed is not None:
            added = torch.where(_on(index, step.passed), 0.0, added)
        score = score[row, above] + added
    return np.asarray(score.cpu().numpy())


def _totals(index: DeviceIndex, level: int, step: Step, found: StepScores, normalize: Normalize) -> Tensor:
    """Log-normalisers of the prefixes fed, ``[B, W]``, as in :func:`genrec.decoding.select.expand`."""
    values = found.values_BWS
    if normalize == "children":
        code, _, real = children(index, level, _on(index, step.fed_nodes))
        code = code.clamp(max=values.shape[-1] - 1).expand(len(values), -1, -1)
        return torch.where(real, values.gather(-1, code), float("-inf")).logsumexp(-1)
    return values.logsumexp(-1) if found.total_BW is None else found.total_BW


def _on(index: DeviceIndex, array: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Tensor:
    return torch.from_numpy(array).to(index.device)
