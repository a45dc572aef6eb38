"""What the figures reported with a published file of identifiers could hide.

Axes: N items of the file, L levels, T test targets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.data.catalog import ItemCatalog
from genrec.data.readers.identifier_files import IdentifierFile
from genrec.data.splits import Split
from genrec.errors import ConfigError, DataError
from genrec.evaluation.identifiers import Figures, inspect_codes, plain
from genrec.item_tokenizers.codes import ItemCodes
from genrec.metrics.codes_usage import prefix_numbers
from genrec.metrics.identifiers import group_sizes

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]
_NUMBERED = re.compile(r"(<?[^<>\d\s]*)(\d{1,9})(>?)\Z")
_LARGEST = 1 << 24  # of a code; larger numbers name something
_REUSED = (
    "collision_rate", "collision_share", "collision_pair_rate", "largest_group", "group_sizes", "usage", "dead_codes",
    "perplexity", "mean_length", "max_length",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class PublishedCodes:
    """A file's identifiers as codes (experimental).

    codes: row n is item n of the file; the code of a token is the number in it (``<a_12>`` is 12) where all tokens
    have one and those of a level differ in nothing else, each having another number, else its place among the level's
    tokens in alphabetical order. numbered: which of the two. Of equal codes at two levels the tokens may differ.
    """

    codes: ItemCodes
    numbered: bool


def as_codes(file: IdentifierFile, *, level_size: int | None = None, catalog: str = "") -> PublishedCodes:
    """The identifiers of ``file`` as codes (experimental).

    level_size: K of the numbered levels; None = the largest number of the level + 1, since a file does not tell it.
    Raises ConfigError where a number does not fit below ``level_size``, and where the levels are not numbered.
    """
    n_levels = max(map(len, file.tokens))
    rows = [[n for n, tokens in enumerate(file.tokens) if len(tokens) > level] for level in range(n_levels)]
    found = [sorted({file.tokens[n][level] for n in here}) for level, here in enumerate(rows)]
    numbered = all(_numbered(tokens) for tokens in found)
    if level_size is not None and not numbered:
        raise ConfigError(
            f"level_size: the tokens of {file.path} are not numbered, so their places are counted", hint="leave it out"
        )
    codes_NL = np.full((len(file), n_levels), -1, dtype=np.int64)
    sizes = []
    for level, (here, tokens) in enumerate(zip(rows, found, strict=True)):
        code = {token: _number(token) if numbered else k for k, token in enumerate(tokens)}
        codes_NL[here, level] = [code[file.tokens[n][level]] for n in here]
        size = max(code.values()) + 1
        if numbered and level_size is not None:
            if size > level_size:
                raise ConfigError(
                    f"level_size: expected more than {size - 1}, the largest number at level {level + 1} of "
                    f"{file.path}, got {level_size}"
                )
            size = level_size
        sizes.append(size)
    return PublishedCodes(ItemCodes.from_int(codes_NL, tuple(sizes), catalog), numbered)


def codes_of_catalog(file: IdentifierFile, catalog: ItemCatalog, *, level_size: int | None = None) -> ItemCodes:
    """The identifiers of ``file`` as codes of a catalog's items, in its order (experimental).

    Items that only the file knows are left out. Raises DataError where an item of the catalog has no identifier.
    """
    row_of = {item: n for n, item in enumerate(file.items)}
    missing = [item for item in catalog.ids if item not in row_of]
    if missing:
        raise DataError(
            f"{file.path}: {len(missing)} of {len(catalog)} items of the catalog have no identifier, first "
            f"{missing[0]!r}; the file's items look like {file.items[0]!r}",
            hint="give the catalog that the file was made for",
        )
    found = as_codes(file, level_size=level_size, catalog=catalog.fingerprint).codes
    return found.take([row_of[item] for item in catalog.ids])


def audit(
    file: IdentifierFile,
    *,
    catalog: ItemCatalog | None = None,
    split: Split | None = None,
    level_size: int | None = None,
) -> Figures:
    """Figures of a published file, nothing but what JSON has (experimental).

    ``n_items`` with an identifier, ``empty`` (items without one: number, and the first five), ``distinct``
    identifiers, ``in_collision`` (items), some of :data:`genrec.metrics.codes_names.METRICS`, ``crowded`` (items of
    the largest group, at most five), ``used`` codes, ``level_sizes`` and ``distinct_prefixes`` by level, ``numbered``
    (see :class:`PublishedCodes`), ``lengths`` (shortest, mean, longest), ``prefixes_of_others`` (items with whose
    identifier another begins), ``tokens``, ``tokens_at_several_levels``, ``order`` (:func:`order_leaks`).

    catalog adds ``without_identifier`` and ``without_item`` (number and first five ids). split, whose items are the
    catalog's, adds the share of training events (``traffic_share``) and of test targets (``target_share``) on items
    that share their identifier, and the inflation of identifier-level recall, :func:`inflation`.
    Raises DataError for a split without its catalog, and for a catalog with none of the file's items.
    """
    published = as_codes(file, level_size=level_size)
    codes_NL = published.codes.as_int()
    usage = inspect_codes(published.codes).figures
    number_NL = prefix_numbers(codes_NL)
    sizes_N = group_sizes(number_NL[:, -1])
    largest = np.flatnonzero(number_NL[:, -1] == number_NL[int(sizes_N.argmax()), -1])
    lengths_N = (codes_NL >= 0).sum(axis=1)
    figures: Figures = {
        "file": str(file.path),
        "form": file.form,
        "n_items": len(file),
        "empty": _some(file.empty),
        "distinct": int(number_NL[:, -1].max()) + 1,
        "in_collision": int((sizes_N > 1).sum()),
        **{key: usage[key] for key in _REUSED},
        "crowded": [file.items[n] for n in largest[:5]] if sizes_N.max() > 1 else [],
        "used": [len(np.unique(column[column >= 0])) for column in codes_NL.T],
        "level_sizes": list(published.codes.level_sizes),
        "numbered": published.numbered,
        "distinct_prefixes": [len(np.unique(number_NL[lengths_N > level, level])) for level in range(len(number_NL.T))],
        "lengths": [int(lengths_N.min()), float(lengths_N.mean()), int(lengths_N.max())],
        "prefixes_of_others": _prefixes_of_others(number_NL, lengths_N),
        **_repeated_tokens(file.tokens),
    }
    orders: dict[str, Ints] = {} if _sorted_by_identifier(codes_NL) else {"file": np.arange(len(file))}
    orders["id"] = _id_order(file.items)
    if catalog is not None:
        row_N = catalog.numbers(file.items, missing="negative")
        if (row_N < 0).all():
            raise DataError(
                f"{file.path}: none of its {len(file)} items is in the catalog of {len(catalog)}: the file has ids "
                f"such as {file.items[0]!r}, the catalog such as {catalog.ids[0]!r}",
                hint="give the data set that the file was made for, with the ids that the file uses",
            )
        figures |= _against_catalog(file, catalog, row_N)
        if (row_N >= 0).all():
            orders["catalog"] = row_N
        if split is not None:
            figures |= _against_split(sizes_N, row_N, len(catalog), split)
    elif split is not None:
        raise DataError("a split tells its items by number: give the catalog too")
    figures["order"] = {name: order_leaks(published, order) for name, order in orders.items()}
    found: Figures = plain(figures)
    return found


def inflation(sizes_T: npt.ArrayLike) -> float:
    """Factor by which a hit on the identifier exceeds a hit on the item (experimental).

    ``T / sum_t 1 / s_t`` for targets t whose identifier s_t items share: recall counted on identifiers over recall
    counted on items, if hits spread evenly over the targets and one place of the list names one of the items at
    random. Their largest s_t bounds it.

    >>> inflation([1, 1, 2])
    1.2
    """
    sizes = np.asarray(sizes_T, dtype=np.float64)
    return float(len(sizes) / (1 / sizes).sum()) if len(sizes) else float("nan")


def order_leaks(published: PublishedCodes, order_N: Ints) -> Figures | None:
    """Whether codes follow an order of the items, such as their place in a file (experimental).

    ``last``: correlation of the last code with ``order_N``, both as ranks inside groups of equal codes before
    (0 = none; a counter that goes through the file gives 1), over the ``n_last`` items of groups of two or more, and
    ``z``, how many standard deviations of chance that is; None without such groups. ``whole``: Spearman correlation
    of the identifiers in lexicographic order with ``order_N``: 1 for items that were numbered one after the other.
    None where codes have no order of their own: tokens without numbers, or identifiers of unequal length.
    """
    codes = published.codes
    if not published.numbered or codes.ragged or len(codes) < 3:
        return None
    codes_NL = codes.as_int()
    number_NL = prefix_numbers(codes_NL)
    parent_N = number_NL[:, -2] if codes.n_levels > 1 else np.zeros(len(codes), dtype=np.int64)
    crowded = group_sizes(parent_N) > 1
    last = z = float("nan")
    if crowded.any():
        parent = parent_N[crowded]
        a, b = (_centred_ranks(values[crowded], parent) for values in (codes_NL[:, -1], order_N))
        last = _correlation(a, b)
        z = last * float(np.sqrt(len(parent) - len(np.unique(parent))))
    everything = np.zeros(len(codes), dtype=np.int64)
    whole = _correlation(_centred_ranks(number_NL[:, -1], everything), _centred_ranks(order_N, everything))
    return {"last": last, "z": z, "n_last": int(crowded.sum()), "whole": whole}


def _numbered(tokens: Sequence[str]) -> bool:
    """Whether the tokens of a level are numbers, or differ in a number alone: each another one (01 is 1), no name."""
    alike = all(map(_NUMBERED.match, tokens)) and len({_NUMBERED.sub(r"\1", token) for token in tokens}) == 1
    numbers = set(map(_number, tokens)) if alike else set()
    return len(numbers) == len(tokens) and max(numbers) < _LARGEST


def _number(token: str) -> int:
    found = _NUMBERED.match(token)
    assert found is not None
    return int(found[2])


def _centred_ranks(values_N: Ints, group_N: Ints) -> Floats:
    """Mean rank of every value inside its group, minus the group's mean rank."""
    order = np.lexsort((values_N, group_N))
    group, value = group_N[order], values_N[order]
    new_group = np.append(True, group[1:] != group[:-1])
    new_block = new_group | np.append(True, value[1:] != value[:-1])
    starts, block = np.flatnonzero(new_block), np.cumsum(new_block) - 1
    ends = np.append(starts[1:], len(order))
    middle = ((starts + ends - 1) / 2)[block]
    first = np.flatnonzero(new_group)
    last = np.append(first[1:], len(order)) - 1
    centre = ((first + last) / 2)[np.cumsum(new_group) - 1]
    out = np.empty(len(order))
    out[order] = middle - centre
    return out


