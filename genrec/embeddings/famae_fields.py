"""Columns of a catalog as small vocabularies: brand, levels of the category path.

Axes: N items, J fields.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genrec.data.catalog import ItemCatalog
from genrec.errors import DataError

Ints = npt.NDArray[np.int32]
MISSING, OTHER = 0, 1
_STEP = "\x1f"  # between the names of a path: no text of a catalog contains it


@dataclass(frozen=True)
class Field:
    """One categorical field (internal).

    name: a column of the catalog. depth: the first so many names of a path, 0 for columns of single values.
    values: number of each value from 2; 0 = missing (also a path that ends before), 1 = other: rare in the catalog
    this was made for, or unknown to it.
    """

    name: str
    depth: int
    values: dict[str, int]

    @property
    def size(self) -> int:
        """Number of values, missing and other included."""
        return len(self.values) + 2

    def encode(self, items: ItemCatalog) -> Ints:
        """The value of each item, int32 ``[N]``; a column that the catalog lacks is missing for all."""
        texts = _texts(items, self.name, self.depth)
        return np.array([self.values.get(t, OTHER) if t else MISSING for t in texts], dtype=np.int32)


def learn_fields(items: ItemCatalog, columns: Sequence[str], *, path_levels: int, min_items: int) -> tuple[Field, ...]:
    """The fields that ``columns`` make; J of them, in that order, a path level by level from the top (internal).

    A list of text is a path: level l is its first l names together, so equal names below different parents differ.
    Values of fewer than ``min_items`` items share the value "other". A field that is the same for all items is left
    out. Raises DataError for a column that the catalog lacks, and where no field is left.
    """
    found = []
    for name in columns:
        if name not in items.fields:
            raise DataError(
                f"field {name!r} is not in the catalog; fields: {', '.join(items.fields)}",
                hint="name columns with few values, such as brand and categories",
            )
        is_path = any(isinstance(value, list) for value in items.fields[name])
        for depth in range(1, path_levels + 1) if is_path else (0,):
            counts = Counter(text for text in _texts(items, name, depth) if text)
            kept = sorted(text for text, n in counts.items() if n >= min_items)
            field = Field(name, depth, {text: number for number, text in enumerate(kept, start=2)})
            if len(np.unique(field.encode(items))) > 1:
                found.append(field)
    if not found:
        raise DataError(
            f"fields {list(columns)}: no column tells items apart", hint="name columns that repeat, or lower min_items"
        )
    return tuple(found)


def _texts(items: ItemCatalog, name: str, depth: int) -> list[str]:
    """One text per item, empty where missing."""
    if name not in items.fields:
        return [""] * len(items)
    if depth == 0:
        return items.text(name)
    paths: list[list[str] | None] = items.fields[name]
    return [_STEP.join(path[:depth]) if path and len(path) >= depth else "" for path in paths]
