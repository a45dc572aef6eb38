"""Small parallel models of every published method, and a pair of catalogs with one structure, for tests."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from genrec.data.histories import Histories
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.sets import SetRecSettings
from genrec.item_tokenizers.sets_training import make_model
from genrec.item_tokenizers.slots import ItemSlots
from genrec.models.backbone import DecoderSettings, T5Settings
from genrec.models.parallel_inputs import ParallelItems
from genrec.models.parallel_model import ParallelModel
from genrec.models.parallel_settings import ParallelSettings, preset

N_ITEMS = 40
DECODER = DecoderSettings(hidden_size=32, n_layers=2, n_heads=2, d_ff=48, dropout=0.0)
T5 = T5Settings(d_model=32, n_layers=2, n_heads=2, d_kv=16, d_ff=48, dropout=0.0)
JOINT = SetRecSettings(n_semantic=2, dim=6, hidden=(12, 8))
NAMES = ("collaborative", "semantic 1", "semantic 2")
CASES = ("setrec", "setrec-t5", "setrec-joint", "recgpt", "rpg", "rpg-t5", "heads", "queries-t5")
Case = tuple[ParallelSettings, ParallelItems]


def parallel_case(name: str, n_items: int = N_ITEMS, seed: int = 0) -> Case:
    """Settings of one of ``CASES`` and the items it reads: three parts each, 8 codes or vectors of width 6."""
    random = np.random.default_rng(seed)
    rows, content = random.integers(0, 8, (n_items, 3)), random.normal(size=(n_items, 10)).astype(np.float32)
    product = ParallelItems(ItemCodes(rows, (8, 8, 8), "catalog"))
    slots = ItemSlots(random.normal(size=(n_items, 3, 6)).astype(np.float32), NAMES, "catalog")
    cases: dict[str, Case] = {
        "setrec": (preset("setrec", DECODER), ParallelItems(slots)),
        "setrec-t5": (preset("setrec", T5), ParallelItems(slots)),
        "setrec-joint": (preset("setrec", DECODER, joint=JOINT), ParallelItems(slots, content)),
        "recgpt": (
            preset("recgpt", DECODER),
            ParallelItems(ItemCodes(rows, (8, 8, 8), "catalog", shared_vocabulary=True), content),
        ),
        "rpg": (preset("rpg", DECODER), product),
        "rpg-t5": (preset("rpg", T5), product),
        "heads": (ParallelSettings(backbone=DECODER, readout="heads"), product),
        "queries-t5": (ParallelSettings(backbone=T5), product),
    }
    return cases[name]


def parallel_model(
    name: str, *, scale: float = 1.0, seed: int = 0, **changes: Any
) -> tuple[ParallelModel, ParallelItems]:
    """A model of the case, its matrices times ``scale``: what a wrong mask lets through is then not small."""
    settings, items = parallel_case(name)
    settings = dataclasses.replace(settings, **changes)
    coder = None if settings.joint is None else make_model(10, settings.joint, seed=seed)
    model = ParallelModel.of(settings, items, seed=seed, autoencoder=coder)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.mul_(scale)
    return model, items


def shared_structure(seed: int, n_items: int = 60, n_users: int = 300) -> tuple[np.ndarray[Any, Any], Histories]:
    """Item vectors float32 ``[N, 16]`` and histories of a shop whose structure all seeds share.

    Items lie around 6 centres, the same for every seed, in a ring; a user goes from a random item of one centre to a
    random item of the next. Every item is a new one for every seed.
    """
    centres = np.random.default_rng(1234).normal(size=(6, 16))
    random = np.random.default_rng(seed)
    group = random.permutation(np.arange(n_items) % 6)
    vectors = (centres[group] + 0.2 * random.normal(size=(n_items, 16))).astype(np.float32)
    members = [np.flatnonzero(group == g) for g in range(6)]
    starts, lengths = random.integers(0, 6, n_users), random.integers(4, 9, n_users)
    rows = [
        [int(random.choice(members[(start + step) % 6])) for step in range(length)]
        for start, length in zip(starts, lengths, strict=True)
    ]
    return vectors, Histories.from_lists(rows)
