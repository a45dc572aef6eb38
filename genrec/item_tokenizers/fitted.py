"""What item tokenizers that learn no codebook share: settings, report, save and load; and places for items
nothing is known about.

Axes: N items, M of them without data of their own, G groups, L levels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from genrec import recipes
from genrec.errors import ConfigError, DataError, NotFitted
from genrec.item_tokenizers.base import TokenizerSource, TokenizerState, load_state, save_state
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.placement import choose_in_turn

Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
_CELLS = 1 << 22  # of a table of items x items that is held at a time


class Indexing:
    """Base of item tokenizers whose result belongs to one catalog and needs no arrays beside the codes (internal).

    A subclass sets ``Settings`` and writes ``fit``; one whose last code only tells the items of a prefix apart sets
    ``numbers_last``; one that can encode new items also ``can_encode_new``,
    ``encode`` and what it keeps for that in ``self._kept`` (JSON values).
    """

    Settings: ClassVar[type[Any]]
    can_encode_new: ClassVar[bool] = False
    numbers_last: ClassVar[bool] = False

    def __init__(self, settings: Any = None) -> None:
        self.settings = settings if settings is not None else self.Settings()
        self.report: dict[str, Any] = {}
        self._catalog: str | None = None
        self._kept: dict[str, Any] = {}

    def encode(self, source: TokenizerSource) -> ItemCodes:
        """Raise ConfigError: identifiers of this kind exist for the items of the fitted catalog only."""
        raise ConfigError(
            f"an item tokenizer of kind {self.settings.kind!r} cannot encode new items",
            hint="fit it again on the grown catalog, or use a kind whose identifiers follow from the item itself",
        )

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write an ``item_tokenizer`` artifact; NotFitted before ``fit``."""
        self._check_fitted()
        meta = {"report": self.report, "kept": self._kept}
        state = TokenizerState(recipes.to_json(self.settings), self._catalog or "", {}, meta, [])
        save_state(path, state, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path, *, catalog: str | None = None) -> Self:
        """Read an ``item_tokenizer`` artifact of this kind."""
        state = load_state(path, kind=cls.Settings.kind, catalog=catalog)
        tokenizer = cls(recipes.from_dict(cls.Settings, state.settings))
        tokenizer._catalog, tokenizer.report = state.catalog, state.meta["report"]
        tokenizer._kept = state.meta["kept"]
        return tokenizer

    def _check_fitted(self) -> None:
        if self._catalog is None:
            raise NotFitted("this item tokenizer has not been fitted", hint="call fit, or load a saved one")

    def _done(self, source: TokenizerSource, codes: ItemCodes, **report: Any) -> ItemCodes:
        """Take note of a finished fit; a collision would be an error of ours."""
        assert not codes.collisions(), "identifiers are not unique"
        lengths = (codes.as_int() >= 0).sum(axis=1)
        self._catalog = source.catalog
        self.report = {**report, "mean_length": float(lengths.mean()), "codes": codes.report()}
        return codes


def check_items(source: TokenizerSource) -> None:
    """Raise DataError when there are no items (internal)."""
    if source.n_items == 0:
        raise DataError("the catalog has no items: there is nothing to fit an item tokenizer on")


def numbers_within(groups_N: npt.NDArray[Any], keys: Keys) -> Ints:
    """The number of each item inside its group, 0, 1, … in key order, int64 ``[N]`` (internal)."""
    order = np.lexsort((keys, groups_N))
    ordered = groups_N[order]
    out = np.empty(len(order), dtype=np.int64)
    out[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered, side="left")
    return out


def append_code(codes_NL: Ints, last_N: Ints) -> Ints:
    """One more code behind each identifier, int64 ``[N, L + 1]``, -1 behind short ones (internal)."""
    out = np.column_stack([codes_NL, np.full(len(codes_NL), -1)])
    out[np.arange(len(out)), (codes_NL >= 0).sum(axis=1)] = last_N
    return out


def nearest_groups(content_ND: npt.NDArray[np.float32], groups_N: Ints, room_G: Ints, keys: Keys) -> Ints:
    """A group for every item that has none (-1), by its content: int64 ``[N]``, the others unchanged (internal).

    ::

        for item without a group, in key order:
            group = that of the most similar item (cosine) that had one from the start, among groups with room
            room[group] -= 1

    room_G: how many more items a group takes. Raises DataError when there is not enough room for all.
    """
    known, lost = np.flatnonzero(groups_N >= 0), np.flatnonzero(groups_N < 0)
    lost = lost[np.argsort(keys[lost], kind="stable")]
    known = known[np.lexsort((keys[known], groups_N[known]))]
    used_H, first_H = np.unique(groups_N[known], return_index=True)
    if room_G[used_H].sum() < len(lost):
        raise DataError(
            f"{len(lost)} items have no data of their own, but the groups of the others have room for "
            f"{int(room_G[used_H].sum())}",
            hint="allow more or larger groups",
        )
    if len(lost) == 0:
        return groups_N
    unit_ND = content_ND / np.maximum(np.linalg.norm(content_ND, axis=1, keepdims=True), 1e-12)
    unit_KD, step = unit_ND[known], max(_CELLS // len(known), 1)

    def costs(rows: Ints) -> npt.NDArray[np.float64]:
        out_RH = np.empty((len(rows), len(used_H)))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            out_RH[part] = -np.maximum.reduceat(unit_ND[lost[rows[part]]] @ unit_KD.T, first_H, axis=1)
        return out_RH

    out = groups_N.copy()
    chosen = choose_in_turn(costs, np.zeros(len(lost), dtype=np.int64), room_G[used_H][None, :])
    out[lost] = used_H[chosen]
    return out
