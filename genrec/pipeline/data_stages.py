"""Stages up to item identifiers: prepare, split, embed, tokenize. Each reads and writes artifacts of a run folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from genrec import recipes
from genrec.data.catalog import ItemCatalog
from genrec.data.histories import Histories
from genrec.data.interactions import Interactions
from genrec.data.parts import predefined_parts
from genrec.data.splits import Split, held_out_items, leave_one_out, predefined_split, time_split
from genrec.decoding.index import CatalogIndex
from genrec.embeddings.aligned import align
from genrec.embeddings.base import ItemEmbeddings, load_vectors
from genrec.embeddings.collaborative import ppmi, svd
from genrec.embeddings.famae import famae
from genrec.embeddings.fold_in import lsa_fold_in
from genrec.embeddings.fuse import fuse
from genrec.embeddings.graph import graph_vectors
from genrec.embeddings.keywords import with_keywords
from genrec.embeddings.linear import unit_rows
from genrec.embeddings.neighbours import propagate
from genrec.embeddings.text import lsa, sentence_embeddings
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers import registry
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.codes import ItemCodes
from genrec.pipeline.codes_text import describe_codes, oversized, raw_report
from genrec.pipeline.recipe import Block, PipelineRecipe, SplitSettings, seeded
from genrec.pipeline.runner import same_catalog
from genrec.seeding import rng
from genrec.vocab.user_index import index_users

log = logging.getLogger(__name__)
ROW = "row in the stored log"


def prepare(folder: Path, recipe: PipelineRecipe) -> None:
    """Read or make the data: artifacts ``catalog`` and ``interactions``.

    Where rows were left out, the meta of both says so: ``rejected``, by file and reason.
    """
    from genrec.data.summary import statistics, table

    source, meta = recipe.data, {}
    if source.reader is not None:
        from genrec.data.filtering import drop_unused_items, k_core
        from genrec.data.readers import read

        loaded = read(source.reader, on_error=source.on_error)
        catalog, events = loaded.catalog, loaded.interactions
        if loaded.rejected:
            log.warning("%s", loaded.rejected)
            meta["rejected"] = loaded.rejected.account(source.reader.folder)
        if source.user_core or source.item_core:
            used = drop_unused_items(catalog, k_core(events, source.user_core, source.item_core))
            catalog, events = used.catalog, used.interactions
    else:
        from genrec.data.synthetic import make

        assert source.synthetic is not None
        made = make(source.synthetic)
        catalog, events = made.catalog, made.interactions
    catalog.save(folder / "catalog", overwrite=True, meta=meta)
    events.save(folder / "interactions", overwrite=True, meta=meta)
    _warn_of_units(events)
    log.info("%s", table(statistics(events, catalog)).replace("\n", "\n    "))


def _warn_of_units(events: Interactions) -> None:
    """Say when times look like two units in one column: seconds and milliseconds are a factor of 1000 apart."""
    middle = float(np.median(events.time)) if len(events.time) else 0.0
    odd = (events.time > 100 * middle) | ((events.time < middle / 100) & (events.time > 0))
    if middle > 1e8 and odd.any():  # below it, times are positions rather than Unix time
        log.warning(
            "times run from %d to %d, half of them below %d: %d of %d may be in another unit",
            events.time.min(), events.time.max(), middle, odd.sum(), len(odd),
        )  # fmt: skip


def split(folder: Path, recipe: PipelineRecipe) -> None:
    """Cut histories into train, valid and test: artifact ``split``."""
    stored = Interactions.load(folder / "interactions")
    numbered = replace(stored, columns={**stored.columns, ROW: np.arange(len(stored))})
    # a predefined part is no order to draw: only ties inside it are
    parts = predefined_parts(stored, recipe.split.column) if recipe.split.kind == "predefined" else None
    events = numbered.order_ties(recipe.split.ties, recipe.seed, within=parts)
    made = _cut(events, recipe.split, recipe.seed)
    # rows of the stored log, not of the ordered copy
    assert made.rows is not None
    made = replace(made, rows=events.columns[ROW][made.rows])
    if recipe.split.ties == "neutral":
        made = made.open_ties(stored)
    made.check_leakage(stored)
    if not len(made.queries("test")):
        raise DataError(
            f"split: no user has both a history and a test target ({len(stored)} events of {stored.n_users} users, "
            f"rule {recipe.split.kind!r})",
            hint="leave_one_out needs users with three events or more; a time split needs users on both sides of a cut",
        )
    made.save(folder / "split", overwrite=True, recipe=recipes.to_json(recipe.split))
    for part in ("valid", "test"):
        asked = made.queries(part)
        if not len(asked):
            log.warning("%s: no queries: training runs to its end without early stopping", part)
        log.info("%s: %d queries, %d targets", part, len(asked), len(asked.targets.items))


def _cut(events: Interactions, settings: SplitSettings, seed: int) -> Split:
    if settings.kind == "leave_one_out":
        return leave_one_out(events)
    if settings.kind == "time":
        return time_split(events, valid_fraction=settings.valid_fraction, test_fraction=settings.test_fraction)
    if settings.kind == "predefined":
        return predefined_split(events, settings.column)
    return held_out_items(events, settings.cold_fraction, seed)


def embed(folder: Path, recipe: PipelineRecipe) -> None:
    """Item vectors from every block, fused: artifact ``embeddings``."""
    catalog = ItemCatalog.load(folder / "catalog")
    cut = Split.load(folder / "split")
    from_sasrec = ["sasrec"] if any(block.sasrec for block in recipe.embeddings) else []
    same_catalog(folder, catalog.fingerprint, "split", *from_sasrec)
    raw = [_vectors(block, catalog, cut, folder, recipe.seed) for block in recipe.embeddings]
    blocks = [shaped(v, b, cut.train(), recipe.seed) for v, b in zip(raw, recipe.embeddings, strict=True)]
    if len(blocks) == 1 and recipe.embeddings[0].as_is:
        made = blocks[0]
    else:
        made = fused(blocks, recipe.embeddings)
    made.save(folder / "embeddings", overwrite=True)
    log.info("item vectors: %d x %d", *made.vectors.shape)


def content(folder: Path, recipe: PipelineRecipe) -> None:
    """The vectors of the first text block, content and nothing else, for content-kNN: artifact ``text_embeddings``."""
    catalog, cut = ItemCatalog.load(folder / "catalog"), Split.load(folder / "split")
    same_catalog(folder, catalog.fingerprint, "split")
    block = replace(recipe.embeddings[recipe.text_block], align=None, neighbours=0, graph=None)
    made = shaped(_vectors(block, catalog, cut, folder, recipe.seed), block, cut.train(), recipe.seed)
    made.save(folder / "text_embeddings", overwrite=True)


def shaped(vectors: ItemEmbeddings, block: Block, train: Histories, seed: int) -> ItemEmbeddings:
    """A block's vectors, aligned, propagated, put through the graph and scaled as the block says.

    Rows of items that no training history has may be appended: those of the others stay what they are.
    """
    if block.align is not None:
        vectors = align(vectors, train, seeded(block.align, seed))
    vectors = propagate(vectors, train, block.neighbours)
    if block.graph is not None:
        vectors = graph_vectors(vectors, train, seeded(block.graph, seed))
    return replace(vectors, vectors=unit_rows(vectors.vectors)) if block.unit_rows else vectors


def fused(vectors: Sequence[ItemEmbeddings], blocks: Sequence[Block], n_fit: int | None = None) -> ItemEmbeddings:
    """The vectors of several blocks put together as the blocks say; n_fit: see :func:`fuse`."""
    dims, weights, whiten = [b.dim for b in blocks], [b.weight for b in blocks], [b.whiten for b in blocks]
    return fuse(vectors, dims, weights, whiten=whiten, predict_unknown=True, n_fit=n_fit)


def collaborative(folder: Path, recipe: PipelineRecipe) -> None:
    """Vectors learned from the training part, for tokenizers that ask for them: artifact ``collaborative``."""
    catalog, cut = ItemCatalog.load(folder / "catalog"), Split.load(folder / "split")
    same_catalog(folder, catalog.fingerprint, "split")
    block = recipe.collaborative
    assert block is not None
    found = shaped(_vectors(block, catalog, cut, folder, recipe.seed), block, cut.train(), recipe.seed)
    if not block.as_is:
        found = fuse([found], [block.dim], [block.weight], whiten=[block.whiten])
    found.save(folder / "collaborative", overwrite=True)
    log.info("collaborative vectors: %d x %d", *found.vectors.shape)


def _vectors(block: Block, catalog: ItemCatalog, cut: Split, folder: Path, seed: int) -> ItemEmbeddings:
    if block.lsa is not None or block.sentence is not None:
        return _of_text(block, catalog, folder, seed)
    if block.ppmi is not None:
        return ppmi(cut.train(), cut.n_items, seeded(block.ppmi, seed), catalog.fingerprint)
    if block.svd is not None:
        return svd(cut.train(), cut.n_items, seeded(block.svd, seed), catalog.fingerprint)
    if block.famae is not None:
        return famae(cut.train(), catalog, seeded(block.famae, seed))
    if block.file is not None:
        return load_vectors(Path(block.file), catalog)
    return sasrec_vectors(folder, cut)


def sasrec_vectors(folder: Path, cut: Split) -> ItemEmbeddings:
    """The item table of the run's SASRec, zeros for items that no training history has (internal)."""
    from genrec.baselines.sasrec import SasRec

    table = SasRec.load(folder / "sasrec").item_vectors()
    table[np.bincount(cut.train().items, minlength=cut.n_items) == 0] = 0.0  # never trained: nothing is known
    return ItemEmbeddings(table, cut.catalog, {"kind": "sasrec"})


