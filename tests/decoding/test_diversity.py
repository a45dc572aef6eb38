"""Caps and interests, against brute force: all subsets, a greedy walk in Python, quotas by hand."""

from itertools import combinations
from math import exp, floor
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.histories import Histories
from genrec.decoding import guided
from genrec.decoding import small as small_module
from genrec.decoding.dense import recommend_dense
from genrec.decoding.diverse import best_in_groups, diverse_lists
from genrec.decoding.diversity import Interests, MaxPer, divided, only, within_caps
from genrec.decoding.filters import ItemFilter, RankFilter
from genrec.decoding.index import CatalogIndex
from genrec.decoding.interface import Recommendations, SearchOptions
from genrec.decoding.search import Batch, Search
from genrec.decoding.select import DeviceIndex
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.codes import ItemCodes
from genrec.seeding import number_hash
from genrec.testing.oracles import dict_trie, exhaustive_scores
from genrec.testing.scripted import ScriptedScorer, random_logp, row_prompts

CPU = torch.device("cpu")


def build(codes, keep=None):
    return CatalogIndex.build(codes, keep=keep)


@st.composite
def catalogs(draw, max_items=14, ragged=None, unique=False):
    sizes = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    row = st.tuples(*(st.integers(0, k - 1) for k in sizes))
    rows = np.array(draw(st.lists(row, min_size=1, max_size=max_items, unique=unique)))
    if draw(st.booleans()) if ragged is None else ragged:
        lengths = np.array(draw(st.lists(st.integers(1, len(sizes)), min_size=len(rows), max_size=len(rows))))
        rows = np.where(np.arange(len(sizes)) < lengths[:, None], rows, -1)
        rows = np.unique(rows, axis=0) if unique else rows
    return ItemCodes.from_int(rows, sizes, "catalog")


@st.composite
def requests(draw, n):
    """Denied items and an allowed set (or None) of one row."""
    denied = draw(st.lists(st.integers(0, n - 1), max_size=n))
    allowed = draw(st.one_of(st.none(), st.sets(st.integers(0, n - 1))))
    return denied, None if allowed is None else sorted(allowed)


def lists(
    codes, logp, rows, asked, diversity, *, top_k, n_beams, max_beams=4096, normalize="vocab", index=None, small=-1
):
    index = index or build(codes)
    filters = [
        None if allowed is None else RankFilter.of(ItemFilter.of_items(allowed, codes.n_items), index)
        for _, allowed in asked
    ]
    batch = Batch(row_prompts(rows), Histories.from_lists([denied for denied, _ in asked]), filters)
    wanted = SearchOptions(top_k=top_k, diversity=diversity, max_beams=max_beams)
    search = Search(ScriptedScorer(logp), DeviceIndex(index, CPU), wanted, n_beams, normalize)
    # filters of catalogs of this size would all be small
    with mock.patch.object(guided, "SMALL_SET", small), mock.patch.object(small_module, "SMALL_SET", small):
        return diverse_lists(search, batch)


def allowed_items(asked, n):
    denied, allowed = asked
    return sorted((set(range(n)) if allowed is None else set(allowed)) - set(denied))


def scores_of(codes, logp, row, normalize="vocab"):
    trie = dict_trie(codes.as_int(), ragged=codes.ragged) if normalize == "children" else None
    return exhaustive_scores(codes.as_int(), codes.level_sizes, logp, row=row, ragged=codes.ragged, trie=trie)


def prefix(codes, item, depth):
    """The first codes of an item; identifiers that are shorter are themselves."""
    return tuple(c for c in codes.as_int()[item].tolist() if c >= 0)[:depth]


def greedy(order, group_of, most, top_k):
    """Walk the items in order; group_of: one function per cap."""
    listed, count = [], {}
    for item in order:
        groups = [(cap, of(item)) for cap, of in enumerate(group_of)]
        groups = [g for g in groups if g[1] != -1]
        if all(count.get(g, 0) < most[g[0]] for g in groups):
            listed.append(item)
            for g in groups:
                count[g] = count.get(g, 0) + 1
    return listed[:top_k]


