"""Lists for all users of a table, without an endpoint: sharded, resumable, parquet out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrec import artifacts, disk
from genrec.embeddings.parquet_rows import RowGroup, column_types, row_groups
from genrec.errors import ConfigError, DataError
from genrec.models.bundle import bundle_folder
from genrec.pipeline.encode_shards import check_same_files, file_states
from genrec.serving.changes import Changes
from genrec.serving.model import Answer, Query, ServedModel
from genrec.serving.problems import Problem
from genrec.serving.schemas import Input, RecommendationRequest
from genrec.serving.telemetry import Metrics

PLAN = "plan.json"
AT_ONCE = 1024  # users searched together; the recommender splits them by the lengths of their prompts
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class BatchResult:
    """What :func:`recommend_all` did. files: the shards, in the order of the row groups. Stability: experimental."""

    files: list[Path]
    users: int
    cold: int
    skipped_items: int
    reused_shards: int


def recommend_all(
    run: str | Path,
    users: str | Path,
    out: str | Path,
    request: RecommendationRequest,
    *,
    journal: Path | None = None,
    base: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BatchResult:
    """Write a list for every row of ``users`` to ``out``, one parquet file per row group, complete or not there.

    run: a run folder or a bundle. users: a parquet file or a folder of them with ``history`` (lists of item ids, oldest
    first) or ``user`` (ids of the run's log), or both; further columns are left out. request: what all users ask for;
    its own ``history`` or ``user`` are not looked at. The columns of a shard: ``row`` (in its row group), ``user`` if
    there was one, ``items`` (list of ids, best first), ``scores``, ``source``, ``skipped_items``.

    journal: changes that a server has made, which count here too (see :class:`genrec.serving.changes.Changes`).

    A shard that is there is not made again; another request, model or input in the same folder is refused, unless
    ``overwrite`` starts over. Answers equal those of the endpoint. Raises DataError naming file, row group and row for
    a row that says nothing or an unknown user, ConfigError for another job in the folder. Stability: experimental.
    """
    run, out = Path(run), Path(out)
    groups = row_groups(users)
    columns = _columns(groups)
    manifest = artifacts.read(bundle_folder(run), kind="bundle", verify=False)
    asked = request.model_dump(exclude={"history", "user", "inputs", "timeout", "model"})
    changes = Changes(journal, reading=True)
    model = ServedModel.load(run, base=base)
    changes.replay(model.store)
    plan = {
        "kind": "batch",
        "request": asked,
        "model": manifest.digest,
        "log": None if model.log is None else artifacts.read(run / "interactions", verify=False).digest,
        "changes": changes.state(),
        "columns": columns,
        "files": file_states(groups),
    }
    model.check(request)
    disk.make_folders(out)
    with disk.claimed(out, "genrec batch"):
        _begin(out, json.loads(json.dumps(plan)), overwrite)
        files = [out / f"{number:08d}.parquet" for number in range(len(groups))]
        missing = [number for number, file in enumerate(files) if not file.exists()]
        total, done = sum(group.n_rows for group in groups), 0
        for number, group in enumerate(groups):
            if number in missing:
                _write(files[number], _answered(model, group, columns, request))
            done += group.n_rows
            if progress is not None:
                progress(done, total)
    model.close()
    return _result(files, len(groups) - len(missing))


def _columns(groups: Sequence[RowGroup]) -> list[str]:
    """Which of ``user`` and ``history`` there are, the same in every file."""
    import pyarrow.types as types

    found: list[list[str]] = []
    for file in dict.fromkeys(group.file for group in groups):
        kinds = column_types(file)
        found.append([name for name in ("user", "history") if name in kinds])
        if not found[-1]:
            raise DataError(f"{file}: expected a column 'history' or 'user', got {list(kinds)}")
        if found[-1] != found[0]:
            raise DataError(f"{file}: expected the columns {found[0]} as in the first file, got {found[-1]}")
        kind = kinds.get("history")
        if kind is not None and not (types.is_list(kind) or types.is_large_list(kind)):
            raise DataError(f"{file}: column 'history': expected lists of item ids, got {kind}")
    return found[0]


def _begin(out: Path, plan: dict[str, Any], overwrite: bool) -> None:
    """Note what is done here, or check that it is the same as before."""
    place = out / PLAN
    if place.exists() and not overwrite:
        before = artifacts.load_json(place)
        if before.get("kind") == "batch":
            check_same_files(before["files"], plan["files"])
        for name in ("kind", "model", "request", "columns", "log", "changes"):
            if before.get(name) != plan[name]:
                what = "other changes of the catalog" if name == "changes" else f"another {name}"
                raise ConfigError(f"{out}: begun with {what}", hint="give another folder, or --overwrite")
        return
    shards = list(out.glob("[0-9]" * 8 + ".parquet"))
    if shards and not (place.exists() and artifacts.load_json(place).get("kind") == "batch"):
        raise ConfigError(
            f"{out}: holds {shards[0].name}, which genrec batch has not made there", hint="give another folder"
        )
    for shard in shards:
        shard.unlink()
    artifacts.atomic_write_bytes(place, json.dumps(plan, indent=1).encode())


def _answered(
    model: ServedModel, group: RowGroup, columns: list[str], request: RecommendationRequest
) -> dict[str, list[Any]]:
    """The columns of a shard."""
    metrics, first = Metrics(), 0
    out: dict[str, list[Any]] = {name: [] for name in ("row", "items", "scores", "source", "skipped_items")}
    names: list[str | None] = []
    for piece in group.pieces(columns):
        rows = piece.to_pylist()
        for start in range(0, len(rows), AT_ONCE):
            part = rows[start : start + AT_ONCE]
            users = [_user(row, f"{group}, row {first + start + n}") for n, row in enumerate(part)]
            answers = model.answer([Query(request, user) for user in users], metrics)
            for n, (user, answer) in enumerate(zip(users, answers, strict=True)):
                _append(out, first + start + n, answer, str(group))
                names.append(user.user)
        first += len(rows)
    return {**({"user": names} if "user" in columns else {}), **out}


def _user(row: dict[str, Any], where: str) -> Input:
    history, user = row.get("history"), row.get("user")
    if history is None and user is None:
        raise DataError(f"{where}: expected a history or a user", hint="an empty list is a user without a history")
    if history is not None and any(item is None for item in history):
        raise DataError(f"{where}: an item id of the history is missing")
    ids = None if history is None else [str(item) for item in history]
    return Input(history=ids, user=None if user is None else str(user), query=None)


def _append(out: dict[str, list[Any]], row: int, answer: Answer | Exception, group: str) -> None:
    if isinstance(answer, Problem):
        raise DataError(f"{group}, row {row}: {answer.message}")
    if isinstance(answer, Exception):
        raise answer
    values = (row, answer.ids, answer.scores, answer.source, answer.skipped)
    for name, value in zip(("row", "items", "scores", "source", "skipped_items"), values, strict=True):
        out[name].append(value)


def _write(file: Path, columns: dict[str, list[Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    kinds = {
        "row": pa.int64(),
        "user": pa.string(),
        "items": pa.list_(pa.string()),
        "scores": pa.list_(pa.float32()),
        "source": pa.string(),
        "skipped_items": pa.int32(),
    }
    table = pa.table({name: pa.array(values, kinds[name]) for name, values in columns.items()})
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink, compression="zstd", write_page_checksum=True, row_group_size=max(len(table), 1))
    artifacts.atomic_write_bytes(file, sink.getvalue())


def _result(files: list[Path], reused: int) -> BatchResult:
    import pyarrow.compute as compute

    users = cold = skipped = 0
    for file in files:
        table = artifacts.load_table(file)
        users += len(table)
        cold += compute.sum(compute.equal(table["source"], "popular")).as_py() or 0
        skipped += compute.sum(table["skipped_items"]).as_py() or 0
    return BatchResult(files, users, cold, skipped, reused)
