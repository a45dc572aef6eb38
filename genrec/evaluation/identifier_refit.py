"""What only fitting an item tokenizer again can tell: is it stable, and how does it take new items?

Axes: N items, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec import artifacts, recipes
from genrec.data.catalog import ItemCatalog
from genrec.data.histories import Histories
from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import ConfigError, DataError
from genrec.evaluation.identifier_controls import compare_code_tables, inspect_cold
from genrec.evaluation.identifier_inputs import Subject, raw_codes, source_of
from genrec.evaluation.identifiers import Figures, plain
from genrec.item_tokenizers import registry
from genrec.item_tokenizers.base import ItemTokenizer, TokenizerSource
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.life import append
from genrec.metrics.codes_structure import cold_coverage, stability
from genrec.seeding import derive, rng

COLD_SHARE = 0.1
APPENDED_SHARE = 0.05
BEHAVIOUR = ("ppmi", "svd", "famae", "sasrec", "align", "neighbours", "graph")
"""Blocks and parts of blocks of a recipe that learn from events."""
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Refitted:
    """Figures of :func:`refitted`, and a sentence for each part of them that could not be had (experimental)."""

    figures: Figures
    notes: tuple[str, ...]


def refitted(subject: Subject, seed: int) -> Refitted:
    """Figures ``adjusted_rand``, ``pairs_kept``, ``cold_*``, ``append_*`` of a subject's item tokenizer (experimental).

    Stability: the same settings and items, another seed; raw codes are compared where there are any. New items: one
    item in ten, drawn by ``seed``, is left out of the fit and encoded afterwards; left out where the tokenizer cannot
    encode new items, or learns from training histories, which a part of the items does not have. Append: see
    :func:`append_figures`; left out where no new item finds a free identifier. The notes say what was left out and why.
    Raises ConfigError where there is no item tokenizer.
    """
    if subject.folder is None:
        raise ConfigError(f"{subject.name}: no item tokenizer to fit again", hint="give a run folder")
    source = source_of(subject, subject.folder)
    settings = recipes.from_dict(registry.settings_class(str(subject.recipe.get("kind"))), subject.recipe)
    again = registry.build(settings)
    codes = again.fit(source, seed=derive(seed, "inspect", "refit"))
    raw = None if subject.raw is None or not again.can_encode_new else raw_codes(again, codes, source)
    if raw is None or subject.raw is None:
        figures = compare_code_tables(subject.codes, codes)
    else:
        figures = compare_code_tables(subject.raw, raw)
    notes = _flattered(subject.folder)
    if not again.can_encode_new or source.embeddings is None:
        lacks = "there are no item vectors" if again.can_encode_new else "the item tokenizer cannot encode new items"
        notes.append(f"new items (cold_*) are left out: {lacks}")
    else:
        try:
            figures |= _cold(settings, source, seed)
        except DataError as error:  # it learns from histories
            notes.append(f"new items (cold_*) are left out: {error}")
    try:
        figures |= append_figures(settings, source, codes, seed)
    except DataError as error:  # no free identifier, or nothing that places a new item
        notes.append(f"append (append_*) is left out: {error}")
    return Refitted(figures, tuple(notes))


def _flattered(folder: Path) -> list[str]:
    """A note where the vectors of the items that are left out were made from these items' events too."""
    file = folder / "recipe.json"
    recipe = artifacts.load_json(file) if file.exists() else {}
    blocks = [*recipe.get("embeddings", []), recipe.get("collaborative") or {}]
    found = sorted({name for block in blocks for name in BEHAVIOUR if block.get(name)})
    if not found:
        return []
    return [
        f"new items look better here than they are: their vectors hold {', '.join(found)} of their own events, "
        "which genrec append predicts from their texts"
    ]


