"""Several catalogs or domains in one index, told apart by the first code (numpy only, no torch).

Axes: N items, L levels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.codes import ItemCodes


@dataclass(frozen=True)
class Namespace:
    """A domain of a joint index: the identifiers whose first code is one of ``n_codes`` codes from ``first_code`` on.

    Stability: experimental.
    """

    name: str
    first_code: int
    n_codes: int


@dataclass(frozen=True, eq=False)
class JoinedCodes:
    """The identifiers of several domains as one :class:`ItemCodes`.

    namespaces: in the order of the domains, for ``CatalogIndex.build``. first_item: the joint number of each domain's
    item 0; item ``n`` of a domain has number ``first_item[name] + n``. Stability: experimental.
    """

    codes: ItemCodes
    namespaces: tuple[Namespace, ...]
    first_item: dict[str, int]


def join_codes(domains: Mapping[str, ItemCodes], *, catalog: str | None = None) -> JoinedCodes:
    """One identifier space in which the first codes of the domains do not meet.

    ::

        joint code of level 0  =  code + sum of the first level sizes of the domains before
        joint size of level l  =  that sum over all domains at level 0, else the largest size of any domain

    So a domain is a range of first codes, of nodes and of item ranks, and stays one when items are added behind.
    Domains may differ in length: the shorter identifiers are ragged then. catalog: fingerprint of the joint catalog
    (domains in this order); None = a hash of the names and fingerprints of the domains. Codebooks and pieces, which
    belong to one domain, are left out. Raises ConfigError for no domain. Stability: experimental.

    >>> books = ItemCodes.from_int([[0, 1], [1, 0]], (2, 2), "books")
    >>> films = ItemCodes.from_int([[0, 2]], (1, 3), "films")
    >>> joined = join_codes({"books": books, "films": films})
    >>> joined.codes.codes.tolist(), joined.codes.level_sizes, joined.first_item
    ([[0, 1], [1, 0], [2, 2]], (3, 3), {'books': 0, 'films': 2})
    """
    if not domains:
        raise ConfigError("join_codes: expected one domain or more, got none")
    depth = max(each.n_levels for each in domains.values())
    sizes = np.zeros(depth, dtype=np.int64)
    rows, namespaces, first_item, n_items, n_codes = [], [], {}, 0, 0
    for name, each in domains.items():
        wide = np.pad(each.as_int(), ((0, 0), (0, depth - each.n_levels)), constant_values=-1)
        wide[:, 0] += n_codes
        rows.append(wide)
        namespaces.append(Namespace(name, n_codes, each.level_sizes[0]))
        first_item[name] = n_items
        sizes[: each.n_levels] = np.maximum(sizes[: each.n_levels], each.level_sizes)
        n_items += each.n_items
        n_codes += each.level_sizes[0]
    sizes[0] = n_codes
    parts = [f"{name}\x1f{each.catalog}\x1f{each.n_items}" for name, each in domains.items()]
    joint = hashlib.sha256("\x1e".join(parts).encode()).hexdigest()[:32] if catalog is None else catalog
    codes = ItemCodes.from_int(np.concatenate(rows), tuple(sizes.tolist()), joint)
    return JoinedCodes(codes, tuple(namespaces), first_item)


def check_namespaces(namespaces: tuple[Namespace, ...], n_codes: int) -> None:
    """Raise DataError unless the names differ and the ranges of first codes do not meet (internal)."""
    end = 0
    for each in sorted(namespaces, key=lambda x: x.first_code):
        if each.n_codes < 1 or each.first_code < end:
            raise DataError(f"namespace {each.name!r}: its first codes {_range(each)} meet those of another one")
        end = each.first_code + each.n_codes
    if end > n_codes or len({each.name for each in namespaces}) < len(namespaces):
        raise DataError(f"namespaces: expected different names and codes below {n_codes}, got {list(namespaces)}")


def _range(each: Namespace) -> str:
    return f"{each.first_code} .. {each.first_code + each.n_codes - 1}"
