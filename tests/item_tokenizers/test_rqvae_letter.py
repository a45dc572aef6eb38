# Axes: N items, B batch, L levels, K codes, D width
from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.quantizers.residual import ResidualQuantizer
from genrec.item_tokenizers.rqvae import RqVae
from genrec.item_tokenizers.rqvae_losses import (
    CodewordClusters,
    cluster_codewords,
    cluster_limits,
    collaborative_loss,
    diversity_loss,
)
from genrec.item_tokenizers.rqvae_settings import RqVaeSettings
from genrec.seeding import torch_rng
from genrec.testing.tokenizer_contract import CATALOG, TokenizerContract, planted_source

SMALL = RqVaeSettings(
    n_levels=2,
    level_size=12,
    dim=4,
    hidden=(16,),
    epochs=4,
    warmup_epochs=1,
    batch_size=32,
    learning_rate=3e-3,
    revive_every=0,
    device="cpu",
)
LETTER = replace(SMALL, collaborative=0.1, diversity=0.1, diversity_clusters=3, diversity_every=2)


def with_collaborative(source, dim=4, seed=5, unknown=()):
    vectors = np.random.default_rng(seed).normal(size=(source.n_items, dim)).astype(np.float32)
    vectors[list(unknown)] = 0
    return replace(source, collaborative=ItemEmbeddings(vectors, source.catalog, {}))


class TestLetter(TokenizerContract):
    def make(self):
        return RqVae(LETTER)

    def source(self):
        return with_collaborative(planted_source(), unknown=[3, 7])

    def test_one_item_and_all_alike(self):
        for rows in ([0], [0] * 5):
            assert len(self.make().fit(self.source().take(rows), seed=3)) == len(rows)


# --- collaborative ---


