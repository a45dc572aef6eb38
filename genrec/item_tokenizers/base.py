"""What every item tokenizer is given and must offer.

Axes: N items, L levels, D embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from genrec import artifacts
from genrec.data.catalog import ItemCatalog
from genrec.embeddings.base import ItemEmbeddings
from genrec.embeddings.stream import StreamedEmbeddings, VectorTable
from genrec.errors import ConfigError, DataError, FingerprintMismatch
from genrec.item_tokenizers.codes import ItemCodes, check_catalog

if TYPE_CHECKING:
    from genrec.data.histories import Histories
    from genrec.item_tokenizers.slots import ItemSlots

KIND = "item_tokenizer"
SCHEMA = 1
Floats = npt.NDArray[np.float32]
_CHUNK = 8192  # rows of a table on the disk that are held at a time


@dataclass(frozen=True, eq=False)
class TokenizerSource:
    """All an item tokenizer may look at: who the items are and what is known about them (stable).

    catalog: fingerprint. item_keys: uint64 ``[N]``, seeded hashes of the item ids: the only order of items
    that may reach an identifier. embeddings: item vectors, in memory or streamed from the disk. train: item numbers
    of what users did in the *training* part. items: titles and fields. collaborative: vectors learned from the
    training part. Each of the four is of the same catalog, or None.

    Raises FingerprintMismatch for a part of another catalog, DataError for a wrong number of rows.
    """

    catalog: str
    item_keys: npt.NDArray[np.uint64]
    embeddings: ItemEmbeddings | StreamedEmbeddings | None = None
    train: Histories | None = None
    items: ItemCatalog | None = None
    collaborative: ItemEmbeddings | None = None

    def __post_init__(self) -> None:
        if self.item_keys.ndim != 1 or self.item_keys.dtype != np.uint64:
            raise DataError(f"item_keys: expected uint64 [N], got {self.item_keys.dtype} {self.item_keys.shape}")
        for name, found in (("embeddings", self.embeddings), ("collaborative", self.collaborative)):
            if found is not None:
                check_catalog(name, found.catalog, self.catalog)
                self._check_rows(name, len(found.vectors))
        if self.items is not None:
            self._check_rows("items", len(self.items))
        if self.train is not None and len(self.train.items):
            low, high = int(self.train.items.min()), int(self.train.items.max())
            if low < 0 or high >= self.n_items:
                raise DataError(f"train: expected item numbers 0..{self.n_items - 1}, got {low} .. {high}")

    def _check_rows(self, name: str, found: int) -> None:
        if found != self.n_items:
            raise DataError(f"{name}: expected {self.n_items} rows (one per item), got {found}")

    @classmethod
    def of(
        cls,
        catalog: ItemCatalog,
        *,
        embeddings: ItemEmbeddings | StreamedEmbeddings | None = None,
        train: Histories | None = None,
        collaborative: ItemEmbeddings | None = None,
        seed: int = 0,
    ) -> TokenizerSource:
        """The source for ``catalog``; ``seed`` decides the neutral order of its items."""
        return cls(catalog.fingerprint, catalog.order_keys(seed), embeddings, train, catalog, collaborative)

    @classmethod
    def of_vectors(cls, vectors: Floats) -> TokenizerSource:
        """Items of no catalog, known by their vectors ``[N, D]`` alone: what ``encode`` may be asked about."""
        return cls("", np.arange(len(vectors), dtype=np.uint64), ItemEmbeddings(vectors, "", {}))

    @property
    def n_items(self) -> int:
        """Number of items N."""
        return len(self.item_keys)

    def take(self, rows: npt.ArrayLike) -> TokenizerSource:
        """Only these items, as items of no catalog (``train`` is left out: its numbers would mean other items)."""
        at = np.asarray(rows, dtype=np.int64)
        items = self.items
        if items is not None:
            fields = {name: [values[n] for n in at.tolist()] for name, values in items.fields.items()}
            items = ItemCatalog(tuple(items.ids_of(at)), fields)
        return TokenizerSource(
            catalog="",
            item_keys=self.item_keys[at],
            embeddings=_rows(self.embeddings, at),
            items=items,
            collaborative=_rows(self.collaborative, at),
        )

    def vectors(self) -> Floats:
        """The item vectors, float32 ``[N, D]``; DataError when there are none or no items."""
        found = self.vector_table()
        whole: Floats = found if isinstance(found, np.ndarray) else found[:]
        return whole

    def vector_table(self) -> VectorTable:
        """The item vectors as rows to read piece by piece, in memory or on the disk; raises as :meth:`vectors`."""
        hint = "pass embeddings=... to TokenizerSource.of (genrec.embeddings)"
        found: VectorTable = self._known("embeddings", "item vectors", hint).vectors
        return found

    def collaborative_vectors(self) -> Floats:
        """Vectors learned from training interactions, float32 ``[N, C]``; DataError when there are none or no items."""
        hint = (
            "give the recipe one more block, as in --set 'collaborative={ppmi: {dim: 64}}'; in Python pass "
            "collaborative=... to TokenizerSource.of"
        )
        return self._known("collaborative", "collaborative vectors", hint).vectors  # type: ignore[no-any-return]

    def histories(self) -> Histories:
        """What users did in the training part; DataError when it is not known or there are no items."""
        return self._known("train", "training histories", "pass train=... to TokenizerSource.of")  # type: ignore[no-any-return]

    def fields(self) -> ItemCatalog:
        """Titles and fields of the items; DataError when they are not known or there are no items."""
        return self._known("items", "titles and fields of the items", "make the source with TokenizerSource.of")  # type: ignore[no-any-return]

    def _known(self, part: str, what: str, hint: str) -> Any:
        if self.n_items == 0:
            raise DataError("the catalog has no items: there is nothing to fit an item tokenizer on")
        if getattr(self, part) is None:
            raise DataError(f"this item tokenizer needs {what}, got none", hint=hint)
        return getattr(self, part)


def _rows(table: ItemEmbeddings | StreamedEmbeddings | None, at: npt.NDArray[np.int64]) -> ItemEmbeddings | None:
    return None if table is None else ItemEmbeddings(table.vectors[at], "", table.recipe)


@runtime_checkable
class ItemTokenizer(Protocol):
    """Chooses the identifier of every item; see :mod:`genrec.testing.tokenizer_contract` for the promises.

    A class is built from its settings: ``cls(settings)``. Settings is a frozen dataclass whose ``kind`` names
    the tokenizer (see :mod:`genrec.item_tokenizers.registry`). Stability: experimental.
    """

    Settings: ClassVar[type[Any]]
    can_encode_new: ClassVar[bool]

    @property
    def settings(self) -> Any:
        """The settings it was built with."""

    def fit(self, source: TokenizerSource, *, seed: int) -> ItemCodes:
        """Learn, and return the identifier of every item after the collision policy. Never mutates inputs."""

    def encode(self, source: TokenizerSource) -> ItemCodes:
        """Raw codes of any items, known or new, before any collision policy; NotFitted before ``fit``.

        Each item's codes depend on that item alone, and on what was learned by ``fit``.
        """

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write an ``item_tokenizer`` artifact."""

    @classmethod
    def load(cls, path: str | Path, *, catalog: str | None = None) -> Self:
        """Read it back; FingerprintMismatch unless it was fitted on the catalog ``catalog`` (None = any)."""


