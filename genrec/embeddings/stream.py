"""Item vectors that stay on the disk: rows are read when they are asked for.

Legend: N rows, D width.
"""

from __future__ import annotations

import io
import json
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from genrec.errors import DataError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
_MOST = 8192  # rows that are read at once for the sake of a few among them
_SAFETENSORS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


class VectorTable(Protocol):
    """Rows of item vectors, in memory or on the disk; a float32 array ``[N, D]`` is one (experimental).

    ``table[a:b]`` and ``table[numbers]`` are float32 arrays in memory; a slice has step 1.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, D)``."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class StreamedEmbeddings:
    """The item vectors of one catalog version, in a table that need not be in memory (experimental).

    Takes the place of :class:`~genrec.embeddings.base.ItemEmbeddings` in a
    :class:`~genrec.item_tokenizers.base.TokenizerSource`. Item tokenizers that can, read it piece by piece; the others
    load it whole. ``vectors``: a :class:`VectorTable`, rows in catalog order. ``catalog``: the catalog's fingerprint.
    """

    vectors: VectorTable
    catalog: str
    recipe: dict[str, Any] = field(default_factory=dict)


class DiskVectors:
    """Base of tables on the disk: checks what a subclass reads (internal).

    A subclass writes ``_read`` (consecutive rows, any numeric type) and ``_place`` (where a row is, for errors). Rows
    that stand no more than ``_gap`` rows apart are read together, at most ``_MOST`` of them.
    """

    scattered_is_slow = False  # whether reading a few rows costs about as much as reading all

    def __init__(self, n: int, width: int) -> None:
        self.shape: tuple[int, ...] = (n, width)
        self._gap = max(65_536 // (4 * width), 1)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Ints) -> Floats:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            assert step == 1
            return self._checked(start, max(stop, start))
        if np.asarray(rows).dtype == np.bool_:
            raise IndexError("rows: expected row numbers or a slice, got a mask; np.flatnonzero(mask) has the numbers")
        numbers, inverse = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        if len(numbers) and not 0 <= numbers[0] <= numbers[-1] < len(self):
            raise IndexError(f"rows: expected 0..{len(self) - 1}, got {numbers[0]} .. {numbers[-1]}")
        out = np.empty((len(numbers), self.shape[1]), dtype=np.float32)
        far = np.flatnonzero((np.diff(numbers) > self._gap) | (np.diff(numbers // _MOST) > 0)) + 1
        start = 0
        for stop in [*far.tolist(), len(numbers)]:
            if stop > start:
                first = int(numbers[start])
                out[start:stop] = self._checked(first, int(numbers[stop - 1]) + 1)[numbers[start:stop] - first]
            start = stop
        return out if np.array_equal(inverse, np.arange(len(out))) else out[inverse]

    def _checked(self, start: int, stop: int) -> Floats:
        if start == stop:
            return np.empty((0, self.shape[1]), dtype=np.float32)
        return finite_rows(self._read(start, stop), lambda row: self._place(start + row))

    def _read(self, start: int, stop: int) -> npt.NDArray[Any]:
        raise NotImplementedError

    def _place(self, row: int) -> str:
        raise NotImplementedError


class RawVectors(DiskVectors):
    """Rows that lie one after the other in a file, from byte ``offset`` on (internal).

    Read with plain reads and not through a memory map: what was read leaves the process's memory with the array, and a
    file that was cut short is an error and no crash.
    """

    def __init__(self, path: Path, offset: int, dtype: np.dtype[Any], shape: tuple[int, int]) -> None:
        super().__init__(*shape)
        self.path = path
        self._offset, self._dtype = offset, dtype
        handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, handle)
        self._file = io.FileIO(handle, closefd=False)
        needed, there = offset + shape[0] * shape[1] * dtype.itemsize, path.stat().st_size
        if there < needed:
            raise DataError(f"{path}: expected {needed} bytes for {list(shape)} of {dtype}, got {there}: cut short?")

    def _read(self, start: int, stop: int) -> npt.NDArray[Any]:
        out = np.empty((stop - start, self.shape[1]), dtype=self._dtype)
        left = memoryview(out.data).cast("B")
        self._file.seek(self._offset + start * self.shape[1] * self._dtype.itemsize)
        while len(left):
            n = self._file.readinto(left)
            if not n:
                raise DataError(f"{self.path}: ends inside row {stop - 1 - len(left) // (out.nbytes // len(out))}")
            left = left[n:]
        return out

    def _place(self, row: int) -> str:
        return f"{self.path}: row {row}"


def finite_rows(given: npt.NDArray[Any], place: Callable[[int], str]) -> Floats:
    """Rows as float32; DataError for the first that is not finite, named by ``place`` of its number (internal)."""
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(given, dtype=np.float32)
    finite = np.isfinite(found)
    if not finite.all():
        row = int((~finite.all(axis=1)).argmax())
        column = int((~finite[row]).argmax())
        raise DataError(
            f"{place(row)}: the vector is not finite in float32 (dimension {column}: {given[row, column]})",
            hint="leave such items out, or give them a row of zeros: nothing is known about this item",
        )
    return found


def open_vectors(path: str | Path, *, vector_column: str | None = None) -> DiskVectors:
    """Item vectors of a file as a table that reads rows when they are asked for (experimental).

    ``.npy`` and ``.safetensors`` hold one ``[N, D]`` array of floats (``vector_column`` names it among several in a
    ``.safetensors`` file); ``.parquet``, or a folder of such files in the order of their names, a list column
    (``vector_column`` where there are several). Memory: the rows asked for, and for parquet a piece of a row group.
    Values become float32. Raises DataError, naming the file (and row group), for a missing or damaged file, another
    shape or type, ragged rows; and when a row is read, if it is not finite.
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".parquet":
        from genrec.embeddings.parquet_rows import ParquetVectors

        return ParquetVectors(path, vector_column)
    if path.suffix not in (".npy", ".safetensors"):
        raise DataError(f"{path.name}: expected .npy, .safetensors, .parquet or a folder, got {path.suffix!r}")
    if not path.is_file():
        raise DataError(f"{path}: no such file", hint="correct the path of the vectors, or make them")
    try:
        offset, dtype, shape = _npy_header(path) if path.suffix == ".npy" else _tensor_header(path, vector_column)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read as vectors ({type(error).__name__}: {str(error)[:200]})") from error
    if len(shape) != 2 or 0 in shape or dtype.kind != "f":
        raise DataError(f"{path}: expected one [N, D] array of floats, got {dtype} of shape {list(shape)}")
    return RawVectors(path, offset, dtype, (shape[0], shape[1]))


