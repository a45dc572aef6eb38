"""Pieces of identifiers for ranking models: against dictionaries, loops and a toy ranker."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec import artifacts
from genrec.data.catalog import ItemCatalog
from genrec.data.histories import Histories
from genrec.errors import ArtifactError, ConfigError, DataError, FingerprintMismatch, MissingExtra
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.pieces import (
    NgramSettings,
    PieceFeatures,
    PrefixSettings,
    SentencePieceSettings,
    learn_pieces,
    load_pieces,
    load_rows,
    piece_report,
    save_pieces,
    use_counts,
)
from genrec.item_tokenizers.sentence_pieces import check_learned
from genrec.seeding import derive

needs_package = pytest.mark.skipif(find_spec("sentencepiece") is None, reason="needs the extra pieces")
SPANS = [NgramSettings(), NgramSettings(n=3), PrefixSettings(), NgramSettings(max_rows=9), PrefixSettings(max_rows=5)]
SIZES = (5, 3, 7, 2)


def random_codes(n: int, sizes: tuple[int, ...] = SIZES, *, ragged: bool = False, seed: int = 0) -> ItemCodes:
    generator = np.random.default_rng(seed)
    codes = np.stack([generator.integers(size, size=n) for size in sizes], axis=1)
    if ragged:
        codes[np.arange(len(sizes)) >= generator.integers(1, len(sizes) + 1, size=n)[:, None]] = -1
    return ItemCodes.from_int(codes, sizes, "cat")


def catalog(n: int) -> ItemCatalog:
    return ItemCatalog(tuple(f"item{i}" for i in range(n)), {"title": ["a"] * n})


def skewed(n: int, seed: int = 0) -> np.ndarray:
    """Counts of which no two, nor sums of few, are equal (so that nothing hangs on a tie)."""
    generator = np.random.default_rng(seed)
    return np.unique(generator.integers(1, 10**7, size=2 * n))[generator.permutation(n)] // 7 + 1


# --- n-grams and prefixes ----------------------------------------------------------------------------------


def spans_of(row: list[int], chosen: NgramSettings | PrefixSettings) -> list[tuple[int, tuple[int, ...]]]:
    """First level and codes of every piece of one identifier, from the definition."""
    if isinstance(chosen, PrefixSettings):
        return [(0, tuple(row[:end])) for end in range(1, len(row) + 1)]
    return [(first, tuple(row[first : first + chosen.n])) for first in range(0, len(row), chosen.n)]


def dictionary(codes: ItemCodes, chosen: NgramSettings | PrefixSettings) -> dict[tuple[int, tuple[int, ...]], int]:
    """A number for every piece that there can be: by first level, then by length, then in the order of its codes."""
    sizes, spans = codes.level_sizes, []
    for first in range(len(sizes)) if isinstance(chosen, NgramSettings) else [0]:
        if isinstance(chosen, NgramSettings) and first % chosen.n:
            continue
        n = chosen.n if isinstance(chosen, NgramSettings) else len(sizes)
        end = min(first + n, len(sizes))
        every = isinstance(chosen, PrefixSettings) or codes.ragged
        spans += [(first, last) for last in range(first + 1, end + 1) if every or last == end]
    keys = [(first, tup) for first, end in spans for tup in product(*(range(k) for k in sizes[first:end]))]
    return {key: number for number, key in enumerate(keys)}


@st.composite
def some_codes(draw: st.DrawFn) -> ItemCodes:
    sizes = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=5)))
    return random_codes(draw(st.integers(1, 20)), sizes, ragged=draw(st.booleans()), seed=draw(st.integers(0, 2**16)))


@settings(max_examples=60, deadline=None)
@given(some_codes(), st.one_of(st.builds(NgramSettings, n=st.integers(1, 4)), st.just(PrefixSettings())))
def test_rows_are_those_of_a_dictionary(codes, chosen):
    number = dictionary(codes, chosen)
    pieces = learn_pieces(codes, chosen)
    rows = [[c for c in row if c >= 0] for row in codes.as_int().tolist()]
    found = pieces.encode(codes)
    assert found.to_lists() == [[number[key] for key in spans_of(row, chosen)] for row in rows]
    assert found.n_rows == pieces.n_rows == len(number)
    assert not any(table.hashed for table in pieces.tables)


def mixed(values: list[int], seed: int) -> int:
    """SplitMix64 after every code, in Python's integers."""
    low = 2**64 - 1
    out = seed
    for value in values:
        out = (out + (value + 1) * 0x9E3779B97F4A7C15) & low
        out = ((out ^ (out >> 30)) * 0xBF58476D1CE4E5B9) & low
        out = ((out ^ (out >> 27)) * 0x94D049BB133111EB) & low
        out ^= out >> 31
    return out