def as_lists(scores):
    """Complete lists of items whose scores fall along each row."""
    order = np.argsort(-scores, axis=1, kind="stable")
    values = np.take_along_axis(scores, order, axis=1)
    return Recommendations(order.astype(np.int32), values.astype(np.float32), values.astype(np.float32))


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_the_greedy_list_is_the_best_of_all_subsets(data):
    """Greatest sum of scores, and greatest n-th score for every n, among all lists of as many items."""
    n, k, most = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 4)), data.draw(st.integers(1, 2))
    group = np.array(data.draw(st.lists(st.integers(-1, 2), min_size=n, max_size=n)))
    scores = -np.array(data.draw(st.lists(st.integers(1, 9), min_size=n, max_size=n)), dtype=float)
    every = as_lists(scores[None])
    got = only(every, within_caps(every, [MaxPer(most, group)]), k)
    found = [i for i in got.items[0].tolist() if i >= 0]

    def fits(chosen):
        return all(sum(group[i] == g for i in chosen) <= most for g in (0, 1, 2))

    largest = max(size for size in range(k + 1) if any(fits(c) for c in combinations(range(n), size)))
    assert fits(found) and len(found) == largest
    subsets = [sorted(scores[list(c)], reverse=True) for c in combinations(range(n), largest) if fits(c)]
    assert got.scores[0, :largest].sum() == max(sum(s) for s in subsets)
    assert got.scores[0, :largest].tolist() == [max(s[i] for s in subsets) for i in range(largest)]


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_several_caps_are_walked_together(data):
    n_rows, n = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12))
    scores = np.array(data.draw(st.lists(st.integers(0, 5), min_size=n_rows * n, max_size=n_rows * n)))
    every = as_lists(scores.reshape(n_rows, n).astype(float))
    groups = [np.array(data.draw(st.lists(st.integers(-1, 3), min_size=n, max_size=n))) for _ in range(2)]
    most = [data.draw(st.integers(1, 3)) for _ in range(2)]
    got = only(every, within_caps(every, [MaxPer(m, g) for m, g in zip(most, groups, strict=True)]), None)
    for row in range(n_rows):
        expected = greedy(every.items[row].tolist(), [g.__getitem__ for g in groups], most, None)
        assert got.items[row][got.items[row] >= 0].tolist() == expected
        kept = scores.reshape(n_rows, n)[row][expected]
        ranks = [1 + (kept > s).sum() + ((kept == s).sum() - 1) / 2 for s in kept]
        assert got.ranks[row, : len(expected)].tolist() == ranks


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_enough_beams_give_the_greedy_list_of_the_catalog(data):
    """Per prefix, per group, both: ragged or not, collisions, filters, denied items."""
    codes = data.draw(catalogs())
    n, top_k = codes.n_items, data.draw(st.one_of(st.none(), st.integers(1, 6)))
    depth, most = data.draw(st.integers(1, codes.n_levels)), data.draw(st.integers(1, 3))
    brand = np.array(data.draw(st.lists(st.integers(-1, 2), min_size=n, max_size=n)), dtype=np.int32)
    caps = data.draw(
        st.sampled_from(
            [[MaxPer(most, depth=depth)], [MaxPer(most, brand)], [MaxPer(1, brand), MaxPer(most, depth=depth)]]
        )
    )
    normalize = data.draw(st.sampled_from(["vocab", "children"]))
    asked = [data.draw(requests(n)) for _ in range(2)]
    logp = random_logp(codes.level_sizes, ragged=codes.ragged, seed=data.draw(st.integers(0, 99)))
    index = build(codes)
    diversity = caps[0] if len(caps) == 1 else caps
    how = {"normalize": normalize, "index": index, "small": data.draw(st.sampled_from([-1, 256]))}
    got = lists(codes, logp, [3, 8], asked, diversity, top_k=top_k, n_beams=n, **how)
    assert got.certified is None
    place = number_hash(np.arange(n))  # items of one score
    for row, name in enumerate([3, 8]):
        scores = scores_of(codes, logp, name, normalize)
        order = sorted(allowed_items(asked[row], n), key=lambda i: (-np.round(scores[i], 5), place[i]))
        of = [brand.__getitem__ if cap.depth is None else lambda i: prefix(codes, i, depth) for cap in caps]
        expected = greedy(order, of, [cap.most for cap in caps], top_k)
        assert got.items[row][got.items[row] >= 0].tolist() == expected
        np.testing.assert_allclose(got.scores[row, : len(expected)], scores[expected], atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_no_more_beams_than_items_asked_for_fill_the_list_under_a_prefix_cap(data):
    """One pass: as many items as the cap lets exist, although other prefixes score more."""
    codes = data.draw(catalogs(max_items=30, unique=True, ragged=False))
    n, top_k = codes.n_items, data.draw(st.integers(1, 6))
    depth, most = data.draw(st.integers(1, codes.n_levels)), data.draw(st.integers(1, 3))
    asked = [data.draw(requests(n))]
    logp = random_logp(codes.level_sizes, ragged=False, seed=data.draw(st.integers(0, 99)))
    cap = MaxPer(most, depth=depth)
    got = lists(codes, logp, [1], asked, cap, top_k=top_k, n_beams=top_k, max_beams=1)
    allowed = allowed_items(asked[0], n)
    possible = len(greedy(allowed, [lambda i: prefix(codes, i, depth)], [most], top_k))
    listed = got.items[0][got.items[0] >= 0].tolist()
    assert len(listed) == possible and set(listed) <= set(allowed)
    assert greedy(listed, [lambda i: prefix(codes, i, depth)], [most], top_k) == listed


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_caps_widen_the_search_until_the_list_is_full_or_nothing_is_left(data):
    codes = data.draw(catalogs(max_items=20))
    n, top_k = codes.n_items, data.draw(st.integers(1, 6))
    brand = np.array(data.draw(st.lists(st.integers(-1, 2), min_size=n, max_size=n)))
    caps = [MaxPer(1, brand), MaxPer(2, depth=1)][: data.draw(st.integers(1, 2))]
    asked = [data.draw(requests(n)) for _ in range(3)]
    logp = random_logp(codes.level_sizes, ragged=codes.ragged, seed=data.draw(st.integers(0, 99)))
    got = lists(codes, logp, [0, 1, 2], asked, caps, top_k=top_k, n_beams=1)
    for row in range(3):
        listed = got.items[row][got.items[row] >= 0].tolist()
        allowed = allowed_items(asked[row], n)
        of = [brand.__getitem__, lambda i: prefix(codes, i, 1)][: len(caps)]
        assert greedy(listed, of, [1, 2], top_k) == listed and set(listed) <= set(allowed)
        if len(caps) == 1:
            assert len(listed) == len(greedy(allowed, of, [1], top_k))
        if len(listed) < top_k:  # nothing else would have fitted
            assert all(greedy([*listed, item], of, [1, 2], None) == listed for item in set(allowed) - set(listed))
        alone = lists(codes, logp, [row], [asked[row]], caps, top_k=top_k, n_beams=1)
        assert alone.items[0].tolist() == got.items[row].tolist()


def test_a_prefix_that_has_all_the_probability_does_not_take_all_beams():
    """The four best items are below code 0; four beams and a cap of one or two still find those of other codes."""
    codes = ItemCodes.from_int(np.array([[a, b] for a in range(4) for b in range(4)]), (4, 4), "catalog")

    def logp(row, before):
        return np.array([-0.1, -20.0, -21.0, -22.0]) if not before else -np.arange(1.0, 5.0)

    how = {"top_k": 4, "n_beams": 4, "max_beams": 4}
    for most, expected in ((1, [0, 4, 8, 12]), (2, [0, 1, 4, 5]), (4, [0, 1, 2, 3])):
        assert lists(codes, logp, [0], [([], None)], MaxPer(most, depth=1), **how).items.tolist() == [expected]


def test_a_budget_of_beams_ends_the_widening():
    codes = ItemCodes.from_int(np.arange(16)[:, None], (16,), "catalog")
    brand = np.where(np.arange(16) < 12, 0, np.arange(16))

    def logp(row, before):
        return -1.0 - np.arange(16)

    how = {"top_k": 3, "n_beams": 1}
    full = lists(codes, logp, [0], [([], None)], MaxPer(1, brand), **how)
    assert full.items.tolist() == [[0, 12, 13]]
    short = lists(codes, logp, [0], [([], None)], MaxPer(1, brand), **how, max_beams=8)
    assert short.items.tolist() == [[0, -1, -1]] and np.isneginf(short.scores[0, 1:]).all()


def quotas(scores, available, interests, top_k):
    """Prefixes best first: how many places each has; one row, plain Python."""
    chosen = [p for p in range(len(scores)) if p < interests.n or sum(available[:p]) < top_k]
    share = {p: exp((scores[p] - scores[0]) / interests.temperature) for p in chosen}
    places = dict.fromkeys(range(len(scores)), 0)
    while chosen:
        left, whole = top_k - sum(places.values()), sum(share[p] for p in chosen)
        exact = {p: left * share[p] / whole for p in chosen}
        given_ = {p: floor(exact[p]) for p in chosen}
        by_rest = sorted(chosen, key=lambda p: (given_[p] - exact[p], p))
        for p in by_rest[: left - sum(given_.values())]:
            given_[p] += 1
        small = [p for p in chosen if given_[p] > available[p]]
        if not small:
            return [places[p] + given_.get(p, 0) for p in places]
        for p in small:
            places[p] = available[p]
            chosen.remove(p)
    return list(places.values())


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_places_by_largest_remainder_within_what_there_is(data):
    n_rows, width = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    scores = -np.sort(np.array(data.draw(st.lists(st.floats(0, 6), min_size=n_rows * width, max_size=n_rows * width))))
    scores = -np.sort(-scores.reshape(n_rows, width), axis=1)
    there = np.array(data.draw(st.lists(st.integers(1, 5), min_size=n_rows * width, max_size=n_rows * width)))
    there = there.reshape(n_rows, width)
    interests = Interests(data.draw(st.integers(1, 6)), temperature=data.draw(st.sampled_from([0.5, 1.0, 3.0])))
    top_k = data.draw(st.integers(1, 12))
    got = divided(scores, there, interests, top_k)
    for row in range(n_rows):
        assert got[row].tolist() == quotas(scores[row].tolist(), there[row].tolist(), interests, top_k)
    assert got.sum(axis=1).tolist() == np.minimum(top_k, there.sum(axis=1)).tolist()


def test_places_of_an_example():
    """Shares 6 : 3 : 1 of seven places are 4.2, 2.1, 0.7: the last one rounds up."""
    scores = np.log([[0.6, 0.3, 0.1, 0.05]])
    assert divided(scores, np.full((1, 4), 9), Interests(3), 7).tolist() == [[4, 2, 1, 0]]
    assert divided(scores, np.array([[1, 9, 9, 9]]), Interests(3), 9).tolist() == [[1, 6, 2, 0]]  # 8 places 3 : 1
    assert divided(scores, np.array([[1, 1, 1, 9]]), Interests(3), 7).tolist() == [[1, 1, 1, 4]]  # the next prefix too
    assert divided(scores, np.full((1, 4), 9), Interests(2, temperature=1e9), 6).tolist() == [[3, 3, 0, 0]]
    assert divided(scores - 1e6, np.full((1, 4), 9), Interests(4, temperature=1e-3), 6).tolist() == [[6, 0, 0, 0]]


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_interests_list_the_best_items_of_the_best_prefixes(data):
    codes = data.draw(catalogs(max_items=20))
    n, top_k, index = codes.n_items, data.draw(st.integers(1, 8)), build(codes)
    interests = Interests(
        data.draw(st.integers(1, 4)), depth=data.draw(st.integers(1, codes.n_levels)), temperature=2.0
    )
    asked = [data.draw(requests(n)) for _ in range(2)]
    logp = random_logp(codes.level_sizes, ragged=codes.ragged, seed=data.draw(st.integers(0, 99)))
    got = lists(codes, logp, [3, 8], asked, interests, top_k=top_k, n_beams=n, index=index)
    assert got.certified is None
    place = number_hash(np.arange(n))
    for row, name in enumerate([3, 8]):
        scores, below = scores_of(codes, logp, name), {}
        for item in allowed_items(asked[row], n):
            below.setdefault(prefix(codes, item, interests.depth), []).append(item)
        mass = {p: prefix_score(codes, logp, name, p, interests.depth) for p in below}
        best = sorted(below, key=lambda p: -mass[p])
        places = quotas([mass[p] for p in best], [len(below[p]) for p in best], interests, top_k)
        expected = []
        for p, many in zip(best, places, strict=True):
            expected += sorted(below[p], key=lambda i: (-np.round(scores[i], 5), place[i]))[:many]
        listed = got.items[row][got.items[row] >= 0].tolist()
        assert sorted(listed) == sorted(expected)
        assert (np.diff(got.scores[row, : len(listed)]) <= 0).all()


def prefix_score(codes, logp, row, codes_before, depth):
    """Log-probability of a prefix; one that is a whole identifier includes its end if that lies within the depth."""
    total = sum(float(logp(row, codes_before[:i])[c]) for i, c in enumerate(codes_before))
    if len(codes_before) < depth:
        total += float(logp(row, codes_before)[-1])
    return total


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_few_beams_still_fill_the_places_of_every_interest(data):
    codes = data.draw(catalogs(max_items=30, unique=True, ragged=False))
    top_k, asked = data.draw(st.integers(1, 8)), [data.draw(requests(codes.n_items)) for _ in range(2)]
    logp = random_logp(codes.level_sizes, ragged=False, seed=data.draw(st.integers(0, 99)))
    interests = Interests(data.draw(st.integers(1, 4)), temperature=2.0)
    few = lists(codes, logp, [3, 8], asked, interests, top_k=top_k, n_beams=top_k)
    many = lists(codes, logp, [3, 8], asked, interests, top_k=top_k, n_beams=codes.n_items)
    first_code = codes.as_int()[:, 0]
    for row in range(2):
        one, other = (sorted(first_code[x.items[row][x.items[row] >= 0]].tolist()) for x in (few, many))
        assert one == other
        alone = lists(codes, logp, [[3, 8][row]], [asked[row]], interests, top_k=top_k, n_beams=top_k)
        assert alone.items[0].tolist() == few.items[row].tolist()


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_the_best_of_each_group_come_first(data):
    n_rows, n_beams, n_children = (data.draw(st.integers(1, most)) for most in (3, 4, 6))
    width = n_beams * n_children
    values = st.sampled_from([-np.inf, -2.0, -1.0, -0.5, 0.0])
    key = torch.tensor(data.draw(st.lists(values, min_size=n_rows * width, max_size=n_rows * width)))
    key = key.reshape(n_rows, width)
    of_beam = data.draw(st.lists(st.integers(0, 3), min_size=n_rows * n_beams, max_size=n_rows * n_beams))
    group = torch.tensor(of_beam).reshape(n_rows, n_beams).repeat_interleave(n_children, 1)
    limits = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=4, max_size=4)))
    n = data.draw(st.integers(1, 14))
    got = best_in_groups(key, group, limits[group], n, n_children)
    for row in range(n_rows):
        real = [c for c in range(width) if key[row, c] > -np.inf]
        order = sorted(real, key=lambda c: (-float(key[row, c]), c))
        first = []
        for g in range(4):
            first += [c for c in order if group[row, c] == g][: int(limits[g])]
        ranked = [c for c in order if c in first] + [c for c in order if c not in first]
        chosen = [c for c in got[row].tolist() if key[row, c] > -np.inf]
        assert chosen == ranked[:n]


