"""Items drawn at random without replacement, in proportion to their probability, inside what a request allows.

Axes: B batch, W beams, K largest number of children at the level, C = W·K candidates, P identifiers of a row,
M drawn places in one flat list, k list length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrec.decoding.deny import denied_ranks
from genrec.decoding.filters import RowFilters
from genrec.decoding.guided import Beams, Rows, Walked, guided_search, widen
from genrec.decoding.interface import Normalize
from genrec.decoding.listing import widened
from genrec.decoding.scorer import Prompts, Scorer, StepScores
from genrec.decoding.search import Batch, Search
from genrec.decoding.select import NEG_INF, Candidates, DeviceIndex
from genrec.errors import ConfigError, DataError

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Samples:
    """Items drawn for each user, in the order in which they were drawn.

    items: int32 ``[U, k]``, -1 = no more items. logp: float32 ``[U, k]``, the log-probability of each item before
    anything was excluded, -inf for padding. perturbed: float32 ``[U, k]``, that plus the item's noise, falling; -inf
    for padding. exact: bool ``[U]``, False where ``max_beams`` ran out, so that the draw leans to prefixes below which
    much is allowed. normalize, version: as in :class:`~genrec.decoding.interface.Recommendations`.
    Stability: experimental.
    """

    items: npt.NDArray[np.int32]
    logp: npt.NDArray[np.float32]
    perturbed: npt.NDArray[np.float32]
    exact: npt.NDArray[np.bool_]
    normalize: str
    version: int | None = None

    def __len__(self) -> int:
        return len(self.items)


def draw(search: Search, batch: Batch, keys_B: Int64, *, temperature: float = 1.0) -> Samples:
    """Draw ``top_k`` items for each row: the Gumbel top-k trick down the tree (stochastic beam search).

        q(item)      = product over its codes of p(code | prompt, codes before) / number of items of its identifier
        P(first)     = q(item) / sum of q over the allowed items
        P(next | before) = q(item) / sum of q over the allowed items that are not drawn yet

    So what is drawn follows the model's distribution given that the item is allowed; q are the probabilities of
    ``search.normalize``, whose sum over the catalog is 1 for "children" alone. (Renormalising over the allowed children
    of every prefix would draw from something else: prefixes whose probability belongs to forbidden items would be drawn
    as often as if all below them were allowed.)

    Method (Kool et al. 2019, 1903.06059): every item has the perturbed score log q + Gumbel noise, and the k largest
    are the draw. The largest one below a prefix is Gumbel of the prefix's log-probability; it is drawn first, then
    those of its children given that their maximum is that one. The n best prefixes of each depth therefore hold the n
    best items, and ``top_k`` beams suffice. We differ where a part of a prefix's probability leads to nothing allowed
    (codes that no item has, seen items, a filter): this part takes part in the maximum like a child and is then left
    out, which is rejection. An item above every dropped beam is among the largest for sure; rows with fewer than
    ``top_k`` of these are searched again, with the same noise and four times the beams, up to ``max_beams``.

    temperature: values are divided by it before they are normalised. The codes of a level keep the level's share of
    the probability, which is less than 1 only for "vocab". The noise of a prefix depends on its row's key, its depth
    and its number in the index, not on the batch. keys_B: int64, see :func:`row_keys`. Raises DataError if the model
    returns NaN. Internal.
    """
    if not 0 < temperature < np.inf:
        raise ConfigError(f"temperature: expected a positive number, got {temperature}")
    tempered = search if temperature == 1.0 else replace(search, scorer=_Tempered(search.scorer, temperature))

    def once(rows: Rows, n_beams: int) -> Samples:
        part, keys = batch.take(rows), keys_B[rows]
        rule = _Perturbed(search.index, keys, normalised=search.normalize == "children")
        return _drawn(tempered, part, guided_search(tempered, part, rule, rule.root(), n_beams=n_beams), keys)

    def join(found: Sequence[Samples], order: Sequence[Rows]) -> Samples:
        return joined_samples(found, order, width=search.wanted.top_k or 0, normalize=search.normalize)

    return widen(once, lambda found: ~found.exact, join, search, batch)


def row_keys(prompts: Prompts, seeds: npt.ArrayLike) -> Int64:
    """What the noise of each row depends on: its seed and its prompt, whatever the padding, int64 ``[B]`` (internal).

    seeds: integers ``[B]``. Rows with the same seed and the same prompt draw the same.
    """
    keys = [
        hashlib.blake2b(
            tokens[mask].tobytes(), digest_size=8, key=int(seed).to_bytes(8, "little", signed=True)
        ).digest()
        for tokens, mask, seed in zip(prompts.tokens_BT, prompts.mask_BT, np.asarray(seeds).tolist(), strict=True)
    ]
    return np.frombuffer(b"".join(keys), dtype="<i8").astype(np.int64)


def check_seed(seed: int | Sequence[int], n_rows: int) -> Int64:
    """The seed of every row, int64 ``[U]``; DataError for another number of them or no integers (internal)."""
    seeds = np.asarray(seed) if np.size(seed) else np.zeros(np.shape(seed), dtype=np.int64)
    if seeds.dtype.kind not in "iu" or seeds.shape not in ((), (n_rows,)):
        raise DataError(f"seed: expected an integer, or {n_rows} of them, got {seeds.dtype} {list(seeds.shape)}")
    return np.broadcast_to(seeds, (n_rows,)).astype(np.int64)


def joined_samples(found: Sequence[Samples], order: Sequence[Rows], *, width: int, normalize: str) -> Samples:
    """The draws of batches in the order of the request; ``order``: the row numbers of each batch (internal).

    width: of the draws where there is no batch.
    """
    back = np.argsort(np.concatenate(order)) if order else np.zeros(0, dtype=np.int64)
    width = max([each.items.shape[1] for each in found], default=width)

    def whole(name: str, padding: float, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        parts = [widened(getattr(each, name), width, padding) for each in found]
        return np.concatenate([np.zeros((0, width), dtype), *parts]).astype(dtype)[back]

    return Samples(
        items=whole("items", -1, np.int32),
        logp=whole("logp", -np.inf, np.float32),
        perturbed=whole("perturbed", -np.inf, np.float32),
        exact=np.concatenate([np.zeros(0, dtype=np.bool_), *(each.exact for each in found)])[back],
        normalize=normalize,
    )


class _Tempered:
    """A scorer whose values are divided by a temperature; the level keeps its share of the probability."""

    def __init__(self, scorer: Scorer, temperature: float) -> None:
        self._scorer, self._temperature = scorer, temperature

    @property
    def device(self) -> torch.device:
        return self._scorer.device

    def start(self, prompts: Prompts, normalize: Normalize) -> Any:
        return self._scorer.start(prompts, normalize)

    def step(self, state: Any, parents_BW: Tensor | None, codes_BW: Tensor | None) -> StepScores:
        found = self._scorer.step(state, parents_BW, codes_BW)
        values = found.values_BWS / self._temperature
        if found.total_BW is None:
            return StepScores(values)
        inside = found.values_BWS.logsumexp(-1)  # -inf where the model rules the whole level out
        total = values.logsumexp(-1) + (found.total_BW - inside)
        return StepScores(values, torch.where(inside > NEG_INF, total, found.total_BW))


class _Perturbed:
    """Beams are chosen by perturbed scores.

    normalised: the probabilities of the children of a beam sum to 1; else the rest leads out of the catalog.
    """

    def __init__(self, index: DeviceIndex, keys_B: Int64, *, normalised: bool) -> None:
        self._key_B = torch.from_numpy(keys_B).to(index.device)
        self._normalised = normalised

    def root(self) -> Tensor:
        """The largest perturbed score of all, ``[B, 1]``."""
        return gumbel(self._key_B[:, None], 0, torch.zeros_like(self._key_B[:, None]))

    def keys(self, level: int, beams: Beams, found: Candidates) -> Tensor:
        """Perturbed scores of all children, given that the largest below each beam is the beam's, ``[B, C]``."""
        shape = (*beams.node.shape, found.width)
        score = found.score_BC.double().view(shape)
        alive = score > NEG_INF
        raw = torch.where(alive, score + gumbel(self._key_B[:, None], level + 1, found.node_BC).view(shape), NEG_INF)
        largest = raw.amax(-1)
        if not self._normalised:
            own = beams.score.double()
            inside = torch.where(alive, score - own[..., None], NEG_INF).logsumexp(-1)
            # rounding may leave a little more than everything inside: then nothing is outside
            outside = own + torch.where(inside < 0, -torch.expm1(inside), 0.0).log()
            noise = gumbel(self._key_B[:, None], -level - 1, beams.node)
            largest = torch.maximum(largest, torch.where(outside > NEG_INF, outside + noise, NEG_INF))
        out = given_maximum(raw, largest[..., None], beams.key[..., None])
        return torch.where(alive, out, NEG_INF).flatten(1)

    def choose(self, level: int, node_BC: Tensor, key_BC: Tensor, n: int) -> Tensor:
        """The largest ones; equal ones have probability zero."""
        return key_BC.topk(min(n, key_BC.shape[1]), dim=1).indices


