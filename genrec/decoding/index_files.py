"""The index as an artifact (internal).

Schema 2: ``tokens.*``, ``pointers.*``, ``shared``, ``extra``, ``items``. Schema 1, which is still read, had
``leaf_ranks``, the first rank of every leaf, and ``order``, a place of every item among ties, which is computed now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from genrec.decoding.mapped import load_mapped
from genrec.decoding.namespaces import Namespace
from genrec.errors import ArtifactError, FingerprintMismatch
from genrec.item_tokenizers.codes import ItemCodes, check_catalog
from genrec.manifest import Manifest

if TYPE_CHECKING:
    from genrec.decoding.index import CatalogIndex

KIND = "index"
SCHEMA = 2
_OLDER = (1,)

Ints = npt.NDArray[Any]


def save_index(path: Path, index: CatalogIndex, *, parents: dict[str, str] | None, overwrite: bool) -> None:
    """Write the artifact; arrays are uncompressed, so that loading can map them from the file."""
    from genrec import artifacts

    meta = {
        "level_sizes": list(index.level_sizes),
        "ragged": index.ragged,
        "n_items": index.n_items,
        "codes": index.codes,
        "bytes_per_item": round(index.bytes_per_item, 3),
        "namespaces": [asdict(each) for each in index.namespaces],
    }
    with artifacts.write(
        path,
        kind=KIND,
        schema=SCHEMA,
        catalog=index.catalog,
        parents=parents,
        meta=meta,
        overwrite=overwrite,
    ) as draft:
        artifacts.save_arrays(draft.dir / "index.safetensors", index.arrays())


def load_fields(path: Path, codes: ItemCodes | None) -> dict[str, Any]:
    """The fields of the :class:`CatalogIndex` of an artifact, arrays memory-mapped."""
    from genrec import artifacts

    def fields(manifest: artifacts.Manifest) -> dict[str, Any]:
        if manifest.schema not in (*_OLDER, SCHEMA):
            artifacts.read(path, kind=KIND, schema=SCHEMA)  # raises, with what to do
        return _fields(manifest, codes)

    return artifacts.load(path, fields, kind=KIND)


def _fields(manifest: Manifest, codes: ItemCodes | None) -> dict[str, Any]:
    meta = manifest.meta
    if codes is not None:
        check_catalog("index", manifest.catalog or "", codes.catalog)
        if meta["codes"] != codes.fingerprint:
            raise FingerprintMismatch(
                f"index was built from codes {meta['codes'][:8]}, got codes {codes.fingerprint[:8]}",
                hint="build the index again with CatalogIndex.build",
            )
    arrays = load_mapped(manifest.path / "index.safetensors")
    depth = len(meta["level_sizes"]) + int(meta["ragged"])
    try:
        if manifest.schema == 1:
            arrays = {**arrays, **_shared_leaves(arrays["leaf_ranks"])}
        return {
            "tokens": tuple(arrays[f"tokens.{level}"] for level in range(depth)),
            "pointers": tuple(arrays[f"pointers.{level}"] for level in range(depth)),
            "shared": arrays["shared"],
            "extra": arrays["extra"],
            "items": arrays["items"],
            "level_sizes": tuple(meta["level_sizes"]),
            "ragged": bool(meta["ragged"]),
            "n_items": int(meta["n_items"]),
            "catalog": manifest.catalog or "",
            "codes": meta["codes"],
            "namespaces": tuple(Namespace(**each) for each in meta.get("namespaces", ())),
        }
    except KeyError as error:
        raise ArtifactError(f"{manifest.path}: the index has no array {error}") from error


def _shared_leaves(leaf_ranks: Ints) -> Mapping[str, Ints]:
    more = np.diff(leaf_ranks) - 1
    shared = np.flatnonzero(more).astype(leaf_ranks.dtype)
    return {"shared": shared, "extra": np.concatenate([[0], np.cumsum(more[shared])]).astype(leaf_ranks.dtype)}
