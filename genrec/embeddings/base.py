"""Item vectors with their origin, and reading vectors somebody else computed.

Legend: N items, D width.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.data.catalog import ItemCatalog
from genrec.errors import DataError, FingerprintMismatch, GenrecError

KIND = "embeddings"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ItemEmbeddings:
    """One vector per item of one catalog version, and how it was made (stable).

    ``vectors`` float32 ``[N, D]``, all finite; a row of zeros means "nothing is known about this item".
    ``catalog`` is the catalog's fingerprint, ``recipe`` a JSON-able description of the making.
    Raises DataError for another shape, a type that is not floating, or a value that is not finite (naming the
    first such row).
    """

    vectors: npt.NDArray[np.float32]
    catalog: str
    recipe: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        vectors = np.asarray(self.vectors)
        if vectors.ndim != 2 or vectors.shape[1] == 0:
            raise DataError(f"vectors: expected shape [N, D] with D > 0, got {list(vectors.shape)}")
        if vectors.dtype.kind != "f":
            raise DataError(f"vectors: expected a floating type, got {vectors.dtype}")
        with np.errstate(over="ignore"):
            narrow = np.ascontiguousarray(vectors, dtype=np.float32)
        bad = np.flatnonzero(~np.isfinite(narrow).all(axis=1))
        if len(bad):
            column = int(np.flatnonzero(~np.isfinite(narrow[bad[0]]))[0])
            raise DataError(
                f"vectors: {len(bad)} of {len(narrow)} rows are not finite in float32, the first is row "
                f"{bad[0]} (column {column}: {vectors[bad[0], column]})"
            )
        object.__setattr__(self, "vectors", narrow)
        object.__setattr__(self, "recipe", json.loads(json.dumps(self.recipe)))  # as it will be read back

    @property
    def n_items(self) -> int:
        """Number of items N."""
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """Width D."""
        return int(self.vectors.shape[1])

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Which rows are not all zero, bool ``[N]``."""
        return np.asarray(self.vectors.any(axis=1))

    def check(self, catalog: ItemCatalog) -> ItemEmbeddings:
        """Return self if these vectors belong to ``catalog``; raises FingerprintMismatch if not."""
        if self.catalog != catalog.fingerprint or self.n_items != len(catalog):
            raise FingerprintMismatch(
                f"embeddings belong to catalog {self.catalog[:8]} ({self.n_items} items), "
                f"got catalog {catalog.fingerprint[:8]} ({len(catalog)} items)",
                hint="make the vectors anew for this catalog (`genrec run` does)",
            )
        return self

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write an artifact folder of kind "embeddings"."""
        from genrec import artifacts

        meta = {"n_items": self.n_items, "dim": self.dim}
        with artifacts.write(
            path, kind=KIND, recipe=self.recipe, catalog=self.catalog, meta=meta, overwrite=overwrite
        ) as draft:
            artifacts.save_arrays(draft.dir / "embeddings.safetensors", {"vectors": self.vectors})

    @classmethod
    def load(cls, path: str | Path) -> ItemEmbeddings:
        """Read what :meth:`save` wrote; raises ArtifactError if it is damaged or of another kind."""
        from genrec import artifacts

        def read(manifest: artifacts.Manifest) -> ItemEmbeddings:
            arrays = artifacts.load_arrays(manifest.path / "embeddings.safetensors")
            return cls(arrays["vectors"], manifest.catalog or "", manifest.recipe)

        return artifacts.load(path, read, kind=KIND)


def load_vectors(
    path: str | Path,
    catalog: ItemCatalog,
    *,
    ids: Sequence[str] | None = None,
    id_column: str = "item_id",
    vector_column: str | None = None,
) -> ItemEmbeddings:
    """Read vectors made elsewhere and bring them into catalog order (stable).

    ``.npy`` and ``.safetensors`` hold one ``[rows, D]`` array and no ids: rows are in catalog order, unless
    ``ids`` names the item of each row. ``.parquet`` has the ids in ``id_column`` and the vectors in one list
    column, or one numeric column per dimension. Rows of unknown items are ignored with a log line. Raises
    DataError, naming the file, if it is missing or damaged or holds something else than numbers, if an item of
    the catalog has no row (naming some) or an id occurs twice.
    """
    path = Path(path)
    if path.suffix not in (".npy", ".safetensors", ".parquet"):
        raise DataError(f"{path.name}: expected .npy, .safetensors or .parquet, got {path.suffix!r}")
    if not path.is_file():
        raise DataError(f"{path}: no such file", hint="correct the path of the vectors, or make them")
    try:
        if path.suffix == ".parquet":
            ids, matrix = _parquet_matrix(path, id_column, vector_column)
        else:
            found = np.load(path, allow_pickle=False) if path.suffix == ".npy" else _tensor(path, vector_column)
            matrix = np.asarray(found)
    except (GenrecError, ImportError, MemoryError):
        raise
    except Exception as error:  # damaged, or no numbers: each format raises something else
        what = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else 'no message'}"
        raise DataError(
            f"{path}: cannot be read as vectors ({what})",
            hint="write it again: .npy with numpy.save, .safetensors and .parquet with float32 or float16 values",
        ) from error
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        found = f"{matrix.dtype} of shape {list(matrix.shape)}"
        raise DataError(f"{path.name}: expected one [rows, D] array of numbers, got {found}")
    if ids is None:
        if len(matrix) != len(catalog):
            raise DataError(
                f"{path.name}: expected {len(catalog)} rows in catalog order, got {len(matrix)}",
                hint="say which item each row is: write .parquet with a column item_id, or pass ids= in Python",
            )
    else:
        matrix = matrix[_rows_of(path.name, catalog, ids, len(matrix))]
    recipe = {"kind": "file", "file": path.name, "shape": list(matrix.shape)}
    return ItemEmbeddings(matrix.astype(np.float32), catalog.fingerprint, recipe)


def _rows_of(name: str, catalog: ItemCatalog, ids: Sequence[str], n_rows: int) -> npt.NDArray[np.int64]:
    if len(ids) != n_rows:
        raise DataError(f"{name}: {n_rows} rows but {len(ids)} ids")
    numbers = catalog.numbers(ids, missing="negative")
    row = np.full(len(catalog), -1, np.int64)
    row[numbers[numbers >= 0]] = np.flatnonzero(numbers >= 0)
    twice = np.flatnonzero((numbers >= 0) & (row[numbers] != np.arange(n_rows)))
    if len(twice):
        raise DataError(f"{name}: row {twice[0]}: item {ids[int(twice[0])]!r} occurs twice")
    missing = np.flatnonzero(row < 0)
    if len(missing):
        some = ", ".join(catalog.ids_of(missing[:5]))
        raise DataError(f"{name}: {len(missing)} of {len(catalog)} items have no vector, such as {some}")
    if n_rows > len(catalog):
        _log.info("%s: ignored %d rows of items that the catalog lacks", name, n_rows - len(catalog))
    return row


def _tensor(path: Path, key: str | None) -> npt.NDArray[Any]:
    from safetensors.numpy import load_file

    arrays = load_file(path)
    found = [key] if key else [name for name, array in arrays.items() if array.ndim == 2]
    if len(found) != 1 or found[0] not in arrays:
        wanted = f"an array {key!r}" if key else "exactly one [rows, D] array"
        raise DataError(
            f"{path.name}: expected {wanted}, got {sorted(arrays)}",
            hint="leave one such array in the file, or pass vector_column=NAME in Python",
        )
    matrix: npt.NDArray[Any] = arrays[found[0]]
    return matrix


def _parquet_matrix(path: Path, id_column: str, vector_column: str | None) -> tuple[list[str], npt.NDArray[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    if id_column not in table.column_names:
        raise DataError(f"{path.name}: expected an id column {id_column!r}, got {table.column_names}")
    ids = [str(value) for value in table[id_column].to_pylist()]
    rest = [name for name in table.column_names if name != id_column]
    if vector_column is None:
        lists = [n for n in rest if hasattr(table.schema.field(n).type, "value_type")]
        if len(lists) > 1:
            raise DataError(f"{path.name}: several list columns {lists}", hint="pass vector_column=NAME")
        vector_column = lists[0] if lists else None
    elif vector_column not in rest:
        raise DataError(f"{path.name}: expected a column {vector_column!r}, got {rest}")
    if vector_column is None:
        numeric = [
            n
            for n in rest
            if pa.types.is_floating(table.schema.field(n).type) or pa.types.is_integer(table.schema.field(n).type)
        ]
        if not numeric:
            raise DataError(f"{path.name}: expected a list column or numeric columns, got {rest}")
        return ids, np.stack([table[n].to_numpy().astype(np.float64) for n in numeric], axis=1)
    rows = table[vector_column].to_pylist()
    width = len(rows[0] or ()) if rows else 0
    for number, value in enumerate(rows):
        if value is None or len(value) != width:
            got = None if value is None else len(value)
            raise DataError(f"{path.name}: row {number}: expected {width} numbers, got {got}")
    return ids, np.array(rows, dtype=np.float64).reshape(len(rows), width)
