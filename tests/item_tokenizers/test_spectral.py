from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.cluster import SpectralClustering

from genrec.data.histories import Histories
from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.quantizers.spectral_split import (
    cluster_qr,
    cooccurrence,
    spectral_parts,
    spectral_tree,
    spectrum,
)
from genrec.item_tokenizers.spectral import Spectral, SpectralSettings
from genrec.seeding import id_hash
from genrec.testing.tokenizer_contract import CATALOG, TokenizerContract, planted_source

SMALL = SpectralSettings(n_clusters=3, max_leaf=8)


def planted_histories(n_items=90, n_groups=6, n_users=150, noise=0.1, unseen=5, seed=0):
    """Users who stay in one group of items (item n is of group n % n_groups); the last items are never used."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(n_users):
        group, length = generator.integers(n_groups), generator.integers(1, 9)
        inside = generator.integers(n_items // n_groups, size=length) * n_groups + group
        rows.append(np.where(generator.random(length) < noise, generator.integers(n_items, size=length), inside))
    return Histories.from_lists([row[row < n_items - unseen].astype(np.int32) for row in rows])


def source_of(n_items=90, **options):
    return replace(planted_source(n_items), train=planted_histories(n_items, **options))


class Contract(TokenizerContract):
    needs_vectors = False
    settings = SMALL

    def make(self):
        return Spectral(self.settings)

    def source(self):
        return source_of()


class TestShared(Contract):
    pass


class TestNode(Contract):
    settings = replace(SMALL, tokens="node", window=2)


class TestUnique(Contract):
    settings = replace(SMALL, unique_leaf=True, cold="nearest")


del Contract


def blocks(sizes, inside, between, seed=0):
    generator = np.random.default_rng(seed)
    label = np.repeat(np.arange(len(sizes)), sizes)
    chance = np.where(label[:, None] == label, inside, between)
    upper = np.triu(generator.random(chance.shape) < chance, 1) * generator.integers(1, 4, size=chance.shape)
    return sparse.csr_array((upper + upper.T).astype(float)), label


def alike(a, b):
    """Equal up to the names of the groups."""
    return len(set(zip(a.tolist(), b.tolist(), strict=True))) == len(set(a.tolist())) == len(set(b.tolist()))


@given(
    st.lists(st.lists(st.integers(0, 6), max_size=9), max_size=6),
    st.sampled_from([None, 1, 2, 5]),
    st.sampled_from([None, 2, 4]),
)
@settings(max_examples=60, deadline=None)
def test_cooccurrence_counts_pairs_of_places(rows, window, longest):
    counts = Counter()
    for row in rows:
        kept = row if longest is None else row[-longest:]
        for (p, a), (q, b) in combinations(enumerate(kept), 2):
            if a != b and (window is None or q - p <= window):
                counts[a, b] += 1
                counts[b, a] += 1
    graph = cooccurrence(Histories.from_lists(rows), 7, window=window, max_history=longest)
    assert graph.toarray().tolist() == [[counts[a, b] for b in range(7)] for a in range(7)]
    assert (graph.data > 0).all()


@pytest.mark.parametrize("n", [60, 400])  # dense, sparse
def test_clusters_are_those_of_scikit_learn(n):
    for seed in range(3):
        graph, _ = blocks([n // 2, n // 4, n // 8, n - n // 2 - n // 4 - n // 8], 0.5, 0.03, seed)
        other = SpectralClustering(4, affinity="precomputed", assign_labels="cluster_qr", random_state=0)
        assert alike(spectral_parts(graph, 4, max_leaf=1, seed=seed), other.fit_predict(graph.toarray()))


def test_components_share_the_clusters_as_in_one_clustering_of_all():
    parts = [blocks([40, 40], 0.5, 0.02, 1)[0], blocks([30, 30, 30], 0.5, 0.02, 2)[0], blocks([50], 0.5, 0, 3)[0]]
    graph = sparse.csr_array(sparse.block_diag(parts))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the graph is not connected
        other = SpectralClustering(6, affinity="precomputed", assign_labels="cluster_qr", random_state=0)
        expected = other.fit_predict(graph.toarray())
    assert alike(expected, np.repeat(np.arange(6), [40, 40, 30, 30, 30, 50]))
    assert alike(spectral_parts(graph, 6, max_leaf=20, seed=0), expected)


@pytest.mark.parametrize("between", [0.0, 0.02])
@pytest.mark.parametrize("max_leaf", [5, 60, 130])
def test_planted_blocks_are_found_exactly(between, max_leaf):
    graph, label = blocks([120, 70, 60, 50], 0.4, between)
    found = spectral_parts(graph, 4, max_leaf=max_leaf, seed=0)
    assert found.tolist() == label.tolist()  # and numbered by falling size


def test_lanczos_and_blocks_find_the_eigenvalues():
    graph, _ = blocks([150, 100, 80], 0.3, 0.02)
    scale = np.asarray(graph.sum(axis=1)).ravel() ** -0.5
    exact = np.linalg.eigvalsh(graph.toarray() * scale * scale[:, None])[::-1][:5]
    for restarts, tolerance in ((300, 1e-8), (1, 1e-4)):  # one restart is not enough, so LOBPCG takes over
        values, vectors = spectrum(graph, 5, 0, max_restarts=restarts)
        assert values == pytest.approx(exact, abs=tolerance)
        given_back = (graph @ vectors) * scale[:, None] ** 2
        np.testing.assert_allclose(given_back, vectors * values, atol=3e-3 * np.abs(vectors).max())


def test_cluster_qr_does_not_depend_on_the_basis():
    graph, label = blocks([50, 40, 30], 0.5, 0.05)
    vectors = spectrum(graph, 3, 0)[1]
    turned = vectors @ np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    assert alike(cluster_qr(vectors), label)
    assert cluster_qr(turned).tolist() == cluster_qr(vectors).tolist()


def test_isolated_nodes_and_small_components_stand_aside():
    large, _ = blocks([40, 30], 0.6, 0.05)
    pair = np.array([[0, 1.0], [1, 0]])
    graph = sparse.csr_array(sparse.block_diag([sparse.csr_array((3, 3)), large, pair]))
    found = spectral_parts(graph, 2, max_leaf=10, seed=0)
    assert found[:3].tolist() == found[-2:].tolist()[:1] * 3 == [2, 2, 2]
    assert found[3:-2].tolist() == [0] * 40 + [1] * 30
    many = sparse.csr_array(sparse.block_diag([large, large, large, pair]))
    found = spectral_parts(many, 2, max_leaf=10, seed=0)  # more large components than clusters
    assert [len(set(found[at : at + 70].tolist())) for at in (0, 70, 140)] == [1, 1, 1]
    assert sorted(np.bincount(found)) == [72, 140]
    assert np.bincount(spectral_parts(sparse.csr_array((11, 11)), 3, max_leaf=1, seed=0)).tolist() == [4, 4, 3]
    few = sparse.csr_array(sparse.block_diag([blocks([15, 15], 0.8, 0.1)[0], sparse.csr_array((2, 2))]))
    found = spectral_parts(few, 20, max_leaf=21, seed=0)
    assert found[-2] == found[-1] and found[-1] not in found[:-2]
    assert spectral_parts(sparse.csr_array(pair), 2, max_leaf=1, seed=0).tolist() == [0, 1]


def test_whole_components_are_dealt_out_evenly():
    sizes = [5, 4, 3, 2]
    graph = sparse.csr_array(sparse.block_diag([sparse.csr_array(np.ones((k, k)) - np.eye(k)) for k in sizes]))
    assert spectral_parts(graph, 2, max_leaf=5, seed=0).tolist() == [0] * 5 + [1] * 7 + [0] * 2


@pytest.mark.parametrize("shape", ["complete", "star", "path", "empty", "two hubs"])
def test_graphs_without_clusters_are_split_to_the_end(shape):
    n = 230
    full = np.zeros((n, n))
    if shape == "complete":
        full[:] = 1
    elif shape == "path":
        full[np.arange(n - 1), np.arange(1, n)] = 1
    elif shape != "empty":
        full[: 1 if shape == "star" else 2] = 1
    graph = sparse.csr_array(np.triu(full, 1) + np.triu(full, 1).T)
    parts = [spectral_parts(graph, 4, max_leaf=6, seed=0).tolist() for _ in range(3)]
    assert parts[0] == parts[1] == parts[2]  # even where Lanczos meets an invariant subspace
    for depth in (100, 1):
        tree = spectral_tree(graph, 4, max_leaf=6, seed=0, max_depth=depth)
        sizes = np.bincount(tree.leaf_I, minlength=len(tree.parent_M))
        assert 0 < sizes.max() <= 6
        assert (tree.parent_M < np.arange(len(tree.parent_M))).all()
        assert Counter(tree.parent_M.tolist()).most_common(1)[0][1] <= 5
        assert not np.isin(tree.leaf_I, tree.parent_M).any()  # items are in leaves only
    assert tree.paths().shape[1] <= 1 + np.ceil(np.log(n / 6) / np.log(4)) + 1


def test_paths_lead_from_the_top_to_the_leaf():
    tree = spectral_tree(blocks([60, 40, 30], 0.4, 0.05)[0], 3, max_leaf=9, seed=0)
    for item, row in enumerate(tree.paths().tolist()):
        path, node = [], int(tree.leaf_I[item])
        while node >= 0:
            path.insert(0, node)
            node = int(tree.parent_M[node])
        assert [step for step in row if step >= 0] == path


@pytest.mark.parametrize("tokens", ["shared", "node"])
@pytest.mark.parametrize("unique", [False, True])
def test_codes_tell_siblings_and_items_apart(tokens, unique):
    source = source_of(300, n_users=900)
    tokenizer = Spectral(replace(SMALL, tokens=tokens, unique_leaf=unique))
    codes = tokenizer.fit(source, seed=0)
    plain = Spectral(SMALL)
    plain.fit(source, seed=0)
    assert tokenizer.report["n_nodes"] == plain.report["n_nodes"]
    assert codes.shared_vocabulary and codes.ragged and codes.collisions() == []
    rows = [[c for c in row if c >= 0] for row in codes.as_int().tolist()]
    below = {}
    for row in rows:
        for at, code in enumerate(row):
            below.setdefault(tuple(row[:at]), set()).add(code)
    paths = {tuple(row[:-1]) for row in rows}
    assert all(len(below[path]) <= SMALL.max_leaf for path in paths)  # leaves
    assert all(len(below[path]) <= SMALL.n_clusters + 1 for path in below if path not in paths)
    inner, last = {c for row in rows for c in row[:-1]}, [row[-1] for row in rows]
    assert (len(below) - 1 == len(inner)) == (tokens == "node")  # every node once
    assert (len(set(last)) == len(rows)) == unique
    assert inner.isdisjoint(last) == (unique or tokens == "node")
    n_codes = SMALL.max_leaf if tokens == "shared" else tokenizer.report["n_nodes"]
    extra = len(rows) if unique else 0 if tokens == "shared" else max(map(len, map(below.get, paths)))
    assert codes.level_sizes[0] == n_codes + extra


def test_shared_last_codes_are_used_evenly():
    """One running number over all groups, so that small groups do not all take the first codes."""
    codes = Spectral(SMALL).fit(source_of(), seed=0)
    last = codes.codes[np.arange(len(codes)), codes.lengths - 1]
    used = np.bincount(last, minlength=8)
    assert used.sum() == 90 and used.max() - used.min() <= 1


def test_planted_groups_share_their_first_code():
    codes = Spectral(SpectralSettings(n_clusters=6, max_leaf=16)).fit(source_of(noise=0.02), seed=0)
    used = np.arange(90) < 85
    assert alike(codes.codes[used, 0], np.arange(90)[used] % 6)
    assert set(codes.codes[~used, 0].tolist()).isdisjoint(codes.codes[used, 0].tolist())  # own branch


def test_items_out_of_use_go_to_the_most_similar_item():
    source = source_of(noise=0.02)
    vectors = np.random.default_rng(0).normal(size=(90, 8)).astype(np.float32)
    vectors[85:] = 3 * vectors[:5]  # copies, but for the length
    source = replace(source, embeddings=ItemEmbeddings(vectors, CATALOG, {}))
    settings = SpectralSettings(n_clusters=6, max_leaf=20, cold="nearest")
    codes = Spectral(settings).fit(source, seed=0).codes
    assert codes[85:, 0].tolist() == codes[:5, 0].tolist()
    with pytest.raises(DataError, match="item vectors"):
        Spectral(settings).fit(replace(source, embeddings=None), seed=0)
    with pytest.raises(DataError, match="room"):  # 6 items, of which 2 are used: one group of 3
        few = replace(planted_source(6), train=Histories.from_lists([[0, 1]]))
        Spectral(SpectralSettings(n_clusters=2, max_leaf=3, cold="nearest")).fit(few, seed=0)
    with pytest.raises(DataError, match="no two items"):
        Spectral(settings).fit(replace(source, train=Histories.from_lists([[3], [4]])), seed=0)


@pytest.mark.parametrize("cold", ["branch", "nearest"])
def test_the_order_of_the_catalog_does_not_matter(cold):
    source = source_of(unseen=20)
    order = np.random.default_rng(0).permutation(90)
    number = np.argsort(order).astype(np.int32)
    turned = TokenizerSource(
        CATALOG,
        source.item_keys[order],
        ItemEmbeddings(source.embeddings.vectors[order], CATALOG, {}),
        Histories(source.train.offsets, number[source.train.items]),
    )
    for tokens in ("shared", "node"):
        settings = replace(SMALL, cold=cold, tokens=tokens)
        plain, other = (Spectral(settings).fit(s, seed=0).as_int() for s in (source, turned))
        assert other.tolist() == plain[order].tolist()


def test_small_catalogs():
    one = TokenizerSource(CATALOG, id_hash(["a"], 0), train=Histories.from_lists([[0, 0]]))
    assert Spectral().fit(one, seed=0).as_int().tolist() == [[0]]
    some = TokenizerSource(CATALOG, id_hash(list("abcde"), 0), train=Histories.from_lists([[], [1, 2]]))
    assert sorted(Spectral().fit(some, seed=0).codes.ravel().tolist()) == [0, 1, 2, 3, 4]
    assert Spectral(SpectralSettings(n_clusters=2, max_leaf=3)).fit(some, seed=0).collisions() == []


@pytest.mark.parametrize(
    "wrong",
    [{"n_clusters": 1}, {"max_leaf": 20}, {"tokens": "own"}, {"cold": "drop"}, {"window": 0}, {"max_history": 1}],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SpectralSettings(**wrong)


def test_new_items_are_refused():
    with pytest.raises(ConfigError, match="cannot encode"):
        Spectral().encode(source_of())