def _npy_header(path: Path) -> tuple[int, np.dtype[Any], tuple[int, ...]]:
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_column, dtype = read(file)
        if by_column and len(shape) == 2 and min(shape) > 1:
            raise DataError(f"{path}: the array lies column by column", hint="write numpy.ascontiguousarray(array)")
        return file.tell(), dtype, shape


def _tensor_header(path: Path, key: str | None) -> tuple[int, np.dtype[Any], tuple[int, ...]]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > min(path.stat().st_size, 100_000_000):
            raise DataError(f"{path}: no safetensors file, or cut short")
        header = json.loads(file.read(size))
    tables = {name: entry for name, entry in header.items() if name != "__metadata__"}
    found = [key] if key else [name for name, entry in tables.items() if len(entry["shape"]) == 2]
    if len(found) != 1 or found[0] not in tables:
        wanted = f"an array {key!r}" if key else "exactly one [N, D] array"
        raise DataError(f"{path}: expected {wanted}, got {sorted(tables)}", hint="name the array: vector_column=NAME")
    entry = tables[found[0]]
    if entry["dtype"] not in _SAFETENSORS:
        raise DataError(f"{path}: {found[0]}: expected F16, F32 or F64, got {entry['dtype']}")
    return 8 + size + entry["data_offsets"][0], np.dtype(_SAFETENSORS[entry["dtype"]]), tuple(entry["shape"])
