"""Lists from scores of independent codes, against scoring every item and sorting."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.histories import Histories
from genrec.decoding.dense import mask_seen, top_k_dense
from genrec.decoding.filters import ItemFilter
from genrec.decoding.parallel import ParallelIndex
from genrec.decoding.parallel_best import Best, kth_best
from genrec.decoding.parallel_request import Request
from genrec.decoding.parallel_scan import parts_of, pruned_scan
from genrec.errors import ConfigError, DataError, FingerprintMismatch
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.slots import ItemSlots
from genrec.seeding import number_hash

INF = np.inf


def make(rng, n, sizes, used=4):
    """Codes of which each level uses a few, so that some items share all of them."""
    columns = [rng.choice(rng.integers(0, size, used), n) for size in sizes]
    return ItemCodes(np.stack(columns, axis=1), tuple(sizes), "catalog")


def every_score(codes, tables, weights=None):
    """float64 [U, N]: the sum over levels, term by term."""
    total = np.zeros((len(tables[0]), codes.n_items))
    for level, table in enumerate(tables):
        weight = 1.0 if weights is None else weights[level]
        if weight:
            total += weight * table[:, codes.codes[:, level]].astype(np.float64)
    return total


def expected(scores, top_k, filters=None, deny=None):
    """Lists from all scores: forbidden ones out, then sort; as wide as was asked."""
    scores = scores.astype(np.float32)
    for row, each in enumerate(filters or []):
        if each is not None:
            scores[row, ~each.mask] = -INF
    if deny is not None:
        mask_seen(scores, deny)
    return top_k_dense(scores, top_k, np.argsort(number_hash(np.arange(scores.shape[1]))))


def assert_same(found, wanted, *, exactly=True):
    width = min(found.items.shape[1], wanted.items.shape[1])
    assert np.array_equal(found.items[:, :width], wanted.items[:, :width])
    assert np.array_equal(found.ranks[:, :width], wanted.ranks[:, :width])
    if exactly:
        assert np.array_equal(found.scores[:, :width], wanted.scores[:, :width])
    else:
        np.testing.assert_allclose(found.scores[:, :width], wanted.scores[:, :width], rtol=1e-5, atol=1e-5)
    for beyond in (found, wanted):
        assert (beyond.items[:, width:] == -1).all() and (beyond.scores[:, width:] == -INF).all()
        assert np.isposinf(beyond.ranks[:, width:]).all()


sizes_of_levels = st.lists(st.sampled_from([1, 2, 3, 7, 260]), min_size=1, max_size=5)


@given(st.data(), st.integers(0, 2**32 - 1), st.integers(1, 300), sizes_of_levels, st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_lists_are_those_of_scoring_everything(data, seed, n, sizes, n_users):
    """Sums of small fractions are exact, so that ties are ties and nothing is rounded."""
    rng = np.random.default_rng(seed)
    codes = make(rng, n, sizes, data.draw(st.sampled_from([1, 3, 300])))
    spread = data.draw(st.sampled_from([0, 1, 40]))
    tables = [rng.integers(-spread, spread + 1, (n_users, size)).astype(np.float32) / 4 for size in sizes]
    for table in tables:
        table[rng.random(table.shape) < data.draw(st.sampled_from([0.0, 0.0, 0.3, 1.0]))] = -INF
    weights = data.draw(
        st.one_of(st.none(), st.lists(st.sampled_from([0, 0.5, 1, 2]), min_size=len(sizes), max_size=len(sizes)))
    )
    top_k = data.draw(st.one_of(st.none(), st.integers(1, 12), st.just(n + 3)))
    share = data.draw(st.sampled_from([0.0, 0.01, 0.5]))
    one = ItemFilter.of_mask(rng.random(n) < share)
    filters = data.draw(st.sampled_from([None, [None] * n_users, [one, None, ~one, one][:n_users]]))
    deny = None
    if data.draw(st.booleans()):
        deny = Histories.from_lists([rng.integers(0, n, rng.integers(0, 6)) for _ in range(n_users)])
    wanted = expected(every_score(codes, tables, weights), top_k, filters, deny)
    for prune in (False, True):
        index = ParallelIndex.of(codes, prune=prune)
        found = index.search(tables, top_k=top_k, weights=weights, filter=filters, deny=deny, normalize="level")
        assert_same(found, wanted)
        assert found.certified.all() and found.normalize == "level" and found.items.dtype == np.int32
        assert found.items.shape == (n_users, found.lengths.max() if top_k is None else top_k)


@pytest.fixture(scope="module")
def hundred_thousand():
    """4 codes of 256, in two parts, with and without pruning."""
    codes = make(np.random.default_rng(5), 100_000, (256,) * 4, used=256)
    return codes, ParallelIndex.of(codes, prune=True), ParallelIndex.of(codes, prune=False)


def peaked(rng, codes, n_users):
    """Noise, and a target of each user whose codes stand out."""
    tables = rng.normal(size=(n_users, 4, 256)).astype(np.float32)
    targets = rng.integers(0, codes.n_items, n_users)
    for level in range(4):
        tables[np.arange(n_users), level, codes.codes[targets, level]] += 4
    return tables


def flat(rng, codes, n_users):
    return rng.normal(size=(n_users, 4, 256)).astype(np.float32)


def coarse(rng, codes, n_users):
    """Four values a level: many thousands of items tie."""
    return rng.integers(0, 4, (n_users, 4, 256)).astype(np.float32)


def equal(rng, codes, n_users):
    return np.zeros((n_users, 4, 256), dtype=np.float32)


@pytest.mark.parametrize("kind", [peaked, flat, coarse, equal])
def test_many_items(hundred_thousand, kind):
    """Every list equals the dense one, pruned or not, and one by one."""
    codes, pruned, whole = hundred_thousand
    rng = np.random.default_rng(6)
    tables = kind(rng, codes, 5)
    deny = Histories.from_lists([rng.integers(0, 100_000, 20) for _ in range(5)])
    some = ItemFilter.of_mask(rng.random(100_000) < 0.5)
    few = ItemFilter.of_items(rng.integers(0, 100_000, 200), 100_000)
    filters = [None, some, few, None, some]
    wanted = expected(every_score(codes, [tables[:, level] for level in range(4)]), 50, filters, deny)
    found = pruned.search(tables, top_k=50, filter=filters, deny=deny)
    assert_same(found, wanted, exactly=False)
    other = whole.search(tables, top_k=50, filter=filters, deny=deny)
    alone = [pruned.search(tables[[r]], top_k=50, filter=filters[r], deny=deny.take([r])) for r in range(3)]
    for name in ("items", "scores", "ranks"):
        assert np.array_equal(getattr(found, name), getattr(other, name))
        for row, each in enumerate(alone):
            assert np.array_equal(getattr(each, name)[0], getattr(found, name)[row])


@pytest.mark.parametrize(("kind", "left"), [(peaked, 0), (flat, 0), (equal, 3)])
def test_pruning_looks_at_few_items_where_it_can(hundred_thousand, kind, left):
    codes, index, _ = hundred_thousand
    tables = kind(np.random.default_rng(7), codes, 3)
    request = Request.of(3, 100_000, "catalog", top_k=10, filter=None, deny=None)
    (batch,) = request.batches()
    best = Counting(3, 10, batch.rules)
    rows = pruned_scan(index.codes, index.parts, index.lists, [tables[:, level] for level in range(4)], best)
    assert len(rows) == left
    assert best.n_offered < 3 * 100_000 / 8


def test_a_bound_that_equals_the_last_score_excludes_nothing():
    """Items whose parts are all at the cut tie with the last one."""
    codes = np.zeros((400, 2), dtype=np.uint16)
    codes[[20, 90, 150, 220, 390], 0] = 1
    codes[333] = 2
    tables = [np.zeros((1, 300), dtype=np.float32) for _ in range(2)]
    tables[0][0, 1:3], tables[1][0, 2] = [2, 1], 1
    codes = ItemCodes(codes, (300, 300), "")
    index = ParallelIndex.of(codes, prune=True)
    (batch,) = Request.of(1, 400, "", top_k=5, filter=None, deny=None).batches()
    assert not len(pruned_scan(index.codes, index.parts, index.lists, tables, Best(1, 5, batch.rules)))
    found = index.search(tables, top_k=5)
    assert_same(found, expected(every_score(codes, tables), 5))
    assert (found.ranks == 3.5).all()


class Counting(Best):
    n_offered = 0

    def offer(self, rows, items, scores):
        self.n_offered += len(rows)
        super().offer(rows, items, scores)


def test_a_code_that_most_items_have():
    """Longer than what is looked at at a time, and its items tie."""
    rng = np.random.default_rng(1)
    n = 140_000
    codes = ItemCodes((rng.random((n, 1)) < 0.001).astype(np.uint8), (2,), "")
    tables = [np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)]
    wanted = expected(every_score(codes, tables), 500)
    for prune in (True, False):
        assert_same(ParallelIndex.of(codes, prune=prune).search(tables, top_k=500), wanted)


def test_scores_do_not_depend_on_the_other_items():
    codes = make(np.random.default_rng(2), 400, (256,) * 5, used=256)
    tables = np.random.default_rng(3).normal(size=(2, 5, 256)).astype(np.float32)
    head = ParallelIndex.of(codes.take(np.arange(100))).search(tables, top_k=None)
    whole = ParallelIndex.of(codes).search(tables, top_k=None, filter=ItemFilter.of_items(np.arange(100), 400))
    assert np.array_equal(head.items, whole.items) and np.array_equal(head.scores, whole.scores)


def test_levels_are_joined_by_their_sizes_alone():
    assert parts_of((256,) * 4) == ((0, 1), (2, 3))
    assert parts_of((256, 256, 256, 5)) == ((0, 1), (2, 3))
    assert parts_of((15360,) * 2) == ((0,), (1,))
    assert parts_of((16, 16, 16, 16, 2)) == ((0, 1, 2, 3), (4,))
    assert parts_of((1, 100_000, 1)) == ((0,), (1,), (2,))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([-INF, -3e38, -2.5, -0.0, 0.0, 1e-40, 2.5, 3e38]))),
    st.integers(1, 4),
)
@settings(max_examples=40)
def test_the_kth_of_each_row(pairs, k):
    rows = np.array([row for row, _ in pairs], dtype=np.int64)
    scores = np.array([score for _, score in pairs], dtype=np.float32)
    wanted = [np.sort(scores[rows == row])[::-1] for row in range(4)]
    assert kth_best(rows, scores, 4, k).tolist() == [w[k - 1] if len(w) >= k else -INF for w in wanted]


def test_ties_are_listed_by_hash_and_share_their_rank():
    codes = ItemCodes(np.zeros((50, 1), np.uint8), (1,), "")
    found = ParallelIndex.of(codes).search([np.zeros((1, 1), np.float32)], top_k=7)
    assert found.items[0].tolist() == np.argsort(number_hash(np.arange(50)))[:7].tolist()
    assert (found.ranks == 25.5).all()


def test_scores_of_masks_are_no_trouble():
    """Two masked codes overflow to -inf, one is listed last."""
    codes = ItemCodes(np.array([[0, 0], [0, 1], [1, 1]]), (2, 2), "")
    low = np.finfo(np.float32).min
    found = ParallelIndex.of(codes).search(np.array([[[1, low], [1, low]]], dtype=np.float32), top_k=3)
    assert found.items.tolist() == [[0, 1, -1]] and found.scores[0, 1] == low
    scores = np.array([[[1, low], [1, low]]], dtype=np.float32)
    assert ParallelIndex.of(codes).search(scores, top_k=3, weights=[2, 2]).items.tolist() == [[0, -1, -1]]


def test_discrete_slots_and_columns_beyond_a_level():
    """A set identifier of two slots of unequal size, scored by one array padded with NaN."""
    books = [np.eye(3, 4, dtype=np.float32), np.eye(2, 4, dtype=np.float32)]
    slots = ItemSlots.of_codes(np.array([[0, 1], [2, 0], [1, 1]]), books, ["semantic 1", "semantic 2"], "c")
    scores = np.full((1, 2, 5), np.nan, dtype=np.float32)
    scores[0, 0, :3], scores[0, 1, :2] = [0, 1, 4], [2, 0]
    found = ParallelIndex.of(slots).search(scores, top_k=5)
    assert found.items.tolist() == [[1, 2, 0, -1, -1]] and found.scores[0, :3].tolist() == [6, 1, 0]
    with pytest.raises(DataError, match="without codes"):
        ParallelIndex.of(ItemSlots(slots.vectors, slots.names, "c"))


def test_no_users_and_no_items():
    codes = ItemCodes(np.zeros((3, 2), np.uint8), (4, 4), "")
    assert ParallelIndex.of(codes).search(np.zeros((0, 2, 4)), top_k=5).items.shape == (0, 5)
    empty = ParallelIndex.of(codes.take(np.zeros(0, np.int64)), prune=True)
    assert empty.search(np.zeros((2, 2, 4)), top_k=5).items.tolist() == [[-1] * 5] * 2
    assert empty.search(np.zeros((2, 2, 4)), top_k=None).items.shape == (2, 0)


def test_what_is_refused():
    codes = ItemCodes(np.array([[0, 1], [1, 2]]), (2, 3), "catalog")
    index, scores = ParallelIndex.of(codes), np.zeros((2, 2, 3), dtype=np.float32)
    for value in (np.nan, INF):
        wrong = scores.copy()
        wrong[1, 0, 1] = value
        with pytest.raises(DataError, match="user 1, level 0, code 1"):
            index.search(wrong)
    with pytest.raises(DataError, match="sums below 1e38"):
        index.search(scores + np.float32(1e38))
    with pytest.raises(DataError, match="expected 2 levels"):
        index.search(scores[:, :1])
    with pytest.raises(DataError, match="level 1: expected"):
        index.search([scores[:, 0], scores[:, 1, :2]])
    with pytest.raises(DataError, match=r"\[U, L, K\]"):
        index.search(scores[0])
    for weights in ([1.0], [1.0, -1.0], [1.0, np.nan], [1.0, INF]):
        with pytest.raises(DataError, match="weights"):
            index.search(scores, weights=weights)
    with pytest.raises(DataError, match="deny: expected 2"):
        index.search(scores, deny=Histories.from_lists([[0]]))
    with pytest.raises(ConfigError, match="top_k"):
        index.search(scores, top_k=0)
    with pytest.raises(FingerprintMismatch):
        index.search(scores, filter=ItemFilter.of_items([0], 2, "another"))
    with pytest.raises(DataError, match="one of 5"):
        index.search(scores, filter=ItemFilter.of_items([0], 5))
    ragged = ItemCodes.from_int([[0, 1], [1, -1]], (2, 3), "catalog")
    with pytest.raises(DataError, match="one length"):
        ParallelIndex.of(ragged)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [flat, equal])
def test_memory_does_not_grow_with_users_times_items(kind):
    """A million items for 32 users: their scores would take 122 MiB. (Also the worst case: everything ties.)"""
    codes = make(np.random.default_rng(8), 1_000_000, (256,) * 4, used=256)
    index = ParallelIndex.of(codes)
    assert index.nbytes <= 12 * codes.n_items + (2 << 20)
    tables = kind(np.random.default_rng(9), codes, 32)
    tracemalloc.start()
    found = index.search(tables, top_k=50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20
    if kind is equal:
        assert (found.ranks == 500_000.5).all()
