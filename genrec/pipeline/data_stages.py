"""Stages up to item identifiers: prepare, split, embed, tokenize. Each reads and writes artifacts of a run folder."""

from __future__ import annotations

import logging
from pathlib import Path

from genrec import recipes
from genrec.data.catalog import ItemCatalog
from genrec.data.filtering import k_core
from genrec.data.interactions import Interactions
from genrec.data.splits import Split, held_out_items, leave_one_out, predefined_split, time_split
from genrec.data.statistics import statistics
from genrec.embeddings.base import ItemEmbeddings, load_vectors
from genrec.embeddings.collaborative import PpmiSettings, SvdSettings, ppmi, svd
from genrec.embeddings.fuse import fuse
from genrec.embeddings.text import LsaSettings, SentenceSettings, lsa, sentence_embeddings
from genrec.pipeline.recipe import Block, FileSource, PipelineRecipe, SasRecVectors, VectorFile, seeded

log = logging.getLogger(__name__)


def prepare(folder: Path, recipe: PipelineRecipe) -> None:
    """Read or make the data: artifacts ``catalog`` and ``interactions``."""
    source = recipe.data
    if isinstance(source, FileSource):
        from genrec.data.readers import read

        loaded = read(source.reader, on_error=source.on_error)
        if loaded.rejected.total:
            log.warning("%s", loaded.rejected)
        catalog, log_of_users = loaded.catalog, loaded.interactions
        if source.user_core or source.item_core:
            log_of_users = k_core(log_of_users, source.user_core, source.item_core)
    else:
        from genrec.data.synthetic import make

        made = make(source.settings)
        catalog, log_of_users = made.catalog, made.interactions
    catalog.save(folder / "catalog", overwrite=True)
    log_of_users.save(folder / "interactions", overwrite=True)
    log.info("%s", statistics(log_of_users, catalog))


def split(folder: Path, recipe: PipelineRecipe) -> None:
    """Cut histories into train, valid and test: artifact ``split``."""
    settings = recipe.split
    events = Interactions.load(folder / "interactions").order_ties(settings.ties, recipe.seed)
    if settings.kind == "leave_one_out":
        made = leave_one_out(events)
    elif settings.kind == "time":
        made = time_split(events, valid=settings.valid, test=settings.test)
    elif settings.kind == "predefined":
        made = predefined_split(events, settings.column)
    else:
        made = held_out_items(events, settings.fraction, recipe.seed)
    made.check_leakage(events)
    made.save(folder / "split", overwrite=True, recipe=recipes.to_json(settings))


def embed(folder: Path, recipe: PipelineRecipe) -> None:
    """Item vectors from every block, fused: artifact ``embeddings``."""
    catalog = ItemCatalog.load(folder / "catalog")
    train = Split.load(folder / "split")
    blocks = [_vectors(block, catalog, train, folder, recipe.seed) for block in recipe.embeddings]
    if len(blocks) == 1 and recipe.embeddings[0].dim is None:
        made = blocks[0]
    else:
        made = fuse(blocks, [b.dim for b in recipe.embeddings], [b.weight for b in recipe.embeddings])
    made.save(folder / "embeddings", overwrite=True)


def _vectors(block: Block, catalog: ItemCatalog, split: Split, folder: Path, seed: int) -> ItemEmbeddings:
    source = block.source
    if isinstance(source, LsaSettings):
        return lsa(catalog, seeded(source, seed))
    if isinstance(source, SentenceSettings):
        return sentence_embeddings(catalog, source, cache=folder / "cache" / "text")
    if isinstance(source, PpmiSettings):
        return ppmi(split.train(), split.n_items, seeded(source, seed), catalog.fingerprint)
    if isinstance(source, SvdSettings):
        return svd(split.train(), split.n_items, seeded(source, seed), catalog.fingerprint)
    if isinstance(source, VectorFile):
        return load_vectors(Path(source.path), catalog)
    assert isinstance(source, SasRecVectors)
    from genrec.baselines.sasrec import SasRec

    table = SasRec.load(folder / "sasrec").item_vectors()
    return ItemEmbeddings(table, catalog.fingerprint, {"kind": "sasrec"})
