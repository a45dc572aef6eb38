"""What was changed while serving, in a journal: a server that starts again forgets no item that was taken out."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from pydantic import ValidationError

from genrec import disk
from genrec.data.catalog import ItemCatalog
from genrec.decoding.catalog_store import CatalogStore
from genrec.decoding.filters import ItemFilter
from genrec.decoding.snapshot import CatalogSnapshot
from genrec.errors import ArtifactError, ConfigError, GenrecError
from genrec.serving.schemas import FieldChange, FilterChange, ItemsChange, ModelChange

log = logging.getLogger(__name__)

KINDS: dict[str, Any] = {"retire": ItemsChange, "filter": FilterChange, "field": FieldChange, "model": ModelChange}
_MANY = 1000  # lines beyond what the state needs, from which on the file is written anew


class Changes:
    """An append-only file of changes, a JSON line each, on the disk before a change takes effect (internal).

    Beside changes of the catalog it says, as :attr:`gone_back`, to which earlier model the server has gone back.
    Items are named by id, so the changes hold for every version of a catalog; ids that a version lacks are passed over.
    file: None = kept in memory only. Only one server may have it; it is read, not held, where ``reading``. Raises
    ArtifactError for a line that is no change, and where another server has the file; a last line that was cut off by a
    crash was never acknowledged, and is dropped.
    """

    def __init__(self, file: Path | None = None, *, reading: bool = False) -> None:
        self._file, self._lock, self._held = file, Lock(), None
        self._retired: dict[str, None] = {}
        self._fields: dict[str, dict[str, float | None]] = {}
        self._filters: dict[str, dict[str, Any]] = {}
        self.gone_back: dict[str, str] | None = None
        self._n_lines = 0
        if file is None or (reading and not file.exists()):
            return
        if not reading:
            disk.make_folders(file.parent)
            self._held = _hold(file)
        whole = _lines(file) if file.exists() else []
        for change in whole:
            self._note(change)
        if reading:
            return
        with file.open("ab") as out:
            out.truncate(sum(len(_line(change)) for change in whole))
        disk.fsync(file.parent)
        self._n_lines = len(whole)
        self._shorten()

    @classmethod
    def of(cls, state: list[dict[str, Any]]) -> Changes:
        """What :meth:`state` gave, in memory."""
        found = cls()
        for change in state:
            found._note(change)
        return found

    def state(self) -> list[dict[str, Any]]:
        """The changes of the catalog that all of them come to: a handful of lines, whatever the number of changes."""
        found: list[dict[str, Any]] = [{"kind": "retire", "items": list(self._retired)}] if self._retired else []
        found += [{"kind": "field", "field": name, "values": values} for name, values in self._fields.items()]
        return [*found, *self._filters.values()]

    def add(self, change: dict[str, Any], store: CatalogStore) -> CatalogSnapshot:
        """Check a change against the store, keep it, let it take effect. Raises what the store raises, nothing kept."""
        with self._lock:
            applied(change, store.snapshot)  # refused here, it is not kept
            self._write(change)
            self._note(change)
            self._shorten()
            return store.change(lambda now: applied(change, now))

    def go_back(self, model: dict[str, str] | None) -> None:
        """Note which model answers in place of the one that is at the usual place; None = that one. Raises OSError.

        model: its ``place``, its ``digest`` and, ``instead_of``, the digest of the other.
        """
        with self._lock:
            if model == self.gone_back:
                return
            change = {"kind": "model", **(model or {"place": "", "digest": "", "instead_of": ""})}
            self._write(change)
            self._note(change)

    def replay(self, store: CatalogStore) -> None:
        """Let all changes take effect on another store at once.

        A filter or a field that its catalog cannot have is left out with a warning; a retired item never is.
        """
        with self._lock:
            changes = self.state()

        def all_of_them(now: CatalogSnapshot) -> CatalogSnapshot:
            for change in changes:
                try:
                    now = applied(change, now)
                except GenrecError as error:
                    if change["kind"] == "retire":
                        raise
                    log.warning("a change of the journal does not fit this catalog and is left out: %s", error)
            return now

        if changes:
            store.change(all_of_them)

    def close(self) -> None:
        """Let another server have the file."""
        disk.release(self._held)
        self._held = None

    def _note(self, change: dict[str, Any]) -> None:
        match change["kind"]:
            case "retire":
                self._retired |= dict.fromkeys(change["items"])
            case "field":
                self._fields.setdefault(change["field"], {}).update(change["values"])
            case "model":
                said = {name: value for name, value in change.items() if name != "kind"}
                self.gone_back = said if said["place"] else None
            case _:
                self._filters[change["name"]] = change

    def _write(self, change: dict[str, Any]) -> None:
        if self._file is None:
            return
        with self._file.open("ab", buffering=0) as out:
            size = out.seek(0, os.SEEK_END)
            try:
                line = _line(change)
                if out.write(line) != len(line):
                    raise OSError("the disk is full")
                os.fsync(out.fileno())
            except OSError:
                out.truncate(size)  # half a line would be read as a damaged file
                raise
        self._n_lines += 1

    def _shorten(self) -> None:
        """Where the file has many lines that say nothing any more, write it anew. It is complete before and after."""
        needed = bool(self._retired) + len(self._fields) + len(self._filters) + (self.gone_back is not None)
        if self._file is None or self._n_lines <= needed + _MANY:
            return
        state = [*self.state(), *([] if self.gone_back is None else [{"kind": "model", **self.gone_back}])]
        try:
            disk.atomic_write_bytes(self._file, b"".join(_line(change) for change in state))
        except OSError as error:
            log.warning("the journal cannot be written anew, and grows: %s", error)
        self._n_lines = needed  # also where it failed: tried again after as many lines, not after each


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
            raise ConfigError(f"change: expected one of {tuple(KINDS)}, got {kind!r}")


def unknown_ids(change: dict[str, Any], catalog: ItemCatalog) -> int:
    """How many ids of a change the catalog does not know (internal)."""
    ids = list(change.get("items") or change.get("values") or ())
    return int((catalog.numbers(ids, missing="negative") < 0).sum())


def _numbers(catalog: ItemCatalog, ids: list[str]) -> Any:
    found = catalog.numbers(ids, missing="negative")
    return found[found >= 0]


def _line(change: dict[str, Any]) -> bytes:
    return json.dumps(change).encode() + b"\n"


def _lines(file: Path) -> list[dict[str, Any]]:
    """The changes of a file, written as :func:`_line` writes them."""
    found = []
    lines = file.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if number == len(lines) and not line.endswith(b"\n"):
            break
        try:
            change = json.loads(line)
            said = {name: value for name, value in change.items() if name != "kind"}
            KINDS[change["kind"]].model_validate(said)
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            raise ArtifactError(
                f"{file}: line {number} is no change of a catalog",
                hint="move the file away to start from the catalog as the run has it",
            ) from error
        found.append(change)
    return found


def _hold(file: Path) -> int | None:
    """The lock that says whose journal this is; the file itself may be replaced."""
    beside = file.with_name(f".{file.name}.lock")
    beside.touch()
    try:
        return disk.hold(beside, wait=False)
    except BlockingIOError as error:
        raise ArtifactError(
            f"{file}: another server keeps its changes there", hint="give each server a --journal of its own"
        ) from error
