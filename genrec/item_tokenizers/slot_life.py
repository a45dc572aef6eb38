"""Set identifiers of a catalog that grows and shrinks: no published set moves, no retired one is given again.

Axes: N published items, M new items, n slots, D width, K codes of a slot.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.data.catalog import ItemCatalog
from genrec.errors import DataError, FingerprintMismatch
from genrec.item_tokenizers.base import SlotTokenizer, TokenizerSource
from genrec.item_tokenizers.quantizers.kmeans import first_equal
from genrec.item_tokenizers.slots import ItemSlots

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
log = logging.getLogger(__name__)
_HINT = "use the item tokenizer that made these slots"


@dataclass(frozen=True, eq=False)
class AppendedSlots:
    """The set identifiers of a child catalog, and how its new items came to theirs (experimental).

    slots: rows ``0 .. N-1`` are the published ones, to the last bit. report, numbers for a manifest: ``n_published``,
    ``n_new``; ``n_moved``, published items whose set is another, always 0; ``raw_collisions``, new items whose first
    choice another item has too; ``other_set``, new items that had to take another set; ``collisions``, new items that
    share theirs in the end; ``unknown``, new items of which no slot knows anything.
    """

    slots: ItemSlots
    report: dict[str, Any]


def append_slots(
    tokenizer: SlotTokenizer, published: ItemSlots, source: TokenizerSource, *, unique: bool = False
) -> AppendedSlots:
    """Give a child catalog's new items sets; no published set changes, no retired one is reused (experimental).

    ::

        new items in key order:  set = tokenizer.encode(item)
        if a retired item has that set (with `unique`: or any item, an earlier new one included):
            codes:       of all sets that differ in the code of one known slot and that nobody has, the nearest:
                         least |codeword - other codeword|^2, then first slot by name, then smallest code
            continuous:  the largest component of the last known slot moves away from zero by the fewest units in the
                         last place that make the set one of its own (a millionth: no score feels it)

    As when a slot tokenizer is fitted, items alike may share a set (the report counts them) unless ``unique``. Items
    of which nothing is known have zeros in every slot, which is no identifier: nothing is done about them but a
    warning. The codeword of zeros (unknown) is never taken instead of another. Codebooks and width stay those of
    ``published``, so a model that reads the slots stays valid. The result depends on the ids and data of the new items,
    not on their order. Tombstones are those of the source's catalog.

    Raises FingerprintMismatch when the child's first items are not those of ``published``, DataError when the slots
    were made by another tokenizer, or when no set is left that differs in one slot.
    """
    child, n = source.fields(), len(published)
    if not child.extends(published.catalog, n):
        raise FingerprintMismatch(
            f"slots belong to catalog {published.catalog[:8]} ({n} items), and the first items of catalog "
            f"{source.catalog[:8]} ({len(child)} items) are not these",
            hint="make the child with ItemCatalog.append on the catalog of the slots",
        )
    order = n + np.argsort(source.item_keys[n:], kind="stable")
    counts = {"n_published": n, "n_new": len(order), "n_moved": 0}
    if len(order) == 0:
        return AppendedSlots(replace(published, catalog=source.catalog), counts)
    raw = tokenizer.encode(source.take(order))
    _check_alike(published, raw)
    retired_N = np.zeros(n, dtype=bool) if child.retired is None else child.retired[:n]
    both = _joined(published, raw, source.catalog)
    group = both.collision_ids()
    asked_M = _in_conflict(group, retired_N, unique) & raw.known.any(axis=1)
    if asked_M.any():
        place = _other_codes if both.discrete else _other_vectors
        both = _joined(published, place(both, n, np.flatnonzero(asked_M), child.ids_of(order)), source.catalog)
    made = both.take(np.concatenate([np.arange(n), n + np.argsort(order)]))
    assert not len(moved_sets(published, made)), "a published set moved"
    alike = np.bincount(group)[group[n:]] > 1
    final = made.collision_ids()
    nothing = int((~raw.known.any(axis=1)).sum())
    if nothing:
        log.warning("nothing is known about %d of %d new items: their slots are zeros", nothing, len(order))
    counts |= {"raw_collisions": int(alike.sum()), "other_set": int(asked_M.sum())}
    counts |= {"collisions": int((np.bincount(final)[final[n:]] > 1).sum()), "unknown": nothing}
    return AppendedSlots(made, counts)


def retire_slots(slots: ItemSlots, catalog: ItemCatalog, ids: Sequence[str]) -> ItemCatalog:
    """A version of ``catalog`` in which these items are retired; their sets stay in ``slots`` for ever (experimental).

    Histories with a retired item stay readable, and :func:`append_slots` gives its set to nobody. Whoever scores
    leaves out the rows where ``retired`` is set. Raises FingerprintMismatch for slots of another catalog, DataError
    for an id that is unknown or retired already.
    """
    slots.check(catalog.fingerprint, len(catalog))
    numbers = catalog.numbers(ids)
    if catalog.retired is not None and catalog.retired[numbers].any():
        twice = catalog.ids_of(numbers[catalog.retired[numbers]][:3])
        raise DataError(f"{int(catalog.retired[numbers].sum())} of these items are retired already, first {twice}")
    return catalog.retire(ids)


def moved_sets(before: ItemSlots, after: ItemSlots) -> Ints:
    """Items of both versions whose set is not the same to the last bit, int64 item numbers (experimental).

    Row n is the same item in both; slots are compared by name. All of them have moved where the names or the widths
    are others.
    """
    n = min(len(before), len(after))
    if before.names != after.names or before.dim != after.dim:
        return np.arange(n)
    return np.flatnonzero((before.vectors[:n] != after.vectors[:n]).any(axis=(1, 2)))


def slot_drift(before: ItemSlots, after: ItemSlots) -> dict[str, Any]:
    """What changed between two versions of the set identifiers of one growing catalog, as JSON values (experimental).

    ``n_before``, ``n_after``; ``moved``, item numbers of :func:`moved_sets`; ``n_moved_slot``, items with another
    vector in each slot, by name; ``collisions_before``, ``collisions_after``, items that share their set;
    ``same_slots``, names, width and codebooks are equal, as a trained model needs them.
    """
    n, same_width = min(len(before), len(after)), before.dim == after.dim
    by_name = {
        name: int((before.slot(name)[:n] != after.slot(name)[:n]).any(axis=1).sum()) if same_width else n
        for name in before.names
        if name in after.names
    }
    return {
        "n_before": len(before),
        "n_after": len(after),
        "moved": moved_sets(before, after).tolist(),
        "n_moved_slot": by_name,
        "collisions_before": sum(map(len, before.collisions())),
        "collisions_after": sum(map(len, after.collisions())),
        "same_slots": before.names == after.names and same_width and _same_books(before, after),
    }


def _same_books(a: ItemSlots, b: ItemSlots) -> bool:
    return a.slot_sizes == b.slot_sizes and all(map(np.array_equal, a.codebooks, b.codebooks))


def _check_alike(published: ItemSlots, raw: ItemSlots) -> None:
    if (published.names, published.dim) != (raw.names, raw.dim):
        raise DataError(
            f"the item tokenizer gives slots {', '.join(raw.names)} of width {raw.dim}, the published ones are "
            f"{', '.join(published.names)} of width {published.dim}",
            hint=_HINT,
        )
    if not _same_books(published, raw):
        raise DataError("the codebooks of the item tokenizer are not those of the published slots", hint=_HINT)


def _joined(published: ItemSlots, new: ItemSlots, catalog: str) -> ItemSlots:
    codes = None
    if published.codes is not None and new.codes is not None:
        codes = np.concatenate([published.codes, new.codes])
    vectors = np.concatenate([published.vectors, new.vectors])
    return ItemSlots(vectors, published.names, catalog, codes, published.codebooks)


def _in_conflict(group: npt.NDArray[np.int32], retired_N: Flags, unique: bool) -> Flags:
    """New items whose set a retired item has; with ``unique``, or anybody before them. bool ``[M]``."""
    n, size = len(retired_N), int(group.max()) + 1
    if not unique:
        gone = np.zeros(size, dtype=bool)
        gone[group[:n][retired_N]] = True
        return np.asarray(gone[group[n:]])
    first = np.full(size, len(group))
    np.minimum.at(first, group, np.arange(len(group)))
    return np.asarray(first[group[n:]] < np.arange(n, len(group)))


def _other_codes(both: ItemSlots, n: int, rows: Ints, ids: list[str]) -> ItemSlots:
    """The new items' slots with the nearest free set at ``rows`` (of the new items)."""
    assert both.codes is not None
    published_Nn = both.first_codes(both.codes[:n]).astype(np.int64)
    codes_Mn = both.first_codes(both.codes[n:]).astype(np.int64)
    asked_Mn = both.codes[n:].astype(np.int64)
    weight = np.cumprod(np.array([1, *both.slot_sizes[:-1]], dtype=np.uint64), dtype=np.uint64)
    # the number of a set; where they do not fit into 64 bits two may be equal: then a free set is passed over
    kept_M = np.ones(len(codes_Mn), dtype=bool)
    kept_M[rows] = False
    taken = np.unique(np.concatenate([published_Nn, codes_Mn[kept_M]]).astype(np.uint64) @ weight)
    given = np.zeros(0, dtype=np.uint64)
    _, first, kind = np.unique(codes_Mn[rows], axis=0, return_index=True, return_inverse=True)
    for group in np.argsort(first).tolist():  # sets in the order in which they are first asked for
        members = rows[kind.ravel() == group]
        slot_C, code_C = _alternatives(both, codes_Mn[members[0]])
        step = code_C.astype(np.uint64) - codes_Mn[members[0]][slot_C].astype(np.uint64)  # modulo 2**64
        number_C = codes_Mn[members[0]].astype(np.uint64) @ weight + step * weight[slot_C]
        free = np.flatnonzero(~np.isin(number_C, taken) & ~np.isin(number_C, given))
        if len(free) < len(members):
            lost = [ids[row] for row in members[len(free) :].tolist()]
            raise DataError(
                f"no free set of codes is left that differs in one slot for {len(lost)} new items, such as "
                f"{', '.join(lost[:5])}",
                hint="fit a new version of the item tokenizer with a larger level_size, or leave these items out",
            )
        free = free[: len(members)]
        codes_Mn[members, slot_C[free]] = code_C[free]
        asked_Mn[members] = codes_Mn[members]
        given = np.concatenate([given, number_C[free]])
    return ItemSlots.of_codes(asked_Mn, both.codebooks, both.names, both.catalog)


