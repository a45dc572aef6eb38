import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.histories import Histories
from genrec.embeddings.base import ItemEmbeddings
from genrec.embeddings.neighbours import propagate
from genrec.errors import ConfigError

LISTS = st.lists(st.lists(st.integers(0, 6), max_size=5), min_size=1, max_size=6)


@given(LISTS, st.integers(0, 3), st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_equals_powers_of_the_bipartite_graph(lists, hops, seed):
    """LightGCN's layers on the whole graph of users and items, users at zero: every second layer is one hop."""
    x = np.random.default_rng(seed).normal(size=(8, 3)).astype(np.float32)  # item 7 is in no history
    graph = np.zeros((len(lists) + 8, len(lists) + 8))
    for user, row in enumerate(lists):
        for item in row:
            graph[user, len(lists) + item] = graph[len(lists) + item, user] = 1
    degree = graph.sum(axis=0)
    for node in np.flatnonzero(degree == 0):
        graph[node, node] = degree[node] = 1  # keeps what it has
    layer = np.linalg.matrix_power(graph / np.sqrt(np.outer(degree, degree)), 2)
    start = np.concatenate([np.zeros((len(lists), 3)), x])
    expected = np.mean([np.linalg.matrix_power(layer, k) @ start for k in range(hops + 1)], axis=0)[len(lists) :]
    found = propagate(ItemEmbeddings(x, "c", {"kind": "x"}), Histories.from_lists(lists), hops)
    np.testing.assert_allclose(found.vectors, expected, atol=1e-5)
    assert found.catalog == "c"
    np.testing.assert_array_equal(found.vectors[7], x[7])


def test_unknown_items_take_after_their_neighbours():
    x = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    found = propagate(ItemEmbeddings(x, "c"), Histories.from_lists([[0, 1], [0]]), 1).vectors
    assert found[1, 0] > 0
    assert not found[2].any()


def test_negative_hops_are_refused():
    with pytest.raises(ConfigError, match="neighbours: expected 0 or more, got -1"):
        propagate(ItemEmbeddings(np.ones((1, 1)), "c"), Histories.from_lists([[0]]), -1)
