"""Item tables in parquet, one piece of a row group at a time: vectors and ids.

Legend: N rows, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from genrec.embeddings.stream import DiskVectors
from genrec.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

PIECE = 4096  # rows held at a time


@dataclass(frozen=True)
class RowGroup:
    """One row group of a parquet file: the unit in which item tables are read and encoded (internal)."""

    file: Path
    number: int
    n_rows: int

    def __str__(self) -> str:
        return f"{self.file}, row group {self.number}"

    def pieces(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Its rows in their order, at most ``PIECE`` at a time."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        try:
            # a buffer, or the whole column of the row group is read at once
            with parquet.ParquetFile(str(self.file), buffer_size=1 << 16, pre_buffer=False) as file:
                yield from file.iter_batches(PIECE, row_groups=[self.number], columns=list(columns), use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self}: cannot be read ({str(error)[:200]})", hint="write the file again") from error


def parquet_files(path: str | Path) -> list[Path]:
    """A parquet file, or those of a folder by name; DataError when there is none (internal)."""
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.glob("*.parquet") if not file.name.startswith("."))
        if not files:
            raise DataError(f"{path}: expected parquet files in this folder, found none")
        return files
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder", hint="give a parquet file, or a folder of them")
    return [path]


def row_groups(path: str | Path) -> list[RowGroup]:
    """The row groups of a parquet file, or of the files of a folder by name; empty ones left out (internal).

    DataError for a file that is no parquet, or when there are no rows at all.
    """
    found = []
    for file in parquet_files(path):
        meta = _footer(file).metadata
        sizes = [meta.row_group(number).num_rows for number in range(meta.num_row_groups)]
        found += [RowGroup(file, number, size) for number, size in enumerate(sizes) if size]
    if not found:
        raise DataError(f"{path}: no rows")
    return found


def column_types(file: Path) -> dict[str, Any]:
    """The Arrow type of every column of a parquet file (internal)."""
    schema = _footer(file).schema_arrow
    return {name: schema.field(name).type for name in schema.names}


def vector_column_of(files: Sequence[Path], given: str | None) -> str:
    """The list column with the vectors: ``given``, or the only one; DataError naming the file (internal)."""
    import pyarrow as pa

    chosen = given
    for file in files:
        types = column_types(file)
        lists = [name for name, kind in types.items() if _is_numbers(pa, kind)]
        if chosen is None:
            if len(lists) != 1:
                raise DataError(
                    f"{file}: expected one column of lists of numbers, got {lists or list(types)}",
                    hint="name it: --vector-column NAME (vector_column=NAME in Python)"
                    if lists
                    else "give the vectors, or make them: --text '{COLUMN}' --model MODEL embeds text",
                )
            chosen = lists[0]
        if chosen not in types:
            raise DataError(f"{file}: expected a column {chosen!r}, got {list(types)}")
        if chosen not in lists:
            raise DataError(f"{file}: column {chosen!r}: expected lists of numbers, got {types[chosen]}")
    assert chosen is not None
    return chosen


def matrix_of(column: Any, where: str, first_row: int, width: int | None) -> npt.NDArray[Any]:
    """An Arrow array of lists as ``[n, D]``; DataError naming the row of a missing or ragged one (internal).

    where, first_row: the place of the array, for errors. width: D, None = that of the first row.
    """
    import pyarrow.compute as compute

    lengths = np.asarray(compute.fill_null(compute.list_value_length(column), -1))
    width = int(lengths[0]) if width is None and len(lengths) else (width or 0)
    wrong = np.flatnonzero(lengths != width)
    if len(wrong) or width < 1:
        row = int(wrong[0]) if len(wrong) else 0
        got = f"{lengths[row]} numbers" if lengths[row] >= 0 else "nothing"
        raise DataError(f"{where}, row {first_row + row}: expected a vector of {max(width, 1)} numbers, got {got}")
    values = column.flatten()
    if values.null_count:
        row = int(np.flatnonzero(np.asarray(values.is_null()))[0]) // width
        raise DataError(f"{where}, row {first_row + row}: a number of the vector is missing")
    found: npt.NDArray[Any] = values.to_numpy(zero_copy_only=False).reshape(len(column), width)
    return found


def id_texts(column: Any, where: str, first_row: int) -> list[str]:
    """An Arrow array of ids as texts; DataError for a missing or empty one (internal)."""
    values = column.to_pylist()
    for row, value in enumerate(values):
        if value is None or value == "":
            raise DataError(f"{where}, row {first_row + row}: the item id is missing")
    return [str(value) for value in values]


class ParquetVectors(DiskVectors):
    """The vectors of a list column of parquet files, in the order of the files' names (experimental).

    path: a file or a folder. Reads forward from where it last stopped; a jump costs the row group from its start.
    """

    scattered_is_slow = True

    def __init__(self, path: str | Path, column: str | None = None) -> None:
        self.groups = row_groups(path)
        self.column = vector_column_of(list(dict.fromkeys(group.file for group in self.groups)), column)
        self._starts = np.concatenate([[0], np.cumsum([group.n_rows for group in self.groups])])
        self._width: int | None = None
        self._open(0)
        self._next()
        assert self._width is not None
        super().__init__(int(self._starts[-1]), self._width)
        self._gap = PIECE

    def _open(self, group: int) -> None:
        self._group, self._from = group, int(self._starts[group])
        self._piece: npt.NDArray[Any] = np.empty((0, 0), dtype=np.float32)
        self._pieces = self.groups[group].pieces([self.column])

    def _next(self) -> None:
        self._from += len(self._piece)
        where, inside = str(self.groups[self._group]), self._from - int(self._starts[self._group])
        batch = next(self._pieces, None)
        if batch is None:
            raise DataError(f"{where}: fewer rows than the file said when it was opened: was it written again?")
        self._piece = matrix_of(batch.column(0), where, inside, self._width)
        self._width = self._piece.shape[1]

    def _read(self, start: int, stop: int) -> npt.NDArray[Any]:
        out = np.empty((stop - start, self.shape[1]), dtype=np.promote_types(self._piece.dtype, np.float32))
        filled = 0
        while filled < len(out):
            at = start + filled
            group = int(np.searchsorted(self._starts, at, side="right")) - 1
            if group != self._group or at < self._from:
                self._open(group)
            while at >= self._from + len(self._piece):
                self._next()
            part = self._piece[at - self._from :][: len(out) - filled]
            out[filled : filled + len(part)] = part
            filled += len(part)
        return out

    def _place(self, row: int) -> str:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        return f"{self.groups[group]}, row {row - int(self._starts[group])}"


def _footer(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(str(file)) as opened:
            return opened
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file}: no parquet file, or damaged ({str(error)[:200]})", hint="expected parquet: convert other tables"
        ) from error


def _is_numbers(pa: Any, kind: Any) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return False
    inner = kind.value_type
    return bool(pa.types.is_floating(inner) or pa.types.is_integer(inner))