def test_large_tables_are_hashed_and_what_shares_a_row_is_counted():
    codes = random_codes(200, (4, 50, 60), seed=1)
    pieces = learn_pieces(codes, PrefixSettings(max_rows=97), seed=5)
    assert [(t.size, t.hashed, t.offset) for t in pieces.tables] == [(4, False, 0), (97, True, 4), (97, True, 101)]
    rows = codes.codes.tolist()
    expected = [
        [
            row[0],
            4 + mixed(row[:2], derive(5, "pieces", 0, 2)) % 97,
            101 + mixed(row, derive(5, "pieces", 0, 3)) % 97,
        ]
        for row in rows
    ]
    found = pieces.encode(codes)
    assert found.to_lists() == expected
    told = piece_report(pieces, codes, found)["tables"]
    for at, end in enumerate((1, 2, 3)):
        groups = {tuple(row[:end]): bag[at] for row, bag in zip(rows, expected, strict=True)}
        taken = Counter(groups.values())
        assert told[at]["groups"] == len(groups)
        assert told[at]["sharing_a_row"] == sum(taken[bucket] > 1 for bucket in groups.values())
    assert told[0]["sharing_a_row"] == 0 < told[1]["sharing_a_row"]
    assert learn_pieces(codes, PrefixSettings(max_rows=97), seed=6).encode(codes).to_lists() != expected


def test_what_remains_of_a_short_identifier_has_a_row_of_its_own():
    codes = ItemCodes.from_int([[1, 2, 0], [1, 2, -1], [1, -1, -1]], (2, 3, 2), "cat")
    rows = learn_pieces(codes, NgramSettings(n=3)).encode(codes).to_lists()
    assert rows == [[2 + 6 + 10], [2 + 5], [1]]  # 2 single codes, 6 pairs, 12 triples
    assert learn_pieces(codes, PrefixSettings()).encode(codes).to_lists() == [[1, 7, 18], [1, 7], [1]]


@pytest.mark.parametrize("j", [0, 1, 2, 3, 4])
def test_items_that_share_two_j_codes_share_j_bigram_rows(j):
    generator = np.random.default_rng(j)
    first = generator.integers(16, size=(30, 8))
    second = np.where(np.arange(8) < 2 * j, first, (first + 1 + generator.integers(15, size=(30, 8))) % 16)
    codes = ItemCodes(np.concatenate([first, second]), (16,) * 8, "cat")
    rows = learn_pieces(codes, NgramSettings(n=2)).encode(codes).to_lists()
    assert [len(set(a) & set(b)) for a, b in zip(rows[:30], rows[30:], strict=True)] == [j] * 30


@pytest.mark.parametrize("chosen", [NgramSettings(), NgramSettings(n=3), PrefixSettings()])
@pytest.mark.parametrize("ragged", [False, True])
def test_labels_of_codes_mean_nothing(chosen, ragged):
    codes = random_codes(60, ragged=ragged)
    other = relabelled(codes)
    a, b = (learn_pieces(c, chosen).encode(c) for c in (codes, other))
    assert np.array_equal(a.offsets, b.offsets)
    assert len(set(zip(a.rows.tolist(), b.rows.tolist(), strict=True))) == len(set(a.rows)) == len(set(b.rows))


def relabelled(codes: ItemCodes, seed: int = 3) -> ItemCodes:
    generator = np.random.default_rng(seed)
    given = codes.as_int()
    columns = [
        np.where(given[:, level] < 0, -1, generator.permutation(size)[given[:, level]])
        for level, size in enumerate(codes.level_sizes)
    ]
    return ItemCodes.from_int(np.stack(columns, axis=1), codes.level_sizes, codes.catalog)


