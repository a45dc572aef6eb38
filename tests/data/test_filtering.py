import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.catalog import ItemCatalog
from genrec.data.filtering import drop_unused_items, k_core
from genrec.data.interactions import Interactions
from genrec.errors import ConfigError, FingerprintMismatch

few = settings(max_examples=80, deadline=None)
N = 5
CATALOG = ItemCatalog(tuple("vwxyz"), {"title": list("VWXYZ")})
events = st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, N - 1)), max_size=30)


def make(rows):
    users, items = [list(c) for c in zip(*rows, strict=True)] if rows else ([], [])
    place = {"place": np.arange(len(rows))}
    return Interactions.from_arrays(users, items, None, n_items=N, catalog=CATALOG.fingerprint, columns=place)


def slow_k_core(rows, user_min, item_min):
    while True:
        kept = [
            (place, u, i)
            for place, u, i in rows
            if sum(v == u for _, v, _ in rows) >= user_min and sum(j == i for _, _, j in rows) >= item_min
        ]
        if len(kept) == len(rows):
            return kept
        rows = kept


@few
@given(events, st.integers(0, 4), st.integers(0, 4))
def test_k_core_agrees_with_a_loop(rows, user_min, item_min):
    core = k_core(make(rows), user_min, item_min)
    expected = slow_k_core([(place, u, i) for place, (u, i) in enumerate(rows)], user_min, item_min)
    got = zip(core.columns["place"].tolist(), [core.user_ids[u] for u in core.user], core.item.tolist(), strict=True)
    assert sorted(got) == sorted(expected)
    assert set(core.user_ids) == {u for _, u, _ in expected}
    assert (core.n_items, core.catalog) == (N, CATALOG.fingerprint)


def test_k_core_needs_more_than_one_round():
    # dropping item 2 leaves user b with one event, and dropping b leaves item 1 with one event
    rows = [("a", 0), ("a", 0), ("a", 1), ("b", 1), ("b", 2)]
    assert k_core(make(rows), 2, 2).item.tolist() == [0, 0]


def test_k_core_keeps_beauty_as_it_is(loaded_set):
    # the set is 5-core by construction
    loaded = loaded_set("amazon-beauty-2014")
    assert len(k_core(loaded.interactions, 5, 5)) == 198502
    assert len(k_core(loaded.interactions, 5, 6)) < 198502


@pytest.mark.parametrize("user_min, item_min", [(-1, 1), (1, -1)])
def test_negative_minimums_are_refused(user_min, item_min):
    with pytest.raises(ConfigError, match="at least 0"):
        k_core(make([]), user_min, item_min)


@few
@given(events)
def test_dropping_unused_items_changes_numbers_but_no_event(rows):
    inter = make(rows)
    used = drop_unused_items(CATALOG, inter)
    assert used.catalog.ids_of(used.interactions.item) == CATALOG.ids_of(inter.item)
    assert set(used.catalog.ids) == {CATALOG.ids[i] for _, i in rows}
    assert used.catalog.text("title") == [i.upper() for i in used.catalog.ids]
    assert used.interactions.catalog == used.catalog.fingerprint


def test_events_of_another_catalog_are_refused():
    with pytest.raises(FingerprintMismatch):
        drop_unused_items(ItemCatalog(("a",), {"title": [""]}), make([]))
