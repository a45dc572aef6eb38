"""Tiny seeded models of both kinds over small catalogs."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest

from genrec.data.histories import Histories
from genrec.decoding.index import CatalogIndex
from genrec.item_tokenizers.codes import ItemCodes
from genrec.models.backbone import DecoderSettings, T5Settings, build
from genrec.models.recommender import DecodingSettings, GenerativeRecommender
from genrec.vocab.token_map import TokenMap

SETTINGS = {
    "t5": T5Settings(d_model=32, n_layers=2, n_heads=2, d_kv=16, d_ff=48),
    "decoder": DecoderSettings(hidden_size=32, n_layers=2, n_heads=2, d_ff=48),
}
N = 40


@dataclass
class Case:
    codes: ItemCodes
    token_map: TokenMap
    index: CatalogIndex
    model: Any
    histories: Histories

    def recommender(self, **settings):
        return GenerativeRecommender(self.model, self.token_map, self.codes, self.index, DecodingSettings(**settings))


@cache
def make_case(kind, ragged, seed=0):
    """40 items with collisions, 3 levels; histories of 0 to 7 items."""
    random = np.random.default_rng(seed)
    sizes = (4, 3, 5)
    rows = np.stack([random.integers(0, k, N) for k in sizes], axis=1)
    if ragged:
        rows = np.where(np.arange(3) < random.integers(1, 4, N)[:, None], rows, -1)
    codes = ItemCodes.from_int(rows, sizes, "catalog of the test")
    token_map = TokenMap.of(codes)
    model = build(SETTINGS[kind], token_map, seed=seed)
    if kind == "decoder":  # weights of the usual small size predict almost uniformly
        for parameter in model.parameters():
            parameter.data *= 2.5
    index = CatalogIndex.build(codes)
    histories = Histories.from_lists([random.integers(0, N, length) for length in (3, 0, 7, 1, 5)])
    return Case(codes, token_map, index, model, histories)


@pytest.fixture(params=["t5", "decoder"])
def kind(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["fixed", "ragged"])
def case(request, kind):
    return make_case(kind, request.param)


@pytest.fixture
def fixed_case(kind):
    return make_case(kind, False)


@pytest.fixture
def both_kinds():
    return {name: make_case(name, False) for name in ("t5", "decoder")}