def test_features_as_a_matrix():
    found = PieceFeatures(np.array([0, 2, 2, 3]), np.array([4, 1, 0], np.int32), 5)
    assert found.padded(pad=5).tolist() == [[4, 1], [5, 5], [0, 5]]
    assert found.to_lists() == [[4, 1], [], [0]] and len(found) == 3


# --- SentencePiece -----------------------------------------------------------------------------------------

MODELS = [pytest.param(model, marks=needs_package) for model in ("bpe", "unigram")]


def slow_bpe(rows: list[tuple[int, ...]], counts: list[int], n: int) -> list[list[tuple[int, ...]]]:
    """Merge the pair of neighbours used most, n times: the pieces of every row. Codes must differ between levels."""
    split = [[(code,) for code in row] for row in rows]
    for _ in range(n):
        uses: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
        for parts, count in zip(split, counts, strict=True):
            for pair in pairwise(parts):
                uses[pair] += count
        best = max(uses, key=lambda pair: uses[pair])
        for parts in split:
            for at in range(len(parts) - 1):
                if (parts[at], parts[at + 1]) == best:
                    parts[at : at + 2] = [best[0] + best[1]]
                    break
    return split


@needs_package
@pytest.mark.parametrize("ragged", [False, True])
def test_bpe_is_that_of_a_loop(ragged):
    codes = random_codes(80, ragged=ragged)
    counts = skewed(80)
    pieces = learn_pieces(codes, SentencePieceSettings(n_longer=25), counts=counts)
    offset = np.cumsum([0, *SIZES[:-1]])
    rows = [tuple(c + o for c, o in zip(row, offset, strict=True) if c >= 0) for row in codes.as_int().tolist()]
    expected = slow_bpe(rows, counts.tolist(), 25)
    assert pieces.n_rows == sum(SIZES) + 25
    found = pieces.encode(codes)
    assert [[tuple(pieces.piece_symbols[row]) for row in bag] for bag in found.to_lists()] == expected


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=15, deadline=None)
@given(codes=some_codes(), n_longer=st.integers(1, 30))
def test_pieces_cover_an_identifier_and_nothing_is_unknown(model, codes, n_longer):
    try:
        pieces = learn_pieces(codes, SentencePieceSettings(model=model, n_longer=n_longer))
    except ConfigError as error:
        assert model == "unigram" and "no piece of two codes" in str(error)
        return
    # every code of every level, whether somebody has it or not
    widest = max(codes.level_sizes)
    every = ItemCodes(np.arange(widest)[:, None] % np.array(codes.level_sizes), codes.level_sizes, "other")
    for some in (codes, every):
        found = pieces.encode(some)
        assert np.array_equal(pieces.decode(found), some.as_int())
        covered = np.add.reduceat(pieces.piece_symbols.lengths[found.rows], found.offsets[:-1])
        assert covered.tolist() == (some.as_int() >= 0).sum(axis=1).tolist()
        assert found.rows.min() >= 0 and found.rows.max() < pieces.n_rows
    assert sum(codes.level_sizes) + pieces.n_longer == pieces.n_rows


