"""What a served model has beside its weights: the catalog and the log of its run, the first version of the catalog.

Axes: N items.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from genrec import artifacts
from genrec.data.catalog import ItemCatalog, column_kind
from genrec.decoding.filter_set import FilterSet
from genrec.decoding.filters import in_namespace
from genrec.decoding.snapshot import CatalogSnapshot
from genrec.errors import ArtifactError

if TYPE_CHECKING:
    from genrec.data.interactions import Interactions
    from genrec.models.bundle import Bundle
    from genrec.models.recommender import GenerativeRecommender

log = logging.getLogger(__name__)


class CatalogAndLog(NamedTuple):
    """The log is None where the run has none that belongs to the catalog."""

    catalog: ItemCatalog
    log: Interactions | None


def catalog_and_log(bundle: Bundle, path: Path) -> CatalogAndLog:
    """Of a run folder or a bundle that was loaded from ``path`` (internal).

    Raises ArtifactError where there is no catalog.
    """
    from genrec.data.interactions import Interactions

    catalog = bundle.catalog
    if catalog is None and artifacts.exists(path / "catalog"):
        catalog = ItemCatalog.load(path / "catalog")
    if catalog is None:
        raise ArtifactError(f"{path}: the bundle has no catalog", hint="serve the run folder it was trained in")
    found = Interactions.load(path / "interactions") if artifacts.exists(path / "interactions") else None
    if found is not None and not catalog.extends(found.catalog, found.n_items):
        log.warning("%s: the log is of another catalog and is not used", path)
        found = None
    return CatalogAndLog(catalog, found)


def first_snapshot(recommender: GenerativeRecommender, catalog: ItemCatalog) -> CatalogSnapshot:
    """Version 0: the index of the bundle, the tombstones and the number fields of the catalog (internal)."""
    index, codes = recommender.index, recommender.codes
    domains = {each.name: in_namespace(index, each.name) for each in index.namespaces}
    fields = {
        name: np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        for name, values in catalog.fields.items()
        if column_kind(name, values) in ("int", "float")
    }
    retired = np.ones(len(codes), np.bool_)
    retired[index.items] = False
    if catalog.retired is not None:
        retired |= catalog.retired
    return CatalogSnapshot(
        version=0,
        codes=codes,
        index=index,
        retired=retired,
        filters=FilterSet(domains, n_items=len(codes), catalog=codes.catalog),
        fields=fields,
        catalog=catalog,
    )
