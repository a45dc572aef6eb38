"""Set identifiers of items: a few named vectors per item that have no order (numpy only, no torch).

Axes: N items, n slots, D width, K codes of a slot.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.errors import DataError
from genrec.item_tokenizers.code_checks import check_codebooks, check_range, check_shape
from genrec.item_tokenizers.codes import ItemCodes, check_catalog, narrowest, row_numbers, shared_groups
from genrec.item_tokenizers.quantizers.kmeans import first_equal
from genrec.item_tokenizers.slot_report import slot_report

KIND = "slots"
SCHEMA = 1
COLLABORATIVE = "collaborative"
Floats = npt.NDArray[np.float32]


def semantic_name(number: int) -> str:
    """The name of the semantic slot ``number`` = 1, 2, … (stable)."""
    return f"semantic {number}"


@dataclass(frozen=True, eq=False)
class ItemSlots:
    """The set identifier of every item: one vector for each of n named slots; the slots have no order.

    vectors: ``[N, n, D]`` of any floating type, finite; stored as float32. All zeros in a slot: nothing is known about
    the item there (``known``). names: n different names; ``collaborative`` and ``semantic 1``, ``semantic 2``, …
    (:func:`semantic_name`) have a meaning to models and reports, others may be added.
    catalog: fingerprint of the catalog whose item numbers index the rows.
    codes, codebooks: for a discrete identifier the code of every item in every slot, integers ``[N, n]`` (stored as
    the narrowest unsigned dtype), and the vectors they stand for, one float32 ``[K, D]`` per slot (K may differ).
    Then ``vectors[i, s] == codebooks[s][codes[i, s]]`` exactly; :meth:`of_codes` looks them up.

    In whatever order slots are given, they are stored sorted by name (numbers inside names by value), so that order
    reaches neither equality, fingerprint, report nor file. A slot is its name: to a model that reads an item the
    vectors are a set, but in scoring, query and vector of the same slot meet (SETRec; Lin et al. 2025,
    2502.10833), so slots are not interchangeable, and they are no levels: nothing is a prefix.

    Memory: ``4 n D`` bytes an item, and n codes for a discrete one (whose file holds codes and codebooks only).
    Raises DataError for wrong shapes, types, names or codes, and for vectors that are not those of their codes.
    Stability: experimental.
    """

    vectors: Floats
    names: tuple[str, ...]
    catalog: str
    codes: npt.NDArray[Any] | None = None
    codebooks: tuple[Floats, ...] = ()

    def __post_init__(self) -> None:
        vectors = _checked_vectors(self.vectors)
        order = _checked_order(tuple(self.names), vectors.shape[1])
        in_order = order == sorted(order)
        object.__setattr__(self, "names", tuple(self.names[at] for at in order))
        object.__setattr__(self, "vectors", vectors if in_order else np.ascontiguousarray(vectors[:, order]))
        if self.codes is None:
            if self.codebooks:
                raise DataError("codebooks: expected none without codes")
            return
        codes, books = np.asarray(self.codes), tuple(self.codebooks)
        _check_discrete(codes, books, vectors)
        object.__setattr__(self, "codebooks", tuple(books[at] for at in order))
        object.__setattr__(self, "codes", np.ascontiguousarray(codes[:, order], dtype=narrowest(max(map(len, books)))))

    @classmethod
    def of_codes(
        cls, codes_Nn: npt.ArrayLike, codebooks: Sequence[Floats], names: Sequence[str], catalog: str
    ) -> ItemSlots:
        """Discrete slots: the vectors are looked up in ``codebooks``, one float32 ``[K, D]`` per slot."""
        codes, books = np.asarray(codes_Nn), tuple(codebooks)
        _check_codes(codes, books)
        vectors = np.empty((len(codes), len(books), books[0].shape[1]), dtype=np.float32)
        for slot, book in enumerate(books):
            vectors[:, slot] = book[codes[:, slot]]
        return cls(vectors, tuple(names), catalog, codes, books)

    def __len__(self) -> int:
        return len(self.vectors)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ItemSlots) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @property
    def n_items(self) -> int:
        """Number of items N."""
        return len(self.vectors)

    @property
    def n_slots(self) -> int:
        """Number of slots n."""
        return len(self.names)

    @property
    def dim(self) -> int:
        """Width D of the vectors."""
        return int(self.vectors.shape[2])

    @property
    def discrete(self) -> bool:
        """True when every vector is a codeword."""
        return self.codes is not None

    @property
    def slot_sizes(self) -> tuple[int, ...]:
        """Number of codes K of each slot, in the order of ``names``; empty unless discrete."""
        return tuple(map(len, self.codebooks))

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Where something is known, bool ``[N, n]``: the vector is not all zeros."""
        return np.asarray(self.vectors.any(axis=2))

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that depend on the catalog and on every slot: its name, and its vectors or its codes and
        codebook; not on the order of slots, nor on the sign of zeros."""
        digest = hashlib.sha256(repr((self.catalog, len(self), self.dim, self.discrete)).encode())
        for at, name in enumerate(self.names):
            digest.update(repr(name).encode())
            if self.codes is None:
                digest.update(_plain_bytes(self.vectors[:, at]))
            else:
                digest.update(repr(self.slot_sizes[at]).encode())
                digest.update(self.codes[:, at].astype("<u4").tobytes())
                digest.update(_plain_bytes(self.codebooks[at]))
        return digest.hexdigest()[:32]

    def slot(self, name: str) -> Floats:
        """The vectors of one slot, float32 ``[N, D]`` (a view); DataError for a name that is not there."""
        return self.vectors[:, self._at(name)]

    def select(self, names: Sequence[str]) -> ItemSlots:
        """Only these slots, whatever their order; DataError for a name that is not there or is given twice."""
        at = [self._at(name) for name in names]
        return ItemSlots(
            self.vectors[:, at],
            tuple(names),
            self.catalog,
            None if self.codes is None else self.codes[:, at],
            tuple(self.codebooks[k] for k in at) if self.discrete else (),
        )

    def take(self, items: npt.ArrayLike) -> ItemSlots:
        """The slots where item n has the vectors that ``items[n]`` has here (int ``[N]``)."""
        at = np.asarray(items, dtype=np.int64)
        return replace(self, vectors=self.vectors[at], codes=None if self.codes is None else self.codes[at])

    def check(self, catalog: str, n_items: int) -> ItemSlots:
        """Return self if the slots belong to that catalog of ``n_items``; FingerprintMismatch or DataError if not."""
        check_catalog("slots", self.catalog, catalog)
        if len(self) != n_items:
            raise DataError(f"slots: expected {n_items} rows (one per item), got {len(self)}")
        return self

    def collision_ids(self) -> npt.NDArray[np.int32]:
        """Dense number of every item's set, int32 ``[N]``: equal exactly where all slots are equal.

        Discrete identifiers are equal where their codewords are, others where their vectors are, to the last bit.
        """
        if self.codes is not None:
            return row_numbers(self.first_codes(self.codes))
        first = _first_equal_item(self.vectors.reshape(len(self), self.n_slots * self.dim))
        return np.unique(first, return_inverse=True)[1].astype(np.int32)

    def first_codes(self, codes_Nn: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The same sets with the first of equal codewords in place of each code: what a model can tell apart."""
        columns = [first_equal(book)[codes_Nn[:, at]] for at, book in enumerate(self.codebooks)]
        return np.stack(columns, axis=1).astype(codes_Nn.dtype)

    def collisions(self) -> list[npt.NDArray[np.int32]]:
        """Groups of two or more items that share one set: int32 item numbers, each ascending.

        They get equal scores from any model, and no model can tell them apart in a history.
        """
        return shared_groups(self.collision_ids())

    def codes_for_metrics(self) -> ItemCodes:
        """The codes of a discrete identifier as levels, for metrics of usage and collisions only.

        Slots are no levels. An index, a beam search, or any metric of prefixes would read an order into the
        alphabet of the names. Raises DataError for continuous slots.
        """
        if self.codes is None:
            raise DataError(
                "these slots are continuous: they have no codes",
                hint="use the discrete variant of the item tokenizer (setrec: level_size: 256)",
            )
        return ItemCodes(self.codes, self.slot_sizes, self.catalog, codebooks=self.codebooks)

    def report(self) -> dict[str, Any]:
        """What to print about a slot tokenizer's result: norms, diversity, unknown slots, use of codes, collisions."""
        return slot_report(self)

    def save(
        self,
        path: str | Path,
        *,
        recipe: dict[str, Any] | None = None,
        parents: dict[str, str] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write a ``slots`` artifact: ``slots.safetensors``, with names and report in the manifest."""
        from genrec import artifacts

        arrays: dict[str, npt.NDArray[Any]] = {"vectors": self.vectors}
        if self.codes is not None:
            books = {f"codebook.{slot}": book for slot, book in enumerate(self.codebooks)}
            arrays = {"codes": self.codes, **books}
        with artifacts.write(
            Path(path),
            kind=KIND,
            schema=SCHEMA,
            recipe=recipe,
            catalog=self.catalog,
            parents=parents,
            meta={"names": list(self.names), "fingerprint": self.fingerprint, "report": self.report()},
            overwrite=overwrite,
        ) as draft:
            artifacts.save_arrays(draft.dir / "slots.safetensors", arrays)

    @classmethod
    def load(cls, path: str | Path, *, catalog: str | None = None) -> ItemSlots:
        """Read a ``slots`` artifact.

        catalog: fingerprint the slots must belong to; FingerprintMismatch is raised when they do not.
        """
        from genrec import artifacts

        def read(manifest: artifacts.Manifest) -> ItemSlots:
            check_catalog("slots", manifest.catalog or "", catalog)
            arrays = artifacts.load_arrays(manifest.path / "slots.safetensors")
            names = tuple(manifest.meta["names"])
            if "codes" not in arrays:
                return cls(arrays["vectors"], names, manifest.catalog or "")
            books = [arrays[f"codebook.{slot}"] for slot in range(len(names))]
            return cls.of_codes(arrays["codes"], books, names, manifest.catalog or "")

        return artifacts.load(path, read, kind=KIND, schema=SCHEMA)

    def _at(self, name: str) -> int:
        if name not in self.names:
            raise DataError(f"slot: expected one of {', '.join(map(repr, self.names))}, got {name!r}")
        return self.names.index(name)


def _checked_vectors(given: npt.ArrayLike) -> Floats:
    vectors = np.asarray(given)
    if vectors.ndim != 3 or 0 in vectors.shape[1:]:
        raise DataError(f"vectors: expected shape [N, n, D] with n, D > 0, got {list(vectors.shape)}")
    if vectors.dtype.kind != "f":
        raise DataError(f"vectors: expected a floating type, got {vectors.dtype}")
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(vectors, dtype=np.float32)
    finite = np.isfinite(narrow).all(axis=2)
    if not finite.all():
        item, slot = (int(x) for x in np.argwhere(~finite)[0])
        raise DataError(
            f"vectors: item {item}, slot {slot}: not finite in float32 ({int((~finite).sum())} such vectors)"
        )
    return narrow


def _checked_order(names: tuple[Any, ...], n_slots: int) -> list[int]:
    """Positions of the slots, sorted by name; DataError unless every slot has a name of its own."""
    if len(names) != n_slots:
        raise DataError(f"names: expected {n_slots}, one per slot, got {len(names)}: {names}")
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"names: expected texts that are not empty, got {name!r}")
        if names.count(name) > 1:
            raise DataError(f"names: {name!r} names {names.count(name)} slots")
    return sorted(range(n_slots), key=lambda at: _sort_key(names[at]))


def _sort_key(name: str) -> tuple[list[tuple[int, str]], str]:
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if odd % 2 else (-1, part) for odd, part in enumerate(parts)], name


def _check_codes(codes: npt.NDArray[Any], books: tuple[Any, ...]) -> None:
    check_shape(codes, tuple(map(len, books)), False)
    check_range(codes, tuple(map(len, books)))
    check_codebooks(books, tuple(map(len, books)))
    widths = [book.shape[1] for book in books]
    if len(set(widths)) > 1:
        raise DataError(f"codebooks: expected one width for all slots, got {widths}")


def _check_discrete(codes: npt.NDArray[Any], books: tuple[Any, ...], vectors: Floats) -> None:
    _check_codes(codes, books)
    expected = (len(vectors), vectors.shape[1])
    if codes.shape != expected or books[0].shape[1] != vectors.shape[2]:
        raise DataError(
            f"codes: expected shape {expected} and codewords of width {vectors.shape[2]}, got {codes.shape} and "
            f"width {books[0].shape[1]}"
        )
    for slot, book in enumerate(books):
        differs = (vectors[:, slot] != book[codes[:, slot]]).any(axis=1)
        if differs.any():
            raise DataError(
                f"vectors: item {int(differs.argmax())}, slot {slot}: not the codeword of its code",
                hint="ItemSlots.of_codes looks the vectors up",
            )


def _plain_bytes(rows: Floats) -> bytes:
    return (rows + np.float32(0)).astype("<f4").tobytes()  # + 0: -0.0 equals 0.0


def _first_equal_item(rows_NX: Floats) -> npt.NDArray[np.int32]:
    """The first row that equals each row. Equal rows have equal hashes; rows with equal hashes are compared."""
    first_N = first_equal(rows_NX).copy()
    alike = np.flatnonzero(np.bincount(first_N, minlength=len(first_N))[first_N] > 1)
    if len(alike):
        rows = np.ascontiguousarray(rows_NX[alike] + np.float32(0))
        as_bytes = rows.view(np.dtype((np.void, rows.shape[1] * rows.itemsize)))[:, 0]
        _, where, inverse = np.unique(as_bytes, return_index=True, return_inverse=True)
        first_N[alike] = alike[where][inverse]
    return first_N
