"""Short names for the content of a bundle and of a catalog in service, the same in any process."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from threading import Lock

import numpy as np

from genrec import artifacts
from genrec.artifacts import Manifest
from genrec.decoding.snapshot import CatalogSnapshot
from genrec.errors import ArtifactError
from genrec.models.bundle import bundle_folder

DIGITS = 12


def of_bundle(manifest: Manifest) -> str:
    """12 hex digits of the files of a bundle, by the checksums in its manifest (internal)."""
    files = json.dumps(sorted((name, str(found)) for name, found in manifest.files.items()))
    return hashlib.sha256(files.encode()).hexdigest()[:DIGITS]


def at(path: Path) -> str | None:
    """:func:`of_bundle` of what is at a place now, without loading it; None where there is no bundle (internal)."""
    try:
        return of_bundle(artifacts.read(bundle_folder(path.resolve()), verify=False))
    except (ArtifactError, OSError, RuntimeError):
        return None


class CatalogDigest:
    """12 hex digits of a catalog in service: identifiers, what is retired, number fields, named filters (internal).

    Version numbers count changes and differ between processes that came to the same catalog in other ways; this does
    not. Of a new version only the arrays that changed are read.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._parts: dict[str, tuple[object, bytes]] = {}
        self._last: tuple[CatalogSnapshot | None, str] = (None, "")

    def of(self, snapshot: CatalogSnapshot) -> str:
        """The digest of a version; kept until another one is asked for."""
        with self._lock:
            if self._last[0] is not snapshot:
                self._last = (snapshot, self._made(snapshot))
            return self._last[1]

    def _made(self, snapshot: CatalogSnapshot) -> str:
        arrays: dict[str, tuple[object, np.ndarray]] = {
            "retired": (snapshot.retired, snapshot.retired),
            "indexed": (snapshot.index.items, snapshot.index.items),
        }
        arrays |= {f"field {name}": (values, values) for name, values in snapshot.fields.items()}
        for name in snapshot.filters.names:
            allowed = snapshot.filters[name]
            arrays[f"filter {name}"] = (allowed, allowed.words)
        # an array never changes, so the same object is the same content
        self._parts = {name: self._part(name, *found) for name, found in arrays.items()}
        whole = hashlib.sha256(f"{snapshot.codes.catalog} {snapshot.codes.fingerprint}".encode())
        for name in sorted(self._parts):
            whole.update(hashlib.sha256(name.encode()).digest() + self._parts[name][1])
        return whole.hexdigest()[:DIGITS]

    def _part(self, name: str, owner: object, array: np.ndarray) -> tuple[object, bytes]:
        known = self._parts.get(name)
        if known is not None and known[0] is owner:
            return known
        return owner, hashlib.sha256(np.ascontiguousarray(array).data).digest()