def test_an_interest_whose_items_share_its_probability_keeps_its_beams():
    """Two codes of equal probability: every item below one scores more than any below the other."""
    codes = ItemCodes.from_int(np.array([[a, b] for a in range(2) for b in range(4)]), (2, 4), "catalog")

    def logp(row, before):
        return {(): np.log([0.5, 0.5]), (0,): -np.arange(1.0, 5.0) / 10, (1,): -np.arange(10.0, 14.0)}[before]

    got = lists(codes, logp, [0], [([], None)], Interests(2), top_k=4, n_beams=4)
    assert got.items.tolist() == [[0, 1, 4, 5]]


class Scores:
    """A dense model of given scores."""

    def __init__(self, scores):
        self.scores, self.n_items = scores, scores.shape[1]

    def score_all(self, histories, users=None):
        return self.scores[: len(histories)]


def test_models_that_score_items_obey_caps_per_group():
    scores = np.array([[5.0, 4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0]], dtype=np.float32)
    brand = np.array([0, 0, 0, 1, -1])
    options = SearchOptions(top_k=3, diversity=MaxPer(1, brand))
    histories = Histories.from_lists([[], [3]])
    got = recommend_dense(Scores(scores), histories, options)
    assert got.items.tolist() == [[0, 3, 4], [4, 2, -1]] and got.ranks[0].tolist() == [1, 2, 3]
    every = recommend_dense(
        Scores(scores), histories, SearchOptions(top_k=None, diversity=MaxPer(1, brand)), batch_size=2
    )
    assert every.items.tolist() == [[0, 3, 4, -1, -1], [4, 2, -1, -1, -1]]
    for diversity in (Interests(), MaxPer(1, depth=1)):
        with pytest.raises(ConfigError, match="knows no prefixes"):
            recommend_dense(Scores(scores), histories, SearchOptions(diversity=diversity))


