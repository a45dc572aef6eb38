"""Lists from inner products with slots, against products of float64 with every item."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.histories import Histories
from genrec.decoding.dense import mask_seen, top_k_dense
from genrec.decoding.filters import ItemFilter
from genrec.decoding.parallel import ParallelIndex
from genrec.decoding.parallel_slots import SlotIndex, setrec_weights
from genrec.errors import DataError, FingerprintMismatch
from genrec.item_tokenizers.slots import COLLABORATIVE, ItemSlots, semantic_name
from genrec.seeding import number_hash


def names(n):
    return (COLLABORATIVE, *(semantic_name(number) for number in range(1, n)))


def every_score(slots, queries, weights):
    """float32 [U, N]: slot by slot, weighted, in float64."""
    total = np.zeros((len(queries), len(slots)))
    for slot in range(slots.n_slots):
        total += weights[slot] * (queries[:, slot].astype(np.float64) @ slots.vectors[:, slot].astype(np.float64).T)
    return total.astype(np.float32)


def expected(scores, top_k, filters=None, deny=None):
    for row, each in enumerate(filters or []):
        if each is not None:
            scores[row, ~each.mask] = -np.inf
    if deny is not None:
        mask_seen(scores, deny)
    return top_k_dense(scores, top_k, np.argsort(number_hash(np.arange(scores.shape[1]))))


def assert_same(found, wanted):
    width = wanted.items.shape[1]
    for name in ("items", "scores", "ranks"):
        assert np.array_equal(getattr(found, name)[:, :width], getattr(wanted, name)[:, : found.items.shape[1]])
    assert (found.items[:, width:] == -1).all() and found.certified.all() and found.normalize is None


@given(st.data(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_lists_are_those_of_scoring_everything(data, seed):
    """Products of small integers are exact, so ties are ties."""
    rng = np.random.default_rng(seed)
    n, n_slots, dim, n_users = (data.draw(st.integers(1, top)) for top in (60, 4, 5, 4))
    largest = data.draw(st.sampled_from([0, 1, 9]))
    slots = ItemSlots(rng.integers(-largest, largest + 1, (n, n_slots, dim)).astype(np.float32), names(n_slots), "c")
    queries = rng.integers(-largest, largest + 1, (n_users, n_slots, dim)).astype(np.float32)
    weights = rng.choice([0, 0.5, 1, 2], n_slots)
    one = ItemFilter.of_mask(rng.random(n) < data.draw(st.sampled_from([0.0, 0.05, 0.6])), "c")
    filters = data.draw(st.sampled_from([None, [one, None, ~one, one][:n_users]]))
    deny = Histories.from_lists([rng.integers(0, n, rng.integers(0, 5)) for _ in range(n_users)])
    top_k = data.draw(st.one_of(st.none(), st.integers(1, 9), st.just(n + 2)))
    found = SlotIndex.of(slots).search(queries, top_k=top_k, weights=weights, filter=filters, deny=deny)
    assert_same(found, expected(every_score(slots, queries, weights), top_k, filters, deny))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_many_items_with_near_ties(scale):
    """The best items differ by less than float32 products can tell, and some are equal."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(3, 16))
    vectors = rng.normal(size=(30_000, 3, 16)).astype(np.float32)
    vectors[::3] = base * (1 + rng.normal(size=(10_000, 3, 16)) * 3e-7)
    vectors[20_000:20_500] = vectors[:500]
    slots = ItemSlots(vectors, names(3), "")
    queries = ((base + rng.normal(size=(40, 3, 16)) * 0.3) * scale).astype(np.float32)
    weights = setrec_weights(slots.names, 0.3)
    index = SlotIndex.of(slots)
    found = index.search(queries, top_k=50, weights=weights)
    assert_same(found, expected(every_score(slots, queries, weights.astype(np.float64)), 50))
    for row in (0, 17, 39):
        alone = index.search(queries[[row]], top_k=50, weights=weights)
        assert np.array_equal(alone.items[0], found.items[row]) and np.array_equal(alone.scores[0], found.scores[row])


def test_discrete_slots_by_codes_and_by_vectors():
    """Scores of codes are the products with the codewords."""
    rng = np.random.default_rng(1)
    books = [rng.integers(-3, 4, (size, 4)).astype(np.float32) for size in (5, 7)]
    codes = np.stack([rng.integers(0, 5, 200), rng.integers(0, 7, 200)], axis=1)
    slots = ItemSlots.of_codes(codes, books, names(2), "c")
    queries = rng.integers(-3, 4, (3, 2, 4)).astype(np.float32)
    by_vector = SlotIndex.of(slots).search(queries, weights=[0.5, 2])
    scores = [queries[:, slot] @ book.T for slot, book in enumerate(slots.codebooks)]
    by_code = ParallelIndex.of(slots).search(scores, weights=[0.5, 2])
    for name in ("items", "scores", "ranks"):
        assert np.array_equal(getattr(by_vector, name), getattr(by_code, name))


def test_the_vectors_are_not_copied():
    slots = ItemSlots(np.ones((9, 2, 3), np.float32), names(2), "c")
    assert np.shares_memory(SlotIndex.of(slots).vectors, slots.vectors)


def test_setrec_weights():
    assert setrec_weights(names(3), 0.25).tolist() == [0.75, 0.25, 0.25]
    assert setrec_weights(names(3), 1).tolist() == [0, 1, 1]
    with pytest.raises(DataError, match="beta"):
        setrec_weights(names(3), 1.5)


def test_no_users_and_no_items():
    slots = ItemSlots(np.ones((9, 2, 3), np.float32), names(2), "c")
    assert SlotIndex.of(slots).search(np.zeros((0, 2, 3)), top_k=4).items.shape == (0, 4)
    empty = SlotIndex.of(ItemSlots(np.ones((0, 2, 3), np.float32), names(2), "c"))
    assert empty.search(np.zeros((1, 2, 3)), top_k=2).items.tolist() == [[-1, -1]]


def test_what_is_refused():
    index = SlotIndex.of(ItemSlots(np.ones((9, 2, 3), np.float32), names(2), "c"))
    with pytest.raises(DataError, match=r"\[U, 2, 3\]"):
        index.search(np.zeros((1, 3, 3)))
    for value in (np.nan, np.inf):
        with pytest.raises(DataError, match="user 0, slot 'collaborative'"):
            index.search(np.full((1, 2, 3), value))
    with pytest.raises(DataError, match="too large"):
        index.search(np.full((1, 2, 3), 1e37))
    with pytest.raises(DataError, match="weights"):
        index.search(np.zeros((1, 2, 3)), weights=[1, -1])
    with pytest.raises(FingerprintMismatch):
        index.search(np.zeros((1, 2, 3)), filter=ItemFilter.of_items([0], 9, "d"))
