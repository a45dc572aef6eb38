"""Identifiers as categorical features of a ranking model: every item becomes rows of an embedding table.

The three kinds are groups of codes (:class:`NgramSettings`), prefixes (:class:`PrefixSettings`) and runs of codes that
SentencePiece learns from how often items are used (:class:`SentencePieceSettings`). The vector of an item is the sum
of its rows, as ``torch.nn.EmbeddingBag`` with ``mode="sum"`` makes it; docs/pieces.md shows it.

Axes: N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec import artifacts
from genrec.data.catalog import ItemCatalog
from genrec.data.histories import Histories
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.codes import ItemCodes, check_catalog
from genrec.item_tokenizers.piece_tables import (
    LearnedOn,
    NgramSettings,
    PieceFeatures,
    PieceTable,
    PrefixSettings,
    SpanPieces,
)
from genrec.item_tokenizers.sentence_pieces import SentencePieces, SentencePieceSettings, checked_counts

__all__ = [
    "KINDS",
    "NgramSettings",
    "PieceFeatures",
    "PieceTable",
    "PrefixSettings",
    "SentencePieceSettings",
    "SentencePieces",
    "SpanPieces",
    "learn_pieces",
    "load_pieces",
    "load_rows",
    "piece_report",
    "save_pieces",
    "use_counts",
]

KIND = "pieces"
SCHEMA = 1
Settings = NgramSettings | PrefixSettings | SentencePieceSettings
Pieces = SpanPieces | SentencePieces
KINDS: dict[str, type[Settings]] = {
    "ngram": NgramSettings,
    "prefix": PrefixSettings,
    "sentencepiece": SentencePieceSettings,
}
_MODEL = "sentencepiece.model"


def learn_pieces(codes: ItemCodes, settings: Settings, *, counts: npt.ArrayLike | None = None, seed: int = 0) -> Pieces:
    """Pieces for ``codes``, whose ``encode`` gives the rows of any codes of the same levels (experimental).

    counts: int ``[N]``, how often each item is used in *training* (see :func:`use_counts`); only SentencePiece learns
    from it; None = once each. seed: of the hash of tables that are too large; nothing else is random.
    Raises MissingExtra for SentencePiece without its package, DataError for counts of other items or all zero.

    >>> codes = ItemCodes(np.array([[0, 1, 1], [0, 1, 0]]), (2, 2, 2), "")
    >>> learn_pieces(codes, NgramSettings(n=2)).encode(codes).to_lists()
    [[1, 5], [1, 4]]
    """
    if isinstance(settings, SentencePieceSettings):
        return SentencePieces.learn(codes, settings, checked_counts(counts, len(codes)))
    return SpanPieces(settings, LearnedOn.of(codes), seed=seed)


def use_counts(train: Histories, n_items: int) -> npt.NDArray[np.int64]:
    """How often each item is used in the training part, int64 ``[N]`` (experimental).

    >>> use_counts(Histories.from_lists([[0, 2], [2]]), 4).tolist()
    [1, 0, 2, 0]
    """
    if len(train.items) and int(train.items.max()) >= n_items:
        raise DataError(f"train: expected item numbers below {n_items}, got {int(train.items.max())}")
    return np.bincount(train.items, minlength=n_items).astype(np.int64)


def piece_report(
    pieces: Pieces, codes: ItemCodes, features: PieceFeatures, counts: npt.ArrayLike | None = None
) -> dict[str, Any]:
    """What to know about the pieces of items (experimental).

    pieces_per_item: mean; pieces_per_use: mean over what users did in training, None without counts. rows_used: rows
    that some item has. Of every table how many different groups of codes there are and how many of them share a row
    with another one (only where ``hashed``); of SentencePiece how many pieces are longer than a code.
    """
    lengths = features.lengths
    uses = None if counts is None else checked_counts(counts, len(codes))
    details = pieces.details(codes, features)
    tables = [asdict(table) for table in pieces.tables]
    for table, found in zip(tables, details.pop("tables", [{}] * len(tables)), strict=True):
        table.update(found)
    return {
        "kind": pieces.settings.kind,
        "n_items": len(features),
        "n_rows": features.n_rows,
        "rows_used": len(np.unique(features.rows)),
        "pieces_per_item": float(lengths.mean()) if len(lengths) else 0.0,
        "pieces_per_use": None if uses is None or not uses.any() else float(np.average(lengths, weights=uses)),
        **details,
        "tables": tables,
    }


def save_pieces(
    path: str | Path,
    pieces: Pieces,
    *,
    items: ItemCatalog | None = None,
    features: PieceFeatures | None = None,
    report: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a ``pieces`` artifact (experimental).

    ``tables.json`` has the tables, the settings and the report; SentencePiece adds its own ``sentencepiece.model``
    (no pickle). With items and features there is also ``pieces.parquet``: the columns item_id (string) and pieces
    (list of int32), one row per item, with the tables in the file's metadata under ``genrec``.
    """
    if (features is None) != (items is None) or (features and items and len(features) != len(items)):
        got = [None if given is None else len(given) for given in (items, features)]
        raise DataError(f"items: expected one for each row of features, got {got[0]} for {got[1]}")
    if features is not None and items is not None and features.catalog:
        check_catalog("rows of pieces", features.catalog, items.fingerprint)
    tables = [asdict(table) for table in pieces.tables]
    about = {"n_rows": pieces.n_rows, "tables": tables, "settings": asdict(pieces.settings)}
    with artifacts.write(
        Path(path),
        kind=KIND,
        schema=SCHEMA,
        recipe=asdict(pieces.settings),
        catalog=pieces.learned_on.catalog if items is None else items.fingerprint,
        meta={"learned_on": asdict(pieces.learned_on), "seed": getattr(pieces, "seed", 0)},
        overwrite=overwrite,
    ) as draft:
        artifacts.save_json(draft.dir / "tables.json", about | {"report": report or {}})
        if isinstance(pieces, SentencePieces):
            (draft.dir / _MODEL).write_bytes(pieces.model)
        if features is not None and items is not None:
            artifacts.save_table(draft.dir / "pieces.parquet", _table(features, items.ids, about))


