import logging

import numpy as np
import pytest

from genrec.data.catalog import ItemCatalog
from genrec.data.synthetic import make, tiny
from genrec.embeddings.text import (
    DEFAULT_TEXT,
    LsaSettings,
    SentenceSettings,
    item_text,
    lsa,
    sentence_embeddings,
)
from genrec.errors import ConfigError, DataError

SHOP = ItemCatalog(
    ("a", "b", "c", "d"),
    {
        "title": ["Salt &amp; <b>Pepper</b> Mill.", "Red Wok", "{braces}", ""],
        "brand": ["Acme", None, "A{0}", None],
        "categories": [["Kitchen", "Mills"], ["Kitchen"], [], None],
        "price": [1.5, None, 3.0, None],
    },
)


class CountingEmbedder:
    """A made-up model: the vector of a text is (length, number of a's)."""

    def __init__(self):
        self.seen = []

    def encode(self, texts, *, batch_size):
        assert len(texts) <= batch_size
        self.seen += texts
        return np.array([[len(t), t.count("a")] for t in texts], np.float32)


def expected(texts):
    return np.array([[len(t), t.count("a")] for t in texts], np.float32)


def test_default_text_leaves_out_what_is_missing(caplog):
    assert item_text(SHOP) == [
        "Salt & Pepper Mill. Brand: Acme. Category: Kitchen > Mills",
        "Red Wok. Category: Kitchen",
        "{braces}. Brand: A{0}",
        "",
    ]
    assert "1 of 4 items have no text" in caplog.text


def test_own_parts_and_fields():
    assert item_text(SHOP, ["{title} by {brand}", "{price}"])[:2] == ["Salt & Pepper Mill. by Acme. 1.5", ""]
    only_titles = ItemCatalog(("a",), {"title": ["Wok"]})
    assert item_text(only_titles) == ["Wok"]
    with pytest.raises(ConfigError, match=r"'colour'.*title"):
        item_text(only_titles, ["{colour}"])


def test_an_unknown_field_is_named_by_lsa_too():
    with pytest.raises(ConfigError, match=r"'\{nope\}' names the field 'nope'; the catalog has title"):
        lsa(SHOP, LsaSettings(text=("{title}", "{nope}")))


def test_columns_that_no_part_uses_are_named_where_default_parts_find_nothing(caplog):
    fields = {"title": ["Wok", "Pan"], "maker": ["Acme", "Bell"], "dept": ["x", "y"]}
    item_text(ItemCatalog(("a", "b"), fields))
    (said,) = caplog.messages
    assert "has no brand, categories, which the catalog lacks; its columns maker, dept are not used" in said
    assert 'text: ["{title}", "{maker}"]' in said
    caplog.clear()
    item_text(ItemCatalog(("a", "b"), fields), ["{title}", "{maker}"])  # chosen, so dept is left out on purpose
    item_text(ItemCatalog(("a", "b"), {"title": ["Wok", "Pan"]}))  # nothing else to use
    item_text(ItemCatalog(("a", "b"), {**fields, "brand": ["A", "B"], "categories": [["c"], ["d"]]}))
    assert not caplog.messages


@pytest.mark.parametrize("parts", [(), "title", ("title",), ("{title",), ("{}",), ("{title.upper}",), ("{0}",)])
def test_malformed_parts_are_refused(parts):
    with pytest.raises(ConfigError, match="text"):
        LsaSettings(text=parts)


def test_lsa_keeps_the_inner_products_of_tfidf():
    data = make(tiny())
    titles = [t.lower() for t in data.catalog.text("title")]
    made = lsa(data.catalog, LsaSettings(dim=60, text=("{title}",), ngram_max=1, min_items=1))
    import re

    words = [re.findall(r"\w\w+", t) for t in titles]
    vocabulary = sorted({w for row in words for w in row})
    weights = np.zeros((60, len(vocabulary)))
    for n, row in enumerate(words):
        for w in set(row):
            in_items = sum(w in other for other in words)
            weights[n, vocabulary.index(w)] = (1 + np.log(row.count(w))) * (1 + np.log(61 / (1 + in_items)))
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    np.testing.assert_allclose(made.vectors @ made.vectors.T, weights @ weights.T, atol=1e-5)


def test_lsa_is_reproducible_and_finds_brand_and_category():
    data = make(tiny(n_items=600, n_departments=4, max_length=20))
    made = lsa(data.catalog, LsaSettings(dim=16))
    again = lsa(data.catalog, LsaSettings(dim=16))
    assert made.vectors.tobytes() == again.vectors.tobytes()
    assert made.dim == 16 and made.catalog == data.catalog.fingerprint and made.recipe["kind"] == "lsa"
    likeness = made.vectors @ made.vectors.T
    np.fill_diagonal(likeness, -1)
    nearest = likeness.argmax(axis=1)
    assert np.mean(data.truth.cluster[nearest] == data.truth.cluster) > 0.6
    assert np.mean(data.truth.brand[nearest] == data.truth.brand) > 0.4


def test_lsa_of_a_small_catalog_has_fewer_directions(caplog):
    shop = ItemCatalog(("a", "b", "c"), {"title": ["red wok", "red pan", "lonely"]})
    with caplog.at_level(logging.WARNING):
        made = lsa(shop, LsaSettings(dim=128, min_items=2))
    assert made.dim == 1 and "only 1 of the 128" in caplog.text
    assert made.known.tolist() == [True, True, False]
    with pytest.raises(DataError, match="no term occurs in 3 of 3"):
        lsa(shop, LsaSettings(min_items=3))


