"""Vectors of later items in the space of a catalog's LSA vectors.

Legend: N items of the catalog, M later items, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from genrec.data.catalog import ItemCatalog
from genrec.embeddings.linear import truncated_svd, unit_rows
from genrec.embeddings.text import LsaSettings, item_text


def lsa_fold_in(
    catalog: ItemCatalog, later: ItemCatalog, settings: LsaSettings, later_text: Sequence[str] | None = None
) -> npt.NDArray[np.float32]:
    """Vectors of ``later`` beside those of :func:`genrec.embeddings.text.lsa` for ``catalog``, float32 ``[M, D]``.

    ::

        terms = TF-IDF of catalog ~ U diag(s) V.T;   lsa(catalog) = U diag(s) = terms V
        vectors = (TF-IDF of later, with the terms and weights of catalog) V

    The classic folding-in (Deerwester et al. 1990): nothing is learned from the later items, terms that the catalog
    lacks are not seen, and an item of such terms alone has a zero vector. later_text: parts of the text of ``later``
    (None = ``settings.text``). Fits the catalog again, which takes as long
    as ``lsa``. Stability: internal.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        ngram_range=(1, settings.ngram_max), min_df=settings.min_items, sublinear_tf=True, dtype=np.float64
    )
    factors = truncated_svd(vectorizer.fit_transform(item_text(catalog, settings.text)), settings.dim, settings.seed)
    terms = vectorizer.transform(item_text(later, later_text or settings.text))
    vectors = np.asarray(terms @ factors.right)
    return (unit_rows(vectors) if settings.normalize else vectors).astype(np.float32)
