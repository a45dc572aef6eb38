"""What only fitting an item tokenizer again can tell: is it stable, and how does it take new items?"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from genrec import recipes
from genrec.errors import ConfigError, DataError
from genrec.evaluation.identifier_controls import compare_code_tables, inspect_cold
from genrec.evaluation.identifier_inputs import Subject, source_of
from genrec.evaluation.identifiers import Figures
from genrec.item_tokenizers import registry
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.codes import ItemCodes
from genrec.seeding import derive, rng

COLD_SHARE = 0.1


def refitted(subject: Subject, seed: int) -> Figures:
    """Figures ``adjusted_rand``, ``pairs_kept`` and ``cold_*`` of the item tokenizer behind a subject (experimental).

    Stability: the same settings and items, another seed; raw codes are compared where there are any. New items: one
    item in ten, drawn by ``seed``, is left out of the fit and encoded afterwards; left out where the tokenizer cannot
    encode new items, or learns from training histories, which a part of the items does not have.
    Raises ConfigError where there is no item tokenizer.
    """
    if subject.folder is None:
        raise ConfigError(f"{subject.name}: no item tokenizer to fit again", hint="give a run folder")
    source = source_of(subject, subject.folder)
    settings = recipes.from_dict(registry.settings_class(str(subject.recipe.get("kind"))), subject.recipe)
    again = registry.build(settings)
    codes = again.fit(source, seed=derive(seed, "inspect", "refit"))
    raw = subject.raw is not None and again.can_encode_new
    figures = compare_code_tables(subject.raw if raw and subject.raw else subject.codes,
                                  again.encode(source) if raw else codes)  # fmt: skip
    if again.can_encode_new and source.embeddings is not None:
        with suppress(DataError):  # it learns from histories
            figures |= _cold(settings, source, seed)
    return figures


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
