"""Vectors of a graph network against dense definitions, and what they learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.histories import Histories
from genrec.embeddings.base import ItemEmbeddings
from genrec.embeddings.graph import GraphSettings, graph_vectors
from genrec.embeddings.graph_training import Graph, GraphNetwork, _train, bpr_loss
from genrec.errors import ConfigError

LISTS = st.lists(st.lists(st.integers(0, 6), max_size=5), min_size=1, max_size=6).filter(lambda rows: any(rows))
SMALL = GraphSettings(dim=3, inner=4)
QUICK = GraphSettings(dim=12, inner=16, epochs=30, batch_size=256, learning_rate=1e-2)


def dense_forward(network, x, rows):
    """Both layers node by node: users first, then items, every neighbour's vector added up by hand."""
    n_users, weights = len(rows), {name: p.detach().double().numpy() for name, p in network.named_parameters()}
    h = [*weights["users"], *(x.astype(np.float64) @ weights["project.weight"].T)]
    near = [[n_users + i for i in sorted(set(row))] for row in rows]
    near += [[u for u in range(n_users) if i in rows[u]] for i in range(len(x))]
    for layer in ("first", "second"):
        root, bias, mean = (weights[f"{layer}.{name}"] for name in ("root.weight", "root.bias", "mean.weight"))
        made = []
        for node, own in enumerate(h):
            total = np.zeros(len(own))
            for other in near[node]:
                total += h[other] / len(near[node])
            made.append(root @ own + mean @ total + bias)
        h = [np.where(v > 0, v, 0.01 * v) for v in made] if layer == "first" else made
    return np.array(h[:n_users]), np.array(h[n_users:])


@given(LISTS, st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_forward_equals_a_walk_over_nodes(rows, seed):
    x = np.random.default_rng(seed).normal(size=(8, 5)).astype(np.float32)  # item 7 is in no history
    torch.manual_seed(seed)
    network = GraphNetwork(5, len(rows), SMALL)
    graph = Graph.of(Histories.from_lists(rows), 8)
    users, items = network(torch.from_numpy(x), *graph.means("cpu"))
    for found, expected in zip((users, items), dense_forward(network, x, rows), strict=True):
        np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5)


