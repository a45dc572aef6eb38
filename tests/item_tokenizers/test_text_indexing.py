from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from genrec.data.catalog import ItemCatalog
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.indexing import RandomIds, RandomSettings, Sequential, SequentialSettings
from genrec.item_tokenizers.text_indexing import Category, CategorySettings, Title, TitleSettings
from genrec.item_tokenizers.text_pieces import SPACE, split_words
from genrec.testing.tokenizer_contract import TokenizerContract, planted_source
from genrec.vocab.token_map import TokenMap

TITLES = [
    "Red Nail Polish 15ml",
    "Red Nail Polish 50ml",
    "Nail Polish, Red",
    "Shampoo &amp; Shower",
    "Shampoo",
    "",
    "Red Nail Polish 15ml",
    "SHAMPOO",
    "Crème brûlée",
    "Red Nail Polish 15ml",
]
PATHS = [
    ["Shop", "Nails", "Polish"],
    ["Shop", "Nails", "Polish"],
    ["Shop", "Nails"],
    ["Shop", "Hair", "Polish"],
    ["Shop", "Hair", "Shampoo", "Dry"],
    None,
    ["Shop"],
    ["Shop", "Nails", "Polish"],
    ["Shop", "", "Hair"],
    [],
]


def source_of(titles=TITLES, paths=None, seed=0):
    ids = tuple(f"i{n}" for n in range(len(titles)))
    fields = {"title": list(titles), "categories": list(paths or [None] * len(titles))}
    return TokenizerSource.of(ItemCatalog(ids, fields), seed=seed)


class Contract(TokenizerContract):
    needs_vectors = False

    def source(self):
        return source_of(TITLES * 3, PATHS * 3)

    def unknown(self, source):
        return source_of(["Nail Shampoo", "15 zebras", "Ω", ""], [["Shop", "Hair", "Wigs"], ["Toys"], None, ["Shop"]])


class TestTitle(Contract):
    def make(self):
        return Title()


class TestShortTitle(Contract):
    def make(self):
        return Title(TitleSettings(max_levels=2, lowercase=True, min_count=1))


class TestPath(Contract):
    def make(self):
        return Category()


class TestName(Contract):
    def make(self):
        return Category(CategorySettings(qualify="name", drop_common=False))


del Contract


def texts_of(codes):
    """The text that each identifier's pieces write."""
    rows = codes.as_int().tolist()
    return ["".join(codes.pieces[c] for c in row if c >= 0).replace(SPACE, " ").strip() for row in rows]


@given(st.text())
@example(f"a{SPACE}b{SPACE}")
@settings(max_examples=100, deadline=None)
def test_pieces_say_the_text_again(text):
    pieces = split_words(text)
    plain = text.replace(SPACE, " ")
    assert "".join(pieces).replace(SPACE, " ").strip() == " ".join(plain.split())
    assert all(piece.strip(SPACE) and (piece.startswith(SPACE) or SPACE not in piece) for piece in pieces)
    for piece in pieces:
        body = piece.removeprefix(SPACE)
        assert len(body) == 1 or (body.isalnum() and not any(letter.isdecimal() for letter in body))


def test_digits_and_signs_stand_alone():
    assert split_words("WD-40, 15ml café_x2") == [
        *("▁WD", "-", "4", "0", ",", "▁1", "5", "ml", "▁café", "_", "x", "2")
    ]  # fmt: skip


def test_titles_are_what_the_identifiers_say():
    source = source_of()
    codes = Title().fit(source, seed=0)
    assert codes.shared_vocabulary and codes.collisions() == []
    found = texts_of(codes)
    same = [0, 6, 9]
    assert sorted(found[n] for n in same) == [f"Red Nail Polish 15ml<{j}>" for j in (1, 2, 3)]
    by_key = sorted(same, key=lambda n: source.item_keys[n])
    assert [found[n][-2] for n in by_key] == ["1", "2", "3"]
    clean = [t.replace("&amp;", "&") for t in TITLES]
    assert [t for n, t in enumerate(found) if n not in same] == [t for n, t in enumerate(clean) if n not in same]
    used = {codes.pieces[c] for row in codes.as_int().tolist() for c in row if c >= 0}
    assert used == set(codes.pieces)  # the empty title uses the mark of a space
    assert {"▁Polish", "▁Shampoo"} <= used  # the second one occurs twice
    assert used.isdisjoint({"▁Crème", "▁Shower"})  # spelled out: they occur once
    assert {"▁C", "r", "è"} <= used
    assert list(codes.pieces[:-3]) == sorted(codes.pieces[:-3])