@pytest.mark.parametrize("model", MODELS)
def test_what_is_used_often_becomes_one_piece(model):
    generator = np.random.default_rng(0)
    codes = random_codes(400, (12, 12, 12, 12))
    counts = np.maximum(3000 // np.arange(1, 401), 1)[generator.permutation(400)]
    pieces = learn_pieces(codes, SentencePieceSettings(model=model, n_longer=150), counts=counts)
    lengths = pieces.encode(codes).lengths
    ranked = lengths[np.argsort(-counts)]
    assert ranked[:20].max() == 1 and ranked[-200:].mean() > 3
    report = piece_report(pieces, codes, pieces.encode(codes), counts)
    assert report["pieces_per_use"] == pytest.approx((lengths * counts).sum() / counts.sum())
    assert report["pieces_per_use"] < 0.6 * report["pieces_per_item"]
    assert report["items_of_one_piece"] == (lengths == 1).sum() and report["n_longer"] == 150


@pytest.mark.parametrize("model", MODELS)
def test_of_pairs_the_popular_ones_are_learned(model):
    """With two levels a longer piece is an item, so the best choice is known: the items that are used most."""
    codes = ItemCodes(np.array(list(product(range(20), range(20))))[::2], (20, 20), "cat")
    counts = 5 + 40 * np.random.default_rng(1).permutation(len(codes)) // len(codes)
    pieces = learn_pieces(codes, SentencePieceSettings(model=model, n_longer=60), counts=counts)
    per_use = piece_report(pieces, codes, pieces.encode(codes), counts)["pieces_per_use"]
    best = 2 - np.sort(counts)[-60:].sum() / counts.sum()
    assert best <= per_use + 1e-9 and per_use < best + 0.01


@pytest.mark.parametrize("model", MODELS)
def test_order_duplicates_labels_and_the_unused_teach_nothing(model):
    codes, counts = random_codes(120), skewed(120, 2)
    chosen = SentencePieceSettings(model=model, n_longer=30)
    pieces = learn_pieces(codes, chosen, counts=counts)
    order = np.random.default_rng(0).permutation(120)
    assert learn_pieces(codes.take(order), chosen, counts=counts[order]).model == pieces.model
    twice = codes.take(np.concatenate([order, order]))
    parts = counts[order] // 3
    assert learn_pieces(twice, chosen, counts=np.concatenate([parts, counts[order] - parts])).model == pieces.model
    more = codes.take(np.concatenate([np.arange(120), np.arange(40)]))
    changed = ItemCodes((more.codes + (np.arange(160) >= 120)[:, None]) % np.array(SIZES), SIZES, "cat")
    unused = np.concatenate([counts, np.zeros(40, int)])
    assert learn_pieces(changed, chosen, counts=unused).model == pieces.model
    other = relabelled(codes)
    there = learn_pieces(other, chosen, counts=counts)
    a, b = pieces.encode(codes), there.encode(other)
    assert np.array_equal(a.offsets, b.offsets)
    assert np.array_equal(pieces.piece_symbols.lengths[a.rows], there.piece_symbols.lengths[b.rows])
    assert len(set(zip(a.rows.tolist(), b.rows.tolist(), strict=True))) == len(set(a.rows.tolist()))


@needs_package
def test_codes_of_one_vocabulary_are_one_symbol_and_many_levels_of_many_codes_fit():
    shared = ItemCodes(np.tile([[1, 2], [2, 1]], (1, 2)), (9,) * 4, "cat", shared_vocabulary=True)
    pieces = learn_pieces(shared, SentencePieceSettings(n_longer=1, max_length=2))
    assert pieces.n_rows == 10 and pieces.encode(shared).lengths.max() == 3  # 1 2 1 2 = (12)(12) or 1 (21) 2
    assert np.array_equal(pieces.decode(pieces.encode(shared)), shared.as_int())
    wide = ItemCodes(np.array([[0, 0], [65533, 65533], [65532, 1]]), (65534, 65534), "cat")
    pieces = learn_pieces(wide, SentencePieceSettings(n_longer=1))
    assert np.array_equal(pieces.decode(pieces.encode(wide)), wide.as_int())
    with pytest.raises(ConfigError, match=r"level_sizes: expected at most 131,068 different codes.*got 131,069"):
        learn_pieces(replace(wide, level_sizes=(65534, 65535)), SentencePieceSettings())


@needs_package
def test_pieces_are_no_longer_than_allowed():
    codes = random_codes(60, (2, 2, 2, 2, 2))
    for length in (2, 3):
        pieces = learn_pieces(codes, SentencePieceSettings(n_longer=40, max_length=length))
        assert pieces.piece_symbols.lengths.max() == length


@needs_package
def test_too_few_to_learn_is_said(caplog):
    codes = ItemCodes(np.array([[0, 1], [1, 0]]), (2, 2), "cat")
    pieces = learn_pieces(codes, SentencePieceSettings(n_longer=10))
    assert pieces.n_longer == 2 and "learned 2 pieces of two codes or more, not the 10" in caplog.text
    one = learn_pieces(ItemCodes(np.array([[0], [1]]), (2,), "cat"), SentencePieceSettings(model="unigram"))
    assert one.n_rows == 2


def test_a_unigram_model_that_learned_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"unigram of sentencepiece 0\.2\.3 learned no piece") as error:
        check_learned(0, SentencePieceSettings(model="unigram"), 4, "0.2.3")
    assert "genrec[pieces]" in error.value.hint and "bpe" in error.value.hint
    check_learned(9, SentencePieceSettings(model="unigram", n_longer=9), 4, "0.2.3")


