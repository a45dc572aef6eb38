import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.catalog import ItemCatalog
from genrec.data.histories import Histories
from genrec.decoding.deny import dead_nodes
from genrec.decoding.index import CatalogIndex
from genrec.decoding.listing import list_items
from genrec.item_tokenizers.codes import ItemCodes
from genrec.seeding import number_hash
from genrec.testing.oracles import expected_ranks


def build(rows, sizes, keep=None):
    codes = ItemCodes.from_int(np.array(rows), sizes, "c")
    return CatalogIndex.build(codes, keep=keep)


def slow_dead(index, denied):
    dead = []
    for level in range(index.depth):
        dead.append(
            {
                node
                for node in range(index.n_nodes(level + 1))
                if set(index.items_below(level + 1, node).tolist()) <= denied
            }
        )
    return dead


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_dead_nodes_are_those_with_every_item_denied(data):
    n = data.draw(st.integers(1, 10))
    rows = np.array(data.draw(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=n, max_size=n)))
    if data.draw(st.booleans()):
        rows[:: data.draw(st.integers(1, 3)), 2] = -1
    index = build(rows, (3, 3, 3))
    deny = data.draw(st.lists(st.lists(st.integers(0, n - 1), max_size=14), min_size=1, max_size=3))
    found = dead_nodes(index, Histories.from_lists(deny))
    for row, items in enumerate(deny):
        slow = slow_dead(index, set(items))
        reported = []
        for level, here in enumerate(found):
            pairs = set() if here is None else set(zip(here.nodes_BD[row], here.parents_BD[row], strict=True))
            pairs -= {(-1, -1)}
            reported.append({int(node) for node, _ in pairs})
            for node, parent in pairs:
                assert index.pointers[level][parent] <= node < index.pointers[level][parent + 1]
        # what is reported, and everything below it, is exactly what is dead
        below = set()
        for level in range(index.depth):
            parents = np.repeat(np.arange(index.n_nodes(level)), np.diff(index.pointers[level]))
            below = {node for node, parent in enumerate(parents) if level and parent in below}
            assert not reported[level] & below
            below |= reported[level]
            assert below == slow[level]


def test_denied_items_outside_the_index_are_ignored():
    index = build([[0, 0], [0, 1], [1, 0]], (2, 2), keep=np.array([True, False, True]))
    found = dead_nodes(index, Histories.from_lists([[1], [1, 0]]))
    assert found[0] is not None and found[0].nodes_BD.tolist() == [[-1], [0]]
    assert found[1] is None


def leaves_of(index, wanted):
    return np.array([[index.nodes_of(index.rank_of[i])[-1] if i >= 0 else -1 for i in row] for row in wanted])


def test_shared_identifiers_share_score_and_expected_rank():
    # items 0, 2, 3 share an identifier; item 1 and item 4 have their own
    index = build([[0, 0], [0, 1], [0, 0], [0, 0], [1, 1]], (2, 2))
    leaves = leaves_of(index, [[4, 0, 1]])
    scores = np.array([[-0.5, -1.0, -2.0]], dtype=np.float32)
    full = list_items(index, leaves, scores, top_k=None, normalize="vocab")
    block = [i for i in index.items.tolist() if i in (0, 2, 3)]
    assert full.items.tolist() == [[4, *block, 1]]
    assert full.ranks.tolist() == [[1, 3, 3, 3, 5]]
    assert full.n_identifiers.tolist() == [3]
    cut = list_items(index, leaves, scores, top_k=2, normalize="vocab")
    assert cut.items.tolist() == [[4, block[0]]] and cut.ranks.tolist() == [[1, 3]]


def test_ties_between_identifiers_are_listed_in_hash_order_not_code_order():
    rows = np.stack(np.unravel_index(np.arange(64), (8, 8)), axis=1)
    index = build(rows, (8, 8))
    leaves = np.arange(64)[None]
    got = list_items(index, leaves, np.full((1, 64), -3.0, np.float32), top_k=None, normalize="vocab")
    assert got.items[0].tolist() == np.argsort(number_hash(np.arange(64))).tolist()
    assert (got.ranks == 32.5).all()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_lists_agree_with_counting(data):
    n = data.draw(st.integers(1, 9))
    rows = data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=n, max_size=n))
    index = build(rows, (3, 2))
    n_rows = data.draw(st.integers(1, 3))
    some = st.lists(st.integers(0, index.n_identifiers - 1), unique=True, max_size=6)
    found = data.draw(st.lists(some, min_size=n_rows, max_size=n_rows))
    deny = data.draw(st.lists(st.lists(st.integers(0, n - 1), max_size=5), min_size=n_rows, max_size=n_rows))
    top_k = data.draw(st.sampled_from([None, 1, 3, 20]))
    leaves = Histories.from_lists(found).padded(max_len=6, side="right").astype(np.int64)
    scores = np.where(leaves >= 0, -(np.arange(6) // 2)[None, :], -np.inf).astype(np.float32)
    got = list_items(index, leaves, scores, top_k=top_k, normalize="level", deny=Histories.from_lists(deny))
    for row in range(n_rows):
        pairs = [
            (float(scores[row, p]), int(i))
            for p, leaf in enumerate(found[row])
            for i in index.items_below(index.depth, leaf)
            if i not in deny[row]
        ]
        ranks = expected_ranks([s for s, _ in pairs])
        rank_of = {i: rank for (_, i), rank in zip(pairs, ranks, strict=True)}
        listed = [int(i) for i in got.items[row] if i >= 0]
        assert len(listed) == (len(pairs) if top_k is None else min(top_k, len(pairs)))
        assert [rank_of[i] for i in listed] == got.ranks[row, : len(listed)].tolist()
        assert sorted(rank_of[i] for i in listed) == sorted(ranks)[: len(listed)]
        assert np.isinf(got.ranks[row, len(listed) :]).all()
        assert np.isneginf(got.scores[row, len(listed) :]).all()


@pytest.mark.parametrize(
    ("top_k", "pruned", "expected"),
    [(2, -5.0, True), (2, -2.0, False), (2, -np.inf, True), (3, -5.0, False), (None, -5.0, False)],
)
def test_a_list_is_certified_only_above_everything_pruned(top_k, pruned, expected):
    index = build([[0, 0], [0, 1], [1, 0]], (2, 2))
    got = list_items(
        index,
        np.array([[0, 1]]),
        np.array([[-1.0, -2.0]], dtype=np.float32),
        top_k=top_k,
        normalize="vocab",
        pruned=np.array([pruned], dtype=np.float32),
    )
    assert got.certified.tolist() == [expected]


def test_lists_as_item_ids_leave_the_padding_out():
    index = CatalogIndex.build(ItemCodes.from_int([[0], [1], [2]], (3,), "c"))
    leaves, scores = np.array([[2, 0], [-1, -1]]), np.array([[-1.0, -2.0], [-np.inf, -np.inf]], dtype=np.float32)
    listed = list_items(index, leaves, scores, top_k=3, normalize="vocab")
    catalog = ItemCatalog(("x", "y", "z"), {"title": ["X", "Y", "Z"]})
    assert listed.to_ids(catalog) == [["z", "x"], []] and listed.lengths.tolist() == [2, 0]
