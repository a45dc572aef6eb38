import numpy as np
import pytest

from genrec.data.catalog import ItemCatalog
from genrec.embeddings.base import ItemEmbeddings
from genrec.embeddings.keywords import with_keywords
from genrec.errors import ConfigError, DataError

WORDS = {"red": [4.0, 0.0], "shoe": [0.0, 2.0], "of": [0.0, 0.0]}


def encode(words):
    assert list(words) == sorted(set(words))
    return np.array([WORDS[word] for word in words], np.float32)


def made(vectors, keywords):
    catalog = ItemCatalog(
        tuple(f"i{n}" for n in range(len(vectors))), {"title": [""] * len(vectors), "keywords": keywords}
    )
    return with_keywords(ItemEmbeddings(np.array(vectors), catalog.fingerprint), catalog, "keywords", encode)


def test_a_vector_moves_halfway_to_the_mean_of_its_keywords():
    own = [[1.0, 1.0]] * 3
    found = made(own, [["red", "shoe"], ["shoe"], [" red", "red ", ""]])
    expected = [[(1 + 4 / 2) / 2, (1 + 2 / 2) / 2], [(1 + 0) / 2, (1 + 2) / 2], [(1 + 4) / 2, (1 + 0) / 2]]
    np.testing.assert_allclose(found.vectors, expected)
    assert found.recipe["keywords"] == "keywords"


def test_a_side_of_which_nothing_is_known_is_left_out():
    found = made([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0]], [[], ["of"], ["red", "of"], None, None])
    np.testing.assert_allclose(found.vectors, [[1, 1], [1, 1], [4, 0], [0, 0], [1, 1]])


def test_the_angle_is_that_of_the_two_halves():
    """Between an item and its enhanced vector lies the angle that the half sum has, never more than to the keyword."""
    draw = np.random.default_rng(0)
    own = draw.normal(size=(20, 2))
    found = made(own.tolist(), [["red"]] * 20).vectors

    def angle(a, b):
        return np.arccos(np.clip((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1), -1, 1))

    red = np.tile([4.0, 0.0], (20, 1))
    assert (angle(own, found) <= angle(own, red) + 1e-6).all()
    np.testing.assert_allclose(angle(own, found) + angle(found, red), angle(own, red), atol=1e-3)


def test_no_keywords_at_all_change_nothing():
    found = made([[1.0, 2.0]], [None])
    np.testing.assert_array_equal(found.vectors, [[1, 2]])


def test_a_wrong_column_is_refused():
    catalog = ItemCatalog(("a",), {"title": ["x"], "price": [3.0]})
    vectors = ItemEmbeddings(np.ones((1, 2)), catalog.fingerprint)
    with pytest.raises(ConfigError, match="title, price, got 'tags'"):
        with_keywords(vectors, catalog, "tags", encode)
    with pytest.raises(DataError, match=r"price: expected a list of keywords per item, got 3\.0 for item 'a'"):
        with_keywords(vectors, catalog, "price", encode)
