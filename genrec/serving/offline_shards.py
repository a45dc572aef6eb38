"""One shard of an offline job: what the local path and every worker of Ray do alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt

from genrec import artifacts
from genrec.embeddings.parquet_rows import RowGroup
from genrec.errors import ArtifactError, DataError
from genrec.models.bundle import bundle_folder
from genrec.pipeline.encode_shards import each_shard
from genrec.serving.changes import Changes
from genrec.serving.model import Answer, Query, ServedModel
from genrec.serving.problems import Problem
from genrec.serving.schemas import Input, RecommendationRequest
from genrec.serving.telemetry import Metrics

PLAN = "plan.json"
AT_ONCE = 1024  # users searched together; the recommender splits them by the lengths of their prompts


class ShardRecommender:
    """Reads a row group, recommends for its users, writes its shard: complete, or not there (internal).

    Made from the name of a folder with a plan, once in every worker. Doing a shard twice writes the same bytes, and a
    worker that dies leaves nothing that looks like a shard. model: with the plan's changes, None = it is loaded. Raises
    ArtifactError where another model is in the place than the one that the job was begun with.
    """

    def __init__(self, folder: str, model: ServedModel | None = None) -> None:
        self.folder = Path(folder)
        plan = artifacts.load_json(self.folder / PLAN)
        self.groups = [RowGroup(Path(file), number, n_rows) for file, number, n_rows in plan["groups"]]
        self.columns: list[str] = plan["columns"]
        self.request = RecommendationRequest.model_validate({**plan["request"], "history": []})
        if model is None:
            run = Path(plan["run"])
            found = artifacts.read(bundle_folder(run), kind="bundle", verify=False).digest
            if found != plan["model"]:
                raise ArtifactError(f"{run}: another model than the one that this job was begun with")
            model = ServedModel.load(run, base=plan["base"])
            Changes.of(plan["changes"]).replay(model.store)
        self.model = model

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """See :func:`genrec.pipeline.encode_shards.each_shard`."""
        return each_shard(self.do, batch)

    def do(self, number: int) -> int:
        """Recommend for the users of shard ``number``; returns how many. DataError naming file, row group and row."""
        group = self.groups[number]
        answered = _answered(self.model, group, self.columns, self.request)
        if len(answered["row"]) != group.n_rows:
            raise DataError(
                f"{group}: expected {group.n_rows} rows, got {len(answered['row'])}: was the file written again?"
            )
        _write(self.folder / f"{number:08d}.parquet", answered)
        return group.n_rows


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
