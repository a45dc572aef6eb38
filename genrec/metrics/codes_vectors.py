"""What quantisation keeps of the item vectors: reconstruction, neighbourhoods, retrieval (numpy only).

Nearness is the cosine; a vector of zeros has cosine 0 to everything. Items with equal vectors (after quantisation all
items of one identifier) tie exactly: a tied block counts with its expected share of the places that are left, so no
noise is added and the order of items does not matter.
Axes: N items, L levels, K codes of a level, D width, G distinct vectors, B rows of a chunk, P pairs, k places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genrec.metrics.codes_usage import prefix_numbers

Ints = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]
NAN = float("nan")
_CHUNK_ELEMENTS = 1 << 22  # similarities held at a time: 16 MB, and a few arrays of that shape


@dataclass(frozen=True, eq=False)
class UnitRows:
    """Vectors of length 1 with equal rows stored once: row n is ``distinct_GD[group_N[n]]`` (internal)."""

    distinct_GD: Vectors
    group_N: npt.NDArray[np.int64]
    sizes_G: npt.NDArray[np.int64]

    @classmethod
    def of(cls, vectors_ND: npt.NDArray[np.floating]) -> UnitRows:
        """Find equal rows, then scale (so that equal rows stay equal)."""
        x = np.ascontiguousarray(vectors_ND, dtype=np.float32) + np.float32(0)  # -0 becomes 0
        if x.shape[0] == 0 or x.shape[1] == 0:
            return cls(np.zeros((min(len(x), 1), x.shape[1]), np.float32), np.zeros(len(x), int), np.array([len(x)]))
        rows = x.view(np.dtype((np.void, x.dtype.itemsize * x.shape[1]))).ravel()
        _, first, group, sizes = np.unique(rows, return_index=True, return_inverse=True, return_counts=True)
        distinct = x[first]
        norms = np.sqrt(np.einsum("gd,gd->g", distinct, distinct, dtype=np.float64)).astype(np.float32)
        distinct /= np.where(norms > 0, norms, np.float32(1))[:, None]
        return cls(distinct, group.ravel(), sizes)

    def similarities(self, rows: Ints) -> Vectors:
        """Cosines of some items with all items, ``[B, N]``; -inf with itself."""
        found = self.distinct_GD[self.group_N[rows]] @ self.distinct_GD.T
        full: Vectors = found[:, self.group_N]
        full[np.arange(len(rows)), rows] = -np.inf
        return full


def additive_reconstruction(codes_NL: Ints, codebooks: Sequence[npt.NDArray[np.floating]]) -> Vectors:
    """``sum_l codebooks[l][codes[n, l]]``, float32 ``[N, D]``; levels without a codebook and ends add nothing (stable).

    codebooks: ``[K, D]`` for each of the first levels, at least one.
    """
    out = np.zeros((len(codes_NL), codebooks[0].shape[1]), dtype=np.float32)
    for level, book in enumerate(codebooks):
        code = codes_NL[:, level]
        here = code >= 0
        out[here] += book[code[here]]
    return out


def implied_codebooks(
    codes_NL: Ints, level_sizes: Sequence[int], vectors_ND: npt.NDArray[np.floating]
) -> tuple[Vectors, ...]:
    """The codebooks that identifiers of any origin imply: level by level the mean of what is left (experimental).

    ::

        left = z - mean(z)
        for each level:  codebook[k] = mean of left over the items with code k (0 if none);  left -= codebook[code]

    For residual k-means with converged centroids these are its own codebooks. With L K codes for N items even random
    codes explain about L K / N of the variance: compare at equal sizes, and with the random control.
    """
    left_ND = np.asarray(vectors_ND, dtype=np.float32)
    left_ND = left_ND - left_ND.mean(axis=0, dtype=np.float64).astype(np.float32) if len(left_ND) else left_ND.copy()
    books = []
    for level, size in enumerate(level_sizes):
        here = np.flatnonzero(codes_NL[:, level] >= 0)
        order = here[np.argsort(codes_NL[here, level], kind="stable")]
        book = np.zeros((size, left_ND.shape[1]), dtype=np.float32)
        if len(order):
            code, starts, counts = np.unique(codes_NL[order, level], return_index=True, return_counts=True)
            sums = np.add.reduceat(left_ND[order], starts, axis=0, dtype=np.float64)
            book[code] = sums / counts[:, None]
            left_ND[here] -= book[codes_NL[here, level]]
        books.append(book)
    return tuple(books)


def relative_error(
    vectors_ND: npt.NDArray[np.floating],
    reconstruction_ND: npt.NDArray[np.floating],
    mean_D: npt.ArrayLike | None = None,
) -> float:
    """``sum |z - zhat|^2 / sum |z - mean|^2``: 0 = exact, 1 = no better than predicting the mean (stable).

    mean_D: what the mean predictor says, float ``[D]``; None = the mean of these vectors. nan if it makes no error.
    """
    if len(vectors_ND) == 0:
        return NAN
    mean = vectors_ND.mean(axis=0, dtype=np.float64) if mean_D is None else np.asarray(mean_D, dtype=np.float64)
    error = base = 0.0
    for at in _chunks(np.arange(len(vectors_ND)), vectors_ND.shape[1]):
        z = np.asarray(vectors_ND[at], dtype=np.float64)
        error += float(((z - np.asarray(reconstruction_ND)[at]) ** 2).sum())
        base += float(((z - mean) ** 2).sum())
    return error / base if base > 0 else NAN


def mean_cosine(vectors_ND: npt.NDArray[np.floating], reconstruction_ND: npt.NDArray[np.floating]) -> float:
    """Mean over items of ``cos(z, zhat)``, 0 where either is a vector of zeros (stable).

    Depends on the origin: raw text vectors share a direction, and their mean alone may have a cosine of .6 to all.
    """
    total = 0.0
    for at in _chunks(np.arange(len(vectors_ND)), vectors_ND.shape[1]):
        z, r = (np.asarray(x)[at].astype(np.float64) for x in (vectors_ND, reconstruction_ND))
        scale = np.sqrt(np.einsum("nd,nd->n", z, z) * np.einsum("nd,nd->n", r, r))
        total += float((np.einsum("nd,nd->n", z, r) / np.where(scale > 0, scale, 1)).sum())
    return total / len(vectors_ND) if len(vectors_ND) else NAN


def neighbours_kept(
    vectors_ND: npt.NDArray[np.floating],
    quantised_ND: npt.NDArray[np.floating],
    ks: Sequence[int],
    rows: Ints | None = None,
) -> dict[int, float]:
    """Mean over items of ``|kNN_Z(i) and kNN_Zhat(i)| / k`` for each k, 0..1; random vectors give k / (N - 1) (stable).

    An item is not its own neighbour. Tied blocks count by expectation (ties of Z and Zhat broken independently at
    random). rows: the items asked, all by default. k above N - 1 means N - 1; nan for fewer than two items.
    """
    n = len(vectors_ND)
    asked = np.arange(n) if rows is None else np.asarray(rows)
    if n < 2 or len(asked) == 0:
        return dict.fromkeys(ks, NAN)
    near, quantised = UnitRows.of(vectors_ND), UnitRows.of(quantised_ND)
    sums = dict.fromkeys(ks, 0.0)
    for part in _chunks(asked, n):
        a_BN, b_BN = near.similarities(part), quantised.similarities(part)
        for k, a, b in zip(ks, _top_blocks(a_BN, ks), _top_blocks(b_BN, ks), strict=True):
            row, item = np.nonzero(a_BN >= a.edge_B[:, None])
            both = a.share(a_BN[row, item], row) * b.share(b_BN[row, item], row)
            sums[k] += float(both.sum()) / min(k, n - 1)
    return {k: total / len(asked) for k, total in sums.items()}


def neighbour_prefix_rate(codes_NL: Ints, vectors_ND: npt.NDArray[np.floating], rows: Ints | None = None) -> Floats:
    """How often an item and its nearest neighbour have equal prefixes, float64 ``[L]`` by prefix length (stable).

    Of several nearest neighbours each counts alike. rows: the items asked, all by default; nan for fewer than two.
    """
    n = len(codes_NL)
    asked = np.arange(n) if rows is None else np.asarray(rows)
    total = np.zeros(codes_NL.shape[1])
    if n < 2 or len(asked) == 0:
        return np.full(codes_NL.shape[1], NAN)
    near, number_NL = UnitRows.of(vectors_ND), prefix_numbers(codes_NL)
    for part in _chunks(asked, n):
        similarity_BN = near.similarities(part)
        row, item = np.nonzero(similarity_BN == similarity_BN.max(axis=1, keepdims=True))
        weight = 1 / np.bincount(row, minlength=len(part))[row]
        total += weight @ (number_NL[part[row]] == number_NL[item])
    return np.asarray(total / len(asked))


def hit_rate(vectors_ND: npt.NDArray[np.floating], pairs_P2: Ints, ks: Sequence[int]) -> dict[int, float]:
    """FORGE's embedding hit-rate EmbHR@k: share of pairs (a, b) with b among the k items nearest to a (stable).

    ::

        better = items other than a whose cosine to a is above cos(a, b);  tied = those with the same cosine, b included
        hit    = min(max((k - better) / tied, 0), 1)           mean over pairs with a != b

    FORGE (Fu et al. 2025, 2509.20904) names the metric without a formula. The mean is over pairs, so an item counts
    as often as it stands first (the mean over items of |neighbours in the top k| / |neighbours| would weigh every
    item alike). Where the vectors were made from the same pairs, compare only vectors with that same advantage.
    Random vectors: k / (N - 1). nan without a pair.
    """
    pairs = np.asarray(pairs_P2)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    if len(pairs) == 0:
        return dict.fromkeys(ks, NAN)
    unit = UnitRows.of(vectors_ND)
    weights = unit.sizes_G.astype(np.float32)  # exact below 2 ** 24 items
    hits = dict.fromkeys(ks, 0.0)
    for part in _chunks(pairs[np.argsort(pairs[:, 0], kind="stable")], len(weights)):
        own, row = np.unique(unit.group_N[part[:, 0]], return_inverse=True)
        similarity = (unit.distinct_GD[own] @ unit.distinct_GD.T)[row.ravel()]
        at = np.arange(len(part))
        target = similarity[at, unit.group_N[part[:, 1]]]
        itself = similarity[at, unit.group_N[part[:, 0]]]
        better = (similarity > target[:, None]).astype(np.float32) @ weights - (itself > target)
        tied = (similarity == target[:, None]).astype(np.float32) @ weights - (itself == target)
        for k in ks:
            hits[k] += float(np.clip((k - better.astype(np.float64)) / tied, 0, 1).sum())
    return {k: total / len(pairs) for k, total in hits.items()}


@dataclass(frozen=True, eq=False)
class _TopBlock:
    """The k best of each row: all above the edge, and an equal share of those at it."""

    edge_B: Vectors
    edge_share_B: Floats

    def share(self, similarity: Vectors, row: Ints) -> Floats:
        """Chance of each (similarity, row) to be among the k best."""
        edge = self.edge_B[row]
        return np.where(similarity > edge, 1.0, np.where(similarity == edge, self.edge_share_B[row], 0.0))


def _top_blocks(similarity_BN: Vectors, ks: Sequence[int]) -> list[_TopBlock]:
    n = similarity_BN.shape[1]
    places = [n - min(k, n - 1) for k in ks]  # of the k-th best in ascending order; one entry (itself) is -inf
    ordered = np.partition(similarity_BN, sorted(set(places)), axis=1)
    blocks = []
    for k, place in zip(ks, places, strict=True):
        edge = ordered[:, place]
        above = np.count_nonzero(similarity_BN > edge[:, None], axis=1)
        tied = np.count_nonzero(similarity_BN == edge[:, None], axis=1)
        blocks.append(_TopBlock(edge, (min(k, n - 1) - above) / tied))
    return blocks


def _chunks(rows: Ints, width: int) -> Iterator[Ints]:
    step = max(1, _CHUNK_ELEMENTS // max(width, 1))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]