def load_pieces(path: str | Path) -> Pieces:
    """Read what :func:`save_pieces` wrote (experimental). Raises ArtifactError, MissingExtra for SentencePiece."""

    def read(manifest: artifacts.Manifest) -> Pieces:
        kind = manifest.recipe.get("kind")
        if kind not in KINDS:
            raise ConfigError(f"{manifest.path}: expected pieces of kind {', '.join(KINDS)}, got {kind!r}")
        settings = KINDS[kind](**manifest.recipe)
        given = dict(manifest.meta["learned_on"])
        learned_on = LearnedOn(**{**given, "level_sizes": tuple(given["level_sizes"])})
        if isinstance(settings, SentencePieceSettings):
            return SentencePieces(settings, learned_on, (manifest.path / _MODEL).read_bytes())
        return SpanPieces(settings, learned_on, seed=int(manifest.meta["seed"]))

    return artifacts.load(path, read, kind=KIND, schema=SCHEMA)


def load_rows(path: str | Path) -> tuple[list[str], PieceFeatures]:
    """The item ids and rows that were exported with the pieces, in catalog order (experimental)."""

    def read(manifest: artifacts.Manifest) -> tuple[list[str], PieceFeatures]:
        if "pieces.parquet" not in manifest.files:
            raise DataError(f"{manifest.path}: pieces without rows of items", hint="`genrec pieces` exports both")
        table = artifacts.load_table(manifest.path / "pieces.parquet").combine_chunks()
        lists = table.column("pieces").combine_chunks()
        n_rows = int(artifacts.load_json(manifest.path / "tables.json")["n_rows"])
        offsets = lists.offsets.to_numpy().astype(np.int64)
        return table.column("item_id").to_pylist(), PieceFeatures(offsets, lists.values.to_numpy(), n_rows)

    return artifacts.load(path, read, kind=KIND, schema=SCHEMA)


def _table(features: PieceFeatures, item_ids: Sequence[str], about: dict[str, Any]) -> Any:
    import pyarrow as pa

    from genrec.formats import to_json_bytes

    kind = pa.list_(pa.int32())
    rows = pa.ListArray.from_arrays(pa.array(features.offsets.astype(np.int32)), pa.array(features.rows), type=kind)
    table = pa.table({"item_id": pa.array(item_ids, pa.string()), "pieces": rows})
    return table.replace_schema_metadata({"genrec": to_json_bytes(about)})