@runtime_checkable
class SlotTokenizer(Protocol):
    """Chooses the set identifier of every item; see :mod:`genrec.testing.slot_contract` for the promises.

    Like :class:`ItemTokenizer`, but what it gives are slots without an order (``gives = "slots"``), so whatever reads
    codes refuses it. Stability: experimental.
    """

    Settings: ClassVar[type[Any]]
    can_encode_new: ClassVar[bool]
    gives: ClassVar[Literal["slots"]]

    @property
    def settings(self) -> Any:
        """The settings it was built with."""

    @property
    def slot_names(self) -> tuple[str, ...]:
        """The names of the slots it gives, as sorted by :class:`ItemSlots`; known before ``fit``."""

    def fit(self, source: TokenizerSource, *, seed: int) -> ItemSlots:
        """Learn, and return the slots of every item. Never mutates inputs. Items may share one set."""

    def encode(self, source: TokenizerSource) -> ItemSlots:
        """Slots of any items, known or new; NotFitted before ``fit``.

        Each item's slots depend on that item alone, and on what was learned by ``fit``. A slot of which nothing is
        known about an item is all zeros.
        """

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write an ``item_tokenizer`` artifact."""

    @classmethod
    def load(cls, path: str | Path, *, catalog: str | None = None) -> Self:
        """Read it back; FingerprintMismatch unless it was fitted on the catalog ``catalog`` (None = any)."""


@dataclass(frozen=True, eq=False)
class TokenizerState:
    """What an item tokenizer keeps on disk: arrays in safetensors, everything else in JSON (never pickle).

    Stability: internal.
    """

    settings: dict[str, Any]
    catalog: str
    arrays: dict[str, npt.NDArray[Any]]
    meta: dict[str, Any]
    history: list[dict[str, Any]]


def save_state(path: str | Path, state: TokenizerState, *, overwrite: bool = False) -> None:
    """Write ``state`` as an ``item_tokenizer`` artifact (internal)."""
    with artifacts.write(
        Path(path),
        kind=KIND,
        schema=SCHEMA,
        recipe=state.settings,
        catalog=state.catalog,
        meta=state.meta,
        overwrite=overwrite,
    ) as draft:
        artifacts.save_arrays(draft.dir / "state.safetensors", state.arrays)
        if state.history:
            artifacts.save_json(draft.dir / "history.json", state.history)


def load_state(path: str | Path, *, kind: str, catalog: str | None) -> TokenizerState:
    """Read what :func:`save_state` wrote (internal).

    Raises ConfigError when the artifact holds another kind of item tokenizer, FingerprintMismatch when it was
    fitted on another catalog than ``catalog`` (None = any).
    """

    def read(manifest: artifacts.Manifest) -> TokenizerState:
        found = manifest.recipe.get("kind")
        if found != kind:
            raise ConfigError(
                f"{manifest.path}: expected an item tokenizer of kind {kind!r}, got {found!r}",
                hint="genrec.item_tokenizers.registry.load_tokenizer picks the class by itself",
            )
        if catalog is not None and manifest.catalog != catalog:
            raise FingerprintMismatch(
                f"the item tokenizer was fitted on catalog {(manifest.catalog or '')[:8]}, got {catalog[:8]}",
                hint="fit an item tokenizer on this catalog, or load with catalog=None",
            )
        history = manifest.path / "history.json"
        return TokenizerState(
            settings=dict(manifest.recipe),
            catalog=manifest.catalog or "",
            arrays=artifacts.load_arrays(manifest.path / "state.safetensors"),
            meta=dict(manifest.meta),
            history=artifacts.load_json(history) if history.exists() else [],
        )

    return artifacts.load(path, read, kind=KIND, schema=SCHEMA)


def check_at_least(settings: Any, limits: Mapping[str, float]) -> None:
    """Raise ConfigError for the first field of ``settings`` that is set (not None) and below its limit (internal)."""
    for field, least in limits.items():
        value = getattr(settings, field)
        if value is not None and not value >= least:
            raise ConfigError(f"{field}: expected {least} or more, got {value}")


@dataclass(frozen=True, eq=False)
class Scaling:
    """Per-dimension shift and scale of item vectors: ``(x - mean) / scale``, float32 ``[D]`` each (internal)."""

    mean: Floats
    scale: Floats

    @classmethod
    def fit(cls, x_ND: VectorTable, *, standardize: bool) -> Scaling:
        """Centre every dimension; with ``standardize`` also divide by its standard deviation.

        A constant dimension keeps scale 1 (it becomes 0). One pass, in pieces that are the same wherever the rows are.
        """
        total, square, largest = np.zeros(x_ND.shape[1]), np.zeros(x_ND.shape[1]), 1e-30
        for start in range(0, len(x_ND), _CHUNK):
            part = x_ND[start : start + _CHUNK]
            total += part.sum(axis=0, dtype=np.float64)
            if standardize:
                square += np.einsum("nd,nd->d", part, part, dtype=np.float64)
                largest = max(largest, float(np.abs(part).max()))
        mean = total / len(x_ND)
        scale = np.ones_like(mean)
        if standardize:
            deviation = np.sqrt(np.maximum(square / len(x_ND) - mean**2, 0))
            scale = np.where(deviation > 1e-6 * largest, deviation, 1.0)
        return cls(mean.astype(np.float32), scale.astype(np.float32))

    def apply(self, x_ND: Floats) -> Floats:
        """Scaled copy, float32 ``[N, D]``; DataError for another width than it was fitted on."""
        if x_ND.ndim != 2 or x_ND.shape[1] != len(self.mean):
            raise DataError(f"vectors: expected [N, {len(self.mean)}], got {x_ND.shape}")
        out: Floats = x_ND - self.mean
        out /= self.scale
        return out

    def steps(self, books: Sequence[Floats]) -> tuple[Floats, ...]:
        """Codebooks ``[K, D]`` of scaled vectors as those of the vectors themselves, which add up to x - mean."""
        if (self.scale == 1).all():
            return tuple(books)
        return tuple(np.asarray(book * self.scale, dtype=np.float32) for book in books)
