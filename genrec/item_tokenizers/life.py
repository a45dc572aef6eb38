"""Identifiers for new items, with every published identifier left as it is.

Axes: N published items, M new items, L levels, K codes of a level.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from genrec.errors import ConfigError, DataError, FingerprintMismatch
from genrec.item_tokenizers.base import ItemTokenizer, TokenizerSource
from genrec.item_tokenizers.codes import ItemCodes, row_numbers
from genrec.item_tokenizers.collisions import Quantized
from genrec.item_tokenizers.life_places import by_neighbour, first_of_kind, last_codes, number_behind, renumber
from genrec.item_tokenizers.placement import capacity_below, choose_prefixes, place_overflow, spread_last_level

Ints = npt.NDArray[np.int64]
How = Literal["auto", "encode", "neighbour"]
"""encode: the item tokenizer encodes the new items. neighbour: they join the published item of most similar content.
auto: encode where the tokenizer can."""
HOWS: tuple[How, ...] = ("auto", "encode", "neighbour")
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Appended:
    """The codes of a child catalog, and how its new items came to theirs (stable).

    codes: rows ``0 .. N-1`` are the published ones, byte for byte. report, numbers for the manifest: ``how`` and
    ``policy``; ``n_published``, ``n_new``; ``n_moved``, published items with another identifier than before, always 0;
    ``raw_collisions``, new items whose first choice another item has too; ``other_last``, items
    with another last code than their first choice (with ``suffix``: another number than 0); ``other_prefix``, items
    that had to leave their prefix because it was full; ``collisions``, new items that share their identifier in the
    end.
    """

    codes: ItemCodes
    report: dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Placed:
    """Identifiers of the new items in key order (int64, -1 behind short ones), and what to report about them."""

    codes_ML: Ints
    report: dict[str, Any]


def append(tokenizer: ItemTokenizer, published: ItemCodes, source: TokenizerSource, *, by: How = "auto") -> Appended:
    """Give the new items of a child catalog identifiers; no published identifier moves (stable).

    ::

        new items in key order:  raw code = tokenizer.encode(item), then by the policy the codes were made with
            suffix:    next free number under the raw code; where all are taken, under the nearest code with room
            reassign:  the raw code, if free; else, by minimum total cost among the new items of one prefix, a free last
                       code; where the prefix is full, under the nearest one with room
            shared:    the raw code
            titles, category paths:  the raw code, with the next free number behind it where the scheme has one
        a tokenizer that cannot encode:  prefix of the published item of most similar content, free last code

    tokenizer: the fitted one that made ``published`` (its settings tell the policy). source: of the child catalog,
    with what the tokenizer needs to know about the new items. ``by``: see :data:`How`.

    Level sizes never change, so a model and its vocabulary stay valid. Retired items keep their rows, so an identifier
    is never given twice. The result depends on the new items' ids and data, not on the order in which they stand.
    Appending in two batches may give other identifiers than in one; it never moves what was published before.
    Where costs are unknown (a third-party tokenizer without ``quantized(source)``), ``reassign`` takes the next free
    last code. Ragged identifiers keep the length of the raw one; of their last codes only those are given that end
    some published identifier.

    Raises FingerprintMismatch when the child's first items are not those of ``published``, DataError when these codes
    were made by another tokenizer, when there is no free identifier left (it names the items), and where the data are
    missing that are needed (item vectors of the new items, titles).
    """
    if by not in HOWS:
        raise ConfigError(f"by: expected one of {', '.join(HOWS)}, got {by!r}")
    n, keys = len(published), source.item_keys
    _check_child(published, source)
    order = n + np.argsort(keys[n:], kind="stable")
    encode = tokenizer.can_encode_new if by == "auto" else by == "encode"
    counts = {"how": "encode" if encode else "neighbour", "n_published": n, "n_new": len(order), "n_moved": 0}
    if len(order) == 0:
        return Appended(replace(published, catalog=source.catalog), counts)
    placed = _encoded(tokenizer, published, source, order) if encode else _joined(published, source, order)
    codes = _assembled(published, placed.codes_ML, order, source.catalog)
    group = codes.collision_ids()
    n_shared = int((np.bincount(group)[group[n:]] > 1).sum())
    assert n_shared == 0 or placed.report["policy"] == "shared", "two items have one identifier"
    return Appended(codes, {**counts, **placed.report, "collisions": n_shared})


def _check_child(published: ItemCodes, source: TokenizerSource) -> None:
    child = source.fields()
    if not child.extends(published.catalog, len(published)):
        raise FingerprintMismatch(
            f"codes belong to catalog {published.catalog[:8]} ({len(published)} items), and the first items of catalog "
            f"{source.catalog[:8]} ({len(child)} items) are not these",
            hint="make the child with ItemCatalog.append on the catalog of the codes",
        )


def _assembled(published: ItemCodes, codes_ML: Ints, order: Ints, catalog: str) -> ItemCodes:
    """Published rows as they are, new rows at their item numbers."""
    n, rows = len(published), np.argsort(order)
    new = ItemCodes.from_int(
        codes_ML[rows],
        published.level_sizes,
        catalog,
        shared_vocabulary=published.shared_vocabulary,
        pieces=published.pieces,
    )
    if new.ragged and not published.ragged:
        raise DataError(
            f"the new items have identifiers shorter than {published.n_levels} codes, the published ones have not",
            hint="these are not the codes of this item tokenizer",
        )
    lengths = published.lengths
    if lengths is not None:
        full = np.full(len(new), published.n_levels, dtype=np.uint8)
        lengths = np.concatenate([lengths, full if new.lengths is None else new.lengths])
    codes = replace(published, codes=np.concatenate([published.codes, new.codes]), lengths=lengths, catalog=catalog)
    assert codes.codes.dtype == published.codes.dtype and np.array_equal(codes.codes[:n], published.codes)
    return codes


# --- items that the tokenizer encodes ----------------------------------------------------------------------------


def _encoded(tokenizer: ItemTokenizer, published: ItemCodes, source: TokenizerSource, order: Ints) -> _Placed:
    new = source.take(order)  # in key order: the order of the catalog reaches nothing below
    raw = tokenizer.encode(new)
    policy = _policy(tokenizer, published, raw)
    raw_ML, held_NL = raw.as_int().astype(np.int64), published.as_int().astype(np.int64)
    if policy == "numbered":
        return _numbered(tokenizer, new, raw, held_NL, published)
    group = row_numbers(np.concatenate([raw_ML, held_NL[:, : raw.n_levels]]))
    alike = np.bincount(group)[group[: len(raw_ML)]] > 1
    report = {"policy": policy, "raw_collisions": int(alike.sum()), "other_last": 0, "other_prefix": 0}
    if policy == "shared":
        return _Placed(raw_ML, report)
    capacity = capacity_below(published.level_sizes)[0]
    if not published.ragged and len(source.item_keys) > capacity:
        raise DataError(f"{source.n_items} items do not fit into {capacity} identifiers", hint=_NEW_VERSION)
    if policy == "suffix":
        codes_ML, n_left = _suffixed(tokenizer, new, raw_ML, held_NL, published)
        n_last = int((codes_ML[:, -1] != 0).sum())
    else:
        codes_ML, n_left = _spread(tokenizer, new, raw_ML, held_NL, published)
        n_last = int((codes_ML != raw_ML).any(axis=1).sum()) - n_left
    return _Placed(codes_ML, {**report, "other_last": n_last, "other_prefix": n_left})


def _policy(tokenizer: ItemTokenizer, published: ItemCodes, raw: ItemCodes) -> str:
    """What makes identifiers different here; DataError if ``published`` cannot come from this tokenizer."""
    told = getattr(tokenizer.settings, "collisions", None)
    one_vocabulary = raw.shared_vocabulary and published.shared_vocabulary
    if getattr(tokenizer, "numbers_last", False):
        return "numbered"
    if one_vocabulary and (published.pieces or raw.level_sizes[0] < published.level_sizes[0]):
        return "numbered"
    if raw.level_sizes == published.level_sizes[:-1] and told in (None, "suffix"):
        return "suffix"
    if raw.level_sizes == published.level_sizes:
        return "shared" if told == "shared" or (told is None and published.collisions()) else "reassign"
    raise DataError(
        f"the item tokenizer gives codes of sizes {raw.level_sizes}, the published codes have {published.level_sizes}",
        hint="use the item tokenizer that made these codes",
    )


def _numbered(
    tokenizer: ItemTokenizer, new: TokenizerSource, raw: ItemCodes, held_NL: Ints, published: ItemCodes
) -> _Placed:
    """One vocabulary that holds numbers too: what ends a path, or what no raw identifier has."""
    size, always = published.level_sizes[0], bool(getattr(tokenizer, "numbers_last", False))
    numbers_K = np.arange(size) >= raw.level_sizes[0]
    if always:
        numbers_K = np.bincount(held_NL[np.arange(len(held_NL)), (held_NL >= 0).sum(axis=1) - 1], minlength=size) > 0
    found = number_behind(raw.as_int().astype(np.int64), held_NL, numbers_K, always=always)
    if not found.done_M.all():
        raise _full(new, np.flatnonzero(~found.done_M), f"there are {int(numbers_K.sum())} numbers")
    counts = {"raw_collisions": int(found.alike_M.sum()), "other_last": 0, "other_prefix": 0}
    return _Placed(found.codes_ML, {"policy": "numbered", **counts})


def _suffixed(
    tokenizer: ItemTokenizer, new: TokenizerSource, raw_ML: Ints, held_NL: Ints, published: ItemCodes
) -> tuple[Ints, int]:
    """Raw codes with numbers behind them, and how many items had to take another prefix."""
    allowed = last_codes(published)
    codes_ML = np.column_stack([raw_ML, np.zeros(len(raw_ML), dtype=np.int64)])
    over = np.flatnonzero(~renumber(codes_ML, held_NL, allowed))
    if len(over):
        costs = _costs(tokenizer, new)
        if costs is None:
            raise _full(new, over, _last_level(published))
        both_NL = np.concatenate([codes_ML, held_NL])
        choose_prefixes(both_NL, published.level_sizes, over, costs)
        placed = both_NL[over]
        others = np.delete(both_NL, over, axis=0)
        done = renumber(placed, others, allowed)
        assert done.all(), "a prefix was chosen that has no room"
        codes_ML[over] = placed
    return codes_ML, len(over)


def _spread(
    tokenizer: ItemTokenizer, new: TokenizerSource, raw_ML: Ints, held_NL: Ints, published: ItemCodes
) -> tuple[Ints, int]:
    """Codes of their own for all, and how many items had to take another prefix."""
    alone = first_of_kind(raw_ML, held_NL)
    costs = None if published.ragged or alone.all() else _costs(tokenizer, new)
    if costs is None:
        codes_ML, others = raw_ML.copy(), np.flatnonzero(~alone)
        placed = codes_ML[others]
        done = renumber(placed, np.concatenate([held_NL, raw_ML[alone]]), last_codes(published))
        if not done.all():
            raise _full(new, others[~done], _last_level(published))
        codes_ML[others] = placed
        return codes_ML, 0
    both_NL = np.concatenate([raw_ML, held_NL])  # new items first: the costs know no others
    fixed_N = np.arange(len(both_NL)) >= len(raw_ML)
    keys = np.concatenate([new.item_keys, np.zeros(len(held_NL), dtype=np.uint64)])
    n_left = place_overflow(both_NL, published.level_sizes, keys, costs, fixed_N)
    spread_last_level(both_NL, published.level_sizes[-1], keys, costs, fixed_N)
    return both_NL[: len(raw_ML)], n_left


_NEW_VERSION = "fit a new version of the item tokenizer (more levels or larger ones) and train the model again"
_ADVICE = (
    "append these items beside others that are like them (--by neighbour, in Python by='neighbour'), or leave them "
    f"out; for room at every prefix {_NEW_VERSION}"
)


def _full(new: TokenizerSource, rows: Ints, why: str) -> DataError:
    ids = new.fields().ids_of(rows[:5])
    return DataError(
        f"no free identifier is left under the prefix of {len(rows)} new items, such as {', '.join(ids)}: {why}, and "
        "it is not known which other prefix would be near",
        hint=_ADVICE,
    )


def _last_level(published: ItemCodes) -> str:
    return f"the last level has {published.level_sizes[-1]} codes"


# --- items that it does not ----------------------------------------------------------------------------------------


def _joined(published: ItemCodes, source: TokenizerSource, order: Ints) -> _Placed:
    if source.embeddings is None:
        raise DataError(
            "this item tokenizer cannot encode new items, and there are no item vectors to find similar items by",
            hint="pass embeddings=... of the child catalog, or fit a new version on it",
        )
    rows = np.concatenate([np.arange(len(published)), order])
    content_ND = source.vectors()[rows]
    unknown = int((~content_ND[len(published) :].any(axis=1)).sum())
    if unknown:
        log.warning("%d of %d new items have a vector of zeros: nothing places them", unknown, len(order))
    codes_ML, first = by_neighbour(published, content_ND, source.item_keys[rows])
    n_left = int((~first).sum())
    return _Placed(codes_ML, {"policy": "unique", "other_prefix": n_left, "without_content": unknown})


def _costs(tokenizer: Any, source: TokenizerSource) -> Quantized | None:
    """What other codes would cost the items of ``source``; None for tokenizers without ``quantized``."""
    found = getattr(tokenizer, "quantized", None)
    return None if found is None else found(source)
