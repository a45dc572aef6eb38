"""Lists for all users of a table, without an endpoint: sharded, resumable, parquet out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrec import artifacts, disk
from genrec.embeddings.parquet_rows import RowGroup, column_types, row_groups
from genrec.errors import ArtifactError, ConfigError, DataError
from genrec.models.bundle import bundle_folder
from genrec.pipeline.encode_ray import run_ray
from genrec.pipeline.encode_shards import check_same_files, file_states
from genrec.serving import digests
from genrec.serving.changes import Changes
from genrec.serving.model import ServedModel
from genrec.serving.offline_shards import PLAN, ShardRecommender
from genrec.serving.schemas import RecommendationRequest

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
    ray_workers: int | None = None,
    progress: Progress | None = None,
) -> BatchResult:
    """Write a list for every row of ``users`` to ``out``, one parquet file per row group, complete or not there.

    run: a run folder or a bundle. users: a parquet file or a folder of them with ``history`` (lists of item ids, oldest
    first) or ``user`` (ids of the run's log), or both; further columns are left out. request: what all users ask for;
    its own ``history`` or ``user`` are not looked at. The columns of a shard: ``row`` (in its row group), ``user`` if
    there was one, ``items`` (list of ids, best first), ``scores``, ``source``, ``skipped_items``.

    journal: changes that a server has made, which count here too (see :class:`genrec.serving.changes.Changes`); where
    it has gone back to an earlier model, the lists are of that one.
    ray_workers: None = in this process; else in so many workers of Ray, on the cluster that the program is connected
    to or one on this machine. All of them must see the same folders under the same names.

    A shard that is there is not made again; another request, model or input in the same folder is refused, unless
    ``overwrite`` starts over. Answers equal those of the endpoint. Raises DataError naming file, row group and row for
    a row that says nothing or names a user where there is no log, ConfigError for another job in the folder.
    Stability: experimental.
    """
    run, out = Path(run), Path(out)
    groups = row_groups(users)
    columns = _columns(groups)
    changes = Changes(journal, reading=True)
    run = _answering(run, changes)
    manifest = artifacts.read(bundle_folder(run), kind="bundle", verify=False)
    asked = request.model_dump(exclude={"history", "user", "query", "inputs", "timeout", "model", "explain"})
    model = ServedModel.load(run, base=base)
    changes.replay(model.store)
    model.check(request)
    plan = {
        "kind": "batch",
        "request": asked,
        "model": manifest.digest,
        "log": None if model.log is None else artifacts.read(run / "interactions", verify=False).digest,
        "changes": changes.state(),
        "columns": columns,
        "files": file_states(groups),
        "run": str(run.resolve()),
        "base": base,
        "groups": [[str(group.file.resolve()), group.number, group.n_rows] for group in groups],
    }
    if ray_workers is not None:
        model.close()  # each worker has its own
        del model
    disk.make_folders(out)
    with disk.claimed(out, "genrec batch"):
        _begin(out, json.loads(json.dumps(plan)), overwrite)
        files = [out / f"{number:08d}.parquet" for number in range(len(groups))]
        missing = [number for number, file in enumerate(files) if not file.exists()]
        total = sum(group.n_rows for group in groups)
        done = total - sum(groups[number].n_rows for number in missing)

        def told(rows: int) -> None:
            nonlocal done
            done += rows
            if progress is not None:
                progress(done, total)

        told(0)
        if ray_workers is None:
            recommend = ShardRecommender(str(out), model)
            for number in missing:
                told(recommend.do(number))
            model.close()
        elif missing:
            run_ray(out, missing, told, ray_workers, ShardRecommender)
        artifacts.sweep(out)
    found = _result(files, len(groups) - len(missing))
    if found.users != total:
        raise DataError(f"{out}: expected {total} lists, got {found.users}", hint="start over with --overwrite")
    return found


def _answering(run: Path, changes: Changes) -> Path:
    """The run whose model the server answers from: what lies at ``run``, or what it has gone back to from there."""
    back = changes.gone_back
    if back is None or digests.at(run) != back["instead_of"]:
        return run
    if digests.at(Path(back["place"])) != back["digest"]:
        raise ArtifactError(
            f"the server of {run} has gone back to the model in {back['place']}, and it is not there any more",
            hint="let the server answer from the newer model again (rollback, reload), or give no --journal of its",
        )
    return Path(back["place"])


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
        artifacts.atomic_write_bytes(place, json.dumps(plan, indent=1).encode())  # folders may have moved
        return
    shards = list(out.glob("[0-9]" * 8 + ".parquet"))
    if shards and not (place.exists() and artifacts.load_json(place).get("kind") == "batch"):
        raise ConfigError(
            f"{out}: holds {shards[0].name}, which genrec batch has not made there", hint="give another folder"
        )
    for shard in shards:
        shard.unlink()
    artifacts.atomic_write_bytes(place, json.dumps(plan, indent=1).encode())


def _result(files: list[Path], reused: int) -> BatchResult:
    import pyarrow.compute as compute

    users = cold = skipped = 0
    for file in files:
        table = artifacts.load_table(file)
        users += len(table)
        cold += compute.sum(compute.equal(table["source"], "popular")).as_py() or 0
        skipped += compute.sum(table["skipped_items"]).as_py() or 0
    return BatchResult(files, users, cold, skipped, reused)