def _correlation(a: Floats, b: Floats) -> float:
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else float("nan")


def _prefixes_of_others(number_NL: Ints, lengths_N: Ints) -> int:
    found = 0
    for length in range(1, number_NL.shape[1]):
        ended, longer = lengths_N == length, lengths_N > length
        found += int(np.isin(number_NL[ended, length - 1], number_NL[longer, length - 1]).sum())
    return found


def _repeated_tokens(identifiers: Sequence[Sequence[str]]) -> Figures:
    levels: dict[str, set[int]] = {}
    for tokens in identifiers:
        for level, token in enumerate(tokens):
            levels.setdefault(token, set()).add(level)
    return {"tokens": len(levels), "tokens_at_several_levels": sum(len(found) > 1 for found in levels.values())}


def _sorted_by_identifier(codes_NL: Ints) -> bool:
    number_N = prefix_numbers(codes_NL)[:, -1]
    return bool((np.diff(number_N) >= 0).all())


def _id_order(items: Sequence[str]) -> Ints:
    """Rank of every item by its id: by number where all ids are numbers."""
    as_numbers = all(item.isascii() and item.isdigit() for item in items)
    order = sorted(range(len(items)), key=lambda n: int(items[n]) if as_numbers else items[n])
    rank = np.empty(len(items), dtype=np.int64)
    rank[order] = np.arange(len(items))
    return rank


