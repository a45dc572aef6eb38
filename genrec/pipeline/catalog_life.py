"""A run folder's catalog grows or shrinks: new items, new tombstones, and all that follows from them.

The new version is a folder of its own: written beside its place, then moved there in one step. What it holds is what
lists and identifiers need (catalog, embeddings, item_tokenizer, codes, index, bundle); the log, its split and the
evaluations stay with the version they were made on.

Axes: N published items, M new items.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec import artifacts, disk, recipes
from genrec.data.catalog import ItemCatalog
from genrec.decoding.index import CatalogIndex
from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import ArtifactError, ConfigError, DataError, FingerprintMismatch
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.drift import Drift, drift
from genrec.item_tokenizers.life import How, append
from genrec.item_tokenizers.registry import load_tokenizer
from genrec.pipeline.new_vectors import Origin, vectors_of_new
from genrec.pipeline.recipe import PipelineRecipe

REPORT = "version.json"
_KEPT = ("interactions", "split", "text_embeddings", "collaborative")


@dataclass(frozen=True, eq=False)
class Version:
    """A new version of a run's catalog: where it is, what happened, and the catalog (stable)."""

    folder: Path
    catalog: ItemCatalog
    drift: Drift
    report: dict[str, Any]


def append_items(
    run: str | Path,
    items: ItemCatalog,
    out: str | Path,
    *,
    vectors: str | Path | None = None,
    by: How = "auto",
    bundle: str | Path | None = None,
) -> Version:
    """Write a version of ``run`` to ``out`` that has these items too; no published identifier moves (stable).

    items: the new ones alone; fields that the run's catalog lacks are added to it. vectors: a file with vectors of the
    new items in the space of the run's ``embeddings``, as :func:`genrec.embeddings.base.load_vectors` reads it (rows
    in the order of ``items``, or with their ids); None = made the way the run made its own, see
    :func:`genrec.pipeline.new_vectors.vectors_of_new`. by: see :func:`genrec.item_tokenizers.life.append`. bundle: of
    the same catalog, to go along in place of the run's own: of a training on new items.

    A bundle goes along with its model unchanged. Raises what these functions raise, ConfigError where ``out`` is in use
    or the run's identifiers were dealt out at random, FingerprintMismatch for a bundle with other identifiers.
    """
    run, out = Path(run), Path(out)
    recipe = recipe_of(run)
    if recipe.shuffle_identifiers:
        raise ConfigError(
            f"{run}: its identifiers were dealt out at random (shuffle_identifiers): none fits a new item"
        )
    old, published = ItemCatalog.load(run / "catalog"), ItemCodes.load(run / "codes")
    stored = ItemEmbeddings.load(run / "embeddings").check(old)
    model = Path(bundle or run)
    model = model / "bundle" if (model / "bundle").is_dir() else model
    if bundle is not None and ItemCodes.load(model / "codes").fingerprint != published.fingerprint:
        raise FingerprintMismatch(f"{bundle}: its identifiers are not those of {run}")
    child = old.append(items.ids, {name: _like(name, old, values) for name, values in items.fields.items()})
    origin = Origin.of(run, len(old))
    artifacts.sweep(out.absolute().parent)
    with disk.new_folder(out) as draft:
        made = vectors_of_new(origin, recipe, child, stored, vectors)
        source = TokenizerSource.of(child, embeddings=made, seed=recipe.seed)
        found = append(load_tokenizer(run / "item_tokenizer"), published, source, by=by)
        changed = drift(published, found.codes, catalogs=(old, child))
        assert not len(changed.moved), "a published identifier moved"
        child.save(draft / "catalog", meta={"appended": len(items)})
        made.save(draft / "embeddings")
        _write_version(run, model, draft, child, found.codes, {"kind": "append", **found.report})
        origin.save(draft, out)
        return _finished(draft, out, child, changed, found.report)


