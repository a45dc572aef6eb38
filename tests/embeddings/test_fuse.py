import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import RidgeCV

from genrec.embeddings import fuse as fusing
from genrec.embeddings.base import ItemEmbeddings
from genrec.embeddings.fuse import fuse
from genrec.errors import ConfigError, DataError, FingerprintMismatch


def block(seed: int, n: int = 20, dim: int = 6, catalog: str = "x") -> ItemEmbeddings:
    draw = np.random.default_rng(seed)
    vectors = draw.normal(3.0, draw.uniform(0.1, 30), size=(n, dim)) * draw.uniform(0.2, 5, size=dim)
    vectors[draw.random(n) < 0.2] = 0.0
    return ItemEmbeddings(vectors, catalog, {"kind": f"block {seed}"})


@given(st.integers(0, 1000), st.sampled_from([None, 2, 6]), st.sampled_from([0.25, 1.0, 3.0]))
@settings(max_examples=30, deadline=None)
def test_each_block_is_centred_scaled_and_kept_apart(seed, dim, weight):
    a, b = block(seed), block(seed + 1, dim=4)
    made = fuse([a, b], [dim, None], [weight, 1.0])
    width = dim or 6
    assert made.dim == width + 4
    for part, source, share in ((made.vectors[:, :width], a, weight), (made.vectors[:, width:], b, 1.0)):
        assert not part[~source.known].any()
        rows = part[source.known].astype(np.float64)
        np.testing.assert_allclose(rows.mean(axis=0), 0.0, atol=1e-5)
        np.testing.assert_allclose((rows**2).sum(axis=1).mean(), share, rtol=1e-5)


def test_all_directions_keep_distances_up_to_scale():
    a = block(3)
    rows = a.vectors[a.known].astype(np.float64)
    made = fuse([a], [6]).vectors[a.known].astype(np.float64)
    before, after = np.linalg.norm(rows - rows[0], axis=1)[1:], np.linalg.norm(made - made[0], axis=1)[1:]
    np.testing.assert_allclose(after / before, (after / before)[0], rtol=1e-4)


def test_fewer_directions_are_those_of_most_variance():
    a = block(4)
    rows = a.vectors[a.known].astype(np.float64)
    rows -= rows.mean(axis=0)
    values = np.linalg.svd(rows, compute_uv=False)
    made = fuse([a], [2]).vectors[a.known].astype(np.float64)
    share = (made**2).sum(axis=0)
    np.testing.assert_allclose(share[0] / share[1], (values[0] / values[1]) ** 2, rtol=1e-4)


def test_a_block_with_fewer_directions_keeps_all_it_has(caplog):
    made = fuse([block(3), block(4)], [128, 2])
    np.testing.assert_array_equal(made.vectors, fuse([block(3), block(4)], [6, 2]).vectors)
    assert "block 0: dim 128, but the vectors have 6 directions" in caplog.text and "block 1" not in caplog.text


def test_recipe_says_what_was_put_together():
    made = fuse([block(0), block(1)], [3, None], [1, 2])
    assert made.recipe["blocks"] == [{"kind": "block 0"}, {"kind": "block 1"}]
    assert made.recipe["dims"] == [3, None] and made.recipe["weights"] == [1, 2]


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="at least one"):
        fuse([])
    with pytest.raises(ConfigError, match="one dim and one weight"):
        fuse([block(0)], [1, 2])
    with pytest.raises(ConfigError, match=r"dims\[0\]"):
        fuse([block(0)], [0])
    with pytest.raises(ConfigError, match=r"weights\[0\]"):
        fuse([block(0)], None, [0.0])
    with pytest.raises(FingerprintMismatch, match="block 1"):
        fuse([block(0), block(1, catalog="y")])
    with pytest.raises(DataError, match="block 0: all known vectors are equal"):
        fuse([ItemEmbeddings(np.full((4, 3), 0.1), "x")])
    with pytest.raises(DataError, match="block 0"):
        fuse([ItemEmbeddings(np.zeros((4, 3)), "x")])


def test_unknown_rows_are_predicted_from_the_other_blocks():
    """A linear world: the second block is a function of the first, so its hidden rows can be told exactly."""
    draw = np.random.default_rng(0)
    first = draw.normal(size=(60, 5))
    second = np.tanh(0.01 * first) @ draw.normal(size=(5, 4)) * 100
    hidden = second.copy()
    hidden[::7] = 0.0
    a, b = ItemEmbeddings(first, "x"), ItemEmbeddings(hidden, "x")
    left, filled = fuse([a, b]).vectors, fuse([a, b], predict_unknown=True).vectors
    rows = np.arange(60) % 7 == 0
    np.testing.assert_array_equal(left[~rows], filled[~rows])
    np.testing.assert_array_equal(left[:, :5], filled[:, :5])
    assert not left[rows, 5:].any()
    want = second[rows] - second[~rows].mean(axis=0)
    cosine = (filled[rows, 5:] * want).sum(1) / np.linalg.norm(filled[rows, 5:], axis=1) / np.linalg.norm(want, axis=1)
    assert cosine.min() > 0.999
    np.testing.assert_allclose((filled[rows, 5:] ** 2).sum(axis=1), 1.0, rtol=1e-3)  # R2 near 1