@given(LISTS, st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_gradients_equal_those_of_dense_matrices(rows, seed):
    means = Graph.of(Histories.from_lists(rows), 7).means("cpu")
    weight = torch.from_numpy(np.random.default_rng(seed).normal(size=(len(rows), 2)).astype(np.float32))
    found, expected = (torch.arange(14.0).reshape(7, 2).requires_grad_() for _ in range(2))
    (torch.sin(means[0](found)) * weight).sum().backward()
    (torch.sin(means[0].matrix.to_dense() @ expected) * weight).sum().backward()
    np.testing.assert_allclose(found.grad.numpy(), expected.grad.numpy(), atol=1e-5)
    for each, has in zip(means, (lambda u, i: i in rows[u], lambda i, u: i in rows[u]), strict=True):
        dense = each.matrix.to_dense().numpy()
        table = np.array([[float(has(a, b)) for b in range(dense.shape[1])] for a in range(dense.shape[0])])
        np.testing.assert_allclose(dense, table / np.maximum(table.sum(axis=1, keepdims=True), 1), atol=1e-6)
        np.testing.assert_array_equal(each.transposed.to_dense().numpy(), dense.T)


def test_loss_equals_a_loop():
    u, i, j = (torch.randn(*shape, generator=torch.Generator().manual_seed(0)) for shape in ((4, 3), (4, 3), (4, 5, 3)))
    terms = [-np.log(1 / (1 + np.exp(-float(u[b] @ i[b] - u[b] @ j[b, s])))) for b in range(4) for s in range(5)]
    assert float(bpr_loss(u, i, j)) == pytest.approx(np.mean(terms), rel=1e-5)


def test_negatives_are_even_over_what_a_user_lacks():
    rows = [[0, 1, 2, 3, 4], [5], [0, 1, 2, 3, 4, 5]]
    graph = Graph.of(Histories.from_lists(rows), 6)
    assert set(graph.users_E[graph.told_apart]) == {0, 1}  # the third user lacks nothing
    found = graph.negatives(np.repeat(graph.told_apart, 500), 5, np.random.default_rng(0))
    users = graph.users_E[np.repeat(graph.told_apart, 500)]
    assert set(found[users == 0].ravel()) == {5}
    counts = np.bincount(found[users == 1].ravel(), minlength=6)
    assert counts[5] == 0 and np.abs(counts[:5] - 500).max() < 5 * np.sqrt(500)


def planted(n=120, seed=0):
    """Content whose loud half is noise; users keep to one of eight kinds of items."""
    draw = np.random.default_rng(seed)
    kind = np.arange(n) % 8
    x = np.concatenate([draw.normal(size=(8, 6))[kind], 2 * draw.normal(size=(n, 10))], axis=1)
    rows = [draw.choice(np.flatnonzero(kind == k), 5, replace=False) for k in draw.integers(8, size=200)]
    held = np.array([row[-2:] for row in rows])
    return ItemEmbeddings(x.astype(np.float32), "c", {"kind": "x"}), Histories.from_lists([r[:-1] for r in rows]), held


def recall(vectors, pairs, top=14):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near = unit @ unit.T
    np.fill_diagonal(near, -2)
    return float(((near[pairs[:, 0]] > near[pairs[:, 0], pairs[:, 1]][:, None]).sum(axis=1) < top).mean())


def test_it_learns_what_goes_together():
    vectors, train, held = planted()
    made = graph_vectors(vectors, train, QUICK)
    assert made.vectors.shape == (120, 12) and made.vectors.dtype == np.float32 and made.catalog == "c"
    assert made.recipe["kind"] == "x" and made.recipe["graph"]["epochs"] == 30
    assert recall(vectors.vectors, held) < 0.4
    assert recall(made.vectors, held) > 0.8


def test_the_loss_falls_and_dropout_is_only_in_training():
    vectors, train, _ = planted()
    torch.manual_seed(0)
    network, graph = GraphNetwork(16, len(train), QUICK), Graph.of(train, 120)
    x = torch.from_numpy(vectors.vectors)
    log = _train(network, graph, x, replace(QUICK, epochs=10))
    assert log[0] == pytest.approx(np.log(2), abs=0.25) and log[-1] < 0.75 * log[0]
    means = graph.means("cpu")
    assert torch.equal(network(x, *means)[1], network(x, *means)[1])
    noise = torch.Generator().manual_seed(0)
    assert not torch.equal(network(x, *means, noise)[1], network(x, *means, noise)[1])


def test_deterministic_and_items_without_events_change_nothing():
    vectors, train, _ = planted()
    few = replace(QUICK, epochs=2)
    state = torch.random.get_rng_state()
    first = graph_vectors(vectors, train, few).vectors
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(graph_vectors(vectors, train, few).vectors, first)
    assert (graph_vectors(vectors, train, replace(few, seed=1)).vectors != first).any()
    later = np.concatenate([vectors.vectors, vectors.vectors[7:8], np.zeros((1, 16))]).astype(np.float32)
    more = graph_vectors(ItemEmbeddings(later, "c"), train, few).vectors
    np.testing.assert_allclose(more[:120], first, atol=1e-5)
    assert more[120].any() and not more[121].any()  # by its content alone; nothing is known
    seen = vectors.vectors.copy()
    seen[int(train.items[0])] = 0  # no content, but events
    assert graph_vectors(ItemEmbeddings(seen, "c"), train, few).vectors[int(train.items[0])].any()


def test_nothing_to_tell_apart(caplog):
    vectors = ItemEmbeddings(np.eye(3, dtype=np.float32), "c")
    assert graph_vectors(vectors, Histories.from_lists([[1, 1], []]), SMALL) is vectors
    assert "fewer than two items have events" in caplog.text
    everything = graph_vectors(vectors, Histories.from_lists([[0, 1, 2]]), SMALL)  # no user lacks an item
    assert np.isfinite(everything.vectors).all()


WRONG = [{"dim": 0}, {"n_negatives": 0}, {"learning_rate": 0}, {"dropout": (0.5, 1.0)}, {"device": "tpu"}]


@pytest.mark.parametrize("wrong", [*WRONG, {"dropout": (0.5,)}, {"weight_decay": -1}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        GraphSettings(**wrong)


def test_dropout_keeps_the_mean():
    network = GraphNetwork(5, 2, replace(SMALL, dropout=(0.75, 0.2)))
    for layer, share in enumerate((0.75, 0.2)):
        made = network._dropped(torch.ones(100, 400), layer, torch.Generator().manual_seed(0))
        assert float((made == 0).float().mean()) == pytest.approx(share, abs=0.02)
        assert float(made.mean()) == pytest.approx(1, abs=0.05)
