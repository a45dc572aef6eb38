"""The ids of an item table: read without anything else, and each there once."""

from __future__ import annotations

from collections.abc import Sequence

from genrec.embeddings.parquet_rows import RowGroup, column_types, id_texts
from genrec.errors import DataError


def read_ids(groups: Sequence[RowGroup], column: str) -> list[str]:
    """The ids of all rows in their order; DataError naming the row of a missing one (internal)."""
    found: list[str] = []
    for group in groups:
        first = 0
        for piece in group.pieces([column]):
            found += id_texts(piece.column(0), str(group), first)
            first += len(piece)
    return found


def read_column(groups: Sequence[RowGroup], column: str) -> list[str]:
    """A column of texts as strings, "" where it is missing or where there is no such column (internal)."""
    import pyarrow as pa

    found: list[str] = []
    for group in groups:
        kind = column_types(group.file).get(column)
        if kind is None or not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            found += [""] * group.n_rows
            continue
        for piece in group.pieces([column]):
            found += [value or "" for value in piece.column(0).to_pylist()]
    return found


def check_ids(ids: Sequence[str], groups: Sequence[RowGroup]) -> None:
    """Raise DataError for an id that two rows have, naming file, row group and row of both (internal)."""
    if len(set(ids)) == len(ids):
        return
    seen: dict[str, int] = {}
    for row, item_id in enumerate(ids):
        other = seen.setdefault(item_id, row)
        if other != row:
            raise DataError(
                f"item id {item_id!r} is there twice: {_place(groups, other)}, and {_place(groups, row)}",
                hint="every item must have one row",
            )


def _place(groups: Sequence[RowGroup], row: int) -> str:
    for group in groups:
        if row < group.n_rows:
            return f"{group}, row {row}"
        row -= group.n_rows
    raise AssertionError("no such row")
