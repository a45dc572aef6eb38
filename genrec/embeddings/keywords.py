"""Item vectors strengthened by those of the item's keywords.

Legend: N items, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from genrec.data.catalog import ItemCatalog
from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import ConfigError, DataError

Floats = npt.NDArray[np.float32]


def with_keywords(
    vectors: ItemEmbeddings, catalog: ItemCatalog, column: str, encode: Callable[[Sequence[str]], Floats]
) -> ItemEmbeddings:
    """Vectors halfway between an item's own and the mean of its keywords' (experimental).

    ::

        e = (e_text + mean_j e(keyword_j)) / 2

    Keyword enhancement of OneSearch's KHQE (Chen et al. 2025, 2509.03236, equation 2): words that say what an item is
    outweigh the rest of a long title. column: of the catalog; a list of keywords (or a single one) per item, each
    counted once. encode: gives the vectors ``[n, D]`` of n different texts, in the same space as ``vectors``. Departing
    from the equation, where only one side is known (the vector of the other is zero, or there is no keyword), that
    side is the result. Raises ConfigError for a column that the catalog lacks, DataError for values of another type.
    """
    from scipy import sparse

    if column not in catalog.fields:
        raise ConfigError(f"keywords: expected one of the columns {', '.join(catalog.fields)}, got {column!r}")
    lists = [_words(value, column, item) for value, item in zip(catalog.fields[column], catalog.ids, strict=True)]
    words = sorted({word for row in lists for word in row})
    if not words:
        return vectors
    number = {word: n for n, word in enumerate(words)}
    word_vectors = np.asarray(encode(words), np.float64)
    known = np.asarray(word_vectors.any(axis=1))
    pairs = [(n, number[word]) for n, row in enumerate(lists) for word in row if known[number[word]]]
    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    counts = np.bincount(rows, minlength=len(lists))
    has = sparse.csr_matrix((1.0 / counts[rows], (rows, columns)), (len(lists), len(words)))
    both = (counts > 0) & vectors.known
    made = vectors.vectors + np.asarray(has @ word_vectors)
    made[both] /= 2
    recipe = {**vectors.recipe, "keywords": column}
    return ItemEmbeddings(made.astype(np.float32), vectors.catalog, recipe)


def _words(value: object, column: str, item: str) -> list[str]:
    """The different keywords of one item, cleaned of surrounding blanks."""
    found = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise DataError(f"{column}: expected a list of keywords per item, got {value!r} for item {item!r}")
    return list(dict.fromkeys(stripped for word in found if (stripped := word.strip())))
