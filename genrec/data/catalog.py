"""The item catalog: which item has which number, and what is known about it.

Axis letter: N items.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from genrec import artifacts, seeding
from genrec.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

KIND = "catalog"
SEPARATOR = " > "
_TAG = re.compile(r"<[a-zA-Z/!][^<>]*>")
_SPACE = re.compile(r"\s+")
_INT64 = 2**63
_AT_ONCE = 65_536  # ids


@dataclass(frozen=True, eq=False)
class ItemCatalog:
    """One version of an append-only list of items: row ``n`` is item number ``n`` for ever.

    ids: the N item ids, unique and not empty. fields: column name → N values, each column of one type: str,
    list of str, number or bool, with None for missing; "title" is always there. Text is as the source has it.
    retired: bool ``[N]`` tombstones, or None. parent: fingerprint of the version this one was appended to.
    Raises :class:`DataError` naming row and field for a duplicate id, a wrong type or a wrong length.
    Stability: stable.
    """

    ids: tuple[str, ...]
    fields: dict[str, list[Any]]
    retired: npt.NDArray[np.bool_] | None = None
    parent: str | None = None

    def __post_init__(self) -> None:
        _check_ids(self.ids)
        if "title" not in self.fields:
            raise DataError("catalog: the field 'title' is missing", hint="titles may be empty strings")
        for name, values in self.fields.items():
            if len(values) != len(self.ids):
                raise DataError(f"field {name!r}: expected {len(self.ids)} values, got {len(values)}")
            column_kind(name, values)
        if self.retired is not None and self.retired.shape != (len(self.ids),):
            raise DataError(f"retired: expected bool [{len(self.ids)}], got shape {self.retired.shape}")

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"ItemCatalog({len(self)} items, first {list(self.ids[:3])}, fields: {', '.join(self.fields)})"

    @property
    def N(self) -> int:
        """Number of items, retired ones included."""
        return len(self.ids)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the ids in order (32 hex digits): equal only for the same numbering."""
        return fingerprint(self.ids)

    @cached_property
    def _number_of(self) -> dict[str, int]:
        return {item_id: n for n, item_id in enumerate(self.ids)}

    def numbers(self, ids: Iterable[str], missing: Literal["error", "negative"] = "error") -> npt.NDArray[np.int32]:
        """The item number of each id, int32; an unknown id raises :class:`DataError` or becomes -1."""
        if missing not in ("error", "negative"):
            raise ConfigError(f"missing: expected 'error' or 'negative', got {missing!r}")
        wanted = ids if isinstance(ids, Sequence) else list(ids)
        if isinstance(wanted, str):
            raise ConfigError(f"ids: expected a sequence of ids, got the string {wanted!r}")
        get = self._number_of.get
        out = np.fromiter((get(i, -1) for i in wanted), np.int32, len(wanted))
        if missing == "error" and len(unknown := np.flatnonzero(out < 0)):
            first = [wanted[int(n)] for n in unknown[:3]]
            raise DataError(f"{len(unknown)} of {len(wanted)} ids are not in the catalog, first {first}")
        return out

    def ids_of(self, numbers: npt.ArrayLike) -> list[str]:
        """The id of each item number; raises :class:`DataError` outside 0..N-1 (so also for padding)."""
        wanted = np.asarray(numbers, np.int64).reshape(-1)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise DataError(
                f"item numbers: expected 0..{len(self) - 1}, got {wanted.min()} .. {wanted.max()}",
                hint="a later version of the catalog knows the numbers behind; -1 is padding",
            )
        return [self.ids[n] for n in wanted.tolist()]

    def text(self, field: str, *, clean: bool = False) -> list[str]:
        """A field as N strings: missing → "", lists joined by " > ", numbers as written.

        ``clean`` resolves HTML entities, strips tags and collapses white space; the stored text stays raw.
        """
        if field not in self.fields:
            raise DataError(f"field {field!r} is not in the catalog; fields: {', '.join(self.fields)}")
        texts = [_as_text(value) for value in self.fields[field]]
        return [clean_text(t) for t in texts] if clean else texts

    def order_keys(self, seed: int) -> npt.NDArray[np.uint64]:
        """A seeded hash of each id, uint64 ``[N]``: an order of items that carries no information."""
        return seeding.id_hash(self.ids, seed)

    def append(self, ids: Sequence[str], fields: Mapping[str, Sequence[Any]]) -> ItemCatalog:
        """A child version with these items behind the present ones; a field that one side lacks is None.

        Raises :class:`DataError` if an id is already taken or a field has another type than before.
        """
        new, n_new = tuple(ids), len(ids)
        for name, values in fields.items():
            if len(values) != n_new:
                raise DataError(f"field {name!r}: expected {n_new} values, got {len(values)}")
        taken = [i for i in new if i in self._number_of]
        if taken:
            raise DataError(
                f"{len(taken)} of {n_new} new ids are already in the catalog, first {taken[:3]}",
                hint="leave them out: an item that is there keeps its number and its identifier",
            )
        joined = {
            name: [*self.fields.get(name, [None] * len(self)), *fields.get(name, [None] * n_new)]
            for name in [*self.fields, *(f for f in fields if f not in self.fields)]
        }
        retired = None if self.retired is None else np.append(self.retired, np.zeros(n_new, np.bool_))
        return ItemCatalog((*self.ids, *new), joined, retired, parent=self.fingerprint)

    def retire(self, ids: Sequence[str]) -> ItemCatalog:
        """The same items and numbers with a tombstone on these: still known, never recommended."""
        retired = np.zeros(len(self), np.bool_) if self.retired is None else self.retired.copy()
        retired[self.numbers(ids)] = True
        return replace(self, retired=retired)

    def extends(self, other_fingerprint: str, n_items: int) -> bool:
        """Whether the first ``n_items`` of this catalog are exactly the catalog with that fingerprint."""
        return n_items <= len(self) and fingerprint(self.ids[:n_items]) == other_fingerprint

    def begins_with(self, other_fingerprint: str) -> bool:
        """Whether that fingerprint is this catalog's or that of its first items, however many: of an older version."""
        if other_fingerprint == self.fingerprint:
            return True
        digest = hashlib.sha256()
        for item_id in self.ids:
            digest.update(_hashed(item_id))
            if digest.copy().hexdigest()[:32] == other_fingerprint:
                return True
        return False

    def save(
        self,
        path: Path | str,
        *,
        overwrite: bool = False,
        recipe: dict[str, Any] | None = None,
        meta: dict[str, Any] | None = None,
    ) -> None:
        """Write an artifact of kind "catalog" (items.parquet).

        ``meta``: further entries of the manifest's meta, such as what a reader left out.
        """
        import pyarrow as pa

        columns = {"item_id": pa.array(self.ids, pa.string())}
        columns |= {name: _to_arrow(name, values) for name, values in self.fields.items()}
        meta = {**(meta or {}), "n_items": len(self), "parent": self.parent}
        with artifacts.write(
            path, kind=KIND, catalog=self.fingerprint, meta=meta, recipe=recipe, overwrite=overwrite
        ) as draft:
            artifacts.save_table(draft.dir / "items.parquet", pa.table(columns))
            if self.retired is not None:
                artifacts.save_arrays(draft.dir / "retired.safetensors", {"retired": self.retired})

    @classmethod
    def load(cls, path: Path | str) -> ItemCatalog:
        """Read an artifact of kind "catalog"; raises ArtifactError if it is damaged or another kind."""
        return artifacts.load(path, cls._read, kind=KIND)

    @classmethod
    def _read(cls, manifest: artifacts.Manifest) -> ItemCatalog:
        table = artifacts.load_table(manifest.path / "items.parquet")
        fields = {name: table.column(name).to_pylist() for name in table.column_names if name != "item_id"}
        retired = None
        if "retired.safetensors" in manifest.files:
            retired = artifacts.load_arrays(manifest.path / "retired.safetensors")["retired"]
        return cls(tuple(table.column("item_id").to_pylist()), fields, retired, manifest.meta["parent"])


