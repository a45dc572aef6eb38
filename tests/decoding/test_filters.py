"""Filters of a request, against sets of Python and brute force over the catalog."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.histories import Histories
from genrec.decoding import small
from genrec.decoding.beam import beam_search
from genrec.decoding.filters import ItemFilter, RankFilter, RowFilters, by_row
from genrec.decoding.index import CatalogIndex
from genrec.decoding.listing import list_items
from genrec.decoding.select import DeviceIndex, _bit_count
from genrec.decoding.small import score_allowed
from genrec.errors import ConfigError, DataError, FingerprintMismatch
from genrec.item_tokenizers.codes import ItemCodes
from genrec.testing.oracles import dict_trie, exhaustive_scores
from genrec.testing.scripted import ScriptedScorer, random_logp, row_prompts

CPU = torch.device("cpu")


def build(codes, keep=None):
    return CatalogIndex.build(codes, keep=keep)


@st.composite
def catalogs(draw, max_items=14):
    n = draw(st.integers(1, max_items))
    sizes = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    rows = np.array(draw(st.lists(st.tuples(*(st.integers(0, k - 1) for k in sizes)), min_size=n, max_size=n)))
    if draw(st.booleans()):
        lengths = np.array(draw(st.lists(st.integers(1, len(sizes)), min_size=n, max_size=n)))
        rows = np.where(np.arange(len(sizes)) < lengths[:, None], rows, -1)
    return ItemCodes.from_int(rows, sizes, "catalog")


masks = st.integers(1, 300).flatmap(lambda n: st.tuples(*[st.lists(st.booleans(), min_size=n, max_size=n)] * 2))


@given(masks)
def test_filters_are_sets(pair):
    a, b = (ItemFilter.of_mask(np.array(each)) for each in pair)
    one, two = (set(np.flatnonzero(each)) for each in pair)
    n = len(pair[0])
    for made, expected in ((a, one), (a & b, one & two), (a | b, one | two), (~a, set(range(n)) - one)):
        assert set(np.flatnonzero(made.mask)) == expected and len(made) == len(expected)
    assert np.array_equal(ItemFilter.of_items(sorted(one), n).words, a.words)
    assert np.array_equal((~a).words, ItemFilter.of_mask(~np.array(pair[0])).words)  # no bit behind the last item


@given(st.lists(st.booleans(), min_size=1, max_size=200), st.data())
def test_counts_of_rank_ranges_are_those_of_the_mask(mask, data):
    """A catalog of one code a level, so that a rank is found by its item's place among the sorted codes."""
    n = len(mask)
    index = build(ItemCodes.from_int(np.arange(n)[:, None], (n,), "c"))
    found = RankFilter.of(ItemFilter.of_mask(np.array(mask)), index)
    rows = RowFilters.of([found, None])
    low = np.array(data.draw(st.lists(st.integers(0, n), min_size=1, max_size=9)))
    high = np.array([data.draw(st.integers(at, n)) for at in low.tolist()])
    by_rank = np.array(mask)[index.items]
    expected = [int(by_rank[a:b].sum()) for a, b in zip(low, high, strict=True)]
    assert rows.count(np.zeros_like(low), low, high).tolist() == expected
    assert rows.count(np.ones_like(low), low, high).tolist() == (high - low).tolist()
    at = np.arange(n)
    assert rows.allows(np.zeros_like(at), at).tolist() == by_rank.tolist() and rows.allows(np.ones_like(at), at).all()
    assert len(found) == sum(mask) and found.ranks.tolist() == np.flatnonzero(by_rank).tolist()


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_bits_are_counted_as_python_counts_them(values):
    assert _bit_count(torch.tensor(values)).tolist() == [(value % 2**64).bit_count() for value in values]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_nodes_are_alive_where_an_allowed_item_lies_below(data):
    codes = data.draw(catalogs())
    index = build(codes)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=codes.n_items, max_size=codes.n_items)))
    device = DeviceIndex(index, CPU)
    filters = device.filters(RowFilters.of([RankFilter.of(ItemFilter.of_mask(mask), index), None]))
    for depth in range(1, index.depth + 1):
        nodes = torch.arange(index.n_nodes(depth)).expand(2, -1)
        alive = filters.alive(device, depth, nodes)
        assert alive[0].tolist() == [bool(mask[index.items_below(depth, n)].any()) for n in range(nodes.shape[1])]
        assert alive[1].all()