def test_the_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingExtra) as error:
        learn_pieces(random_codes(5), SentencePieceSettings())
    assert "genrec[pieces]" in error.value.hint


# --- all kinds ---------------------------------------------------------------------------------------------

ALL = [*SPANS, *(pytest.param(SentencePieceSettings(model=m, n_longer=20), marks=needs_package)
                 for m in ("bpe", "unigram"))]  # fmt: skip


@pytest.mark.parametrize("chosen", ALL)
@pytest.mark.parametrize("ragged", [False, True])
def test_new_items_do_not_change_what_was_learned(chosen, ragged):
    codes = random_codes(70, ragged=ragged)
    old, counts = codes.take(np.arange(50)), np.arange(50)
    pieces = learn_pieces(old, chosen, counts=counts)
    before = pieces.encode(old).to_lists()
    assert pieces.encode(codes).to_lists()[:50] == before == pieces.encode(old).to_lists()
    pieces.learned_on.check_extends(replace(codes, catalog="child"))
    with pytest.raises(FingerprintMismatch, match="learned on other codes"):
        pieces.learned_on.check_extends(codes.take(np.arange(70)[::-1]))
    with pytest.raises(DataError, match=r"level_sizes: expected \(5, 3, 7, 2\)"):
        pieces.encode(random_codes(5, (5, 3, 7, 3)))
    assert pieces.encode(codes.take(np.arange(0))).to_lists() == []


@pytest.mark.parametrize("chosen", ALL)
def test_an_artifact_gives_the_same_rows(chosen, tmp_path):
    items = catalog(50)
    with pytest.raises(FingerprintMismatch, match="rows of pieces"):
        save_pieces(tmp_path / "x", learn_pieces(random_codes(50), chosen), items=items,
                    features=learn_pieces(random_codes(50), chosen).encode(random_codes(50)))  # fmt: skip
    codes = replace(random_codes(50), catalog=items.fingerprint)
    pieces = learn_pieces(codes, chosen, seed=4)
    found = pieces.encode(codes)
    for name in ("a", "b"):
        save_pieces(tmp_path / name, learn_pieces(codes, chosen, seed=4), items=items, features=found)
    files = {path.name for path in (tmp_path / "a").iterdir()}
    model = {"sentencepiece.model"} if chosen.kind == "sentencepiece" else set()
    assert files == {"genrec.json", "tables.json", "pieces.parquet"} | model
    for name in files - {"genrec.json"}:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    again = load_pieces(tmp_path / "a")
    assert (again.settings, again.learned_on, again.tables) == (chosen, pieces.learned_on, pieces.tables)
    assert again.encode(codes).to_lists() == found.to_lists()
    ids, rows = load_rows(tmp_path / "a")
    assert tuple(ids) == items.ids and rows.to_lists() == found.to_lists() and rows.n_rows == pieces.n_rows
    table = artifacts.load_table(tmp_path / "a" / "pieces.parquet")
    assert [str(field.type) for field in table.schema] == ["string", "list<element: int32>"]
    told = json.loads(table.schema.metadata[b"genrec"])
    assert told["n_rows"] == pieces.n_rows == artifacts.load_json(tmp_path / "a" / "tables.json")["n_rows"]
    assert [t["offset"] for t in told["tables"]] == [t.offset for t in pieces.tables]
    assert artifacts.read(tmp_path / "a").catalog == items.fingerprint


def test_a_damaged_artifact_is_refused(tmp_path):
    codes = random_codes(9)
    pieces = learn_pieces(codes, PrefixSettings())
    save_pieces(tmp_path / "a", pieces)
    with pytest.raises(DataError, match="without rows of items"):
        load_rows(tmp_path / "a")
    with pytest.raises(DataError, match="items: expected one for each row of features, got 8 for 9"):
        save_pieces(tmp_path / "b", pieces, items=catalog(8), features=pieces.encode(codes))
    file = tmp_path / "a" / "tables.json"
    file.write_bytes(file.read_bytes().replace(b"5", b"6"))
    with pytest.raises(ArtifactError, match=r"tables\.json"):
        load_pieces(tmp_path / "a")


