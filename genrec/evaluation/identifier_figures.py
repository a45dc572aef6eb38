"""The sections of an identifier report, each a dict of figures; see :mod:`genrec.evaluation.identifiers`.

Axes: N items, L levels, D vector width, P pairs, U users.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from genrec.data.histories import Histories
from genrec.errors import ConfigError
from genrec.evaluation.identifier_vectors import Quantised
from genrec.item_tokenizers.codes import ItemCodes
from genrec.metrics import codes_behaviour, codes_structure, codes_usage, codes_vectors
from genrec.seeding import rng

Figures = dict[str, Any]
Codes = npt.NDArray[np.int32]
Pairs = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.floating]
Categories = Sequence[Sequence[str] | str | None]


@dataclass(frozen=True)
class InspectSettings:
    """Settings of :func:`inspect_codes`; ConfigError for values out of range (experimental).

    neighbours_at, hits_at: the k of neighbours_kept and of the hit rates. max_items, max_pairs: items and pairs drawn
    for what needs similarities to the whole catalog. max_similarities: of those in all, so that large catalogs draw
    fewer. held_out_users: share of users whose pairs are foretold, not counted. smoothing: of the count model.
    category_depth: deepest category looked at. quantised: where the quantised vectors come from when they are not
    given: the codebooks of the codes, the ones that the codes imply
    (:func:`genrec.metrics.codes_vectors.implied_codebooks`), ``auto``: the codebooks where they fit, or ``none``.
    """

    seed: int = 0
    neighbours_at: tuple[int, ...] = (10, 50)
    hits_at: tuple[int, ...] = (10, 50, 200)
    max_items: int = 2_000
    max_pairs: int = 20_000
    max_similarities: int = 400_000_000
    held_out_users: float = 0.2
    smoothing: float = 0.5
    category_depth: int = 4
    quantised: Literal["auto", "codebooks", "implied", "none"] = "auto"

    def __post_init__(self) -> None:
        for name in ("max_items", "max_pairs", "max_similarities"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("neighbours_at", "hits_at"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ConfigError(f"{name}: expected numbers of at least 1, got {getattr(self, name)}")
        if not 0 < self.held_out_users < 1:
            raise ConfigError(f"held_out_users: expected above 0 and below 1, got {self.held_out_users}")
        if not self.smoothing > 0:
            raise ConfigError(f"smoothing: expected above 0, got {self.smoothing}")
        if self.category_depth < 0:
            raise ConfigError(f"category_depth: expected at least 0, got {self.category_depth}")
        if self.quantised not in ("auto", "codebooks", "implied", "none"):
            raise ConfigError(f"quantised: expected auto, codebooks, implied or none, got {self.quantised!r}")


def usage(codes: ItemCodes, codes_NL: Codes, popularity: npt.NDArray[np.int64] | None) -> Figures:
    """Collisions, load of the levels, the tree, and what popularity adds (internal)."""
    collided = codes_usage.collisions(codes_NL)
    load = codes_usage.level_load(codes_NL, codes.level_sizes)
    bits, shape = codes_usage.prefix_entropy(codes_NL), codes_usage.trie_shape(codes_NL)
    figures: Figures = {
        "collision_rate": collided.rate,
        "collision_share": collided.share,
        "collision_pair_rate": collided.pair_rate,
        "largest_group": collided.largest,
        "group_sizes": collided.sizes,
        "identifier_gini": codes_usage.identifier_gini(codes_NL),
        "usage": load.usage,
        "dead_codes": load.dead,
        "entropy": load.entropy,
        "perplexity": load.perplexity,
        "perplexity_share": load.perplexity / np.array(codes.level_sizes),
        "gini": load.gini,
        "load_cv": load.load_cv,
        "identifier_entropy": bits.identifier,
        "conditional_entropy": bits.conditional,
        "conditional_entropy_miller_madow": bits.miller_madow,
        "branching": shape.branching,
        "mean_branching": shape.mean_branching,
        "trie_nodes": shape.nodes,
        "first_bits": shape.first_bits,
        "mean_length": shape.mean_length,
        "max_length": shape.max_length,
        "level_nmi": codes_structure.level_information(codes_NL),
        "random_prefix_rate": codes_behaviour.random_prefix_rate(codes_NL),
    }
    if popularity is not None:
        size = codes.level_sizes[0]
        figures["conditional_entropy_weighted"] = codes_usage.prefix_entropy(codes_NL, popularity).conditional
        figures["popularity_gini"] = codes_usage.first_code_popularity_gini(codes_NL, size, popularity)
        figures["size_popularity_correlation"] = codes_usage.size_popularity_correlation(codes_NL, popularity)
    return figures


def fidelity(codes_NL: Codes, vectors: Vectors, quantised: Quantised, chosen: InspectSettings) -> Figures:
    """What the codes keep of the vectors; neighbours of a seeded sample of items (internal)."""
    n, n_levels = codes_NL.shape
    drawn = rng(chosen.seed, "inspect", "items").permutation(n)
    rows = np.sort(drawn[: max(1, min(chosen.max_items, chosen.max_similarities // max(n, 1)))])
    near = codes_vectors.neighbour_prefix_rate(codes_NL, vectors, rows)
    figures: Figures = {
        "neighbour_prefix_rate": near,
        "neighbour_prefix_lift": ratio(near, codes_behaviour.random_prefix_rate(codes_NL)),
    }
    for key, across in (("direction_coherence", True), ("direction_coherence_all", False)):
        figures[key] = [
            codes_structure.direction_coherence(codes_NL, vectors, level, across_parents=across)
            for level in range(1, n_levels)
        ]
    if quantised.vectors_ND is not None:
        figures["reconstruction_error"] = codes_vectors.relative_error(vectors, quantised.vectors_ND)
        figures["reconstruction_cosine"] = codes_vectors.mean_cosine(vectors, quantised.vectors_ND)
        kept = codes_vectors.neighbours_kept(vectors, quantised.vectors_ND, chosen.neighbours_at, rows)
        figures |= {f"neighbours_kept@{k}": value for k, value in kept.items()}
    return figures


def behaviour(
    codes_NL: Codes,
    train: Histories,
    vectors: Vectors | None,
    quantised: Quantised | None,
    chosen: InspectSettings,
) -> Figures:
    """What the codes say about the training histories; users are split by seed for what is foretold (internal)."""
    found = codes_behaviour.adjacent_pairs(train.offsets, train.items)
    asked_U = rng(chosen.seed, "inspect", "users").random(len(train)) < chosen.held_out_users
    asked = asked_U[found.row_P]
    figures = alignment(codes_NL, found.pairs_P2)
    figures["history_overlap"] = codes_behaviour.history_overlap(codes_NL, train.offsets, train.items)
    figures |= predicted(codes_NL, found.pairs_P2[~asked], found.pairs_P2[asked], chosen)
    return figures | hits(found.pairs_P2, vectors, quantised, chosen)


def alignment(codes_NL: Codes, pairs: Pairs) -> Figures:
    """How often the two items of a pair share prefixes (internal)."""
    rate = codes_behaviour.pair_prefix_rate(codes_NL, pairs)
    return {
        "pair_prefix_rate": rate,
        "pair_prefix_lift": ratio(rate, codes_behaviour.random_prefix_rate(codes_NL)),
    }


def predicted(
    codes_NL: Codes,
    counted: Pairs,
    asked: Pairs,
    chosen: InspectSettings,
) -> Figures:
    """The count model on asked pairs (internal)."""
    found = codes_behaviour.predictability(codes_NL, counted, asked, smoothing=chosen.smoothing)
    return {
        "next_code_perplexity": found.perplexity,
        "next_code_information": found.information,
        "next_identifier_bits": found.identifier_bits,
        "next_item_bits": found.item_bits,
    }


def hits(
    pairs: Pairs,
    vectors: Vectors | None,
    quantised: Quantised | None,
    chosen: InspectSettings,
) -> Figures:
    """FORGE's embedding hit-rate of a seeded sample of the pairs, raw and quantised (internal)."""
    if vectors is None or quantised is None:
        return {}
    drawn = rng(chosen.seed, "inspect", "pairs").permutation(len(pairs))
    budget = max(1, min(chosen.max_pairs, chosen.max_similarities // max(len(vectors), 1)))
    sample = pairs[np.sort(drawn[:budget])]
    raw = codes_vectors.hit_rate(vectors, sample, chosen.hits_at)
    figures: Figures = {f"raw_hit_rate@{k}": value for k, value in raw.items()}
    if quantised.vectors_ND is not None:
        kept = codes_vectors.hit_rate(quantised.vectors_ND, sample, chosen.hits_at)
        figures |= {f"quantised_hit_rate@{k}": value for k, value in kept.items()}
        figures |= {f"hit_rate_ratio@{k}": value / raw[k] if raw[k] else math.nan for k, value in kept.items()}
    return figures


def hierarchy(codes_NL: Codes, categories: Categories, chosen: InspectSettings) -> Figures:
    """Agreement of prefixes and categories, for every depth that has two categories or more (internal)."""
    prefix_NL = codes_usage.prefix_numbers(codes_NL)
    figures: Figures = {}
    for depth in range(1, chosen.category_depth + 1):
        labels = _labels(categories, depth)
        known = np.flatnonzero(labels >= 0)
        if len(np.unique(labels[known])) < 2:  # one category, or none: nothing to agree with
            continue
        groups, generator = prefix_NL[known].T, rng(chosen.seed, "inspect", "categories", depth)
        found = [codes_structure.purity_lift(group, labels[known], generator) for group in groups]
        figures[f"category_ami.{depth}"] = [
            codes_structure.adjusted_information(group, labels[known]) for group in groups
        ]
        figures[f"category_purity.{depth}"] = [one.value for one in found]
        figures[f"category_purity_lift.{depth}"] = [one.lift for one in found]
    return figures


def _labels(categories: Categories, depth: int) -> npt.NDArray[np.int64]:
    """Number of every item's category of this depth (the whole path counts), -1 where it has none."""
    numbers: dict[tuple[str, ...], int] = {}
    out = np.full(len(categories), -1, dtype=np.int64)
    for item, given in enumerate(categories):
        path = (given,) if isinstance(given, str) else tuple(given or ())
        if len(path) >= depth:
            out[item] = numbers.setdefault(path[:depth], len(numbers))
    return out


def ratio(above: npt.NDArray[np.float64], below: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``above / below``, nan where that has no value (internal)."""
    out = np.full(len(above), np.nan)
    np.divide(above, below, out=out, where=below > 0)
    return out
