from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec import recipes
from genrec.data.catalog import ItemCatalog
from genrec.data.histories import Histories
from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.hybrid import Hybrid, HybridSettings, joined
from genrec.item_tokenizers.registry import build, settings_class
from genrec.seeding import derive
from genrec.testing.tokenizer_contract import TokenizerContract

SPECTRAL = {"kind": "spectral", "n_clusters": 2, "max_leaf": 6}


def source_of(n=40):
    generator = np.random.default_rng(0)
    ids = tuple(f"i{at}" for at in range(n))
    paths = [["Shop", f"c{at % 4}", f"d{at % 8}"][: 2 + at % 2] for at in range(n)]
    catalog = ItemCatalog(ids, {"title": list(ids), "categories": paths})
    rows = [generator.integers(n // 4, size=5) * 4 + user % 4 for user in range(60)]
    vectors = ItemEmbeddings(generator.normal(size=(n, 6)).astype(np.float32), catalog.fingerprint, {})
    return TokenizerSource.of(catalog, train=Histories.from_lists(rows), embeddings=vectors)


class Contract(TokenizerContract):
    needs_vectors = False
    first, second = SPECTRAL, "independent"

    def make(self):
        return Hybrid(HybridSettings(first=self.first, second=self.second))

    def source(self):
        return source_of()


class TestClustersAndOwn(Contract):
    pass


class TestCategoryAndClusters(Contract):
    first, second = "category", SPECTRAL


del Contract


def words(codes):
    return [[c for c in row if c >= 0] for row in codes.as_int().tolist()]


@pytest.mark.parametrize("first", [SPECTRAL, "category"])
@pytest.mark.parametrize("second", ["independent", SPECTRAL, "random"])
def test_the_path_of_one_and_the_identifier_of_the_other(first, second):
    source = source_of()
    codes = Hybrid(HybridSettings(first=first, second=second)).fit(source, seed=5)
    parts = []
    for name, part in (("first", first), ("second", second)):
        given = {"kind": part} if isinstance(part, str) else part
        tokenizer = build(recipes.from_dict(settings_class(given["kind"]), given))
        parts.append(words(tokenizer.fit(source, seed=derive(5, name))))
    found = words(codes)
    forth, back = {}, {}
    for row, path, own in zip(found, parts[0], parts[1], strict=True):
        expected = [("first", c) for c in path[:-1]] + [("second", c) for c in own]
        assert len(row) == len(expected)
        for code, meant in zip(row, expected, strict=True):  # one code per meaning, one meaning per code
            assert forth.setdefault(meant, code) == code
            assert back.setdefault(code, meant) == meant
    if second == "independent":
        assert len({row[-1] for row in found}) == len(found)
        assert codes.level_sizes[0] == len(forth)


def test_levels_with_vocabularies_of_their_own_keep_them():
    first = {"kind": "rqkmeans", "n_levels": 2, "level_size": 4}
    codes = Hybrid(HybridSettings(first=first, second="independent")).fit(source_of(), seed=0)
    assert (codes.level_sizes, codes.shared_vocabulary) == ((4, 4, 40), False)  # the suffix is left out
    shared = Hybrid(HybridSettings(first={**first, "collisions": "shared"}, second="independent"))
    assert shared.fit(source_of(), seed=0).level_sizes == (4, 4, 40)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_joined_identifiers_can_be_taken_apart(data):
    n = data.draw(st.integers(1, 6))

    def draw():
        n_levels, shared = data.draw(st.integers(1, 3)), data.draw(st.booleans())
        sizes = (
            [data.draw(st.integers(2, 4))] * n_levels
            if shared
            else data.draw(st.lists(st.integers(2, 4), min_size=n_levels, max_size=n_levels))
        )
        rows = []
        for _ in range(n):
            length = data.draw(st.integers(1, n_levels))
            rows.append([data.draw(st.integers(0, k - 1)) for k in sizes[:length]] + [-1] * (n_levels - length))
        return ItemCodes.from_int(rows, tuple(sizes), "c", shared_vocabulary=shared)

    first, second = draw(), draw()
    for without_last in (False, True):
        codes = joined(first, second, without_last=without_last)
        meaning = {}
        for a, b, row in zip(words(first), words(second), words(codes), strict=True):
            a = a[: len(a) - without_last]
            own = 0 if codes.shared_vocabulary else None  # codes may depend on their level
            expected = [(1, c if first.shared_vocabulary else (at, c)) for at, c in enumerate(a)]
            expected += [(2, c if second.shared_vocabulary else (at, c)) for at, c in enumerate(b)]
            assert len(row) == len(expected)
            for at, (code, meant) in enumerate(zip(row, expected, strict=True)):
                assert meaning.setdefault((at if own is None else own, code), meant) == meant


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"first": "spectrel"}, "first: .*spectral"),
        ({"second": {"kind": "spectral", "n_clusters": 1}}, "second: .*n_clusters"),
        ({"second": {"kind": "spectral", "clusters": 4}}, "second: .*clusters"),
        ({"first": {"n_clusters": 4}}, "first: expected a kind"),
        ({"second": "hybrid"}, "second: .*no hybrid"),
    ],
)
def test_wrong_parts_are_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        HybridSettings(**wrong)


def test_a_second_part_that_repeats_itself_is_refused():
    alike = {"kind": "rqkmeans", "n_levels": 1, "level_size": 4, "collisions": "shared"}
    with pytest.raises(DataError, match="second: 40 items share"):
        Hybrid(HybridSettings(first="category", second=alike)).fit(source_of(), seed=0)


def test_parts_can_be_set_from_a_recipe():
    text = "kind: hybrid\nfirst: {kind: spectral, max_leaf: 100}\nsecond: independent\n"
    found = recipes.load(text, HybridSettings, ["first.n_clusters=7"]).value
    assert found.first == {"kind": "spectral", "max_leaf": 100, "n_clusters": 7}
    with pytest.raises(ConfigError, match="max_leaf"):
        recipes.load(text, HybridSettings, ["first.max_leaf=3"])
    assert replace(found, first="category").first == "category"