def append_figures(settings: Any, source: TokenizerSource, fresh: ItemCodes, seed: int) -> Figures:
    """How :func:`genrec.item_tokenizers.life.append` compares with fitting again (experimental).

    ::

        new       = one item in twenty, drawn by seed; the others are published: fitted without the new items' events
        appended  = append(that fit, new)
        append_moved            share of the published items with another identifier after append: must be 0
        append_adjusted_rand    adjusted Rand index of the prefixes of `appended` and `fresh`, by prefix length
        append_pairs_kept       share of the pairs with equal prefix in `appended` that keep it in `fresh`
        append_occupied         share of the new items whose prefix a published item has, by prefix length

    fresh: codes of all items by a fit with the same settings and :func:`genrec.seeding.derive` ``(seed, "inspect",
    "refit")``; the fit on the published items takes that seed too. A level that a collision policy added is left out.
    Raises DataError where the tokenizer cannot be fitted on a part of the items, or finds no identifier for a new one.
    """
    drawn = rng(seed, "inspect", "append").permutation(source.n_items)
    n_new = max(1, round(APPENDED_SHARE * source.n_items))
    order = np.concatenate([np.sort(drawn[n_new:]), np.sort(drawn[:n_new])])
    n_old = source.n_items - n_new
    parent, child = _grown(source, order, n_old)
    tokenizer = registry.build(settings)
    published = tokenizer.fit(parent, seed=derive(seed, "inspect", "refit"))
    appended = append(tokenizer, published, child).codes
    return _compared(published, appended, fresh.take(order), _meaningful(tokenizer, published, child))


def _compared(published: ItemCodes, appended: ItemCodes, fresh: ItemCodes, n_levels: int) -> Figures:
    n_old, found_NL, expected_NL = len(published), appended.as_int(), fresh.as_int()
    moved_N = (found_NL[:n_old] != published.as_int()).any(axis=1)
    found_NL, expected_NL = found_NL[:, :n_levels], expected_NL[:, :n_levels]
    agreement = stability(found_NL, expected_NL)
    return {
        "append_moved": plain(float(moved_N.mean())),
        "append_adjusted_rand": plain(agreement.adjusted_rand),
        "append_pairs_kept": plain(agreement.kept),
        "append_occupied": plain(cold_coverage(found_NL[:n_old], found_NL[n_old:]).occupied),
    }


def _meaningful(tokenizer: ItemTokenizer, published: ItemCodes, source: TokenizerSource) -> int:
    """Levels without the one in which a collision policy numbers items."""
    if published.ragged or not tokenizer.can_encode_new:
        return published.n_levels
    return published.n_levels - (tokenizer.encode(source).level_sizes == published.level_sizes[:-1])


def _grown(source: TokenizerSource, order: Rows, n_old: int) -> tuple[TokenizerSource, TokenizerSource]:
    """The first ``n_old`` items of ``order`` as a catalog of their own, and its child with the others appended."""
    items = source.fields()
    fields = {name: [values[n] for n in order.tolist()] for name, values in items.fields.items()}
    ids = items.ids_of(order)
    parent = ItemCatalog(tuple(ids[:n_old]), {name: values[:n_old] for name, values in fields.items()})
    child = parent.append(ids[n_old:], {name: values[n_old:] for name, values in fields.items()})
    return _part(source, parent, order[:n_old]), _part(source, child, order)


def _part(source: TokenizerSource, catalog: ItemCatalog, rows: Rows) -> TokenizerSource:
    """The source of these items; histories lose the events of others."""
    number = np.full(source.n_items, -1, dtype=np.int32)
    number[rows] = np.arange(len(rows), dtype=np.int32)

    def of_rows(table: npt.NDArray[np.float32]) -> ItemEmbeddings:
        return ItemEmbeddings(table[rows], catalog.fingerprint)

    train = source.train
    if train is not None:
        kept = number[train.items] >= 0
        offsets = np.concatenate([[0], np.cumsum(kept)])[train.offsets]
        train = Histories(offsets, number[train.items[kept]])
    return replace(
        source,
        catalog=catalog.fingerprint,
        item_keys=source.item_keys[rows],
        embeddings=None if source.embeddings is None else of_rows(source.vectors()),
        train=train,
        items=catalog,
        collaborative=None if source.collaborative is None else of_rows(source.collaborative_vectors()),
    )


def _cold(settings: Any, source: TokenizerSource, seed: int) -> Figures:
    drawn = rng(seed, "inspect", "cold").permutation(source.n_items)
    n_cold = max(1, round(COLD_SHARE * source.n_items))
    cold, warm = (source.take(np.sort(part)) for part in (drawn[:n_cold], drawn[n_cold:]))
    tokenizer = registry.build(settings)
    fitted = tokenizer.fit(warm, seed=derive(seed, "inspect", "refit"))
    known, new = tokenizer.encode(warm), tokenizer.encode(cold)
    known = _with_codebooks(known, fitted)
    return inspect_cold(known, new, vectors=(warm.vectors(), cold.vectors()))


def _with_codebooks(raw: ItemCodes, fitted: ItemCodes) -> ItemCodes:
    books = fitted.codebooks[: raw.n_levels]
    return replace(raw, codebooks=books) if books and not raw.codebooks else raw