@pytest.mark.parametrize("noise", [0.0, 1.0, 3.0])
def test_predictions_are_as_long_as_they_are_good(noise):
    """The share of the variance that the first block tells, 1 / (1 + noise ** 2), is the mean squared norm."""
    draw = np.random.default_rng(1)
    first = draw.normal(size=(3000, 4))
    second = first @ np.linalg.qr(draw.normal(size=(4, 4)))[0] + noise * draw.normal(size=(3000, 4))
    second[::5] = 0.0
    filled = fuse([ItemEmbeddings(first, "x"), ItemEmbeddings(second, "x")], weights=[1, 2], predict_unknown=True)
    np.testing.assert_allclose((filled.vectors[::5, 4:] ** 2).sum(axis=1), 2 / (1 + noise**2), rtol=0.1)


def test_what_the_other_blocks_do_not_tell_stays_in_the_centre():
    draw = np.random.default_rng(2)
    first, second = draw.normal(size=(2000, 8)), draw.normal(size=(2000, 6))
    second[::7] = 0.0
    filled = fuse([ItemEmbeddings(first, "x"), ItemEmbeddings(second, "x")], predict_unknown=True).vectors
    assert np.abs(filled[::7, 8:]).max() < 0.03


def test_a_large_catalog_is_learned_from_a_sample_and_predicted_in_pieces(monkeypatch):
    a, b = block(5, n=300), block(6, n=300, dim=4)
    monkeypatch.setattr(fusing, "_CHUNK", 7)
    whole = fuse([a, b], predict_unknown=True).vectors
    monkeypatch.undo()
    np.testing.assert_allclose(whole, fuse([a, b], predict_unknown=True).vectors, rtol=1e-6)

    sizes = []

    def watch(self, inputs, targets):
        sizes.append(len(inputs))
        return fit(self, inputs, targets)

    fit = RidgeCV.fit
    monkeypatch.setattr(RidgeCV, "fit", watch)
    monkeypatch.setattr(fusing, "_TAUGHT", 50)
    first, second = (fuse([a, b], predict_unknown=True).vectors for _ in range(2))
    assert set(sizes) == {50}
    np.testing.assert_array_equal(first, second)


def test_nothing_is_predicted_where_nothing_is_known():
    a, b = block(1), block(2)
    made = fuse([a, b], predict_unknown=True)
    neither = ~a.known & ~b.known
    assert neither.any() and not made.vectors[neither].any()
    assert made.vectors[~neither].any(axis=1).all()
    alone = fuse([a], predict_unknown=True)
    np.testing.assert_array_equal(alone.vectors, fuse([a]).vectors)


@given(st.integers(0, 1000), st.sampled_from([None, 3]), st.sampled_from([0.5, 2.0]))
@settings(max_examples=20, deadline=None)
def test_whitened_distances_are_those_of_the_dense_formula(seed, dim, weight):
    """Mahalanobis distances by the inverse covariance (all directions), or by the leading singular vectors."""
    a, b = block(seed), block(seed + 1, dim=4)
    made = fuse([a, b], [dim, None], [weight, 1.0], whiten=[True, False]).vectors.astype(np.float64)
    width = dim or 6
    np.testing.assert_array_equal(made[:, width:].astype(np.float32), fuse([b]).vectors)
    assert not made[~a.known, :width].any()
    rows = a.vectors[a.known].astype(np.float64)
    rows -= rows.mean(axis=0)
    if dim is None:
        gram = rows @ np.linalg.inv(rows.T @ rows / len(rows)) @ rows.T / 6 * weight
    else:
        left = np.linalg.svd(rows, full_matrices=False)[0][:, :dim]
        gram = left @ left.T * len(rows) / dim * weight
    part = made[a.known, :width]
    np.testing.assert_allclose(part @ part.T, gram, atol=1e-4 * np.abs(gram).max())


def test_whitening_leaves_directions_without_variance_at_zero():
    rows = np.random.default_rng(0).normal(size=(50, 3))
    flat = ItemEmbeddings(np.concatenate([rows, rows @ np.ones((3, 2))], axis=1), "x")  # rank 3 of 5
    made = fuse([flat], whiten=[True]).vectors
    np.testing.assert_allclose((made.astype(np.float64) ** 2).mean(axis=0), [1 / 3, 1 / 3, 1 / 3, 0, 0], atol=1e-6)


def test_whitening_of_later_items_is_learned_from_the_first():
    first = block(8, n=25)
    later = ItemEmbeddings(np.concatenate([first.vectors, first.vectors[::-1], 2 * first.vectors]), "x")
    alone = fuse([first], [4], whiten=[True]).vectors
    together = fuse([later], [4], whiten=[True], n_fit=25).vectors
    np.testing.assert_array_equal(together[:25], alone)
    np.testing.assert_allclose(together[25:50], alone[::-1], atol=1e-5)


def test_only_whitened_vectors_say_so():
    assert "whiten" not in fuse([block(0)]).recipe
    assert fuse([block(0)], whiten=[True]).recipe["whiten"] == [True]
    with pytest.raises(ConfigError, match="2 of whiten"):
        fuse([block(0)], whiten=[True, False])