def test_fewer_beams_than_places_still_fill_the_places_of_interests():
    codes = ItemCodes.from_int(np.array([[a, b] for a in range(4) for b in range(4)]), (4, 4), "catalog")
    logp = random_logp((4, 4), ragged=False, seed=0)
    assert (lists(codes, logp, [0], [([], None)], Interests(4), top_k=8, n_beams=1).items >= 0).all()


def test_what_makes_no_sense_is_refused():
    for wrong in (
        lambda: MaxPer(0, depth=1),
        lambda: MaxPer(1),
        lambda: MaxPer(1, np.zeros(3, dtype=int), depth=1),
        lambda: MaxPer(1, depth=0),
        lambda: MaxPer(1, np.zeros(3)),
        lambda: Interests(0),
        lambda: Interests(depth=0),
        lambda: Interests(temperature=0.0),
    ):
        with pytest.raises(ConfigError):
            wrong()
    with pytest.raises(ConfigError, match="never certified"):
        SearchOptions(exact=True, diversity=Interests())
    codes = ItemCodes.from_int(np.arange(4)[:, None], (4,), "catalog")
    logp = random_logp((4,), ragged=False, seed=0)
    how = {"n_beams": 4, "top_k": 2}
    with pytest.raises(DataError, match="expected 4 group numbers"):
        lists(codes, logp, [0], [([], None)], MaxPer(1, np.zeros(3, dtype=int)), **how)
    with pytest.raises(ConfigError, match=r"expected 1\.\.1, the length"):
        lists(codes, logp, [0], [([], None)], [MaxPer(1, depth=2)], **how)
    with pytest.raises(ConfigError, match="top_k"):
        lists(codes, logp, [0], [([], None)], Interests(), n_beams=4, top_k=None)