def test_ragged_codes_need_pieces_that_know_them():
    codes = random_codes(20, ragged=True)
    even = random_codes(20)
    with pytest.raises(DataError, match="expected identifiers of equal length"):
        learn_pieces(even, NgramSettings()).encode(codes)
    rows = learn_pieces(even, PrefixSettings()).encode(codes)
    assert rows.lengths.tolist() == codes.lengths.tolist()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: NgramSettings(n=0), "n: expected 1"),
        (lambda: PrefixSettings(max_rows=0), "max_rows: expected 1"),
        (lambda: SentencePieceSettings(n_longer=0), "n_longer: expected 1"),
        (lambda: SentencePieceSettings(max_length=1), "max_length: expected 2"),
        (lambda: SentencePieceSettings(model="word"), "model: expected one of bpe, unigram, got 'word'"),
        (
            lambda: learn_pieces(random_codes(2, (3000,) * 4), PrefixSettings(max_rows=2**30)),
            "max_rows: expected tables of at most 2,147,483,647 rows",
        ),
    ],
)
def test_settings_out_of_range(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


@pytest.mark.parametrize("counts", [np.ones(3), np.ones(4, int), np.array([1, -1, 2])])
def test_counts_are_one_number_an_item(counts):
    with pytest.raises(DataError, match="counts: expected 3 integers"):
        learn_pieces(random_codes(3), SentencePieceSettings(), counts=counts)


@needs_package
def test_somebody_must_have_used_something():
    with pytest.raises(DataError, match="used in training, got none"):
        learn_pieces(random_codes(3), SentencePieceSettings(), counts=np.zeros(3, int))


def test_use_counts_of_histories():
    rows = [[0, 3, 3], [], [3, 1]]
    assert use_counts(Histories.from_lists(rows), 5).tolist() == [1, 1, 0, 3, 0]
    with pytest.raises(DataError, match="item numbers below 3, got 3"):
        use_counts(Histories.from_lists(rows), 3)


# --- the property that the method is for -------------------------------------------------------------------


@needs_package
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_ranker_generalises_by_pieces_and_remembers_by_ids(seed):
    """Clicks depend on an item's first code and on the item; an embedding is one number, a bag is their sum.

    Known items: dense vector < single codes < learned runs < id. New items: an id says nothing, pieces do.
    """
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    generator = np.random.default_rng(seed)
    n, n_warm = 240, 180
    codes = random_codes(n, (12, 6, 6))
    group = codes.codes[:, 0]
    click = 1 / (1 + np.exp(-(1.3 * generator.normal(size=12)[group] + generator.normal(size=n))))
    shown = np.where(np.arange(n) < n_warm, generator.permutation(n) * 4 + 20, 0)
    clicks = generator.binomial(shown, click)
    features: dict[str, object] = {"id": csr_matrix(np.eye(n))}
    features["dense"] = generator.normal(size=(12, 4))[group] + 0.3 * generator.normal(size=(n, 4))
    kinds = {"codes": NgramSettings(n=1), "prefix": PrefixSettings(), "runs": SentencePieceSettings(n_longer=120)}
    for name, chosen in kinds.items():
        found = learn_pieces(codes, chosen, counts=shown).encode(codes)
        features[name] = csr_matrix((np.ones(len(found.rows)), found.rows, found.offsets), shape=(n, found.n_rows))
    warm, new = np.arange(n_warm), np.arange(n_warm, n)
    auc = {}
    for name, x in features.items():
        uses = np.concatenate([clicks[warm], (shown - clicks)[warm]])
        ranker = LogisticRegression(max_iter=500)
        ranker.fit(x[np.tile(warm, 2)], np.repeat([1, 0], n_warm), sample_weight=uses)
        score = ranker.decision_function(x)
        for part, rows in (("warm", warm), ("new", new)):
            weight = np.concatenate([click[rows], 1 - click[rows]])  # of another day
            truth = np.repeat([1, 0], len(rows))
            auc[name, part] = roc_auc_score(truth, np.tile(score[rows], 2), sample_weight=weight)
    assert auc["id", "new"] == pytest.approx(0.5)
    assert min(auc[name, "new"] for name in kinds) > 0.55
    assert auc["dense", "warm"] + 0.05 < auc["codes", "warm"] < auc["runs", "warm"] - 0.02
    assert auc["runs", "warm"] < auc["id", "warm"] and auc["codes", "warm"] < auc["prefix", "warm"]