def retire_items(run: str | Path, ids: Sequence[str], out: str | Path) -> Version:
    """Write a version of ``run`` to ``out`` in which these items are never listed again (stable).

    They keep number and identifier, so histories with them stay readable, and no other item ever gets their
    identifier. The index is built without them. Under the normaliser "children" their probability goes to their
    siblings: scores of these items rise, against a request that denies the same items. Raises DataError for an unknown
    id, and for an item that is retired already.
    """
    run, out = Path(run), Path(out)
    recipe_of(run)  # only run folders have versions
    old, codes = ItemCatalog.load(run / "catalog"), ItemCodes.load(run / "codes")
    if old.retired is not None and (twice := [i for i in dict.fromkeys(ids) if old.retired[old.numbers([i])[0]]]):
        raise DataError(f"{len(twice)} of these items are retired already, first {twice[:3]}")
    now = old.retire(ids)
    changed = drift(codes, codes, catalogs=(old, now))
    report = {"kind": "retire", "n_retired": len(changed.retired), "n_left": int((~_gone(now)).sum())}
    artifacts.sweep(out.absolute().parent)
    with disk.new_folder(out) as draft:
        now.save(draft / "catalog")
        for name in ("embeddings", *_KEPT):
            if artifacts.exists(run / name):
                shutil.copytree(run / name, draft / name)
        _write_version(run, run / "bundle", draft, now, codes, report)
        Origin.of(run, len(old)).save(draft, out)
        return _finished(draft, out, now, changed, report)


def recipe_of(run: Path) -> PipelineRecipe:
    """The recipe a run folder was made with; ArtifactError where there is none."""
    file = run / "recipe.json"
    if not file.is_file():
        raise ArtifactError(f"{run}: no recipe.json: not a run folder", hint="give the folder of `genrec run --out`")
    return recipes.from_dict(PipelineRecipe, artifacts.load_json(file))


def _write_version(
    run: Path, bundle: Path, draft: Path, catalog: ItemCatalog, codes: ItemCodes, report: dict[str, Any]
) -> None:
    """Codes, index, item tokenizer, recipe and, if there is one, the bundle."""
    parents = {name: artifacts.read(run / name).digest for name in ("codes", "item_tokenizer")}
    codes.save(draft / "codes", recipe=report, parents=parents)
    keep = ~_gone(catalog)
    index = CatalogIndex.build(codes, keep=keep)
    index.save(draft / "index", parents={"codes": artifacts.read(draft / "codes").digest})
    shutil.copytree(run / "item_tokenizer", draft / "item_tokenizer")
    shutil.copy(run / "recipe.json", draft / "recipe.json")
    if artifacts.exists(bundle, "bundle"):
        _write_bundle(bundle, draft / "bundle", catalog, codes, index)


def _write_bundle(old: Path, new: Path, catalog: ItemCatalog, codes: ItemCodes, index: CatalogIndex) -> None:
    """The same model with the codes and the index of the new version."""
    manifest = artifacts.read(old, kind="bundle")
    before = ItemCodes.load(old / "codes")
    with artifacts.write(
        new,
        kind="bundle",
        schema=manifest.schema,
        recipe=manifest.recipe,
        catalog=codes.catalog,
        parents={**manifest.parents, "bundle": manifest.digest},
        meta={**manifest.meta, "codes": codes.fingerprint},
    ) as draft:
        shutil.copytree(old / "model", draft.dir / "model")
        config = artifacts.load_json(old / "model" / "config.json")
        if "genrec_n_items" not in config:  # the model knows these identifiers; later versions begin with them
            trained = {
                "genrec_codes": before.fingerprint,
                "genrec_n_items": len(before),
                "genrec_catalog": before.catalog,
            }
            artifacts.save_json(draft.dir / "model" / "config.json", {**config, **trained})
        for name in ("token_map.json", "decoding.json"):
            shutil.copy(old / name, draft.dir / name)
        for name in ("prompt", "users"):  # how the model is asked, where it is by more than histories
            if (old / name).is_dir():
                shutil.copytree(old / name, draft.dir / name)
        codes.save(draft.dir / "codes")
        index.save(draft.dir / "index")
        catalog.save(draft.dir / "catalog")


def _finished(draft: Path, out: Path, catalog: ItemCatalog, changed: Drift, report: dict[str, Any]) -> Version:
    artifacts.save_json(draft / REPORT, {**report, "drift": changed.to_json(catalog)})
    return Version(out, catalog, changed, report)


def _gone(catalog: ItemCatalog) -> npt.NDArray[np.bool_]:
    return np.zeros(len(catalog), dtype=bool) if catalog.retired is None else catalog.retired


def _like(name: str, old: ItemCatalog, values: Sequence[Any]) -> list[Any]:
    """Numbers that a csv file has as text, as the catalog has them; DataError, naming row and field, for others."""
    kinds = {type(v) for v in old.fields.get(name, ()) if v is not None}
    if not kinds or not kinds <= {int, float}:
        return list(values)
    out: list[Any] = []
    for row, value in enumerate(values):
        try:
            out.append((int if kinds == {int} else float)(value) if isinstance(value, str) else value)
        except ValueError as error:
            raise DataError(
                f"field {name!r}, new item {row}: expected a number like the items before, got {value!r}"
            ) from error
    return out
