"""Discrete identifiers of items: one short row of codes per item (numpy only, no torch).

Axes: N items, L levels, K codes of a level.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.errors import DataError, FingerprintMismatch
from genrec.item_tokenizers.code_checks import (
    check_codebooks,
    check_pieces,
    check_range,
    check_shape,
    checked_lengths,
)

KIND = "codes"
SCHEMA = 1


@dataclass(frozen=True, eq=False)
class ItemCodes:
    """The identifier of every item: row ``n`` holds the codes of item number ``n``.

    codes: ``[N, L]`` integers; any integer dtype is accepted and stored as the narrowest unsigned one.
    level_sizes: number of codes K of each level; ``codes[n, l] < level_sizes[l]``.
    catalog: fingerprint of the catalog whose item numbers index the rows.
    lengths: ``[N]``, 1..L, for identifiers of unequal length (codes beyond the length are 0); None = all L.
    shared_vocabulary: code ``k`` means the same at every level (then all level sizes are equal).
    codebooks: the vector behind each code, float32 ``[K, D]`` for each of the first levels; none where the item
    tokenizer has no such vectors (and for levels such as a suffix). Of quantizers of the item vectors they add up to
    these but for the mean, unscaled; of networks they lie in an inner space. A model's tokens may start from them.
    pieces: the text behind each code of a shared vocabulary, for identifiers made of text (titles, digits); none
    where codes have no text. A language model may write them with its own tokens.

    Raises DataError for codes out of range, wrong shapes, or garbage beyond a row's length.
    Stability: stable.
    """

    codes: npt.NDArray[Any]
    level_sizes: tuple[int, ...]
    catalog: str
    lengths: npt.NDArray[np.uint8] | None = None
    shared_vocabulary: bool = False
    codebooks: tuple[npt.NDArray[np.float32], ...] = ()
    pieces: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        codes = np.asarray(self.codes)
        sizes = tuple(int(k) for k in self.level_sizes)
        check_shape(codes, sizes, self.shared_vocabulary)
        check_range(codes, sizes)
        if self.lengths is not None:
            lengths = checked_lengths(self.lengths, codes)
            object.__setattr__(self, "lengths", None if (lengths == len(sizes)).all() else lengths)
        check_codebooks(self.codebooks, sizes)
        check_pieces(self.pieces, sizes, self.shared_vocabulary)
        object.__setattr__(self, "level_sizes", sizes)
        object.__setattr__(self, "codes", np.ascontiguousarray(codes, dtype=narrowest(max(sizes))))

    @classmethod
    def from_int(
        cls,
        codes_NL: npt.ArrayLike,
        level_sizes: tuple[int, ...],
        catalog: str,
        *,
        shared_vocabulary: bool = False,
        pieces: tuple[str, ...] = (),
    ) -> ItemCodes:
        """Codes from signed integers ``[N, L]`` in which ``-1`` pads the end of short identifiers."""
        given = np.asarray(codes_NL)
        if given.ndim != 2:
            raise DataError(f"codes: expected shape [N, L], got {given.shape}")
        lengths = (given != -1).sum(axis=1)
        beyond = np.arange(given.shape[1])[None, :] >= lengths[:, None]
        if ((given == -1) != beyond).any():
            row = int(((given == -1) != beyond).any(axis=1).argmax())
            raise DataError(f"codes: row {row} has -1 before a code: {given[row].tolist()}")
        return cls(
            codes=np.where(beyond, 0, given),
            level_sizes=level_sizes,
            catalog=catalog,
            lengths=lengths if beyond.any() else None,
            shared_vocabulary=shared_vocabulary,
            pieces=pieces,
        )

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def n_items(self) -> int:
        """Number of items N."""
        return len(self.codes)

    @property
    def n_levels(self) -> int:
        """Number of levels L (of the longest identifier)."""
        return len(self.level_sizes)

    @property
    def sizes_text(self) -> str:
        """The level sizes in words: ``256 x 256 x 18``, or ``12 levels of 84``."""
        sizes = [f"{size:,}" for size in self.level_sizes]
        return f"{len(sizes)} levels of {sizes[0]}" if len(sizes) > 5 and len(set(sizes)) == 1 else " x ".join(sizes)

    @property
    def ragged(self) -> bool:
        """True when some identifier is shorter than L: such identifiers need an end-of-sequence edge."""
        return self.lengths is not None

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that depend on every code, the level sizes, the catalog and the pieces (not on codebooks)."""
        digest = hashlib.sha256(repr((self.catalog, self.level_sizes, self.shared_vocabulary)).encode())
        digest.update(np.ascontiguousarray(self.as_int(), dtype="<i4").tobytes())
        if self.pieces:
            digest.update(repr(self.pieces).encode())
        return digest.hexdigest()[:32]

    def take(self, items: npt.ArrayLike) -> ItemCodes:
        """The codes where item n has the identifier that ``items[n]`` has here (int ``[N]``)."""
        at = np.asarray(items, dtype=np.int64)
        return replace(self, codes=self.codes[at], lengths=None if self.lengths is None else self.lengths[at])

    def extends(self, fingerprint: str, n_items: int, catalog: str) -> bool:
        """Whether the first ``n_items`` rows are exactly the codes with that fingerprint, of that catalog.

        Then level sizes, pieces and raggedness are the same too: a model of those codes can write all of these.
        """
        if not 0 < n_items <= len(self):
            return False
        lengths = None if self.lengths is None else self.lengths[:n_items]
        head = replace(self, codes=self.codes[:n_items], lengths=lengths, catalog=catalog)
        return head.ragged == self.ragged and head.fingerprint == fingerprint

    def as_int(self) -> npt.NDArray[np.int32]:
        """The codes as a new int32 ``[N, L]``, ``-1`` beyond the length of short identifiers."""
        out = self.codes.astype(np.int32)
        if self.lengths is not None:
            out[np.arange(self.n_levels)[None, :] >= self.lengths[:, None]] = -1
        return out

    def collision_ids(self) -> npt.NDArray[np.int32]:
        """Dense identifier number of every item, int32 ``[N]``: equal exactly where identifiers are equal.

        Numbers follow the lexicographic order of the identifiers (a shorter one before its extensions).
        """
        return row_numbers(self.as_int())

    def collisions(self) -> list[npt.NDArray[np.int32]]:
        """Groups of two or more items that share one identifier: int32 item numbers, each ascending."""
        return shared_groups(self.collision_ids())

    def level_counts(self) -> list[npt.NDArray[np.int64]]:
        """How many items use each code: one int64 ``[K]`` per level (shorter rows do not count)."""
        codes = self.as_int()
        return [
            np.bincount(codes[codes[:, level] >= 0, level], minlength=size)
            for level, size in enumerate(self.level_sizes)
        ]

    def level_usage(self) -> npt.NDArray[np.float64]:
        """Share of each level's codes that at least one item uses, ``[L]`` in 0..1."""
        return np.array([np.count_nonzero(counts) / len(counts) for counts in self.level_counts()])

    def perplexity(self) -> npt.NDArray[np.float64]:
        """``exp(H)`` of the code distribution of each level, ``[L]``: 1 = one code used, K = all alike."""
        return np.array([_perplexity(counts) for counts in self.level_counts()])

    def report(self) -> dict[str, Any]:
        """What to print about any tokenizer's result: sizes, usage, perplexity, how many items collide."""
        ids = self.collision_ids()
        group = np.bincount(ids) if len(ids) else np.zeros(1, dtype=np.int64)
        n = max(self.n_items, 1)
        return {
            "n_items": self.n_items,
            "n_levels": self.n_levels,
            "level_sizes": list(self.level_sizes),
            "level_usage": [round(float(x), 6) for x in self.level_usage()],
            "perplexity": [round(float(x), 4) for x in self.perplexity()],
            "distinct_share": int(np.count_nonzero(group)) / n,
            "largest_group": int(group.max()),
            "collision_share": int(group[group > 1].sum()) / n,
        }

    def save(
        self,
        path: str | Path,
        *,
        recipe: dict[str, Any] | None = None,
        parents: dict[str, str] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write a ``codes`` artifact: ``codes.safetensors``, any ``pieces.json``; the report is in the manifest."""
        from genrec import artifacts

        meta = {
            "level_sizes": list(self.level_sizes),
            "shared_vocabulary": self.shared_vocabulary,
            "report": self.report(),
        }
        arrays = {"codes": self.codes}
        if self.lengths is not None:
            arrays["lengths"] = self.lengths
        arrays |= {f"codebook.{level}": book for level, book in enumerate(self.codebooks)}
        with artifacts.write(
            Path(path),
            kind=KIND,
            schema=SCHEMA,
            recipe=recipe,
            catalog=self.catalog,
            parents=parents,
            meta=meta,
            overwrite=overwrite,
        ) as draft:
            artifacts.save_arrays(draft.dir / "codes.safetensors", arrays)
            if self.pieces:
                artifacts.save_json(draft.dir / "pieces.json", list(self.pieces))

    @classmethod
    def load(cls, path: str | Path, *, catalog: str | None = None) -> ItemCodes:
        """Read a ``codes`` artifact.

        catalog: fingerprint the codes must belong to; FingerprintMismatch is raised when they do not.
        """
        from genrec import artifacts

        def read(manifest: artifacts.Manifest) -> ItemCodes:
            check_catalog("codes", manifest.catalog or "", catalog)
            arrays = artifacts.load_arrays(manifest.path / "codes.safetensors")
            pieces = manifest.path / "pieces.json"
            return cls(
                codes=arrays["codes"],
                level_sizes=tuple(manifest.meta["level_sizes"]),
                catalog=manifest.catalog or "",
                lengths=arrays.get("lengths"),
                shared_vocabulary=bool(manifest.meta["shared_vocabulary"]),
                codebooks=tuple(arrays[f"codebook.{n}"] for n in range(sum("codebook" in name for name in arrays))),
                pieces=tuple(artifacts.load_json(pieces)) if pieces.exists() else (),
            )

        return artifacts.load(path, read, kind=KIND, schema=SCHEMA)


def narrowest(size: int) -> npt.DTypeLike:
    """The narrowest unsigned dtype that holds ``0 .. size-1`` (internal)."""
    return np.uint8 if size <= 1 << 8 else np.uint16 if size <= 1 << 16 else np.uint32


def shared_groups(ids_N: npt.NDArray[np.int32]) -> list[npt.NDArray[np.int32]]:
    """Items with equal (dense) numbers: int32 item numbers of every group of two or more, each ascending (internal)."""
    counts = np.bincount(ids_N) if len(ids_N) else np.zeros(0, dtype=np.int64)
    together = np.flatnonzero(counts[ids_N] > 1)  # of millions of lone items no list is made
    order = together[np.argsort(ids_N[together], kind="stable")].astype(np.int32)
    return np.split(order, np.cumsum(counts[counts > 1])[:-1]) if len(order) else []


def row_numbers(rows_NL: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Dense lexicographic rank of every row, int32 ``[N]``; equal rows share a number (internal)."""
    n = len(rows_NL)
    if n == 0 or rows_NL.shape[1] == 0:
        return np.zeros(n, dtype=np.int32)
    order = np.lexsort(rows_NL.T[::-1])
    ordered = rows_NL[order]
    ids = np.zeros(n, dtype=np.int32)
    ids[order[1:]] = np.cumsum((ordered[1:] != ordered[:-1]).any(axis=1))
    return ids


def check_catalog(what: str, found: str, expected: str | None) -> None:
    """Raise FingerprintMismatch unless ``expected`` is None or equals ``found`` (internal)."""
    if expected is not None and found != expected:
        raise FingerprintMismatch(
            f"{what} belong to catalog {found[:8] or '(none)'}, got catalog {expected[:8]}",
            hint="make the codes anew for this catalog (`genrec run` does)",
        )


def _perplexity(counts: npt.NDArray[np.int64]) -> float:
    used = counts[counts > 0]
    if not len(used):
        return 0.0
    p = used / used.sum()
    return float(np.exp(-(p * np.log(p)).sum()))