def _of_text(block: Block, catalog: ItemCatalog, folder: Path, seed: int) -> ItemEmbeddings:
    if block.lsa is not None:
        made = lsa(catalog, seeded(block.lsa, seed))
    else:
        assert block.sentence is not None
        made = sentence_embeddings(catalog, block.sentence, cache=folder / "cache")
    return enhanced(made, catalog, block, catalog, folder / "cache", seed)


def enhanced(
    vectors: ItemEmbeddings, items: ItemCatalog, block: Block, catalog: ItemCatalog, cache: Path | None, seed: int
) -> ItemEmbeddings:
    """Vectors of the texts of ``items`` with their keywords, where the block wants them.

    catalog: what the block's vectors were learned from. cache: a folder of sentence vectors.
    """
    if block.keywords is None:
        return vectors

    def encode(words: Sequence[str]) -> npt.NDArray[np.float32]:
        listed, parts = ItemCatalog(tuple(words), {"title": list(words)}), ("{title}",)
        if block.lsa is not None:
            return lsa_fold_in(catalog, listed, seeded(block.lsa, seed), parts)
        assert block.sentence is not None
        return sentence_embeddings(listed, replace(block.sentence, text=parts), cache=cache).vectors

    return with_keywords(vectors, items, block.keywords, encode)