def _against_catalog(file: IdentifierFile, catalog: ItemCatalog, row_N: Ints) -> Figures:
    has = np.zeros(len(catalog), dtype=np.bool_)
    has[row_N[row_N >= 0]] = True
    lacking, unknown = np.flatnonzero(~has), np.flatnonzero(row_N < 0)
    return {
        "catalog_items": len(catalog),
        "without_identifier": _some(catalog.ids_of(lacking)),
        "without_item": _some([file.items[n] for n in unknown]),
    }


def _some(items: Sequence[str]) -> Figures:
    return {"n": len(items), "first": list(items[:5])}


def _against_split(sizes_N: Ints, row_N: Ints, n_catalog: int, split: Split) -> Figures:
    if split.n_items != n_catalog:
        raise DataError(f"split: expected the {n_catalog} items of the catalog, got {split.n_items}")
    size = np.zeros(n_catalog, dtype=np.int64)
    size[row_N[row_N >= 0]] = sizes_N[row_N >= 0]
    events, targets = size[split.train().items], size[split.queries("test").targets.items]
    known = targets[targets > 0]
    return {
        "traffic_share": float((events > 1).mean()) if len(events) else None,
        "targets": len(targets),
        "targets_without_identifier": int((targets == 0).sum()),
        "target_share": float((known > 1).mean()) if len(known) else None,
        "inflation": inflation(known),
        "inflation_at_most": int(known.max()) if len(known) else None,
    }