def test_collaborative_loss_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    q, h = (torch.randn(7, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = 0.0
    for i in range(7):
        scores = [float(q[i] @ h[j]) for j in range(7)]
        expected -= math.log(math.exp(scores[i]) / sum(map(math.exp, scores))) / 7
    assert collaborative_loss(q, h).item() == pytest.approx(expected, rel=1e-12)


def test_items_of_which_nothing_is_known_do_not_count():
    generator = torch.Generator().manual_seed(0)
    q, h = (torch.randn(7, 3, generator=generator) for _ in range(2))
    h[[2, 5]] = 0
    known = [0, 1, 3, 4, 6]
    torch.testing.assert_close(collaborative_loss(q, h), collaborative_loss(q[known], h[known]))
    q.requires_grad_(True)
    nothing = collaborative_loss(q, torch.zeros(7, 3))
    nothing.backward()
    assert nothing.item() == 0
    assert not q.grad.any()


def test_collaborative_loss_from_log_batch_to_nothing():
    h = torch.nn.functional.normalize(torch.randn(1024, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    assert collaborative_loss(1e-4 * h.flip(0), h).item() == pytest.approx(math.log(1024), abs=0.01)
    assert collaborative_loss(h * 100, h).item() < 1e-6


@pytest.mark.parametrize("gradient", ["straight-through", "rotation"])
def test_collaborative_gradient_reaches_the_encoder_alone(gradient):
    quantizer, z = small_quantizer(gradient)
    h = torch.randn(32, 4, generator=torch.Generator().manual_seed(3))
    collaborative_loss(quantizer(z).quantized_BD, h).backward()
    assert (z.grad.norm(dim=1) > 0).all()
    assert all(book.grad is None for book in quantizer.codebooks)


def small_quantizer(gradient="straight-through"):
    options = replace(SMALL, gradient=gradient).quantizer_options()
    quantizer = ResidualQuantizer(2, 12, 4, options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for book in quantizer.codebooks:
            book.copy_(torch.randn(12, 4, generator=generator))
    return quantizer, torch.randn(32, 4, generator=generator).requires_grad_(True)


def test_collaborative_vectors_must_be_there_and_fit():
    with pytest.raises(DataError, match="collaborative vectors, got none"):
        RqVae(LETTER).fit(planted_source(), seed=0)
    with pytest.raises(DataError, match=r"as wide as the bottleneck \(dim: 4\), got 6"):
        RqVae(LETTER).fit(with_collaborative(planted_source(), dim=6), seed=0)


def test_report_says_how_the_collaborative_loss_starts(caplog):
    source = with_collaborative(planted_source(), unknown=range(9))
    tokenizer = RqVae(LETTER)
    tokenizer.fit(source, seed=0)
    found = tokenizer.report["collaborative"]
    vectors = source.collaborative.vectors[9:]
    assert found["known_share"] == pytest.approx(81 / 90, rel=1e-5)
    assert found["mean_norm"] == pytest.approx(np.linalg.norm(vectors, axis=1).mean(), rel=1e-5)
    assert found["log_batch"] == pytest.approx(math.log(32), rel=1e-5)
    assert found["first_loss"] > 0
    assert "shorten the vectors" not in caplog.text
    long = replace(source, collaborative=ItemEmbeddings(source.collaborative.vectors * 100, CATALOG, {}))
    RqVae(LETTER).fit(long, seed=0)
    assert "shorten the vectors" in caplog.text


# --- diversity ---


def test_diversity_loss_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    book = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    codes, positives = torch.tensor([0, 4, 4, 1, 5]), torch.tensor([2, 3, 5, 0, -1])
    expected = 0.0
    for c, p in zip(codes.tolist()[:4], positives.tolist()[:4], strict=True):  # the last row has no positive
        others = sum(math.exp(float(book[c] @ book[j])) for j in range(6) if j != c)
        expected -= math.log(math.exp(float(book[c] @ book[p])) / others) / 4
    assert diversity_loss(book, codes, positives).item() == pytest.approx(expected, rel=1e-12)


def test_equal_codewords_have_log_of_the_others():
    loss = diversity_loss(torch.ones(256, 32), torch.arange(256), (torch.arange(256) + 1) % 256)
    assert loss.item() == pytest.approx(math.log(255), rel=1e-5)


def test_diversity_gradient_reaches_the_codebook_alone():
    quantizer, z = small_quantizer()
    codes = quantizer(z).codes_BL
    labels = np.arange(12) % 3
    clusters = CodewordClusters.of_labels(labels)
    loss = diversity_loss(quantizer.codebooks[0], codes[:, 0], clusters.draw(codes[:, 0], torch_rng(0, "draw")))
    loss.backward()
    assert z.grad is None
    assert (quantizer.codebooks[0].grad.norm(dim=1) > 0).all()
    assert quantizer.codebooks[1].grad is None


def test_a_step_draws_a_cluster_together_and_pushes_others_apart():
    book = torch.nn.functional.normalize(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    book.requires_grad_(True)
    labels = np.arange(12) % 3
    clusters, optimizer = CodewordClusters.of_labels(labels), torch.optim.SGD([book], lr=0.1)
    generator = torch_rng(0, "draw")
    same = torch.from_numpy(labels[:, None] == labels[None]).fill_diagonal_(False)
    other = torch.from_numpy(labels[:, None] != labels[None])
    before = book.detach() @ book.detach().T
    codes = torch.arange(12).repeat(20)
    for _ in range(50):
        optimizer.zero_grad()
        diversity_loss(book, codes, clusters.draw(codes, generator)).backward()
        optimizer.step()
    after = book.detach() @ book.detach().T
    assert after[same].mean() > before[same].mean() + 0.5
    assert after[other].mean() < before[other].mean() - 0.1


@settings(max_examples=40, deadline=None)
@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=40), seed=st.integers(0, 1000))
def test_a_positive_is_another_codeword_of_the_cluster(labels, seed):
    labels = np.array(labels)
    clusters = CodewordClusters.of_labels(labels)
    codes = torch.arange(len(labels)).repeat(3)
    drawn = clusters.draw(codes, torch_rng(seed, "draw"))
    for code, positive in zip(codes.tolist(), drawn.tolist(), strict=True):
        if (labels == labels[code]).sum() == 1:
            assert positive == -1
        else:
            assert positive != code
            assert labels[positive] == labels[code]


def test_all_positives_are_equally_likely():
    clusters = CodewordClusters.of_labels(np.array([1, 0, 1, 1, 0, 1]))
    found = Counter(clusters.draw(torch.full((6000,), 2), torch_rng(0, "draw")).tolist())
    assert set(found) == {0, 3, 5}
    assert all(abs(count - 2000) < 200 for count in found.values())


def test_codewords_are_clustered_within_the_published_limits():
    assert cluster_limits(256, 10) == (10, 60)
    assert cluster_limits(64, 10) == (3, 15)  # half of an even share at least, 60 / 256 of the codewords at most
    book = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    book[:150] *= 0.01  # a lump too big for one cluster, and words too far away to find nine others
    book[-3:] *= 100
    clusters = cluster_codewords(book, 10, seed=0)
    assert clusters.size_K.min() >= 10
    assert clusters.size_K.max() <= 60
    assert sorted(clusters.order_K.tolist()) == list(range(256))
    assert len(clusters.first_K.unique()) == 10
    assert torch.equal(cluster_codewords(book, 10, seed=0).order_K, clusters.order_K)


@given(n_codes=st.integers(4, 5000), n_clusters=st.integers(2, 2000))
def test_limits_can_always_be_met(n_codes, n_clusters):
    if 2 * n_clusters <= n_codes:
        low, high = cluster_limits(n_codes, n_clusters)
        assert low >= 2
        assert low * n_clusters <= n_codes <= high * n_clusters


# --- together ---


def test_without_weights_nothing_changes():
    plain, letter = RqVae(SMALL), RqVae(replace(LETTER, collaborative=0.0, diversity=0.0))
    one = plain.fit(planted_source(), seed=0)
    two = letter.fit(with_collaborative(planted_source()), seed=0)
    assert plain.history == letter.history
    assert one.fingerprint == two.fingerprint
    assert all(np.array_equal(a, b) for a, b in zip(one.codebooks, two.codebooks, strict=True))


def test_history_has_both_losses_and_the_loss_adds_them_up():
    for reduction in ("sum", "mean"):
        tokenizer = RqVae(replace(LETTER, reduction=reduction, commitment=0.5))
        tokenizer.fit(with_collaborative(planted_source()), seed=0)
        assert "diversity" not in tokenizer.history[0]  # warming up
        for row in tokenizer.history[1:]:
            # the codebook loss has the value of the commitment loss
            if reduction == "sum":
                expected = row["reconstruction"] + 1.5 * sum(row["commitment"]) + 0.1 * sum(row["diversity"])
            else:
                per_level = [c * 1.5 / 4 + 0.1 * d for c, d in zip(row["commitment"], row["diversity"], strict=True)]
                expected = row["reconstruction"] / 12 + sum(per_level) / 2
            assert row["loss"] == pytest.approx(expected + 0.1 * row["collaborative"], rel=1e-4)


def test_clusters_are_refreshed_every_few_epochs(monkeypatch):
    from genrec.item_tokenizers import rqvae_training

    calls = []

    def counted(book, n_clusters, *, seed):
        calls.append(seed)
        return cluster_codewords(book, n_clusters, seed=seed)

    monkeypatch.setattr(rqvae_training, "cluster_codewords", counted)
    source = with_collaborative(planted_source())
    for every, shared, expected in ((2, False, 2 * 3), (1, False, 2 * 5), (2, True, 3)):
        calls.clear()
        RqVae(replace(LETTER, epochs=6, diversity_every=every, shared_codebook=shared)).fit(source, seed=0)
        assert len(calls) == len(set(calls)) == expected


def test_more_clusters_than_pairs_of_codewords_are_refused():
    with pytest.raises(ConfigError, match="diversity_clusters: expected at most 6"):
        replace(LETTER, diversity_clusters=7)
    replace(SMALL, diversity_clusters=7)  # without the loss it does not matter


@pytest.fixture(scope="module")
def aligned():
    """Content groups items one way, behaviour another way; fitted with and without the collaborative loss."""
    generator = np.random.default_rng(0)
    n, content, taste = 600, generator.integers(8, size=600), generator.integers(12, size=600)
    x = 3 * generator.normal(size=(8, 24))[content] + 1.5 * generator.normal(size=(12, 24))[taste]
    x = x + generator.normal(size=(n, 24))
    h = 1.5 * generator.normal(size=(12, 8))[taste] + 0.3 * generator.normal(size=(n, 8))
    source = TokenizerSource(
        CATALOG,
        np.arange(n, dtype=np.uint64),
        ItemEmbeddings(x.astype(np.float32), CATALOG, {}),
        collaborative=ItemEmbeddings(h.astype(np.float32), CATALOG, {}),
    )
    base = replace(
        SMALL, level_size=16, n_levels=3, dim=8, hidden=(64,), epochs=40, batch_size=128, collisions="shared"
    )
    found = {}
    for weight in (0.0, 30.0):
        codes = RqVae(replace(base, collaborative=weight)).fit(source, seed=0).as_int()
        found[weight] = codes
    unit = h / np.linalg.norm(h, axis=1, keepdims=True)
    near = unit @ unit.T
    np.fill_diagonal(near, -2)
    return found, near.argmax(axis=1)


def overlap(codes, neighbour):
    equal = codes == codes[neighbour]
    return equal[:, 0].mean(), equal.mean()


def test_neighbours_in_behaviour_share_codes(aligned):
    found, neighbour = aligned
    with_loss, without = overlap(found[30.0], neighbour), overlap(found[0.0], neighbour)
    random = overlap(found[30.0], np.random.default_rng(1).permutation(len(neighbour)))
    for level_1_or_all in range(2):
        assert with_loss[level_1_or_all] > 2 * random[level_1_or_all]
        assert with_loss[level_1_or_all] > 1.5 * without[level_1_or_all]
