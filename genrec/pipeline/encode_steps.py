"""Fitting an item tokenizer on a table, and the collision policy over the raw codes of all items.

Axes: N items, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from genrec.embeddings.base import ItemEmbeddings
from genrec.embeddings.stream import StreamedEmbeddings, VectorTable
from genrec.errors import ConfigError
from genrec.item_tokenizers import registry
from genrec.item_tokenizers.base import ItemTokenizer, TokenizerSource
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.collisions import POLICIES, CollisionPolicy, Resolution, resolve
from genrec.item_tokenizers.encode_batch import check_encodes_vectors
from genrec.item_tokenizers.streamed import TableQuantized
from genrec.seeding import rng

Keys = npt.NDArray[np.uint64]


def fitted(
    settings: Any, table: VectorTable, keys: Keys, catalog: str, *, seed: int, sample: int | None = None
) -> ItemTokenizer:
    """An item tokenizer fitted on the rows of a table, or on an even sample of them (internal).

    Kinds that read rows piece by piece and draw their own sample (rqkmeans) never hold the table; the others load the
    rows that they fit on.
    """
    registry.check_gives_codes(settings.kind)
    # the policy is applied at the end, over the codes of all items
    raw = replace(settings, collisions="shared") if hasattr(settings, "collisions") else settings
    tokenizer: Any = registry.build(raw)
    source = TokenizerSource(catalog, keys, StreamedEmbeddings(table, catalog))
    if sample is not None and sample < len(table):
        rows = np.sort(rng(seed, "encode", "sample").choice(len(table), size=sample, replace=False))
        source = TokenizerSource(catalog, keys[rows], ItemEmbeddings(table[rows], catalog))
    getattr(tokenizer, "learn", tokenizer.fit)(source, seed=seed)
    tokenizer.settings = settings
    found: ItemTokenizer = tokenizer
    return found


def policy_for(tokenizer: ItemTokenizer, asked: CollisionPolicy | None) -> CollisionPolicy:
    """The collision policy for raw codes of a tokenizer, fitted or not: the one asked for, else its own (internal).

    Raises ConfigError, before anything is read, where no policy can work: the kind does not encode items by their
    vectors, its own policy is none for codes that were made item by item (gaoq's ``refuse``), or ``reassign`` has no
    codebooks to tell what another code costs.
    """
    check_encodes_vectors(tokenizer)
    priced = hasattr(tokenizer, "quantized")
    own: CollisionPolicy = getattr(tokenizer.settings, "collisions", "shared")
    policy = asked or own
    if policy in POLICIES and (policy != "reassign" or priced):
        return policy
    why = "it has no codebooks" if policy in POLICIES else "here each item is encoded by itself"
    raise ConfigError(
        f"collisions: {policy!r} does not work with an item tokenizer of kind {tokenizer.settings.kind!r}: {why}",
        hint=f"give --collisions: {', '.join(each for each in POLICIES if priced or each != 'reassign')}",
    )


def settle(
    tokenizer: Any,
    raw: ItemCodes,
    keys: Keys,
    table: VectorTable | None,
    width: int,
    *,
    policy: CollisionPolicy,
    limit: int,
) -> Resolution:
    """Apply a collision policy to the raw codes of all items (internal).

    table: the item vectors, needed for ``reassign`` only. width: theirs. The codebooks come along as ``fit`` has them.
    """
    prices = None if table is None or not hasattr(tokenizer, "quantized") else TableQuantized.of(table, tokenizer)
    resolution = resolve(policy, raw, keys, prices, limit=limit)
    nothing = TokenizerSource.of_vectors(np.zeros((1, width), dtype=np.float32))
    books = tokenizer.encode(nothing).codebooks
    if not books and hasattr(tokenizer, "quantized"):
        found = tokenizer.quantized(nothing)
        books = found.codebooks if found.scaling is None else found.scaling.steps(found.codebooks)
    shared = raw.shared_vocabulary and resolution.codes.n_levels == raw.n_levels
    if books:
        books = books[:1] if shared else books * (raw.n_levels // len(books))
    return Resolution(replace(resolution.codes, shared_vocabulary=shared, codebooks=books), resolution.report)
