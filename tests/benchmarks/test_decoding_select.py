"""benchmarks/decoding_select.py: searches beside each other, and random ones that find no wrong item."""

import importlib
import sys

import numpy as np
import pytest
import torch


@pytest.fixture
def select(bench, monkeypatch):
    monkeypatch.delitem(sys.modules, "decoding_select", raising=False)
    yield importlib.import_module("decoding_select")
    sys.modules.pop("decoding_select", None)


@pytest.mark.parametrize("zipf", [False, True])
def test_catalogs_are_sorted_and_distinct_and_both_searches_find_the_same(select, zipf):
    catalog = select.Catalog(3000, 16, zipf)
    rows = select.identifiers(catalog).astype(np.int64)
    keys = rows @ 16 ** np.arange(3, -1, -1)
    assert rows.shape == (3000, 4) and (np.diff(keys) > 0).all()
    logits = select.random_logits(catalog, 3, 10)
    found = select.search(select.index_of(catalog), select.Given(logits), 10)
    assert rows[found.leaves].tolist() == select.hf_search(select.dict_trie(rows), logits, 10).tolist()
    unconstrained = select.floor(logits, 10)
    assert (unconstrained >= torch.from_numpy(found.scores) - 1e-5).all()


def test_50_000_random_searches_find_no_wrong_item(select):
    assert select.invalid(50_000) == 0


def test_wrong_results_are_counted(select, monkeypatch):
    whole = select.beam_search

    def forgetful(*args, filters, **kwargs):
        return whole(*args, filters=None, **kwargs)

    monkeypatch.setattr(select, "beam_search", forgetful)
    assert select.invalid(1000) > 1000
