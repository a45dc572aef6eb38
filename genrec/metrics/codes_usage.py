"""How a table of identifiers uses its codes: collisions, load, entropy, cost of decoding (numpy only).

``codes_NL`` (int ``[N, L]``) holds the codes of every item, -1 beyond the end of a short identifier. An end counts
as one more symbol: a shorter identifier is never the prefix of a longer one, and an identifier that has ended shares
deeper prefixes only with items of the same identifier.
Random codes are best in nearly everything of this file: read it together with fidelity (``codes_vectors``) and
behaviour (``codes_behaviour``). Axes: N items, L levels, K codes of a level, G groups of items with one identifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genrec.metrics.identifiers import group_sizes

Ints = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]
NAN = float("nan")


@dataclass(frozen=True)
class Collisions:
    """How many items share an identifier, in the three definitions that papers use without naming them (stable).

    rate: ``1 - G / N``. share: items whose identifier another item has too, divided by N. pair_rate: chance that two
    different random items share one, ``sum_g s_g (s_g - 1) / (N (N - 1))``. largest: items of the largest group.
    sizes: ``sizes[s]`` groups of exactly s items (from s = 1).
    """

    rate: float
    share: float
    pair_rate: float
    largest: int
    sizes: dict[int, int]


@dataclass(frozen=True, eq=False)
class LevelLoad:
    """How items spread over the codes of each level; float64 ``[L]`` each (stable).

    With n_k items on code k of the level and p_k their share: usage = share of codes with an item; dead = number of
    codes without; entropy = ``-sum p_k log2 p_k`` (bits); perplexity = ``2 ** entropy`` (K = even, 1 = one code);
    gini over *all* K codes, the empty ones included (0 = even, 1 - 1/K = one code); load_cv = standard deviation of
    n_k divided by its mean. Only items whose identifier reaches the level count.
    """

    usage: Floats
    dead: Floats
    entropy: Floats
    perplexity: Floats
    gini: Floats
    load_cv: Floats


@dataclass(frozen=True, eq=False)
class PrefixEntropy:
    """Bits that each level adds to those before it, float64 ``[L]``; they sum to ``identifier`` (stable).

    conditional: ``H(c_l | c_<l) = H(c_1 .. c_l) - H(c_1 .. c_l-1)`` of a random item, plug-in: biased low where nodes
    hold few items. miller_madow: each H plus ``(m - 1) / (2 N ln 2)`` with m distinct prefixes (Miller 1955), so the
    level's plus ``(m_l - m_l-1) / (2 N ln 2)``; sums to more than ``identifier``. identifier: ``H(C)``, at most
    ``log2 N``, reached exactly when no items collide.
    """

    conditional: Floats
    miller_madow: Floats
    identifier: float


@dataclass(frozen=True, eq=False)
class TrieShape:
    """What a decoder has to walk through (stable).

    nodes: distinct non-empty prefixes. branching: float64 ``[L]``, at depth 0 .. L-1 the mean number of children of
    the prefixes that go on (an end is no child). mean_branching: the same over all depths. first_bits: entropy of
    the first code of a random item, the widest single choice. mean_length, max_length: codes per identifier.
    """

    nodes: int
    branching: Floats
    mean_branching: float
    first_bits: float
    mean_length: float
    max_length: int


def prefix_numbers(codes_NL: Ints) -> npt.NDArray[np.int64]:
    """Dense number of every prefix, int64 ``[N, L]``: column l numbers the first l + 1 codes, in sorted order (stable).

    >>> prefix_numbers(np.array([[3, 1], [0, 1], [3, 0], [3, 1]])).tolist()
    [[1, 2], [0, 0], [1, 1], [1, 2]]
    """
    out = np.zeros(codes_NL.shape, dtype=np.int64)
    if len(codes_NL):
        order = np.lexsort(codes_NL.T[::-1])
        ordered = codes_NL[order]
        differs = np.zeros(codes_NL.shape, dtype=bool)
        differs[1:] = np.logical_or.accumulate(ordered[1:] != ordered[:-1], axis=1)
        out[order] = np.cumsum(differs, axis=0)
    return out


def collisions(codes_NL: Ints) -> Collisions:
    """Collision rate in three definitions, largest group and histogram of group sizes (stable).

    >>> found = collisions(np.array([[0, 1], [0, 1], [0, 2], [1, 2]]))
    >>> found.rate, found.share, round(found.pair_rate, 4), found.largest, found.sizes
    (0.25, 0.5, 0.1667, 2, {1: 2, 2: 1})
    """
    n = len(codes_NL)
    if n == 0:
        return Collisions(NAN, NAN, NAN, 0, {})
    size_G = np.bincount(prefix_numbers(codes_NL)[:, -1])
    sizes, counts = np.unique(size_G, return_counts=True)
    return Collisions(
        rate=1 - len(size_G) / n,
        share=float(size_G[size_G > 1].sum() / n),
        pair_rate=float((size_G * (size_G - 1)).sum() / (n * (n - 1))) if n > 1 else NAN,
        largest=int(size_G.max()),
        sizes=dict(zip(sizes.tolist(), counts.tolist(), strict=True)),
    )


def gini(values: npt.ArrayLike) -> float:
    """Gini coefficient of non-negative values: 0 = all equal, ``1 - 1/n`` = one has all; nan without a total (stable).

    ``G = (n + 1) / n - 2 sum_i (n - i + 1) x_i / (n sum_i x_i)`` with ``x_1 <= ... <= x_n``.

    >>> gini([0, 0, 0, 8]), gini([2, 2])
    (0.75, 0.0)
    """
    x = np.sort(np.asarray(values, dtype=np.float64))
    n, total = len(x), float(x.sum())
    if total == 0:
        return NAN
    return float((n + 1) / n - 2 * (np.arange(n, 0, -1) @ x) / (n * total))


def identifier_gini(codes_NL: Ints) -> float:
    """FORGE's Gini coefficient: of the number of items per *occupied* identifier; 0 = no collisions (stable).

    FORGE (Fu et al. 2025, 2509.20904). It cannot see codes that nobody uses: read it beside usage.
    """
    return gini(np.bincount(prefix_numbers(codes_NL)[:, -1])) if len(codes_NL) else NAN


def entropy_bits(weights: npt.ArrayLike) -> float:
    """Entropy of a distribution given by non-negative weights, in bits; nan if they are all 0 (stable).

    >>> entropy_bits([3, 3, 0, 3, 3])
    2.0
    """
    given = np.asarray(weights, dtype=np.float64)
    total = given.sum()
    if total == 0:
        return NAN
    p = given[given > 0] / total
    return float(-(p * np.log2(p)).sum()) + 0.0


def level_load(codes_NL: Ints, level_sizes: Sequence[int]) -> LevelLoad:
    """Usage, entropy, perplexity, Gini and variation of the load of every level; see :class:`LevelLoad` (stable)."""
    rows = []
    for level, size in enumerate(level_sizes):
        codes = codes_NL[:, level]
        count_K = np.bincount(codes[codes >= 0], minlength=size)
        bits = entropy_bits(count_K)
        used, mean = int(np.count_nonzero(count_K)), float(count_K.mean())
        spread = float(count_K.std()) / mean if mean else NAN
        rows.append((used / size, size - used, bits, 2.0**bits, gini(count_K), spread))
    return LevelLoad(*np.array(rows, dtype=np.float64).T)


def prefix_entropy(codes_NL: Ints, weights_N: npt.ArrayLike | None = None) -> PrefixEntropy:
    """Bits added by each level for a random item (stable).

    weights_N: how often each item is drawn, for instance its training events; None = all alike. With weights N is
    their sum in the Miller-Madow term, and m counts the prefixes of positive weight.
    """
    weights = np.ones(len(codes_NL)) if weights_N is None else np.asarray(weights_N, dtype=np.float64)
    total = float(weights.sum())
    n_levels = codes_NL.shape[1]
    if total == 0:
        return PrefixEntropy(np.full(n_levels, NAN), np.full(n_levels, NAN), NAN)
    plain, corrected = np.zeros(n_levels + 1), np.zeros(n_levels + 1)
    for level, number_N in enumerate(prefix_numbers(codes_NL).T, start=1):
        node_weights = np.bincount(number_N, weights=weights)
        plain[level] = entropy_bits(node_weights)
        corrected[level] = plain[level] + (np.count_nonzero(node_weights) - 1) / (2 * total * np.log(2))
    return PrefixEntropy(np.diff(plain), np.diff(corrected), float(plain[-1]))


def trie_shape(codes_NL: Ints) -> TrieShape:
    """Nodes, branching, lengths and first choice of the trie of all identifiers; see :class:`TrieShape` (stable)."""
    n, n_levels = codes_NL.shape
    if n == 0:
        return TrieShape(0, np.full(n_levels, NAN), NAN, NAN, NAN, 0)
    number_NL = prefix_numbers(codes_NL)
    reaches_NL = codes_NL >= 0
    nodes = [len(np.unique(number_NL[reaches_NL[:, level], level])) for level in range(n_levels)]
    inner = [1]  # prefixes with a child, by depth
    for level in range(1, n_levels):
        inner.append(len(np.unique(number_NL[reaches_NL[:, level], level - 1])))
    branching = np.array([a / b if b else NAN for a, b in zip(nodes, inner, strict=True)])
    lengths = reaches_NL.sum(axis=1)
    return TrieShape(
        nodes=sum(nodes),
        branching=branching,
        mean_branching=sum(nodes) / sum(inner),
        first_bits=entropy_bits(np.bincount(codes_NL[:, 0])),
        mean_length=float(lengths.mean()),
        max_length=int(lengths.max()),
    )


def first_code_popularity_gini(codes_NL: Ints, size: int, popularity_N: npt.ArrayLike) -> float:
    """Gini, over all ``size`` first codes, of the summed popularity of their items: 0 = equal traffic (stable)."""
    return gini(np.bincount(codes_NL[:, 0], weights=np.asarray(popularity_N, dtype=np.float64), minlength=size))


def size_popularity_correlation(codes_NL: Ints, popularity_N: npt.ArrayLike) -> float:
    """Spearman correlation, over items, of the size of an item's identifier group and its popularity (stable).

    Above 0: popular items collide more than others. nan where either is the same for all items.
    """
    if len(codes_NL) == 0:
        return NAN
    sizes = _mean_ranks(group_sizes(prefix_numbers(codes_NL)[:, -1]))
    popular = _mean_ranks(np.asarray(popularity_N))
    a, b = sizes - sizes.mean(), popular - popular.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else NAN


def _mean_ranks(values: npt.NDArray[np.generic]) -> Floats:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place], dtype=np.float64)