def test_new_titles_are_spelled_and_known_ones_equal():
    source = source_of()
    title = Title()
    codes = title.fit(source, seed=0)
    raw = title.encode(source)
    assert raw.pieces == codes.pieces[:-3]
    assert texts_of(raw) == [t.replace("&amp;", "&") for t in TITLES]
    new = title.encode(source_of(["Crème 51ml", "Polish", "brZ", "Ω", ""]))
    assert texts_of(new) == ["Crème 5 1ml", "Polish", "br", "", ""]  # 1 begins a word in all fitted titles
    assert (new.as_int()[-1] >= 0).sum() == 1
    assert new.level_sizes == raw.level_sizes == title.encode(source_of([" ".join(TITLES)])).level_sizes


def test_unknown_pieces_are_logged(caplog):
    title = Title()
    title.fit(source_of(), seed=0)
    title.encode(source_of(["Polish"]))
    assert not caplog.records
    title.encode(source_of(["Ω", "Polish", "Z"]))
    assert "2 of 3 titles" in caplog.text


@pytest.mark.parametrize("most", [1, 2, 3, 254])
def test_long_titles_are_cut_and_still_told_apart(most):
    codes = Title(TitleSettings(max_levels=most, lowercase=True)).fit(source_of(), seed=0)
    assert codes.collisions() == []
    assert codes.n_levels <= most + 1
    numbers = [at for at, piece in enumerate(codes.pieces) if piece.startswith("<") and piece != "<"]
    rows = [[c for c in row if c >= 0 and c not in numbers] for row in codes.as_int().tolist()]
    assert max(map(len, rows)) <= most
    same = Counter(map(tuple, rows))
    has_number = np.isin(codes.as_int(), numbers).any(axis=1)
    assert has_number.tolist() == [same[tuple(row)] > 1 for row in rows]


def test_titles_that_look_like_numbers_do_not_clash(tmp_path):
    words = Tokenizer(models.WordLevel({"<1>": 0, "<2>": 1, "a": 2}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="a").save_pretrained(tmp_path / "t")
    settings = TitleSettings(text_tokenizer=str(tmp_path / "t"))
    codes = Title(settings).fit(source_of(["<1>", "<2>", "a", "a"]), seed=0)
    assert sorted(texts_of(codes)) == ["<1>", "<2>", "a<<1>>", "a<<2>>"]


def test_a_catalog_without_titles_is_refused():
    with pytest.raises(DataError, match="5 items have the title ''"):
        Title(TitleSettings(suffix_limit=4)).fit(source_of([""] * 5), seed=0)
    with pytest.raises(DataError, match="headline"):
        Title(TitleSettings(field="headline")).fit(source_of(), seed=0)


@pytest.fixture
def folder(tmp_path):
    vocabulary = {piece: at for at, piece in enumerate(["[UNK]", "red", "nail", "po", "##lish", "10", "##0", "##1"])}
    pieces = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]").save_pretrained(tmp_path / "text")
    return str(tmp_path / "text")


def test_titles_in_the_pieces_of_a_language_model(folder, tmp_path):
    source = source_of(["red nail", "red polish", "nail"])
    title = Title(TitleSettings(text_tokenizer=folder))
    codes = title.fit(source, seed=0)
    rows = [[codes.pieces[c] for c in row if c >= 0] for row in codes.as_int().tolist()]
    assert rows == [["red", "nail"], ["red", "po", "##lish"], ["nail"]]
    assert codes.pieces == ("##lish", "nail", "po", "red", SPACE)
    title.save(tmp_path / "saved")
    again = Title.load(tmp_path / "saved").encode(source_of(["nail red", "zzz"]))
    assert [[again.pieces[c] for c in row if c >= 0] for row in again.as_int().tolist()] == [["nail", "red"], [SPACE]]


def test_numbers_in_the_pieces_of_a_language_model(folder):
    source = replace(planted_source(3), embeddings=None)
    codes = RandomIds(RandomSettings(first_number=100, n_numbers=None, text_tokenizer=folder))
    with pytest.raises(DataError, match="alike"):  # 102 has no pieces
        RandomIds(replace(codes.settings, first_number=102)).fit(source, seed=0)
    found = RandomIds(replace(codes.settings, n_numbers=2)).fit(replace(planted_source(2), embeddings=None), seed=0)
    assert sorted("".join(found.pieces[c] for c in row) for row in found.as_int().tolist()) == ["10##0", "10##1"]
    with pytest.raises(ConfigError, match="text_tokenizer: cannot load"):
        Sequential(SequentialSettings(text_tokenizer=folder + "/none")).fit(
            replace(source, train=planted_histories()), seed=0
        )


def planted_histories():
    from genrec.data.histories import Histories

    return Histories.from_lists([[0, 1]])


def slow_paths(qualify, drop):
    """The category keys of each item from the definition."""
    found = []
    for path in PATHS:
        names = [name for name in path or [] if name]
        names = names[1:] if drop else names
        found.append([tuple(names[: d + 1]) if qualify == "path" else names[d] for d in range(len(names))])
    return found


