"""Shards of encoded items: one parquet file per row group of the input, complete or not there.

Axes: n rows of a shard, L levels, D width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec import artifacts
from genrec.embeddings.parquet_rows import RowGroup, id_texts, matrix_of
from genrec.embeddings.stream import finite_rows
from genrec.errors import ArtifactError, ConfigError, DataError, GenrecError
from genrec.item_tokenizers.encode_batch import EncodeBatch

PLAN = "plan.json"
_AT = b"genrec"


@dataclass(frozen=True)
class Work:
    """What is done with every item (internal).

    tokenizer: folder of the fitted item tokenizer ("" = only embed). digest: of its content. text_columns: what
    ``text`` is made of. The rest: as :class:`EncodeBatch` has it.
    """

    id_column: str
    tokenizer: str = ""
    digest: str = ""
    vector_column: str | None = None
    text: tuple[str, ...] = ()
    text_columns: tuple[str, ...] = ()
    model: str | None = None
    batch_size: int = 64
    keep_vectors: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        return (self.id_column, *((self.vector_column,) if self.vector_column else self.text_columns))


@dataclass(frozen=True)
class Plan:
    """The work and the row groups that it is done with; shard ``n`` is of row group ``n`` (internal)."""

    work: Work
    groups: tuple[RowGroup, ...]

    def save(self, folder: Path) -> None:
        """Begin in ``folder``, or go on with what was begun there.

        Raises ConfigError where other work was begun, DataError where an input file has changed since.
        """
        now = self._to_json()
        if begun(folder):
            then = artifacts.load_json(folder / PLAN)
            _check_same_work(folder, then["work"], now["work"])
            check_same_files(then["files"], now["files"])
            if then["groups"] != now["groups"]:
                raise DataError(f"{self.groups[0].file.parent}: other row groups than before", hint=_AGAIN)
        artifacts.atomic_write_bytes(folder / PLAN, json.dumps(now, indent=1).encode())

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """Read what :meth:`save` wrote."""
        found = artifacts.load_json(folder / PLAN)
        files = [Path(entry["path"]) for entry in found["files"]]
        lists = {name: tuple(found["work"][name]) for name in ("text", "text_columns")}
        groups = tuple(RowGroup(files[at], number, rows) for at, number, rows in found["groups"])
        return cls(Work(**{**found["work"], **lists}), groups)

    def _to_json(self) -> dict[str, Any]:
        files = file_states(self.groups)
        numbers = {state["path"]: n for n, state in enumerate(files)}
        return {
            "work": json.loads(json.dumps(asdict(self.work))),
            "files": files,
            "groups": [[numbers[str(group.file)], group.number, group.n_rows] for group in self.groups],
        }


def begun(folder: Path) -> bool:
    """Whether some shard of a plan is there; a plan alone has nothing to lose (internal)."""
    return (folder / PLAN).exists() and any(folder.glob("*.parquet"))


_AGAIN = "--overwrite starts over (overwrite=True in Python)"


def _check_same_work(folder: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    other = [name for name in now if name != "tokenizer" and then.get(name) != now[name]]
    if other:
        name = other[0]
        raise ConfigError(
            f"{folder}: begun with another {'item tokenizer' if name == 'digest' else name} "
            f"({then.get(name)!r}, now {now[name]!r})",
            hint=f"give another --out, or {_AGAIN}",
        )


def file_states(groups: Sequence[RowGroup]) -> list[dict[str, Any]]:
    """Path, size and time of the files of row groups: what tells that one was changed (internal)."""
    files = [(file, file.stat()) for file in dict.fromkeys(group.file for group in groups)]
    return [{"path": str(file), "bytes": stat.st_size, "modified_ns": stat.st_mtime_ns} for file, stat in files]


def check_same_files(then: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]) -> None:
    """Raise DataError, naming the file, unless both lists of :func:`file_states` are of the same files (internal)."""
    names = [[Path(entry["path"]).name for entry in files] for files in (then, now)]
    if names[0] != names[1]:
        raise DataError(f"the input has other files than before: {names[1][:5]}, {names[0][:5]} before", hint=_AGAIN)
    for before, after in zip(then, now, strict=True):
        for what in ("bytes", "modified_ns"):
            if before[what] != after[what]:
                raise DataError(
                    f"{after['path']}: changed since its first items were encoded ({what}: {before[what]}, now "
                    f"{after[what]})",
                    hint=f"{_AGAIN}; a copy of the same file keeps its time with `cp -p`",
                )


@dataclass(frozen=True, eq=False)
class Shard:
    """A finished shard (internal). codes: int32 ``[n, L]``, None where only vectors were made."""

    ids: list[str]
    codes: npt.NDArray[np.int32] | None
    meta: dict[str, Any]


def shard_file(folder: Path, number: int) -> Path:
    """Where shard ``number`` is (internal)."""
    return folder / f"{number:08d}.parquet"


def missing(folder: Path, plan: Plan) -> list[int]:
    """The shards that are not there yet (internal)."""
    found = []
    for number, group in enumerate(plan.groups):
        try:
            done = _meta(shard_file(folder, number))["rows"] == group.n_rows
        except ArtifactError:
            done = False
        if not done:
            found.append(number)
    return found


def read_shard(folder: Path, number: int) -> Shard:
    """A finished shard; ArtifactError when it is not there or damaged (internal)."""
    table = artifacts.load_table(shard_file(folder, number))
    codes = None
    if "codes" in table.column_names:
        column = table["codes"].combine_chunks()
        codes = np.asarray(column.flatten()).reshape(len(column), -1)
    return Shard(table["item_id"].to_pylist(), codes, _meta(shard_file(folder, number)))


def _meta(file: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        found: dict[str, Any] = json.loads(parquet.read_schema(str(file)).metadata[_AT])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{file}: no finished shard ({error})") from error
    return found


def each_shard(do: Callable[[int], int], batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """What a worker of Ray answers for the shards of a batch, see :meth:`ShardEncoder.__call__` (internal)."""
    numbers = [int(number) for number in batch["shard"]]
    rows, told = np.zeros(len(numbers), dtype=np.int64), [["", ""] for _ in numbers]
    for n, number in enumerate(numbers):
        try:
            rows[n] = do(number)
        except GenrecError as error:
            told[n] = [str(error), error.hint or ""]
    errors, hints = (np.array(texts, dtype=str) for texts in zip(*told, strict=True))
    return {"shard": np.array(numbers), "rows": rows, "error": errors, "hint": hints}


class ShardEncoder:
    """Reads a row group, encodes it piece by piece, writes its shard: what every engine calls (internal).

    Made from the name of a folder with a plan, once in every worker. Doing a shard twice writes the same bytes, and a
    worker that dies leaves nothing that looks like a shard.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.plan = Plan.load(self.folder)
        work = self.plan.work
        self.batch = EncodeBatch(
            work.tokenizer or None,
            vector_column=work.vector_column,
            text=work.text,
            model=work.model,
            batch_size=work.batch_size,
            keep_vectors=work.keep_vectors,
        )

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Do the shards with the numbers in column ``shard``; columns ``rows``, ``error``, ``hint`` tell how it went.

        An error of the data is handed on as text: between processes an exception would lose its type.
        """
        return each_shard(self.do, batch)

    def do(self, number: int) -> int:
        """Encode shard ``number``; returns its rows. DataError naming file, row group and row."""
        group = self.plan.groups[number]
        ids: list[str] = []
        parts: dict[str, list[npt.NDArray[Any]]] = {"codes": [], "vector": []}
        meta: dict[str, Any] = {"source": f"{group.file.name}, row group {group.number}"}
        for batch in self._batches(group):
            try:
                vectors = self.batch.vectors(batch)
                if self.batch.tokenizer is not None:
                    codes = self.batch.encode(vectors)
                    meta |= {"level_sizes": codes.level_sizes, "shared_vocabulary": codes.shared_vocabulary}
                    parts["codes"].append(codes.as_int())
            except DataError as error:
                raise DataError(f"{group}: {error}", hint=error.hint) from error
            if self.batch.keep_vectors:
                parts["vector"].append(vectors)
            meta["width"] = vectors.shape[1]
            ids += batch["item_id"].tolist()
        if len(ids) != group.n_rows:
            raise DataError(f"{group}: expected {group.n_rows} rows, got {len(ids)}: was the file written again?")
        columns = {name: np.concatenate(found) for name, found in parts.items() if found}
        _write(shard_file(self.folder, number), ids, columns, {**meta, "rows": len(ids)})
        return len(ids)

    def _batches(self, group: RowGroup) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """The row group as batches of columns in numpy, the ids under the name ``item_id``."""
        work, first, width = self.plan.work, 0, None
        for piece in group.pieces(work.columns):
            columns = dict(zip(piece.schema.names, piece.columns, strict=True))
            ids = id_texts(columns[work.id_column], str(group), first)
            batch: dict[str, npt.NDArray[Any]] = {"item_id": np.array(ids, dtype=object)}
            if work.vector_column:
                matrix = matrix_of(columns[work.vector_column], str(group), first, width)
                width = matrix.shape[1]
                batch[work.vector_column] = finite_rows(matrix, _places(group, first))
            for name in work.text_columns:
                cells = np.empty(len(ids), dtype=object)
                cells[:] = columns[name].to_pylist()
                batch[name] = cells
            first += len(ids)
            yield batch


def _places(group: RowGroup, first: int) -> Callable[[int], str]:
    return lambda row: f"{group}, row {first + row}"


def _write(file: Path, ids: list[str], columns: dict[str, npt.NDArray[Any]], meta: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    arrays = {"item_id": pa.array(ids, pa.string())}
    for name, values in columns.items():
        arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    table = pa.table(arrays).replace_schema_metadata({_AT: json.dumps(meta)})
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink, compression="zstd", write_page_checksum=True, row_group_size=max(len(ids), 1))
    artifacts.atomic_write_bytes(file, sink.getvalue())