def given_maximum(raw: Tensor, largest: Tensor, maximum: Tensor) -> Tensor:
    """Gumbel variables whose largest value is ``largest``, moved so that it is ``maximum`` (internal).

        out = -log(exp(-maximum) - exp(-largest) + exp(-raw))

    which is distributed like the variables given that their maximum is ``maximum``; in the form of Kool et al.
    (2019, appendix B.3), which does not overflow. raw may be -inf, and stays so.
    """
    v = maximum - raw + torch.log1p(-torch.exp(raw - largest))
    return maximum - v.clamp(min=0) - torch.log1p(torch.exp(-v.abs()))


def gumbel(key: Tensor, depth: int, number: Tensor) -> Tensor:
    """Standard Gumbel noise, float64, a pure function of the row's key, a depth and a number (internal)."""
    at = torch.full_like(key, depth) * (0x9E3779B97F4A7C15 - (1 << 64))
    bits = _mixed(_mixed(key + at) ^ _mixed(number + 0x632BE59BD9B4E019))
    # 53 bits, in the middle of each step: never 0 or 1
    uniform = (_shifted(bits, 11).double() + 0.5) * 2.0**-53
    return -torch.log(-torch.log(uniform))


def _mixed(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al. 2014) on wrapping int64."""
    x = (x ^ _shifted(x, 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    x = (x ^ _shifted(x, 27)) * (0x94D049BB133111EB - (1 << 64))
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, n: int) -> Tensor:
    """Shift to the right of the 64 bits, zeros from the left."""
    return (x >> n) & ((1 << (64 - n)) - 1)


def _drawn(search: Search, batch: Batch, found: Walked, keys_B: Int64) -> Samples:
    """From identifiers to items: an identifier's probability is divided equally among its items."""
    index = search.index.host
    rows, columns = np.nonzero(found.leaves >= 0)
    leaf = found.leaves[rows, columns]
    first = index.first_rank(leaf)
    size = index.first_rank(leaf + 1) - first
    ends = np.cumsum(size)
    ranks = np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - (ends - size), size)
    logp = np.repeat(found.scores[rows, columns].astype(np.float64) - np.log(size), size)
    key, number = (torch.from_numpy(x) for x in (np.repeat(keys_B[rows], size), index.items[ranks].astype(np.int64)))
    noise = gumbel(key, index.depth + 1, number).numpy()
    raw = logp + noise
    largest = np.maximum.reduceat(raw, ends - size) if len(ends) else raw
    of_leaf = (np.repeat(largest, size), np.repeat(found.keys[rows, columns], size))
    perturbed = given_maximum(*(torch.from_numpy(x) for x in (raw, *of_leaf))).numpy()
    places = (np.repeat(rows, size), ranks)
    return _cut(search, batch, places, (logp, perturbed), found.pruned)


