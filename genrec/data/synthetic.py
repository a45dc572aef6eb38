"""A made-up shop whose best possible recommender is known exactly.

Items have a two-level category, a brand and a readable title. A user walks through the leaf categories
("clusters") along a directed Markov chain and picks items there, mostly of the brands of a hidden taste; now
and then a random item interrupts the walk. Nobody receives the same item twice. Because the hidden state
(taste, cluster of the walk) is finite, the exact probability of every next item given a history can be
computed by filtering: :func:`oracle_scores`. No recommender of this package takes part in the generation.

Legend: N items, C clusters, P tastes, U users, B rows of a batch, T steps of a history.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.data.catalog import ItemCatalog
from genrec.data.interactions import Interactions
from genrec.data.synthetic_truth import Oracle, SyntheticTruth, oracle_scores, walk
from genrec.data.synthetic_words import ADJECTIVES, BRANDS, DEPARTMENTS, MODELS, VARIANTS
from genrec.errors import ConfigError
from genrec.seeding import rng

__all__ = ["Oracle", "SyntheticData", "SyntheticSettings", "SyntheticTruth", "make", "oracle_scores", "tiny"]

_DAY = 86_400
_FIRST_SECOND = 1_577_836_800  # 2020-01-01 UTC


@dataclass(frozen=True)
class SyntheticSettings:
    """How large the synthetic shop is and how predictable its users are (stable).

    Raises ConfigError for values outside their range.
    """

    n_items: int = 1500
    n_users: int = 6000
    seed: int = 0
    n_departments: int = 6  # top level of the categories, at most 8
    n_subcategories: int = 3  # leaf categories per department, at most 5
    n_brands: int = 10  # at most 40; every brand may appear in every category
    n_tastes: int = 5  # hidden kinds of users
    brands_per_taste: int = 2  # preferred brands of a taste
    loyalty: float = 0.8  # chance that a pick inside a cluster is restricted to the preferred brands
    stay: float = 0.6  # chance that the walk stays in its category
    successors: tuple[float, ...] = (0.5, 0.25, 0.15, 0.1)  # otherwise: chances of the categories that follow
    zipf: float = 0.7  # popularity is rank**-zipf inside a (cluster, brand), times 0.9 to 1.1 so that none tie
    noise: float = 0.1  # chance of a random item, which does not move the walk
    min_length: int = 5  # shortest history (events)
    mean_length: float = 12.0  # mean history before the cut at max_length (events)
    max_length: int = 50  # longest history (events)

    def __post_init__(self) -> None:
        whole = {"n_items": 1, "n_users": 1, "n_tastes": 1, "min_length": 1, "brands_per_taste": 1}
        for name, low in whole.items():
            _check(getattr(self, name) >= low, name, f"at least {low}", getattr(self, name))
        widest = min(len(leaves) for leaves in DEPARTMENTS.values())
        _check(1 <= self.n_departments <= len(DEPARTMENTS), "n_departments", "1 to 8", self.n_departments)
        _check(1 <= self.n_subcategories <= widest, "n_subcategories", f"1 to {widest}", self.n_subcategories)
        _check(1 <= self.n_brands <= len(BRANDS), "n_brands", f"1 to {len(BRANDS)}", self.n_brands)
        dealt = self.n_tastes * self.brands_per_taste
        _check(dealt <= self.n_brands, "n_brands", f">= n_tastes * brands_per_taste = {dealt}", self.n_brands)
        _check(0 <= self.loyalty <= 1, "loyalty", "0 to 1", self.loyalty)
        _check(0 < self.noise <= 1, "noise", "above 0, at most 1 (every item must be reachable)", self.noise)
        _check(0 <= self.stay < 1, "stay", "0 up to but not 1", self.stay)
        _check(self.zipf >= 0, "zipf", "at least 0", self.zipf)
        weights = self.successors
        good = 0 < len(weights) < self.n_clusters and min(weights) > 0 and abs(sum(weights) - 1) < 1e-9
        _check(good, "successors", f"up to {self.n_clusters - 1} positive chances that sum to 1", weights)
        _check(self.n_items >= self.n_clusters, "n_items", f">= {self.n_clusters} clusters", self.n_items)
        _check(self.mean_length >= self.min_length, "mean_length", ">= min_length", self.mean_length)
        _check(
            self.min_length <= self.max_length <= self.n_items // 2,  # half: users never repeat an item
            "max_length",
            f"min_length to n_items / 2 = {self.n_items // 2}",
            self.max_length,
        )

    @property
    def n_clusters(self) -> int:
        """Number of leaf categories."""
        return self.n_departments * self.n_subcategories


@dataclass(frozen=True)
class SyntheticData:
    """A synthetic catalog, its interactions, and the truth behind them (stable)."""

    catalog: ItemCatalog
    interactions: Interactions
    truth: SyntheticTruth


def tiny(seed: int = 0, **changes: Any) -> SyntheticSettings:
    """Settings of a shop of 60 items and 80 users for tests; ``changes`` override single fields (stable)."""
    small: dict[str, Any] = {
        "n_items": 60, "n_users": 80, "n_departments": 2, "n_subcategories": 3, "n_brands": 5,
        "n_tastes": 3, "brands_per_taste": 1, "successors": (0.75, 0.25), "mean_length": 8.0,
        "max_length": 20,
    }  # fmt: skip
    unknown = set(changes) - {f.name for f in fields(SyntheticSettings)}
    _check(not unknown, "tiny", "fields of SyntheticSettings", sorted(unknown))
    return SyntheticSettings(**{**small, "seed": seed, **changes})


def make(settings: SyntheticSettings) -> SyntheticData:
    """Generate catalog and interactions; the same settings give the same data (stable).

    >>> data = make(tiny())
    >>> len(data.catalog), data.truth.transitions.shape
    (60, (6, 6))
    """
    s = settings
    draw = rng(s.seed, "synthetic", "items")
    cluster = draw.permutation(np.arange(s.n_items, dtype=np.int32) % s.n_clusters)
    brand = draw.permutation(np.arange(s.n_items, dtype=np.int32) % s.n_brands)
    catalog = _catalog(s, cluster, brand)
    base = _popularity(s, cluster, brand)
    draw = rng(s.seed, "synthetic", "tastes")
    dealt = draw.permutation(s.n_brands)[: s.n_tastes * s.brands_per_taste]
    preferred = dealt.reshape(s.n_tastes, s.brands_per_taste)  # no brand is preferred by two tastes
    taste = rng(s.seed, "synthetic", "users").integers(s.n_tastes, size=s.n_users).astype(np.int32)
    names = [(top, leaf) for top, leaves in DEPARTMENTS.items() for leaf in list(leaves)[: s.n_subcategories]]
    truth = SyntheticTruth(
        transitions=_transitions(s),
        appeal=_appeal(base, cluster, brand, preferred, s.loyalty),
        noise_items=base / base.sum(),
        noise=s.noise,
        taste_prior=np.full(s.n_tastes, 1.0 / s.n_tastes),
        cluster=cluster,
        brand=brand,
        cluster_names=tuple(names[: s.n_clusters]),
        taste=taste,
    )
    return SyntheticData(catalog, _interactions(s, truth, catalog), truth)


def _check(good: bool, name: str, expected: str, found: object) -> None:
    if not good:
        raise ConfigError(f"{name}: expected {expected}, got {found!r}")


def _catalog(s: SyntheticSettings, cluster_N: npt.NDArray[np.int32], brand_N: npt.NDArray[np.int32]) -> ItemCatalog:
    draw = rng(s.seed, "synthetic", "text")
    leaves = [
        (top, leaf, nouns)
        for top, below in list(DEPARTMENTS.items())[: s.n_departments]
        for leaf, nouns in list(below.items())[: s.n_subcategories]
    ]
    titles, categories, prices = [], [], []
    for c in cluster_N.tolist():
        top, leaf, nouns = leaves[c]
        words = [str(draw.choice(bag)) for bag in (MODELS, ADJECTIVES, nouns, VARIANTS)]
        titles.append(f"{words[0]} {draw.integers(10, 100) * 10} {words[1]} {words[2]}, {words[3]}")
        categories.append([top, leaf])
        prices.append(round(float(np.exp(draw.normal(3.2, 0.7))), 2))
    brands = [BRANDS[b] for b in brand_N.tolist()]
    numbers = draw.choice(36**6, size=s.n_items, replace=False)
    ids = tuple("B" + np.base_repr(n + 36**6, 36)[1:] for n in numbers.tolist())
    titles = [f"{brand} {title}" for brand, title in zip(brands, titles, strict=True)]
    return ItemCatalog(ids=ids, fields={"title": titles, "brand": brands, "categories": categories, "price": prices})


def _popularity(
    s: SyntheticSettings, cluster_N: npt.NDArray[np.int32], brand_N: npt.NDArray[np.int32]
) -> npt.NDArray[np.float64]:
    """Zipf weight of each item by a random rank inside its (cluster, brand), float64 ``[N]``."""
    draw = rng(s.seed, "synthetic", "popularity")
    order = np.lexsort((draw.random(s.n_items), brand_N, cluster_N))
    group = (cluster_N.astype(np.int64) * s.n_brands + brand_N)[order]
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    rank = np.arange(s.n_items) - np.repeat(starts, np.diff(np.r_[starts, s.n_items]))
    weight = np.empty(s.n_items)
    weight[order] = (rank + 1.0) ** -s.zipf
    # equal chances would make the oracle's ranking, and so its recall, depend on the rule for ties
    return np.asarray(weight * draw.uniform(0.9, 1.1, s.n_items))


def _transitions(s: SyntheticSettings) -> npt.NDArray[np.float64]:
    """Sum of random permutation matrices: sparse, directed, and every cluster is entered equally often."""
    from scipy.optimize import linear_sum_assignment

    cost_CC = rng(s.seed, "synthetic", "transitions").random((len(s.successors), s.n_clusters, s.n_clusters))
    taken_CC = np.eye(s.n_clusters, dtype=bool)
    matrix = s.stay * np.eye(s.n_clusters)
    for weight, cost in zip(s.successors, cost_CC, strict=True):
        rows, columns = linear_sum_assignment(np.where(taken_CC, 1e6, cost))
        matrix[rows, columns] = (1 - s.stay) * weight
        taken_CC[rows, columns] = True
    return matrix


def _appeal(
    base_N: npt.NDArray[np.float64],
    cluster_N: npt.NDArray[np.int32],
    brand_N: npt.NDArray[np.int32],
    preferred: npt.NDArray[np.int64],
    loyalty: float,
) -> npt.NDArray[np.float64]:
    """Chance of an item inside its cluster, float64 ``[P, N]``: loyalty to brands over plain popularity."""
    n_clusters = int(cluster_N.max()) + 1
    everyone = base_N / np.bincount(cluster_N, base_N, n_clusters)[cluster_N]
    rows = []
    for brands in preferred:
        weight = base_N * np.isin(brand_N, brands)
        mass = np.bincount(cluster_N, weight, n_clusters)[cluster_N]
        loyal = np.divide(weight, mass, out=everyone.copy(), where=mass > 0)  # no such brand here: all
        rows.append(loyalty * loyal + (1 - loyalty) * everyone)
    return np.stack(rows)


def _interactions(s: SyntheticSettings, truth: SyntheticTruth, catalog: ItemCatalog) -> Interactions:
    draw = rng(s.seed, "synthetic", "events")
    extra = s.mean_length - s.min_length
    length = s.min_length + draw.geometric(1.0 / (1.0 + extra), size=s.n_users) - 1
    length = np.minimum(length, s.max_length)
    items_UT = walk(truth, int(length.max()), draw)
    gaps = 1 + (draw.exponential(3.0 * _DAY, size=items_UT.shape)).astype(np.int64)
    time_UT = _FIRST_SECOND + draw.integers(0, 730 * _DAY, size=(s.n_users, 1)) + np.cumsum(gaps, axis=1)
    kept_UT = np.arange(items_UT.shape[1]) < length[:, None]
    user_UT = np.broadcast_to(np.arange(s.n_users, dtype=np.int32)[:, None], items_UT.shape)
    width = len(str(s.n_users - 1))
    return Interactions(
        user_ids=tuple(f"U{u:0{width}d}" for u in range(s.n_users)),
        user=user_UT[kept_UT],
        item=items_UT[kept_UT],
        time=time_UT[kept_UT],
        n_items=s.n_items,
        catalog=catalog.fingerprint,
    )