def tokenize(folder: Path, recipe: PipelineRecipe) -> None:
    """Choose every item's identifier: artifacts ``item_tokenizer``, ``codes`` and ``index``."""
    catalog = ItemCatalog.load(folder / "catalog")
    beside = ("collaborative",) if recipe.collaborative is not None else ()
    same_catalog(folder, catalog.fingerprint, "split", "embeddings", *beside)
    source = TokenizerSource.of(
        catalog,
        embeddings=ItemEmbeddings.load(folder / "embeddings"),
        train=Split.load(folder / "split").train(),
        collaborative=ItemEmbeddings.load(folder / "collaborative") if beside else None,
        seed=recipe.seed,
    )
    settings = recipes.validate(recipe.tokenizer, registry.settings_class(recipe.tokenizer["kind"]), where="tokenizer")
    tokenizer = registry.build(settings)
    codes = _checked(tokenizer.fit(source, seed=recipe.seed), catalog, recipe.tokenizer["kind"])
    if recipe.shuffle_identifiers:
        log.warning("control run: identifiers are dealt out to the items at random")
        codes = codes.take(rng(recipe.seed, "shuffled identifiers").permutation(codes.n_items))
    tokenizer.save(folder / "item_tokenizer", overwrite=True)
    codes.save(folder / "codes", overwrite=True)
    keep = None if catalog.retired is None else ~catalog.retired
    CatalogIndex.build(codes, keep=keep).save(folder / "index", overwrite=True)
    log.info("%s", describe_codes(codes, raw_report(folder)))
    if told := oversized(codes):
        smaller = [name for name in ("level_size", "max_leaf", "levels") if hasattr(settings, name)][:1]
        advice = f": take a smaller tokenizer.{smaller[0]}, or fewer levels" if smaller else ""
        log.warning("identifiers: %s%s", "; ".join(told), advice)


def users(folder: Path, recipe: PipelineRecipe) -> None:
    """Give users their codes, from the training part alone: artifact ``users``."""
    chosen = recipe.users
    assert chosen is not None
    cut, log_of_run = Split.load(folder / "split"), Interactions.load(folder / "interactions")
    same_catalog(folder, cut.catalog, chosen.vectors, "interactions")
    items = ItemEmbeddings.load(folder / chosen.vectors)
    index = index_users(cut.train(), log_of_run.user_ids, items, chosen, seed=recipe.seed)
    index.save(folder / "users", recipe=recipes.to_json(chosen), overwrite=True)
    log.info("%d of %d users: %s", len(index), len(log_of_run.user_ids), describe_codes(index.codes))


def _checked(codes: object, catalog: ItemCatalog, kind: str) -> ItemCodes:
    """What ``fit`` gave, before anything is written: a kind of the user's may give anything."""
    if isinstance(codes, ItemCodes) and (codes.catalog, len(codes)) == (catalog.fingerprint, len(catalog)):
        return codes
    found = f"those of {len(codes)} of another catalog" if isinstance(codes, ItemCodes) else type(codes).__name__
    raise ConfigError(
        f"{kind}: fit: expected the identifiers of the {len(catalog)} items of the source (ItemCodes), got {found}",
        hint="genrec.testing.tokenizer_contract checks an item tokenizer of your own",
    )