def _cut(
    search: Search, batch: Batch, places: tuple[Int64, Int64], values: tuple[Float64, Float64], pruned_B: Float64
) -> Samples:
    """The allowed ones of (row, rank), largest perturbed score first."""
    (rows, ranks), (logp, perturbed), index = places, values, search.index.host
    allowed = np.ones(len(rows), dtype=bool)
    if (filters := RowFilters.of(batch.filters)) is not None:
        allowed &= filters.allows(rows, ranks)
    if batch.deny is not None:
        denied_rows, denied = denied_ranks(index, batch.deny)
        allowed &= ~np.isin(rows * len(index.items) + ranks, denied_rows * len(index.items) + denied)
    kept = np.flatnonzero(allowed)
    kept = kept[np.lexsort((-perturbed[kept], rows[kept]))]
    counts = np.bincount(rows[kept], minlength=len(batch))
    place = np.arange(len(kept)) - (np.cumsum(counts) - counts)[rows[kept]]
    proven = np.bincount(rows[kept][perturbed[kept] > pruned_B[rows[kept]]], minlength=len(batch))
    top_k = search.wanted.top_k
    width = int(counts.max(initial=0)) if top_k is None else top_k
    kept, place = kept[place < width], place[place < width]
    items = np.full((len(batch), width), -1, dtype=np.int32)
    out = np.full((2, len(batch), width), -np.inf, dtype=np.float32)
    items[rows[kept], place] = index.items[ranks[kept]]
    out[0, rows[kept], place], out[1, rows[kept], place] = logp[kept], perturbed[kept]
    enough = np.zeros(len(batch), dtype=bool) if top_k is None else proven >= top_k
    return Samples(items, out[0], out[1], np.isneginf(pruned_B) | enough, search.normalize)