def fingerprint(ids: Sequence[str]) -> str:
    """Hash of ids in order (32 hex digits); no two lists of ids share the hashed bytes (internal)."""
    digest = hashlib.sha256()
    for start in range(0, len(ids), _AT_ONCE):  # not all at once: of ten million ids that would be gigabytes
        digest.update(b"".join(map(_hashed, ids[start : start + _AT_ONCE])))
    return digest.hexdigest()[:32]


def _hashed(item_id: str) -> bytes:
    """An id as bytes that begin with their number, so that no two lists of ids have the same bytes."""
    raw = item_id.encode()
    return len(raw).to_bytes(4, "little") + raw


def clean_text(text: str) -> str:
    """Resolve HTML entities, strip tags, collapse white space (stable).

    >>> clean_text("Salt &amp; <b>Pepper</b>\\n Mill")
    'Salt & Pepper Mill'
    """
    plain = html.unescape(text)
    return _SPACE.sub(" ", _TAG.sub(" ", plain)).strip()


def column_kind(name: str, values: Sequence[Any]) -> Literal["text", "list", "int", "float", "bool", "empty"]:
    """The one type of a column's values; raises :class:`DataError` naming the first row that breaks it (internal)."""
    found = "empty"
    for row, value in enumerate(values):
        kind = _kind_of(value)
        if kind == "wrong":
            raise DataError(
                f"field {name!r}, item {row}: expected text, a list of text, a finite number, true/false or "
                f"null, got {type(value).__name__} {str(value)[:60]!r}"
            )
        if kind == "empty" or kind == found:
            continue
        if found == "empty":
            found = kind
        elif {found, kind} == {"int", "float"}:
            found = "float"
        else:
            raise DataError(f"field {name!r}, item {row}: expected {found} like the items before, got {kind}")
    return found  # type: ignore[return-value]


def _kind_of(value: Any) -> str:
    match value:
        case None:
            return "empty"
        case str():
            return "text" if is_text(value) else "wrong"
        case bool():
            return "bool"
        case int():
            return "int" if -_INT64 <= value < _INT64 else "wrong"
        case float():
            return "float" if np.isfinite(value) else "wrong"
        case list():
            return "list" if all(isinstance(v, str) and is_text(v) for v in value) else "wrong"
    return "wrong"


def is_text(value: str) -> bool:
    """Whether a string can be stored as UTF-8 (a lone surrogate cannot) (internal)."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_ids(ids: Sequence[str]) -> None:
    seen: dict[str, int] = {}
    for row, item_id in enumerate(ids):
        if not isinstance(item_id, str) or not item_id or "\0" in item_id or not is_text(item_id):
            raise DataError(f"item {row}: expected a non-empty text as id, got {item_id!r}")
        if seen.setdefault(item_id, row) != row:
            raise DataError(f"item {row}: id {item_id!r} is already item {seen[item_id]}")


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return SEPARATOR.join(value) if isinstance(value, list) else str(value)


def _to_arrow(name: str, values: list[Any]) -> pa.Array:
    import pyarrow as pa

    kinds = {
        "text": pa.string(),
        "empty": pa.string(),
        "list": pa.list_(pa.string()),
        "int": pa.int64(),
        "float": pa.float64(),
        "bool": pa.bool_(),
    }
    return pa.array(values, kinds[column_kind(name, values)])
