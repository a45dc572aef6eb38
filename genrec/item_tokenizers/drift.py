"""What changed between two versions of a catalog's identifiers.

Axes: N items, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.data.catalog import ItemCatalog
from genrec.errors import DataError, FingerprintMismatch
from genrec.item_tokenizers.codes import ItemCodes
from genrec.metrics.codes_structure import stability

Ints = npt.NDArray[np.int64]
_SHOWN = 20


@dataclass(frozen=True, eq=False)
class Drift:
    """Two versions of identifiers side by side; item n is the same item in both (stable).

    n_before, n_after: items of each version. moved, new, retired: item numbers, int64; ``retired`` are the tombstones
    set since. n_moved_level ``[L]``: items of both versions with another code at the level (or with none in one of
    them). kept_prefix ``[L]``: share of them whose first 1, 2, … L codes are the same. collisions_before,
    collisions_after: items that share their identifier. adjusted_rand ``[L]``: agreement of the groups of equal prefix
    (1 = the same groups, whatever their codes are called; 0 = as by chance; nan = not defined), see
    :func:`genrec.metrics.codes_structure.stability`. same_sizes: the level sizes are equal, as a trained model needs
    them. codes_before, codes_after: fingerprints. L is that of the shorter version; what comes behind counts as moved.
    """

    n_before: int
    n_after: int
    moved: Ints
    new: Ints
    retired: Ints
    n_moved_level: tuple[int, ...]
    kept_prefix: tuple[float, ...]
    adjusted_rand: tuple[float, ...]
    collisions_before: int
    collisions_after: int
    same_sizes: bool
    codes_before: str
    codes_after: str

    @property
    def n_common(self) -> int:
        """Items of both versions."""
        return min(self.n_before, self.n_after)

    @property
    def kept(self) -> float:
        """Share of the items of both versions whose identifier is the same; nan without items."""
        return 1 - len(self.moved) / self.n_common if self.n_common else float("nan")

    def to_json(self, catalog: ItemCatalog | None = None) -> dict[str, Any]:
        """Plain JSON values: counts, figures by level, item numbers; with ``catalog`` the ids instead of numbers."""
        out: dict[str, Any] = {"n_before": self.n_before, "n_after": self.n_after, "kept": _plain(self.kept)}
        for name in ("moved", "new", "retired"):
            items = getattr(self, name)
            out[f"n_{name}"] = len(items)
            out[name] = items.tolist() if catalog is None else catalog.ids_of(items)
        out["n_moved_level"] = list(self.n_moved_level)
        out["kept_prefix"] = [_plain(x) for x in self.kept_prefix]
        out["adjusted_rand"] = [_plain(x) for x in self.adjusted_rand]
        for name in ("collisions_before", "collisions_after", "same_sizes", "codes_before", "codes_after"):
            out[name] = getattr(self, name)
        return out

    def table(self, catalog: ItemCatalog | None = None) -> str:
        """The figures as lines of text, with the first moved items."""
        share = "" if np.isnan(self.kept) else f" ({100 * self.kept:.2f} % kept)"
        changes = f"{len(self.new)} new, {len(self.retired)} retired"
        lines = [
            f"items       {self.n_before} before, {self.n_after} after: {changes}",
            f"moved       {len(self.moved)} of {self.n_common}{share}",
            f"collisions  {self.collisions_before} items before, {self.collisions_after} after",
            f"codes       {self.codes_before[:8]} -> {self.codes_after[:8]}",
        ]
        if not self.same_sizes:
            lines.append("level sizes differ: a model of the one version cannot use the other")
        lines.append(f"{'level':<12}{'moved':>8}{'prefix kept':>14}{'adjusted Rand':>16}")
        for level, (moved, kept, rand) in enumerate(
            zip(self.n_moved_level, self.kept_prefix, self.adjusted_rand, strict=True)
        ):
            lines.append(f"{level:<12}{moved:>8}{kept:>14.4f}{rand:>16.4f}")
        if len(self.moved):
            some = self.moved[:_SHOWN]
            names = catalog.ids_of(some) if catalog is not None else [str(n) for n in some]
            more = f" and {len(self.moved) - len(some)} more" if len(self.moved) > len(some) else ""
            lines.append(f"moved items: {', '.join(names)}{more}")
        return "\n".join(lines)


def drift(
    before: ItemCodes,
    after: ItemCodes,
    *,
    catalogs: tuple[ItemCatalog, ItemCatalog] | None = None,
) -> Drift:
    """Compare two versions of the identifiers of one growing catalog (stable).

    The versions may be a catalog's codes and those of its appended child, or two fits of one item tokenizer. Codes are
    compared as numbers, except by ``adjusted_rand``: after another fit almost every item has moved, and the groups
    may still be the same.

    catalogs: of the two versions: the older must be the beginning of the newer, and tombstones are compared. Raises
    FingerprintMismatch where a catalog does not fit, DataError for codes of different catalogs of one size without
    ``catalogs``.
    """
    retired = np.zeros(0, dtype=np.int64)
    if catalogs is not None:
        retired = _retired(before, after, *catalogs)
    elif before.catalog != after.catalog and len(before) == len(after):
        raise DataError(
            f"codes of two catalogs of {len(before)} items each: {before.catalog[:8]} and {after.catalog[:8]}",
            hint="pass catalogs=(before, after)",
        )
    a_NL, b_NL = before.as_int(), after.as_int()
    n, n_levels = min(len(a_NL), len(b_NL)), min(before.n_levels, after.n_levels)
    same_NL = a_NL[:n, :n_levels] == b_NL[:n, :n_levels]
    beyond = (a_NL[:n, n_levels:] >= 0).any(axis=1) | (b_NL[:n, n_levels:] >= 0).any(axis=1)
    kept_NL = np.logical_and.accumulate(same_NL, axis=1)
    share_L = kept_NL.mean(axis=0) if n else np.full(n_levels, np.nan)
    return Drift(
        n_before=len(before),
        n_after=len(after),
        moved=np.flatnonzero(~same_NL.all(axis=1) | beyond),
        new=np.arange(n, len(after)),
        retired=retired,
        n_moved_level=tuple((~same_NL).sum(axis=0).tolist()),
        kept_prefix=tuple(share_L.tolist()),
        adjusted_rand=tuple(stability(a_NL[:n], b_NL[:n]).adjusted_rand.tolist()) if n else (np.nan,) * n_levels,
        collisions_before=_colliding(before),
        collisions_after=_colliding(after),
        same_sizes=before.level_sizes == after.level_sizes,
        codes_before=before.fingerprint,
        codes_after=after.fingerprint,
    )


def _retired(before: ItemCodes, after: ItemCodes, old: ItemCatalog, new: ItemCatalog) -> Ints:
    for name, codes, catalog in (("before", before, old), ("after", after, new)):
        if codes.catalog != catalog.fingerprint:
            raise FingerprintMismatch(
                f"{name}: codes belong to catalog {codes.catalog[:8]}, got catalog {catalog.fingerprint[:8]}"
            )
    small, large = (old, new) if len(old) <= len(new) else (new, old)
    if not large.extends(small.fingerprint, len(small)):
        raise FingerprintMismatch(
            f"catalog {small.fingerprint[:8]} is not the beginning of {large.fingerprint[:8]}: their items are others"
        )
    since = np.zeros(len(new), dtype=bool) if new.retired is None else new.retired.copy()
    n = min(len(old), len(new))
    if old.retired is not None:
        since[:n] &= ~old.retired[:n]
    return np.flatnonzero(since)


def _colliding(codes: ItemCodes) -> int:
    group = codes.collision_ids()
    return int((np.bincount(group)[group] > 1).sum()) if len(group) else 0


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
