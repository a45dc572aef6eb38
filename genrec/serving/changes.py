"""What was changed while serving, in a journal: a server that starts again forgets no item that was taken out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from genrec.data.catalog import ItemCatalog
from genrec.decoding.catalog_store import CatalogStore
from genrec.decoding.filters import ItemFilter
from genrec.decoding.snapshot import CatalogSnapshot
from genrec.errors import ArtifactError, ConfigError

KINDS = ("retire", "filter", "field")


class Changes:
    """An append-only file of changes, a JSON line each, written through before a change takes effect (internal).

    Items are named by id, so the changes hold for every version of a catalog; ids that a version lacks are passed over.
    file: None = kept in memory only. Raises ArtifactError for a line that is no change; a last line that was cut off by
    a crash was never acknowledged, and is dropped.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file, self._lock = file, Lock()
        self._all: list[dict[str, Any]] = []
        if file is not None and file.exists():
            self._all = list(_read(file))
            _rewrite(file, self._all)

    def add(self, change: dict[str, Any], store: CatalogStore) -> CatalogSnapshot:
        """Check a change against the store, keep it, let it take effect. Raises what the store raises, nothing kept."""
        with self._lock:
            applied(change, store.snapshot)  # refused here, it is not kept
            self._write(change)
            self._all.append(change)
            return store.change(partial(applied, change))

    def replay(self, store: CatalogStore) -> None:
        """Let all changes take effect on another store."""
        with self._lock:
            for change in self._all:
                store.change(partial(applied, change))

    def _write(self, change: dict[str, Any]) -> None:
        if self._file is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(change) + "\n")
            out.flush()
            os.fsync(out.fileno())


def applied(change: dict[str, Any], snapshot: CatalogSnapshot) -> CatalogSnapshot:
    """The next version, with a change in it (internal). Raises ConfigError or DataError for one that does not fit."""
    catalog = snapshot.catalog
    assert catalog is not None, "a served snapshot has its catalog"
    match change["kind"]:
        case "retire":
            return snapshot.retiring(_numbers(catalog, change["items"]))
        case "filter" if change.get("condition") is not None:
            return snapshot.with_filters({change["name"]: change["condition"]})
        case "filter":
            allowed = ItemFilter.of_items(_numbers(catalog, change["items"]), len(catalog), catalog.fingerprint)
            return snapshot.with_filters({change["name"]: allowed})
        case "field":
            numbers = catalog.numbers(list(change["values"]), missing="negative")
            values = [np.nan if value is None else value for value in change["values"].values()]
            return snapshot.updating(change["field"], numbers[numbers >= 0], np.array(values)[numbers >= 0])
        case kind:
            raise ConfigError(f"change: expected one of {KINDS}, got {kind!r}")


def _numbers(catalog: ItemCatalog, ids: list[str]) -> Any:
    found = catalog.numbers(ids, missing="negative")
    return found[found >= 0]


def _read(file: Path) -> Iterator[dict[str, Any]]:
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            change = json.loads(line)
            if not isinstance(change, dict) or change.get("kind") not in KINDS:
                raise ValueError("not a change")
        except ValueError as error:
            if number == len(lines) and not line.endswith("\n"):
                return
            raise ArtifactError(
                f"{file}: line {number} is no change of a catalog ({error})",
                hint="move the file away to start from the catalog as the run has it",
            ) from error
        yield change


def _rewrite(file: Path, changes: list[dict[str, Any]]) -> None:
    """The file without a line that was cut off."""
    beside = file.with_suffix(".new")
    with beside.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(change) + "\n" for change in changes)
        out.flush()
        os.fsync(out.fileno())
    beside.replace(file)