def _alternatives(slots: ItemSlots, codes_n: Ints) -> tuple[Ints, Ints]:
    """Slot and code of every set that differs from ``codes_n`` in one known slot, nearest first."""
    slot, code, cost = [], [], []
    for at, book in enumerate(slots.codebooks):
        own = book[codes_n[at]].astype(np.float64)
        first = first_equal(book) == np.arange(len(book))
        others = np.flatnonzero(book.any(axis=1) & own.any() & first & (np.arange(len(book)) != codes_n[at]))
        slot.append(np.full(len(others), at))
        code.append(others)
        cost.append(((book[others] - own) ** 2).sum(axis=1))
    order = np.argsort(np.concatenate(cost), kind="stable")
    return np.concatenate(slot)[order], np.concatenate(code)[order]


def _other_vectors(both: ItemSlots, n: int, rows: Ints, ids: list[str]) -> ItemSlots:
    """The new items' vectors, those of ``rows`` moved by as few units in the last place as make them different."""
    vectors, at = both.vectors.copy(), n + rows
    slot = both.n_slots - 1 - both.known[at, ::-1].argmax(axis=1)
    peak = np.abs(vectors[at, slot]).argmax(axis=1)
    start = vectors[at, slot, peak].view(np.int32)  # + 1 is the next float away from zero, for either sign
    steps = np.ones(len(rows), dtype=np.int32)
    others: Flags = np.ones(len(vectors), dtype=bool)
    others[at] = False
    again = np.ones(len(rows), dtype=bool)
    while again.any():  # about once for each copy of one set; of two that clash the later one goes on
        vectors[at, slot, peak] = (start + steps).view(np.float32)
        group = replace(both, vectors=vectors).collision_ids()
        again = np.isin(group[at], group[others])
        earliest = np.unique(group[at], return_index=True)[1]
        again |= ~np.isin(np.arange(len(rows)), earliest)
        steps[again] += 1
    return replace(both, vectors=vectors).take(np.arange(n, len(vectors)))
