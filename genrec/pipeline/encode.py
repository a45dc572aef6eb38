"""Identifiers for item tables of any size: fit on a sample, encode shard by shard, settle collisions at the end.

Axes: N items, L levels, D width.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Formatter
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from genrec import artifacts, disk, recipes
from genrec.data.catalog import ItemCatalog, fingerprint
from genrec.embeddings.parquet_rows import ParquetVectors, RowGroup, column_types, row_groups, vector_column_of
from genrec.errors import ArtifactError, ConfigError, DataError
from genrec.item_tokenizers import registry
from genrec.item_tokenizers.base import ItemTokenizer
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.collisions import CollisionPolicy, check_policy
from genrec.pipeline.encode_ids import check_ids, read_column, read_ids
from genrec.pipeline.encode_ray import run_ray
from genrec.pipeline.encode_shards import (
    PLAN,
    Plan,
    ShardEncoder,
    Work,
    begun,
    check_same_files,
    file_states,
    missing,
    read_shard,
    shard_file,
)
from genrec.pipeline.encode_steps import fitted, policy_for, settle
from genrec.seeding import id_hash

Keys = npt.NDArray[np.uint64]
Engine = Literal["local", "ray"]
FITTED = "fitted.json"


@dataclass(frozen=True)
class EncodeSettings:
    """What :func:`encode_items` does; ConfigError for what does not go together (experimental).

    tokenizer: folder of a fitted item tokenizer (or of a run). fit: instead, the settings of one to fit on the items.
    sample: fit on so many of them, drawn evenly (None = all; kinds with ``rows_per_code`` draw a sample of their own).
    id_column, vector_column: names in the input; None = its only list column. text, model: embed texts instead, see
    :class:`~genrec.item_tokenizers.encode_batch.EncodeBatch`. collisions, suffix_limit: in place of the item
    tokenizer's own (None). engine, workers: local = in this process, ray = in ``workers`` processes. seed: of the fit,
    the sample and the neutral order of items in a collision.
    """

    tokenizer: Path | None = None
    fit: Any = None
    sample: int | None = None
    id_column: str = "item_id"
    vector_column: str | None = None
    text: tuple[str, ...] = ()
    model: str | None = None
    batch_size: int = 64
    collisions: CollisionPolicy | None = None
    suffix_limit: int | None = None
    engine: Engine = "local"
    workers: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.tokenizer is None) == (self.fit is None):
            raise ConfigError("expected either a fitted item tokenizer or the settings of one to fit")
        if bool(self.text) != (self.model is not None):
            raise ConfigError(
                "text and model go together: the parts of an item's text, and what embeds it",
                hint="give both --text and --model, or neither",
            )
        if self.text and self.vector_column:
            raise ConfigError("expected either vector_column or text, got both")
        if self.engine not in ("local", "ray"):
            raise ConfigError(f"engine: expected local or ray, got {self.engine!r}")
        if self.collisions is not None:
            check_policy(self.collisions)
        for name in ("workers", "batch_size", "sample", "suffix_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {value}")
        if self.fit is not None and getattr(self.fit, "balance", "none") != "none":
            raise ConfigError(
                "balance: clusters of equal size are a property of items that are assigned together, and here each "
                "is encoded by itself",
                hint="take balance: none, or fit in memory (genrec run)",
            )


@dataclass(frozen=True, eq=False)
class Encoded:
    """The identifiers after the collision policy, and what the policy did (experimental)."""

    codes: ItemCodes
    report: dict[str, Any]
    reused: int
    """shards that an earlier call had finished"""


def encode_items(
    items: str | Path,
    out: str | Path,
    settings: EncodeSettings,
    *,
    overwrite: bool = False,
    progress: Callable[[str, int, int], object] | None = None,
) -> Encoded:
    """Give every item of a parquet file or folder its identifier, in memory of a piece of a row group (experimental).

    ::

        read the ids: each once;  with ``fit``: learn from a sample of rows
        for each row group:  read, (embed,) encode, write a shard of ids and codes     (any engine, any order)
        read all shards: every item once;  collision policy;  write the codes

    In ``out``: ``shards/`` (and ``vectors/``, where texts were embedded to fit on), ``item_tokenizer``, ``catalog`` and
    ``codes``. A shard is complete or not there, so the same call goes on where one stopped. The identifiers are those
    that a fit in memory gives, with the same seed. Beside a piece of a row group it holds the ids and codes of all
    items, the sample, and for ``reassign`` the vectors of the items that collide.
    progress: called with the name of a pass, items done since the last call, and items in all.

    Raises DataError naming file, row group and row for an id that is missing or there twice, a vector that is missing,
    ragged, not finite or of another width, and for an input that has changed since the call that is gone on with;
    ConfigError where ``out`` belongs to another job.
    """
    out, groups = Path(out).absolute(), [replace(g, file=g.file.absolute()) for g in row_groups(items)]
    disk.make_folders(out)
    with disk.claimed(out, "genrec encode"):
        job = _Job(out, settings, tuple(groups), progress or (lambda name, done, total: None))
        return job.run(overwrite=overwrite)


@dataclass(frozen=True)
class _Job:
    out: Path
    settings: EncodeSettings
    groups: tuple[RowGroup, ...]
    progress: Callable[[str, int, int], object]

    def run(self, *, overwrite: bool) -> Encoded:
        self._check_places()
        work, files = self._work(), file_states(self.groups)
        given = self.settings.tokenizer
        loaded = None if given is None else registry.load_tokenizer(_artifact(given))
        policy = policy_for(loaded or registry.build(self.settings.fit), self.settings.collisions)
        ids = read_ids(self.groups, self.settings.id_column)
        check_ids(ids, self.groups)
        if overwrite:  # not before it is known that the new work can begin
            _clear(self.out)
        keys, catalog = id_hash(ids, self.settings.seed), fingerprint(ids)
        groups = self.groups
        if self.settings.text and self.settings.fit is not None:
            self._pass("vectors", Plan(work, groups))
            groups = tuple(row_groups(self.out / "vectors"))
            work = Work("item_id", vector_column="vector")
        tokenizer = self._tokenizer(work, groups, keys, catalog, loaded)
        own: dict[str, Any] = recipes.to_json(tokenizer.settings)
        limit: int = self.settings.suffix_limit or own.get("suffix_limit", 256)
        folder = self.out / "item_tokenizer"
        work = replace(
            work,
            tokenizer=str(folder),
            digest=artifacts.read(folder).digest,
            keep_vectors=bool(work.text) and policy == "reassign",
        )
        reused = self._pass("shards", Plan(work, groups))
        raw, width = self._collect(groups, ids, catalog)
        check_same_files(files, file_states(self.groups))  # a file that was written again meanwhile
        place = self.out / "shards" if work.keep_vectors else None
        table = _table(groups, work, place) if policy == "reassign" else None
        found = settle(tokenizer, raw, keys, table, width, policy=policy, limit=limit)
        titles = read_column(self.groups, "title")
        ItemCatalog(tuple(ids), {"title": titles}).save(self.out / "catalog", overwrite=True)
        found.codes.save(self.out / "codes", recipe={**own, "collisions": policy}, overwrite=True)
        return Encoded(found.codes, {"raw": raw.report(), "collisions": found.report}, reused)

    def _check_places(self) -> None:
        """Raise ConfigError for an input that lies where this job writes."""
        for name in ("shards", "vectors"):
            own = (self.out / name).resolve()
            lost = [group.file for group in self.groups if group.file.resolve().is_relative_to(own)]
            if lost:
                raise ConfigError(f"{lost[0]}: the input lies in {own}, where shards are written", hint="other --out")

    def _work(self) -> Work:
        """What is read of each item; raises for a column that is not there."""
        given, files = self.settings, list(dict.fromkeys(group.file for group in self.groups))
        if not given.text:
            column = vector_column_of(files, given.vector_column)
            needed: tuple[str, ...] = ()
        else:
            column = None
            needed = tuple(dict.fromkeys(n for part in given.text for _, n, _, _ in Formatter().parse(part) if n))
        for file in files:
            lost = [name for name in (given.id_column, *needed) if name not in column_types(file)]
            if lost:
                raise DataError(
                    f"{file}: expected a column {lost[0]!r}, got {list(column_types(file))}",
                    hint="name the columns: --id-column NAME, --vector-column NAME, --text '{NAME}'",
                )
        return Work(given.id_column, "", "", column, given.text, needed, given.model, given.batch_size)

    def _pass(self, name: str, plan: Plan) -> int:
        """Do the shards of a plan that are not there; returns how many were."""
        folder = self.out / name
        disk.make_folders(folder)
        plan.save(folder)
        todo = missing(folder, plan)
        total = sum(group.n_rows for group in plan.groups)
        self.progress(name, total - sum(plan.groups[number].n_rows for number in todo), total)
        if todo and self.settings.engine == "ray":
            run_ray(folder, todo, lambda rows: self.progress(name, rows, total), self.settings.workers)
        elif todo:
            encode = ShardEncoder(str(folder))
            for number in todo:
                self.progress(name, encode.do(number), total)
        artifacts.sweep(folder)
        return len(plan.groups) - len(todo)

    def _tokenizer(
        self, work: Work, groups: Sequence[RowGroup], keys: Keys, catalog: str, loaded: ItemTokenizer | None
    ) -> ItemTokenizer:
        """The fitted item tokenizer, with a copy in the folder, so that the folder says how its codes came about."""
        folder, given = self.out / "item_tokenizer", self.settings
        if loaded is not None:
            self._check_begun_with(loaded)
            loaded.save(folder, overwrite=True)
            (self.out / FITTED).unlink(missing_ok=True)
            return loaded
        read: dict[str, Any] = {"id_column": work.id_column, "vector_column": work.vector_column}
        read |= {"text": list(given.text), "model": given.model}
        wanted = {"settings": recipes.to_json(given.fit), "seed": given.seed, "sample": given.sample, "items": catalog}
        wanted["read"] = read
        note, files = self.out / FITTED, file_states(groups)
        if note.exists() and artifacts.exists(folder):
            then = artifacts.load_json(note)
            check_same_files(then["files"], files)
            if then != {**wanted, "files": then["files"], "digest": artifacts.read(folder).digest}:
                raise ConfigError(
                    f"{self.out}: holds an item tokenizer that was fitted otherwise, or on other items",
                    hint="give another --out, or --overwrite to start over",
                )
            return registry.load_tokenizer(folder)
        tokenizer = fitted(given.fit, _table(groups, work, None), keys, catalog, seed=given.seed, sample=given.sample)
        tokenizer.save(folder, overwrite=True)
        said = {**wanted, "files": files, "digest": artifacts.read(folder).digest}
        artifacts.atomic_write_bytes(note, json.dumps(said, indent=1).encode())
        return tokenizer

    def _check_begun_with(self, tokenizer: ItemTokenizer) -> None:
        """Raise ConfigError, before anything is replaced, where shards were begun with another item tokenizer."""
        plan = self.out / "shards" / PLAN
        if not begun(plan.parent):
            return
        with tempfile.TemporaryDirectory(dir=self.out) as place:
            tokenizer.save(Path(place) / "item_tokenizer")
            digest = artifacts.read(Path(place) / "item_tokenizer").digest
        then = str(artifacts.load_json(plan)["work"]["digest"])
        if then != digest:
            raise ConfigError(
                f"{plan.parent}: begun with another item tokenizer ({then[:8]}, now {digest[:8]})",
                hint="give another --out, or --overwrite starts over (overwrite=True in Python)",
            )

    def _collect(self, groups: Sequence[RowGroup], ids: Sequence[str], catalog: str) -> tuple[ItemCodes, int]:
        """The raw codes of all shards, after a check that every item is in them once, and the vectors' width."""
        parts, at, meta = [], 0, {}
        for number, group in enumerate(groups):
            try:
                shard = read_shard(self.out / "shards", number)
            except ArtifactError as error:
                hint = "delete this file: the same command makes it again"
                raise ArtifactError(f"{shard_file(self.out / 'shards', number)}: {error}", hint=hint) from error
            if shard.codes is None or shard.ids != list(ids[at : at + group.n_rows]):
                raise DataError(f"shard {number} does not hold the items of {group}", hint="--overwrite starts over")
            parts.append(shard.codes)
            meta, at = shard.meta, at + group.n_rows
        if at != len(ids):
            raise DataError(f"the shards hold {at} items, expected {len(ids)}", hint="--overwrite starts over")
        sizes, shared = tuple(meta["level_sizes"]), bool(meta["shared_vocabulary"])
        codes = ItemCodes.from_int(np.concatenate(parts), sizes, catalog, shared_vocabulary=shared)
        return codes, int(meta["width"])


def _table(groups: Sequence[RowGroup], work: Work, kept: Path | None) -> ParquetVectors:
    """The vectors of all items: the input's, or those kept in the shards."""
    if kept is not None:
        return ParquetVectors(kept, "vector")
    files = list(dict.fromkeys(group.file for group in groups))
    return ParquetVectors(files[0] if len(files) == 1 else files[0].parent, work.vector_column)


def _artifact(path: Path) -> Path:
    """The item tokenizer at ``path``, or in the run folder there."""
    return path / "item_tokenizer" if artifacts.exists(path / "item_tokenizer") else path


def _clear(out: Path) -> None:
    """Remove what an earlier job left; its artifacts are replaced later."""
    for name in ("vectors", "shards"):
        for file in [*(out / name).glob("[0-9]" * 8 + ".parquet"), out / name / PLAN]:
            file.unlink(missing_ok=True)
    (out / FITTED).unlink(missing_ok=True)