@pytest.mark.parametrize("qualify", ["path", "name"])
@pytest.mark.parametrize("drop", [True, False])
def test_category_codes_say_the_path(qualify, drop):
    source = source_of(TITLES, PATHS)
    category = Category(CategorySettings(qualify=qualify, drop_common=drop))
    codes = category.fit(source, seed=0)
    expected = slow_paths(qualify, drop)
    rows = [[c for c in row if c >= 0] for row in codes.as_int().tolist()]
    meaning = {}
    for row, path in zip(rows, expected, strict=True):
        assert len(row) == max(len(path), 1) + 1
        for code, node in zip(row, path, strict=False):
            assert meaning.setdefault(code, node) == node
    assert len(set(meaning.values())) == len(meaning)
    for path in set(map(tuple, expected)):  # running numbers, in key order
        group = sorted((n for n in range(10) if tuple(expected[n]) == path), key=lambda n: source.item_keys[n])
        first = len(meaning) + 1
        assert [rows[n][-1] for n in group] == list(range(first, first + len(group)))
    assert codes.level_sizes[0] == max(c for row in rows for c in row) + 1
    assert (meaning.get(0), codes.shared_vocabulary, codes.collisions()) == (None, True, [])
    assert category.report["n_uncategorised"] == sum(not path for path in expected)
    by_level = [
        len({tuple(path[: d + 1]) if qualify == "path" else path[d] for path in expected if d < len(path)})
        for d in range(3)
    ]
    assert category.report["categories_by_level"][:3] == by_level


def test_new_items_get_the_known_part_of_their_path():
    category = Category()
    codes = category.fit(source_of(TITLES, PATHS), seed=0).as_int()
    paths = [
        ["Shop", "Hair", "Polish", "New"],
        ["Shop", "New", "Polish"],
        ["Other", "Hair"],
        None,
        ["Shop", "Nails", "Polish"],
    ]
    new = category.encode(source_of(TITLES[:5], paths)).as_int()
    assert new[0].tolist()[:2] == codes[3, :2].tolist() and new[0, 2] == -1
    assert new.shape[1] == codes.shape[1] - 1
    assert [row[0] for row in new[1:4].tolist()] == [0, 0, 0] and (new[1:4, 1:] == -1).all()
    assert new[4, :2].tolist() == codes[0, :2].tolist()


def test_an_unknown_category_ends_the_path_though_names_below_it_are_known():
    category = Category(CategorySettings(qualify="name"))
    category.fit(source_of(TITLES, PATHS), seed=0)
    new = category.encode(source_of(["a", "b"], [["Shop", "Hair", "New", "Polish"], ["Shop", "Hair"]])).as_int()
    assert new[0].tolist() == new[1].tolist()


def test_case_can_be_ignored():
    found = texts_of(Title(TitleSettings(lowercase=True)).fit(source_of(["Red", "RED", "Blue"]), seed=0))
    assert sorted(found) == ["blue", "red<1>", "red<2>"]


def test_flat_categories_and_missing_fields():
    source = source_of(list("abc"), ["Hair", "Nails", "Hair"])
    codes = Category().fit(source, seed=0).as_int()
    assert codes[:, 0].tolist() == [1, 2, 1]
    with pytest.raises(DataError, match="field 'genre' is not in the catalog"):
        Category(CategorySettings(field="genre")).fit(source, seed=0)


@pytest.mark.parametrize("tokenizer", [Title(), Category()])
def test_the_order_of_the_catalog_does_not_matter(tokenizer):
    source = source_of(TITLES * 2, PATHS * 2)
    order = np.random.default_rng(0).permutation(20)
    items = ItemCatalog(
        tuple(source.items.ids[n] for n in order),
        {name: [values[n] for n in order] for name, values in source.items.fields.items()},
    )
    codes, other = (tokenizer.fit(s, seed=0) for s in (source, TokenizerSource.of(items)))
    assert other.as_int().tolist() == codes.as_int()[order].tolist()
    assert other.pieces == codes.pieces


def test_text_identifiers_make_tokens_and_are_kept(tmp_path):
    codes = Title().fit(source_of(), seed=0)
    tokens = TokenMap.of(codes)
    assert tokens.codes(tokens.token_ids(codes.as_int())).tolist() == codes.as_int().tolist()
    codes.save(tmp_path / "codes")
    assert ItemCodes.load(tmp_path / "codes").pieces == codes.pieces


@pytest.mark.parametrize(
    ("settings_class", "wrong"),
    [
        (TitleSettings, {"max_levels": 0}),
        (TitleSettings, {"max_levels": 255}),
        (TitleSettings, {"min_count": 0}),
        (TitleSettings, {"suffix_limit": 0}),
        (CategorySettings, {"qualify": "tree"}),
    ],
)
def test_settings_out_of_range(settings_class, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        settings_class(**wrong)
