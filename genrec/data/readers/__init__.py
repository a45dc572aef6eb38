"""Readers: data in somebody's format → a catalog and interactions, with an account of every row.

One entry, :func:`read`; one file per format.
"""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType

from genrec.data.readers.base import Loaded, OnError, ReaderSettings, Reject, Rejected, RowCount, log
from genrec.errors import ConfigError

FORMATS = ("neutral", "amazon", "movielens", "recbole", "tabular")

_COLUMNS = ("user_column", "item_column", "time_column", "title_column")
_WITHOUT_EFFECT = {
    "neutral": _COLUMNS,
    "amazon": (*_COLUMNS, "delimiter"),
    "movielens": (*_COLUMNS, "context", "delimiter"),
    "recbole": ("delimiter",),
    "tabular": (),
}

__all__ = [
    "FORMATS",
    "Loaded",
    "OnError",
    "ReaderSettings",
    "Reject",
    "Rejected",
    "RowCount",
    "check",
    "item_fields",
    "read",
    "source_files",
]


def read(settings: ReaderSettings, on_error: OnError = "fail") -> Loaded:
    """Read a data set; every row ends up in the result or, with a reason, in ``rejected``.

    on_error: "fail" raises :class:`DataError` at the first bad row (file, line, field, what to do); "skip"
    leaves bad rows out and counts them. Missing files, broken gzip data, a wrong header and a file without a
    single usable row are errors either way. Stability: stable.
    """
    reader = _reader(settings)
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    for name in _WITHOUT_EFFECT[settings.format]:
        if getattr(settings, name) != defaults[name]:
            log.warning("%s has no effect on data in the format %s", name, settings.format)
    loaded: Loaded = reader.read(settings, on_error)
    return loaded


def check(settings: ReaderSettings) -> None:
    """Raise :class:`DataError` for a missing file and, of neutral and tabular data, a wrong header (stable).

    No row is read.
    """
    reader = _reader(settings)
    getattr(reader, "check", reader.files)(settings)


def item_fields(settings: ReaderSettings) -> list[str] | None:
    """Names of the fields that the catalog will have, where a header tells them; None = not known (stable)."""
    reader = _reader(settings)
    found: list[str] | None = reader.item_fields(settings) if hasattr(reader, "item_fields") else None
    return found


def source_files(settings: ReaderSettings) -> list[Path]:
    """The files that :func:`read` reads, items first; raises :class:`DataError` where it would miss one (stable)."""
    found = _reader(settings).files(settings)
    return [path for path in (found.items, found.log) if path is not None]


def _reader(settings: ReaderSettings) -> ModuleType:
    if settings.format not in FORMATS:
        raise ConfigError(f"format: expected one of {', '.join(FORMATS)}, got {settings.format!r}")
    return importlib.import_module(f"genrec.data.readers.{settings.format}")
