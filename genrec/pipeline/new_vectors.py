"""Vectors of new items in the space of a run's item vectors, without moving that space.

Axes: N published items, M new items, D width.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from genrec import artifacts
from genrec.data.catalog import ItemCatalog
from genrec.data.splits import Split
from genrec.embeddings.base import ItemEmbeddings, load_vectors
from genrec.embeddings.famae import train_famae
from genrec.embeddings.fold_in import lsa_fold_in
from genrec.embeddings.linear import unit_rows
from genrec.embeddings.text import sentence_embeddings
from genrec.errors import DataError
from genrec.pipeline import data_stages
from genrec.pipeline.recipe import Block, PipelineRecipe, seeded
from genrec.pipeline.runner import same_catalog

log = logging.getLogger(__name__)
Floats = npt.NDArray[np.float32]
_FILE = "lineage.json"
_HINT = "make the vectors yourself, in the space of the run's embeddings, and give them with --vectors"


@dataclass(frozen=True)
class Origin:
    """The run whose items the vectors were learned from, and how many these are (stable)."""

    run: Path
    n_items: int

    @classmethod
    def of(cls, run: Path, n_items: int) -> Origin:
        """Of a run folder of ``n_items``, or of a version of one (which says where it comes from)."""
        if not (run / _FILE).is_file():
            return cls(run, n_items)
        found = artifacts.load_json(run / _FILE)
        return cls(Path(os.path.normpath(run / found["run"])), int(found["n_items"]))

    def save(self, draft: Path, out: Path) -> None:
        """Note it in a version that will stand at ``out``."""
        place = os.path.relpath(self.run.absolute(), out.absolute())
        artifacts.save_json(draft / _FILE, {"run": place, "n_items": self.n_items})


def vectors_of_new(
    origin: Origin,
    recipe: PipelineRecipe,
    child: ItemCatalog,
    stored: ItemEmbeddings,
    given: str | Path | None = None,
) -> ItemEmbeddings:
    """The vectors of a child catalog: ``stored`` as they are, then those of its new items (stable).

    given: a file with the new items' vectors. Without one, each block of the recipe is asked:

    ======== ==================================================================
    sentence the model encodes the new texts
    lsa      folded in: terms and directions of the items it was learned from
    file     the same file, which must have rows for the new items (by id)
    famae    learned again; the new items' fields, and in the item's own part the mean of its category
    ppmi …   nobody has bought them: unknown, and predicted from the other blocks
    ======== ==================================================================

    Blocks are put together with the means, directions, scales and predictions of the items of the origin
    (``fuse(..., n_fit=...)``); for that the origin's own vectors are made again from its run folder and compared with
    the stored ones. Raises DataError where they cannot be made or differ, where the new items would get no vector, and
    for vectors of another width.
    """
    n = stored.n_items
    fields = {name: values[n:] for name, values in child.fields.items()}
    if given is not None:
        new = load_vectors(given, ItemCatalog(child.ids[n:], fields)).vectors
    elif n == len(child):
        new = stored.vectors[:0]
    else:
        known = {name: child.fields[name][n:] for name in _old_fields(origin)}
        new = _made(origin, recipe, ItemCatalog(child.ids[n:], known), stored)
    if new.shape[1] != stored.dim:
        raise DataError(
            f"vectors of the new items: expected width {stored.dim}, as in the run, got {new.shape[1]}", hint=_HINT
        )
    if nothing := int((~new.any(axis=1)).sum()):
        log.warning("nothing is known about %d of %d new items: their vectors are zeros", nothing, len(new))
    return ItemEmbeddings(np.concatenate([stored.vectors, new]), child.fingerprint, stored.recipe)


def _old_fields(origin: Origin) -> list[str]:
    """The fields that the items had whose vectors everything is learned from."""
    if not artifacts.exists(origin.run / "catalog"):
        raise DataError(f"{origin.run}: the run that the vectors were learned in is gone", hint=_HINT)
    return list(ItemCatalog.load(origin.run / "catalog").fields)


def _made(origin: Origin, recipe: PipelineRecipe, new: ItemCatalog, stored: ItemEmbeddings) -> Floats:
    blocks = recipe.embeddings
    if all(_of_events(block) for block in blocks):
        raise DataError("the run's vectors come from interactions alone, and new items have none", hint=_HINT)
    alone = len(blocks) == 1 and blocks[0].as_is
    learned = any(made is not None for made in (blocks[0].lsa, blocks[0].famae, blocks[0].align, blocks[0].graph))
    if alone and not learned:  # each item's vector is its own
        found = _of_new(blocks[0], origin, new, recipe.seed, stored.dim)
        return np.asarray(unit_rows(found) if blocks[0].unit_rows else found, dtype=np.float32)
    catalog, cut = ItemCatalog.load(origin.run / "catalog"), Split.load(origin.run / "split")
    same_catalog(origin.run, catalog.fingerprint, "split")
    parts = []
    for block in blocks:
        if block.famae is not None:
            log.info("famae is learned again, to place the new items by their fields")
            famae = train_famae(cut.train(), catalog, seeded(block.famae, recipe.seed))
            old, later = famae.vectors(), famae.vectors_of_new(new)
        else:
            old = data_stages._vectors(block, catalog, cut, origin.run, recipe.seed).vectors
            later = _of_new(block, origin, new, recipe.seed, old.shape[1])
        both = ItemEmbeddings(np.concatenate([old, later]), "")
        parts.append(data_stages.shaped(both, block, cut.train(), recipe.seed))
    if alone:
        made = parts[0]
    else:
        made = data_stages.fused(parts, blocks, origin.n_items)
    known = np.all([part.known[: origin.n_items] for part in parts], axis=0)
    _check_same(made.vectors[: origin.n_items], stored.vectors[: origin.n_items], known, origin)
    return made.vectors[origin.n_items :]


def _of_events(block: Block) -> bool:
    return block.sasrec or any(made is not None for made in (block.ppmi, block.svd))


def _of_new(block: Block, origin: Origin, new: ItemCatalog, seed: int, width: int) -> Floats:
    """One block's vectors of the new items, float32 ``[M, width]``."""
    if block.lsa is not None or block.sentence is not None:
        catalog = ItemCatalog.load(origin.run / "catalog")
        if block.lsa is not None:
            found = ItemEmbeddings(lsa_fold_in(catalog, new, seeded(block.lsa, seed)), new.fingerprint)
        else:
            assert block.sentence is not None
            found = sentence_embeddings(new, block.sentence)
        return data_stages.enhanced(found, new, block, catalog, None, seed).vectors
    if block.file is not None:
        return load_vectors(Path(block.file), new).vectors
    return np.zeros((len(new), width), dtype=np.float32)


def _check_same(made: Floats, stored: Floats, known: npt.NDArray[np.bool_], origin: Origin) -> None:
    """The vectors made again must be those that the item tokenizer saw, but for rounding.

    known: rows in which nothing is predicted. They define the space; predictions of another version of this package
    are only told of.
    """
    off = np.full(1, np.inf) if made.shape != stored.shape else np.abs(made - stored).max(axis=1)
    limit = 1e-3 * max(float(np.abs(stored).max(initial=0.0)), 1e-30)
    far = float((off if len(off) != len(known) or not known.any() else off[known]).max(initial=0.0))
    if not far <= limit:
        raise DataError(
            f"the vectors of {origin.run}, made again from its folder, differ from those stored there (by {far:.3g}): "
            "a new item's would not be in their space",
            hint=_HINT,
        )
    if others := int((off > limit).sum()):
        log.warning("%d items of %s have vectors predicted by another version of genrec", others, origin.run)