@pytest.mark.parametrize("n", [63, 64, 65, 127, 128, 129, 200])
def test_nodes_are_alive_beyond_one_word(n):
    """Two levels; words end inside and at the ends of nodes."""
    codes = ItemCodes.from_int(np.stack([np.arange(n) // 16, np.arange(n) % 16], axis=1), (13, 16), "c")
    index = build(codes)
    device = DeviceIndex(index, CPU)
    for seed in range(6):
        mask = np.random.default_rng(seed).random(n) < (0.02, 0.1, 0.9)[seed % 3]
        filters = device.filters(RowFilters.of([RankFilter.of(ItemFilter.of_mask(mask), index)]))
        for depth in (1, 2):
            alive = filters.alive(device, depth, torch.arange(index.n_nodes(depth))[None])
            expected = [bool(mask[index.items_below(depth, node)].any()) for node in range(index.n_nodes(depth))]
            assert alive[0].tolist() == expected


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_with_enough_beams_lists_are_those_of_brute_force_on_the_allowed_items(data):
    """Ragged, collisions, both normalisers, seen items denied too, rows with and without a filter."""
    codes = data.draw(catalogs())
    n = codes.n_items
    normalize = data.draw(st.sampled_from(["vocab", "children"]))
    logp = random_logp(codes.level_sizes, ragged=codes.ragged, seed=data.draw(st.integers(0, 99)))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    denied = [data.draw(st.lists(st.integers(0, n - 1), max_size=n)) for _ in range(2)]
    index, deny = build(codes), Histories.from_lists(denied)
    rank_filter = RankFilter.of(ItemFilter.of_mask(mask), index)
    filters = RowFilters.of([rank_filter, None])
    device, scorer = DeviceIndex(index, CPU), ScriptedScorer(logp)
    n_beams = data.draw(st.sampled_from([1, 2, n]))
    found = beam_search(
        scorer, device, row_prompts([4, 7]), n_beams=n_beams, normalize=normalize, deny=deny, filters=filters
    )
    listed = list_items(
        index, found.leaves, found.scores, top_k=None, normalize=normalize, deny=deny, filters=filters,
        pruned=found.pruned,
    )  # fmt: skip
    trie = dict_trie(codes.as_int(), ragged=codes.ragged) if normalize == "children" else None
    for row, name in enumerate([4, 7]):
        slow = exhaustive_scores(codes.as_int(), codes.level_sizes, logp, row=name, ragged=codes.ragged, trie=trie)
        slow[denied[row]] = -np.inf
        if row == 0:
            slow[~mask] = -np.inf
        items = listed.items[row][listed.items[row] >= 0]
        assert np.isfinite(slow[items]).all()  # never an item that is not allowed
        np.testing.assert_allclose(listed.scores[row][: len(items)], slow[items], atol=1e-5)
        leaves = index.nodes_of(index.rank_of[np.flatnonzero(np.isfinite(slow))])[:, -1]
        if n_beams == n:
            assert set(items) == set(np.flatnonzero(np.isfinite(slow)))
        elif not codes.ragged:  # as many identifiers as there are, up to the beams
            assert (found.leaves[row] >= 0).sum() == min(n_beams, len(np.unique(leaves)))
        if listed.certified[row]:
            assert set(items) == set(np.flatnonzero(np.isfinite(slow)))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_few_allowed_items_are_all_scored(data):
    codes = data.draw(catalogs())
    logp = random_logp(codes.level_sizes, ragged=codes.ragged, seed=1)
    index = build(codes)
    drawn = st.lists(st.booleans(), min_size=codes.n_items, max_size=codes.n_items)
    chosen = [np.array(data.draw(drawn)) for _ in range(2)]
    few = [RankFilter.of(ItemFilter.of_mask(mask), index) for mask in chosen]
    found = score_allowed(ScriptedScorer(logp), DeviceIndex(index, CPU), row_prompts([2, 3]), few, normalize="vocab")
    listed = list_items(
        index, found.leaves, found.scores, top_k=3, normalize="vocab", filters=RowFilters.of(few), pruned=found.pruned
    )
    for row, name in enumerate([2, 3]):
        slow = exhaustive_scores(codes.as_int(), codes.level_sizes, logp, row=name, ragged=codes.ragged)
        slow[~chosen[row]] = -np.inf
        expected = np.sort(slow[np.isfinite(slow)])[::-1][:3]
        np.testing.assert_allclose(listed.scores[row][: len(expected)], expected, atol=1e-5)
        assert (listed.items[row][len(expected) :] == -1).all() and listed.certified[row]


def test_few_items_that_the_model_rules_out_are_not_listed():
    index = build(ItemCodes.from_int([[0], [1], [2]], (3,), "c"))
    scorer = ScriptedScorer(lambda row, prefix: np.array([-np.inf, -2.0, -1.0]))
    few = [RankFilter.of(ItemFilter.of_items([0, 1], 3), index)]
    found = score_allowed(scorer, DeviceIndex(index, CPU), row_prompts([0]), few, normalize="vocab")
    listed = list_items(index, found.leaves, found.scores, top_k=2, normalize="vocab")
    assert listed.items.tolist() == [[1, -1]] and listed.n_identifiers.tolist() == [1]


def test_what_counts_as_few_are_the_prefixes_that_are_read(monkeypatch):
    """300 items below 2 prefixes are few, 10 items below 10 are not, when 3 is few."""
    rows = np.stack(np.unravel_index(np.arange(3000), (20, 150)), axis=1)
    index = build(ItemCodes.from_int(rows, (20, 150), "c"))
    monkeypatch.setattr(small, "SMALL_SET", 3)
    monkeypatch.setattr(small, "MOST_ITEMS", 500)

    def ranked(items):
        return RankFilter.of(ItemFilter.of_items(items, 3000), index)

    filters = [ranked(np.arange(300)), ranked(np.arange(10) * 150), None, ranked([7]), ranked([]), ranked(range(600))]
    assert small.is_small(index, filters).tolist() == [True, False, False, True, True, False]


def test_items_left_out_of_the_index_do_not_count():
    codes = ItemCodes.from_int([[0], [1], [2]], (3,), "c")
    index = build(codes, keep=np.array([True, False, True]))
    assert len(RankFilter.of(ItemFilter.of_items([1, 2], 3, "c"), index)) == 1


def test_rank_filters_are_joined_as_the_filters_themselves():
    codes = ItemCodes.from_int(np.random.default_rng(0).integers(0, 4, (200, 3)), (4, 4, 4), "c")
    index = build(codes, keep=np.arange(200) % 5 > 0)
    one, two = (ItemFilter.of_mask(np.random.default_rng(seed).random(200) < 0.5, "c") for seed in (1, 2))
    joined, direct = RankFilter.of(one, index) & RankFilter.of(two, index), RankFilter.of(one & two, index)
    assert np.array_equal(joined.words, direct.words) and np.array_equal(joined.before, direct.before)
    without = RankFilter.without(index.rank_of[[1, 7]], index)
    assert np.array_equal(without.words, RankFilter.of(~ItemFilter.of_items([1, 7], 200, "c"), index).words)


def test_errors_say_what_was_wrong():
    for wrong in ([True, False, True], [0.5], ["1"]):
        with pytest.raises(DataError, match="filter: expected item numbers, got"):
            ItemFilter.of_items(wrong, 3)
    some = ItemFilter.of_items([0], 3, "catalog-a")
    with pytest.raises(FingerprintMismatch, match="catalog catalog-"):
        some & ItemFilter.of_items([0], 3, "catalog-b")
    with pytest.raises(DataError, match="a filter of 3 items, got one of 4"):
        some & ItemFilter.of_items([0], 4)
    with pytest.raises(DataError, match=r"0\.\.2, got 3"):
        ItemFilter.of_items([3], 3)
    with pytest.raises(DataError, match="expected bool"):
        ItemFilter.of_mask([1, 0])
    with pytest.raises(DataError, match="expected 2, one per history, got 1"):
        by_row([some], 2)
    for wrong in (3, True, np.ones(3, dtype=bool), {"some": some}, [1, some], [np.ones(3, dtype=bool), None]):
        with pytest.raises(ConfigError, match="expected an ItemFilter, a text of names"):
            by_row(wrong, 2)
