"""What a report says about set identifiers (numpy only, no torch). Internal.

Axes: N items, n slots, D width, K codes of a slot.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from genrec.item_tokenizers.slots import ItemSlots

ALIKE = 0.95
"""Semantic slots whose mean |cos| is above this say the same thing n times."""
_CHUNK = 4096


def slot_report(slots: ItemSlots) -> dict[str, Any]:
    """Numbers about every slot, and about the sets as wholes (internal).

    ``slots``: for each name, over the items that are known there: mean_norm; spread (root mean squared distance from
    the mean vector); effective_rank; and unknown_share; of discrete slots usage (share of the codes that some item
    has) and perplexity. ``semantic_cosine``: :func:`semantic_cosine`; ``semantic_alike``: it is above .95.
    ``incomplete_share``: items with an unknown slot. Then what :meth:`ItemCodes.report` says about collisions.
    ``bytes_per_item``: memory of vectors and codes.
    """
    ids = slots.collision_ids()
    group = np.bincount(ids) if len(ids) else np.zeros(1, dtype=np.int64)
    n = max(slots.n_items, 1)
    cosine = semantic_cosine(slots)
    code_bytes = 0 if slots.codes is None else slots.codes.itemsize
    return {
        "n_items": slots.n_items,
        "n_slots": slots.n_slots,
        "dim": slots.dim,
        "discrete": slots.discrete,
        "slot_sizes": list(slots.slot_sizes),
        "bytes_per_item": slots.n_slots * (4 * slots.dim + code_bytes),
        "slots": {name: _one_slot(slots, at) for at, name in enumerate(slots.names)},
        "semantic_cosine": None if cosine is None else round(cosine, 6),
        "semantic_alike": cosine is not None and cosine > ALIKE,
        "incomplete_share": int((~slots.known).any(axis=1).sum()) / n,
        "distinct_share": int(np.count_nonzero(group)) / n,
        "largest_group": int(group.max()),
        "collision_share": int(group[group > 1].sum()) / n,
    }


def semantic_cosine(slots: ItemSlots) -> float | None:
    """Mean of |cos| between two semantic slots of one item, over items and pairs (internal).

    Only pairs of known slots count; None where there is none.
    """
    semantic = [at for at, name in enumerate(slots.names) if name.startswith("semantic")]
    total, count = 0.0, 0
    for start in range(0, len(slots), _CHUNK):
        part = slots.vectors[start : start + _CHUNK]
        norm = np.sqrt(np.einsum("nsd,nsd->ns", part, part, dtype=np.float64))
        for a, b in combinations(semantic, 2):
            both = (norm[:, a] > 0) & (norm[:, b] > 0)
            dots = np.einsum("nd,nd->n", part[both, a], part[both, b], dtype=np.float64)
            total += float((np.abs(dots) / (norm[both, a] * norm[both, b])).sum())
            count += int(both.sum())
    return total / count if count else None


def effective_rank(covariance_DD: npt.NDArray[np.float64], floor: float) -> float:
    """``exp`` of the entropy of the singular values as shares of their sum (Roy and Vetterli 2007) (internal).

    covariance_DD: of the vectors; its eigenvalues are the squared singular values. floor: eigenvalues up to this are
    rounding errors and count as 0. With none above it the rank is 0.
    """
    values = np.linalg.eigvalsh(covariance_DD)
    singular = np.sqrt(values[values > floor])
    if not len(singular):
        return 0.0
    share = singular / singular.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def _one_slot(slots: ItemSlots, at: int) -> dict[str, Any]:
    """Numbers about one slot; float64 sums over chunks of items."""
    x_ND, dim = slots.vectors[:, at], slots.dim
    known = np.asarray(x_ND.any(axis=1))
    count, lengths, total = int(known.sum()), 0.0, np.zeros(dim)
    chunks = [slice(start, start + _CHUNK) for start in range(0, len(x_ND), _CHUNK)]
    for part in chunks:
        rows = x_ND[part][known[part]].astype(np.float64)
        lengths += float(np.linalg.norm(rows, axis=1).sum())
        total += rows.sum(axis=0)
    mean, scatter = total / max(count, 1), np.zeros((dim, dim))
    for part in chunks:
        rows = x_ND[part][known[part]] - mean
        scatter += rows.T @ rows
    covariance = scatter / max(count, 1)
    variance = float(np.trace(covariance))
    # rounding to float32 makes equal rows differ from their mean
    floor = 1e-12 * max(variance + float(mean @ mean), 1e-300)
    found: dict[str, Any] = {
        "mean_norm": round(lengths / max(count, 1), 6),
        "spread": round(float(np.sqrt(variance)), 6),
        "effective_rank": round(effective_rank(covariance, floor), 4),
        "unknown_share": (len(x_ND) - count) / max(len(x_ND), 1),
    }
    if slots.codes is not None:
        counts = np.bincount(slots.codes[:, at], minlength=slots.slot_sizes[at])
        share = counts[counts > 0] / max(len(x_ND), 1)
        found["usage"] = round(int(np.count_nonzero(counts)) / len(counts), 6)
        found["perplexity"] = round(float(np.exp(-(share * np.log(share)).sum())) if len(share) else 0.0, 4)
    return found
