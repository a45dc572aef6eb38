"""A tiny planted problem for training tests: users walk through the catalog, so the next item is determined."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from genrec.data.histories import Histories
from genrec.data.splits import EvalSet
from genrec.item_tokenizers.codes import ItemCodes
from genrec.models.backbone import DecoderSettings, T5Settings, build
from genrec.training.dataset import TrainingData
from genrec.vocab.token_map import TokenMap

N_ITEMS = 24
TINY: dict[str, Any] = {
    "decoder": DecoderSettings(hidden_size=16, n_layers=2, n_heads=2, d_ff=24, dropout=0.2),
    "t5": T5Settings(d_model=16, n_layers=2, n_heads=2, d_kv=8, d_ff=32, dropout=0.2),
}


def walk_codes(ragged: bool = False) -> ItemCodes:
    """Distinct identifiers of 24 items with levels of 8, 4 and 2 codes; some shorter when ``ragged``."""
    codes = np.array([[n // 8, n % 8 // 2, n % 2] for n in range(N_ITEMS)])
    if ragged:
        for code, item in enumerate((0, 7, 14, 21), start=4):
            codes[item] = [code, -1, -1]
        codes[5] = [0, 3, -1]
        codes[10] = [1, 0, -1]
    return ItemCodes.from_int(codes, (8, 4, 2), "walks")


def walks(
    ragged: bool = False,
    n_user_tokens: int = 0,
    n_users: int = 30,
    max_length: int = 8,
    seed: int = 0,
    tied: bool = False,
) -> TrainingData:
    """Histories of 1 to ``max_length`` consecutive item numbers (modulo 24); validation asks for the next.

    ``tied``: the order of every two neighbours (the first and second item, the third and fourth…) is arbitrary.
    """
    random = np.random.default_rng(seed)
    starts, lengths = random.integers(0, N_ITEMS, n_users), random.integers(1, max_length + 1, n_users)
    rows = [(s + np.arange(n + 1)) % N_ITEMS for s, n in zip(starts, lengths, strict=True)]
    codes = walk_codes(ragged)
    train = Histories.from_lists([row[:-1] for row in rows])
    targets = Histories.from_lists([row[-1:] for row in rows])
    place = np.arange(len(train.items)) - train.offsets[:-1][train.rows()]
    return TrainingData(
        histories=train,
        codes=codes,
        token_map=TokenMap.of(codes, n_user_tokens=n_user_tokens),
        valid=EvalSet(np.arange(n_users, dtype=np.int32), train, targets),
        user_ids=[f"user {u}" for u in range(n_users)],
        tied=place % 2 == 1 if tied else None,
    )


def tiny_model(kind: str, data: TrainingData, seed: int = 0, **changes: Any) -> Any:
    """A two-layer ``decoder`` or ``t5`` of width 16 with dropout; ``changes`` to its settings."""
    return build(dataclasses.replace(TINY[kind], **changes), data.token_map, seed=seed)