def test_lsa_can_scale_to_length_one():
    made = lsa(make(tiny()).catalog, LsaSettings(dim=5, normalize=True))
    np.testing.assert_allclose(np.linalg.norm(made.vectors, axis=1), 1.0, rtol=1e-5)


def test_any_object_with_encode_is_an_embedder():
    embedder = CountingEmbedder()
    made = sentence_embeddings(SHOP, SentenceSettings(batch_size=3), embedder=embedder, progress=False)
    assert np.array_equal(made.vectors, expected(item_text(SHOP)))
    assert made.catalog == SHOP.fingerprint and made.recipe["text"] == list(DEFAULT_TEXT)


def test_normalize_leaves_zero_vectors_alone():
    made = sentence_embeddings(SHOP, SentenceSettings(normalize=True), embedder=CountingEmbedder(), progress=False)
    np.testing.assert_allclose(np.linalg.norm(made.vectors, axis=1), [1, 1, 1, 0])


def test_an_item_without_text_gets_a_zero_vector():
    class Ones:
        def encode(self, texts, *, batch_size):
            return np.ones((len(texts), 2), np.float32)

    made = sentence_embeddings(SHOP, SentenceSettings(), embedder=Ones(), progress=False)
    assert made.known.tolist() == [bool(text) for text in item_text(SHOP)] == [True, True, True, False]


def test_cache_encodes_only_new_texts(tmp_path):
    first, second, other = CountingEmbedder(), CountingEmbedder(), CountingEmbedder()
    options = SentenceSettings(model="counting")
    sentence_embeddings(SHOP, options, cache=tmp_path, embedder=first, progress=False)
    grown = SHOP.append(["e"], {"title": ["A new one"]})
    made = sentence_embeddings(grown, options, cache=tmp_path, embedder=second, progress=False)
    assert len(first.seen) == 4 and second.seen == ["A new one"]
    assert np.array_equal(made.vectors, expected(item_text(grown)))
    sentence_embeddings(SHOP, SentenceSettings(model="other"), cache=tmp_path, embedder=other, progress=False)
    assert len(other.seen) == 4  # another model never gets these vectors


def test_equal_texts_are_encoded_once():
    shop = ItemCatalog(("a", "b", "c"), {"title": ["x", "x", "y"]})
    embedder = CountingEmbedder()
    made = sentence_embeddings(shop, SentenceSettings(), embedder=embedder, progress=False)
    assert sorted(embedder.seen) == ["x", "y"]
    assert np.array_equal(made.vectors, expected(["x", "x", "y"]))


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("genrec.embeddings.sentence._SHARD", 2)
    shop = ItemCatalog(tuple("abcdef"), {"title": ["t" * n for n in range(1, 7)]})

    class Dies(CountingEmbedder):
        def encode(self, texts, *, batch_size):
            if len(self.seen) >= 4:
                raise KeyboardInterrupt
            return super().encode(texts, batch_size=batch_size)

    options = SentenceSettings(model="counting")
    with pytest.raises(KeyboardInterrupt):
        sentence_embeddings(shop, options, cache=tmp_path, embedder=Dies(), progress=False)
    second = CountingEmbedder()
    made = sentence_embeddings(shop, options, cache=tmp_path, embedder=second, progress=False)
    assert len(second.seen) == 2
    assert np.array_equal(made.vectors, expected(item_text(shop)))


def test_a_damaged_shard_is_ignored_and_said(tmp_path, caplog):
    options = SentenceSettings(model="counting")
    sentence_embeddings(SHOP, options, cache=tmp_path, embedder=CountingEmbedder(), progress=False)
    (shard,) = tmp_path.rglob("*.safetensors")
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(bytes(raw))
    second = CountingEmbedder()
    made = sentence_embeddings(SHOP, options, cache=tmp_path, embedder=second, progress=False)
    assert len(second.seen) == 4 and "is damaged" in caplog.text
    assert np.array_equal(made.vectors, expected(item_text(SHOP)))


def test_bad_embedders_are_refused(tmp_path):
    class Broken:
        def __init__(self, result):
            self.result = result

        def encode(self, texts, *, batch_size):
            return self.result

    for result, message in (
        (np.zeros((1, 2)), r"expected \[4, D\]"),
        (np.full((4, 2), np.nan), "not finite"),
    ):
        with pytest.raises(DataError, match=message):
            sentence_embeddings(SHOP, SentenceSettings(), embedder=Broken(result), progress=False)
    with pytest.raises(ConfigError, match="max_tokens"):
        options = SentenceSettings(max_tokens=8)
        sentence_embeddings(SHOP, options, embedder=CountingEmbedder(), progress=False)


def test_one_name_for_two_widths_is_refused(tmp_path):
    class Wide(CountingEmbedder):
        def encode(self, texts, *, batch_size):
            return np.ones((len(texts), 3), np.float32)

    options = SentenceSettings(model="same name")
    sentence_embeddings(SHOP, options, cache=tmp_path, embedder=CountingEmbedder(), progress=False)
    grown = SHOP.append(["e"], {"title": ["A new one"]})
    with pytest.raises(DataError, match="different widths"):
        sentence_embeddings(grown, options, cache=tmp_path, embedder=Wide(), progress=False)


@pytest.mark.parametrize("bad", [{"model": ""}, {"batch_size": 0}, {"max_tokens": 0}])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        SentenceSettings(**bad)
