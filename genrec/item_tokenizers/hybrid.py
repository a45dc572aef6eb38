"""Hybrid indexing: the identifiers of two item tokenizers one after the other.

Axes: N items, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from genrec import recipes
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.fitted import Indexing
from genrec.item_tokenizers.registry import build, settings_class
from genrec.seeding import derive

Ints = npt.NDArray[np.int64]
Part = str | dict[str, Any]


@dataclass(frozen=True)
class HybridSettings:
    """Settings of :class:`Hybrid`; ConfigError for values out of range (stable).

    first, second: the two item tokenizers, each a kind (with its default settings) or a mapping of settings.
    """

    kind: Literal["hybrid"] = "hybrid"
    first: Part = "spectral"
    second: Part = "independent"

    def __post_init__(self) -> None:
        for name in ("first", "second"):
            try:
                part_settings(getattr(self, name))
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}", hint=error.hint) from error


class Hybrid(Indexing):
    """Two identifiers in one (HID); recipe: ``tokenizers/hybrid.yaml`` (stable).

    ::

        identifier = identifier by `first`, without a last code that only numbers items;  then the one by `second`

    Hua et al. 2023 ("How to Index Item IDs for Recommendation Foundation Models", 2305.06569). The paper's
    combinations: collaborative + independent (CID+IID, its best; the default), category + independent (SemID+IID,
    ``tokenizers/hybrid-semid.yaml``), category + collaborative (SemID+CID, which fails there). ``second``
    must give every item an identifier of its own. The codes of the two parts never mean the same: identifiers of
    equal length with a vocabulary for each level keep them; all others share one vocabulary, first the codes of
    ``first`` that are left in use, then those of ``second``. Texts behind codes (``pieces``) are not kept.
    """

    Settings: ClassVar[type[Any]] = HybridSettings

    def fit(self, source: TokenizerSource, *, seed: int) -> ItemCodes:
        """Fit both; every item's identifier, all different. DataError where ``second`` repeats an identifier."""
        first, second = (build(part_settings(part)) for part in (self.settings.first, self.settings.second))
        before = first.fit(source, seed=derive(seed, "first"))
        after = second.fit(source, seed=derive(seed, "second"))
        if after.collisions():
            n = sum(map(len, after.collisions()))
            raise DataError(
                f"second: {n} items share an identifier of kind {second.settings.kind!r}",
                hint="choose a kind or a collision policy that gives every item its own",
            )
        numbered = getattr(first, "numbers_last", False) or getattr(first.settings, "collisions", "") == "suffix"
        codes = joined(before, after, without_last=numbered)
        reports = {name: getattr(part, "report", {}) for name, part in (("first", first), ("second", second))}
        return self._done(source, codes, **reports)


def part_settings(part: Part) -> Any:
    """The settings of a kind, or of a mapping with a kind; ConfigError when they are wrong (internal)."""
    given = {"kind": part} if isinstance(part, str) else part
    if not isinstance(given.get("kind"), str):
        raise ConfigError(f"expected a kind, or a mapping with a kind, got {part!r}")
    found = recipes.from_dict(settings_class(given["kind"]), given)
    if isinstance(found, HybridSettings):
        raise ConfigError("expected an item tokenizer that is no hybrid itself")
    return found


def joined(first: ItemCodes, second: ItemCodes, *, without_last: bool) -> ItemCodes:
    """The identifiers of ``first`` (less their last code, if told) followed by those of ``second`` (internal)."""
    before, after = first.as_int().astype(np.int64), second.as_int().astype(np.int64)
    if without_last:
        before[np.arange(len(before)), (before >= 0).sum(axis=1) - 1] = -1
        before = before[:, (before >= 0).any(axis=0)]
    kept = first.level_sizes[: before.shape[1]]
    fixed = not second.ragged and bool((before >= 0).all())
    if fixed and not (first.shared_vocabulary or second.shared_vocabulary):
        return ItemCodes(np.column_stack([before, after]), (*kept, *second.level_sizes), first.catalog)
    before, after = _one_vocabulary(before, first), _one_vocabulary(after, second)
    used = np.unique(before[before >= 0])
    before = np.where(before >= 0, np.searchsorted(used, before), -1)
    after = np.where(after >= 0, after + len(used), -1)
    both = np.column_stack([before, after])
    both = np.take_along_axis(both, np.argsort(both < 0, axis=1, kind="stable"), axis=1)  # padding to the end
    both = both[:, (both >= 0).any(axis=0)]
    n_codes = len(used) + (second.level_sizes[0] if second.shared_vocabulary else sum(second.level_sizes))
    return ItemCodes.from_int(both, (n_codes,) * both.shape[1], first.catalog, shared_vocabulary=True)


def _one_vocabulary(codes_NL: Ints, codes: ItemCodes) -> Ints:
    """Codes numbered through over all levels."""
    if codes.shared_vocabulary:
        return codes_NL
    starts = np.cumsum([0, *codes.level_sizes])[: codes_NL.shape[1]]
    return np.where(codes_NL >= 0, codes_NL + starts, -1)
