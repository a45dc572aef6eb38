"""A catalog that grows and shrinks: nothing published ever moves, nothing is used twice, nothing collides silently."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from genrec.data.catalog import ItemCatalog
from genrec.data.histories import Histories
from genrec.decoding.index import CatalogIndex
from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import ConfigError, DataError, FingerprintMismatch
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.collisions import Quantized, resolve
from genrec.item_tokenizers.drift import drift
from genrec.item_tokenizers.fsq import Fsq, FsqSettings
from genrec.item_tokenizers.life import append
from genrec.item_tokenizers.product import Product, ProductSettings
from genrec.item_tokenizers.rqkmeans import RqKMeans, RqKMeansSettings
from genrec.item_tokenizers.rqvae import RqVae, RqVaeSettings
from genrec.item_tokenizers.spectral import Spectral, SpectralSettings
from genrec.item_tokenizers.text_indexing import Category, Title


@dataclass
class Fixed:
    """A fitted residual quantizer with given codebooks, slow and plain."""

    books: tuple[np.ndarray, ...]
    policy: str | None = "suffix"
    known: bool = True
    can_encode_new: bool = True

    def __post_init__(self):
        self.settings = SimpleNamespace(kind="fixed", collisions=self.policy)
        if self.known:
            self.quantized = lambda source: Quantized(source.vectors(), self.books)

    def encode(self, source):
        rows = [greedy(x, self.books) for x in source.vectors()]
        return ItemCodes(np.array(rows, dtype=np.int64), tuple(map(len, self.books)), source.catalog)


def greedy(x, books):
    left, code = x.copy(), []
    for book in books:
        code.append(int(((left - book) ** 2).sum(axis=1).argmin()))
        left = left - book[code[-1]]
    return code


def child_of(catalog, vectors, ids, new_vectors):
    child = catalog.append(ids, {"title": [f"new {i}" for i in ids]})
    both = ItemEmbeddings(np.concatenate([vectors, new_vectors]).astype(np.float32), child.fingerprint)
    return TokenizerSource.of(child, embeddings=both)


def catalog_of(n):
    return ItemCatalog(tuple(f"i{k}" for k in range(n)), {"title": ["x"] * n})


@st.composite
def shops(draw, policies=("suffix", "reassign", "shared")):
    """Codebooks, published codes of a catalog, and a child catalog with new items (crowded)."""
    policy = draw(st.sampled_from(policies))
    sizes = draw(st.lists(st.integers(2, 4), min_size=1, max_size=3))
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    books = tuple(generator.normal(size=(k, 3)).astype(np.float32) for k in sizes)
    n = draw(st.integers(1, int(np.prod(sizes)) if policy == "reassign" else 20))
    n_new = draw(st.integers(0, 12))
    spread = draw(st.sampled_from([0.05, 1.0, 3.0]))
    vectors = (spread * generator.normal(size=(n + n_new, 3))).astype(np.float32)
    if draw(st.booleans()):
        vectors[:] = vectors[0]
    catalog, tokenizer = catalog_of(n), Fixed(books, policy)
    keys = catalog.order_keys(0)
    old = TokenizerSource.of(catalog, embeddings=ItemEmbeddings(vectors[:n], catalog.fingerprint))
    published = resolve(policy, tokenizer.encode(old), keys, Quantized(vectors[:n], books)).codes
    ids = [f"n{k}" for k in range(n_new)]
    return tokenizer, published, catalog, vectors, ids


def capacity(codes):
    return int(np.prod(codes.level_sizes))


@given(shops(), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_nothing_moves_nothing_collides_and_the_order_of_new_items_does_not_matter(shop, random):
    tokenizer, published, catalog, vectors, ids = shop
    n = len(published)
    source = child_of(catalog, vectors[:n], ids, vectors[n:])
    if tokenizer.policy != "shared" and n + len(ids) > capacity(published):
        with pytest.raises(DataError, match="do not fit"):
            append(tokenizer, published, source)
        return
    found = append(tokenizer, published, source)
    codes = found.codes
    assert codes.codes[:n].tobytes() == published.codes.tobytes()
    assert codes.catalog == source.catalog and codes.level_sizes == published.level_sizes
    assert found.report["n_moved"] == 0 and found.report["n_new"] == len(ids) == len(codes) - n
    if tokenizer.policy != "shared":
        assert codes.collisions() == []
    elif ids:
        shared = [k for k in range(n, len(codes)) if (codes.codes == codes.codes[k]).all(axis=1).sum() > 1]
        assert found.report["collisions"] == len(shared)
        assert codes.codes[n:].tolist() == [greedy(x, tokenizer.books) for x in vectors[n:]]
    order = list(range(len(ids)))
    random.shuffle(order)
    other = child_of(catalog, vectors[:n], [ids[k] for k in order], vectors[n:][order])
    again = append(tokenizer, published, other)
    assert again.codes.codes[n:].tolist() == codes.codes[n:][order].tolist()
    assert again.report == found.report


@given(shops(), st.lists(st.integers(0, 4), max_size=5))
@settings(max_examples=60, deadline=None)
def test_any_number_of_batches_and_retirements_use_no_identifier_twice(shop, batches):
    tokenizer, published, catalog, vectors, ids = shop
    versions, start = [published], len(published)
    for number, size in enumerate(batches):
        catalog = catalog.retire([catalog.ids[number % len(catalog)]])
        stop = min(start + size, len(vectors))
        source = child_of(
            catalog, vectors[:start], ids[start - len(published) : stop - len(published)], vectors[start:stop]
        )
        if tokenizer.policy != "shared" and stop > capacity(published):
            return
        codes = append(tokenizer, versions[-1], source).codes
        change = drift(versions[-1], codes)
        assert len(change.moved) == 0 and change.new.tolist() == list(range(start, stop))
        assert tokenizer.policy == "shared" or codes.collisions() == []
        versions, catalog, start = [*versions, codes], source.fields(), stop
    for older in versions:
        assert versions[-1].codes[: len(older)].tobytes() == older.codes.tobytes()


# --- slow definitions -------------------------------------------------------------------------------------------


def place_slowly(x, books, sizes, held):
    """Level by level the nearest code below which some identifier is free; all levels but the last."""
    left, prefix = x.astype(np.float64), []
    for level in range(len(sizes) - 1):
        below = int(np.prod(sizes[level + 1 :]))
        cost = ((left - books[level]) ** 2).sum(axis=1)
        used = [sum(h[: level + 1] == [*prefix, k] for h in held) for k in range(sizes[level])]
        prefix.append(min((k for k in range(sizes[level]) if used[k] < below), key=lambda k: cost[k]))
        left = left - books[level][prefix[-1]]
    return prefix


def next_number(prefix, size, held):
    return next((k for k in range(size) if [*prefix, k] not in held), None)


@given(shops(policies=("suffix",)))
@settings(max_examples=100, deadline=None)
def test_suffix_numbers_as_the_loop_does(shop):
    tokenizer, published, catalog, vectors, ids = shop
    n, sizes = len(published), published.level_sizes
    if n + len(ids) > capacity(published):
        return
    source = child_of(catalog, vectors[:n], ids, vectors[n:])
    held, late, expected = published.codes.tolist(), [], {}
    for k in n + np.argsort(source.item_keys[n:]):
        raw = greedy(vectors[k], tokenizer.books)
        number = next_number(raw, sizes[-1], held)
        if number is None:
            late.append(k)
            continue
        expected[k] = [*raw, number]
        held.append(expected[k])
    places = {}
    for k in late:  # all choose their prefix before the numbers are dealt
        places[k] = place_slowly(vectors[k], tokenizer.books, sizes, [*held, *places.values()])
    for k in late:
        expected[k] = [*places[k], next_number(places[k], sizes[-1], held)]
        held.append(expected[k])
    found = append(tokenizer, published, source)
    assert found.codes.codes[n:].tolist() == [expected[k] for k in range(n, n + len(ids))]
    if ids:
        assert found.report["other_prefix"] == len(late)


@given(shops(policies=("reassign",)))
@settings(max_examples=100, deadline=None)
def test_reassign_moves_only_new_items_at_the_least_cost(shop):
    tokenizer, published, catalog, vectors, ids = shop
    n, sizes, books = len(published), published.level_sizes, tokenizer.books
    if n + len(ids) > capacity(published):
        return
    source = child_of(catalog, vectors[:n], ids, vectors[n:])
    keys, held = source.item_keys, published.codes.tolist()
    new = range(n, n + len(ids))

    def error(k, code):
        return float(
            ((vectors[k].astype(np.float64) - sum(b[c] for b, c in zip(books, code, strict=False))) ** 2).sum()
        )

    code = {k: greedy(vectors[k], books) for k in new}
    stay, leave = [], []
    for prefix in {tuple(c[:-1]) for c in code.values()}:
        here = sorted((k for k in new if tuple(code[k][:-1]) == prefix), key=lambda k: (error(k, prefix), keys[k]))
        room = sizes[-1] - sum(tuple(h[:-1]) == prefix for h in held)
        stay, leave = stay + here[: max(room, 0)], leave + here[max(room, 0) :]
    taken = held + [code[k] for k in stay]
    for k in sorted(leave, key=lambda k: keys[k]):
        prefix = place_slowly(vectors[k], books, sizes, taken)
        code[k] = min(([*prefix, c] for c in range(sizes[-1])), key=lambda c: error(k, c))
        taken.append(code[k])
    total, keepers = 0.0, {}
    for prefix in {tuple(c[:-1]) for c in code.values()}:
        here = [k for k in new if tuple(code[k][:-1]) == prefix]
        used = {h[-1] for h in held if tuple(h[:-1]) == prefix}
        for last in {code[k][-1] for k in here} - used:
            best = min((k for k in here if code[k][-1] == last), key=lambda k: (error(k, code[k]), keys[k]))
            keepers[best] = code[best]
            used.add(last)
        movers = [k for k in here if k not in keepers]
        free = [c for c in range(sizes[-1]) if c not in used]
        table = np.array([[error(k, [*prefix, c]) for c in free] for k in movers]).reshape(len(movers), len(free))
        total += table[linear_sum_assignment(table)].sum()
    found = append(tokenizer, published, source).codes.codes
    assert {k: found[k].tolist() for k in keepers} == keepers
    assert {k: found[k, :-1].tolist() for k in new} == {k: code[k][:-1] for k in new}
    assert sum(error(k, found[k]) for k in new if k not in keepers) == pytest.approx(total, rel=1e-5, abs=1e-6)


@st.composite
def trees(draw):
    """Published identifiers of any length, no two equal, content of published and of new items."""
    size, n_levels = draw(st.integers(2, 5)), draw(st.integers(1, 3))
    rows = draw(st.sets(st.lists(st.integers(0, size - 1), min_size=1, max_size=n_levels).map(tuple), min_size=2))
    table = np.full((len(rows), n_levels), -1)
    for row, code in zip(table, sorted(rows), strict=True):
        row[: len(code)] = code
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    n_new = draw(st.integers(1, 8))
    return table, size, generator.normal(size=(len(rows) + n_new, 3)), draw(st.booleans())


@given(trees())
@settings(max_examples=150, deadline=None)
def test_items_that_cannot_be_encoded_join_the_most_similar_published_item(tree):
    table, size, vectors, shared = tree
    n, n_new = len(table), len(vectors) - len(table)
    catalog = catalog_of(n)
    published = ItemCodes.from_int(table, (size,) * table.shape[1], catalog.fingerprint, shared_vocabulary=shared)
    source = child_of(catalog, vectors[:n], [f"n{k}" for k in range(n_new)], vectors[n:])
    unit = source.vectors() / np.linalg.norm(source.vectors(), axis=1, keepdims=True)
    held = [[c for c in row if c >= 0] for row in table.tolist()]
    ends = {
        len(code): {c[-1] for c in held if shared or published.lengths is None or len(c) == len(code)} for code in held
    }
    if published.lengths is None:
        ends = {table.shape[1]: set(range(size))}

    def free(prefix):
        inner = {c[len(prefix)] for c in held if c[: len(prefix)] == prefix and len(c) > len(prefix)}
        return sorted(ends[len(prefix) + 1] - inner)

    order = n + np.argsort(source.item_keys[n:])
    expected, published_codes = {}, [list(c) for c in held]
    for k in order:
        near = sorted(range(n), key=lambda p: -float(unit[k] @ unit[p]))
        place = next((p for p in near if free(published_codes[p][:-1])), None)
        if place is None:
            with pytest.raises(DataError, match="have room for"):
                append(Fixed((), can_encode_new=False), published, source)
            return
        prefix = published_codes[place][:-1]
        expected[k] = [*prefix, free(prefix)[0]]
        held.append(expected[k])
    found = append(Fixed((), can_encode_new=False), published, source)
    rows = found.codes.as_int()
    assert rows[:n].tolist() == table.tolist() and found.codes.collisions() == []
    assert {k: [c for c in rows[k].tolist() if c >= 0] for k in order} == expected
    assert found.report["how"] == "neighbour"


# --- the kinds of the package -----------------------------------------------------------------------------------


def planted(n=60, n_new=15, seed=0):
    generator = np.random.default_rng(seed)
    centres = 4 * generator.normal(size=(5, 8))
    vectors = centres[generator.integers(5, size=n + n_new)] + 0.3 * generator.normal(size=(n + n_new, 8))
    vectors[n] = vectors[0]  # a new item that nobody can tell from a published one
    return vectors.astype(np.float32)


KINDS = [
    RqKMeans(RqKMeansSettings(n_levels=2, level_size=8, collisions="suffix")),
    RqKMeans(RqKMeansSettings(n_levels=2, level_size=12, collisions="reassign", standardize=True)),
    RqKMeans(RqKMeansSettings(n_levels=2, level_size=4, collisions="shared")),
    Product(ProductSettings(n_levels=2, level_size=12, collisions="reassign", iterations=3)),
    Fsq(FsqSettings(n_tokens=2, levels=(4, 4), epochs=2, collisions="reassign")),
    RqVae(
        RqVaeSettings(n_levels=2, level_size=10, hidden=(16,), dim=4, epochs=2, warmup_epochs=1, collisions="reassign")
    ),
    RqVae(RqVaeSettings(n_levels=2, level_size=8, hidden=(16,), dim=4, epochs=2, warmup_epochs=1, collisions="suffix")),
]


@pytest.mark.parametrize("tokenizer", KINDS, ids=lambda t: f"{t.settings.kind}-{t.settings.collisions}")
def test_every_kind_that_encodes_can_append(tokenizer):
    vectors, catalog = planted(), catalog_of(60)
    source = TokenizerSource.of(catalog, embeddings=ItemEmbeddings(vectors[:60], catalog.fingerprint))
    published = tokenizer.fit(source, seed=3)
    child = child_of(catalog, vectors[:60], [f"n{k}" for k in range(15)], vectors[60:])
    found = append(tokenizer, published, child)
    assert found.codes.codes[:60].tobytes() == published.codes.tobytes()
    assert found.codes.shared_vocabulary == published.shared_vocabulary
    assert len(found.codes.codebooks) == len(published.codebooks)
    assert found.report["raw_collisions"] >= 1
    assert (found.codes.collisions() == []) == (tokenizer.settings.collisions != "shared")
    raw = tokenizer.encode(child)
    if tokenizer.settings.collisions == "suffix":
        same = (found.codes.codes[60:, :-1] == raw.codes[60:]).all(axis=1)
    else:
        same = (found.codes.codes[60:, :-1] == raw.codes[60:, :-1]).all(axis=1)
    assert found.report["other_prefix"] == (~same).sum() * (tokenizer.settings.collisions != "shared")
    # the costs are those that the raw codes are the cheapest of
    costs, books = tokenizer.quantized(child), tokenizer.quantized(child).codebooks
    for level, book in enumerate(books):
        left = costs.residuals(raw.codes[:, :level])
        distance = ((left[:, None, :].astype(np.float64) - book) ** 2).sum(axis=2)
        chosen = np.take_along_axis(distance, raw.codes[:, level, None].astype(np.int64), axis=1)[:, 0]
        assert chosen == pytest.approx(distance.min(axis=1), rel=1e-4, abs=1e-4)


def test_a_graph_has_no_place_for_new_items_so_content_decides():
    generator = np.random.default_rng(0)
    histories = [generator.integers(0, 20, size=6) + 20 * (u % 2) for u in range(60)]
    vectors = np.repeat(np.eye(2, 6, dtype=np.float32), 20, axis=0) + 0.05 * generator.normal(size=(40, 6)).astype("f")
    catalog = catalog_of(40)
    source = TokenizerSource.of(catalog, train=Histories.from_lists([h.tolist() for h in histories]))
    tokenizer = Spectral(SpectralSettings(n_clusters=2, max_leaf=30))
    published = tokenizer.fit(source, seed=0)
    child = child_of(catalog, vectors, ["a", "b"], np.eye(2, 6, dtype=np.float32))
    found = append(tokenizer, published, child)
    assert found.report["how"] == "neighbour" and found.codes.collisions() == []
    rows = found.codes.as_int()
    for new, low in ((40, 0), (41, 20)):  # the cluster of the twenty items that are alike
        assert rows[new, 0] == np.bincount(rows[low : low + 20, 0]).argmax()
    bare = TokenizerSource.of(child.fields())
    with pytest.raises(DataError, match="no item vectors"):
        append(tokenizer, published, bare)


def readable(kind, titles, new_titles):
    """Title or category identifiers of a catalog and of its child, as lists of codes without padding."""
    values = titles if kind is Title else [t.split(" ") for t in titles]
    new_values = new_titles if kind is Title else [t.split(" ") for t in new_titles]
    name = "title" if kind is Title else "categories"
    old = {"title": [""] * len(titles)} | {name: values}
    catalog = ItemCatalog(tuple(f"i{k}" for k in range(len(titles))), old)
    tokenizer = kind()
    published = tokenizer.fit(TokenizerSource.of(catalog), seed=0)
    ids = [f"n{k}" for k in range(len(new_titles))]
    child = catalog.append(ids, {"title": [""] * len(ids)} | {name: new_values})
    source = TokenizerSource.of(child)
    found = append(tokenizer, published, source)
    assert found.codes.codes[: len(titles)].tobytes() == published.codes.tobytes()
    assert found.codes.collisions() == [] and found.report["policy"] == "numbered"
    rows = [[c for c in row if c >= 0] for row in found.codes.as_int().tolist()]
    raw = [[c for c in row if c >= 0] for row in tokenizer.encode(source).as_int().tolist()]
    return SimpleNamespace(rows=rows, raw=raw, codes=found.codes, keys=source.item_keys, report=found.report)


def test_new_titles_get_the_next_number_where_the_title_is_taken():
    old = ["salt", "pepper mill", "salt", "salt", "wok", "wok pan", "pan mill wok"]
    found = readable(Title, old, ["wok", "mill", "salt mill", "mill", "pan salt wok"])
    text = [[found.codes.pieces[c].lstrip("▁") for c in row] for row in found.rows]
    assert sorted(text[k][-1] for k in (0, 2, 3)) == ["<1>", "<2>", "<3>"]
    assert text[7] == ["wok", "<1>"]  # "wok" itself was published without a number
    assert text[9] == ["salt", "mill"]
    first, second = (8, 10) if found.keys[8] < found.keys[10] else (10, 8)
    assert text[first] == ["mill", "<1>"] and text[second] == ["mill", "<2>"]
    assert found.report["raw_collisions"] == 3
    with pytest.raises(DataError, match=r"such as n0: there are 3 numbers"):
        readable(Title, old, ["salt"])


def test_new_items_of_a_category_get_its_next_number():
    found = readable(Category, ["a b", "a b", "a b", "a c", "d"], ["a c", "a c", "d", "x", "d e"])
    numbers = sorted({row[-1] for row in found.rows[:5]})
    assert [row[:-1] for row in found.rows] == found.raw
    by_key = sorted((5, 6), key=lambda k: found.keys[k])
    assert [found.rows[k][-1] for k in by_key] == numbers[1:3]
    of_d = sorted((7, 9), key=lambda k: found.keys[k])  # "d e" is as much of its path as is known
    assert [found.rows[k][-1] for k in of_d] == numbers[1:3] and found.rows[8][-1] == numbers[0]
    assert found.rows[8][:-1] == [0]  # no such category


def test_what_cannot_be_done_says_what_to_do():
    books = (np.eye(2, 3, dtype=np.float32), np.eye(2, 3, dtype=np.float32))
    vectors = np.zeros((6, 3), dtype=np.float32)
    catalog = catalog_of(2)
    source = TokenizerSource.of(catalog, embeddings=ItemEmbeddings(vectors[:2], catalog.fingerprint))
    for policy in ("suffix", "reassign"):
        tokenizer = Fixed(books, policy, known=False)
        published = resolve(policy, tokenizer.encode(source), source.item_keys, Quantized(vectors[:2], books)).codes
        child = child_of(catalog, vectors[:2], ["late", "later"], vectors[2:4])
        with pytest.raises(DataError, match=r"no free identifier .* late") as caught:
            append(tokenizer, published, child)
        assert "by='neighbour'" in caught.value.hint
        placed = append(replace_known(tokenizer), published, child)
        assert placed.codes.collisions() == [] and placed.report["other_prefix"] == 2
        with pytest.raises(FingerprintMismatch, match="the first items"):
            append(tokenizer, replace(published, catalog="f" * 32), child)
        with pytest.raises(DataError, match="gives codes of sizes"):
            append(Fixed(books[:1], policy), published, child)
        with pytest.raises(ConfigError, match="by: expected"):
            append(tokenizer, published, child, by="luck")
        with pytest.raises(DataError, match="titles and fields"):
            append(tokenizer, published, replace(child, items=None))


def replace_known(tokenizer):
    return Fixed(tokenizer.books, tokenizer.policy)


def test_a_third_party_tokenizer_without_settings_about_collisions():
    books = (np.eye(2, 3, dtype=np.float32), np.eye(4, 3, dtype=np.float32))
    vectors = np.zeros((4, 3), dtype=np.float32)
    catalog = catalog_of(1)
    tokenizer = Fixed(books, None, known=False)
    published = ItemCodes(np.array([[0, 2]]), (2, 4), catalog.fingerprint)
    child = child_of(catalog, vectors[:1], ["a", "b", "c"], vectors[1:])
    found = append(tokenizer, published, child)
    by_key = 1 + np.argsort(child.item_keys[1:])
    raw = greedy(vectors[0], books)
    assert found.report["policy"] == "reassign" and found.codes.codes[by_key[0]].tolist() == raw
    rest = [k for k in range(4) if k not in (2, raw[1])]
    assert found.codes.codes[by_key[1:]].tolist() == [[raw[0], rest[0]], [raw[0], rest[1]]]


def test_retired_items_leave_the_index_and_keep_their_identifier():
    catalog = catalog_of(3)
    vectors = np.zeros((5, 3), dtype=np.float32)
    tokenizer = Fixed((np.eye(2, 3, dtype=np.float32),), "suffix")
    source = TokenizerSource.of(catalog, embeddings=ItemEmbeddings(vectors[:3], catalog.fingerprint))
    published = resolve("suffix", tokenizer.encode(source), source.item_keys, None).codes
    roomy = replace(published, level_sizes=(2, 8))
    gone = catalog.retire(["i1"])
    child = child_of(gone, vectors[:3], ["a", "b"], vectors[3:])
    codes = append(tokenizer, roomy, child).codes
    freed = codes.codes[1].tolist()
    assert freed not in codes.codes[[0, 2, 3, 4]].tolist()
    retired = child.fields().retired
    assert retired.tolist() == [False, True, False, False, False]
    index = CatalogIndex.build(codes, keep=~retired)
    assert sorted(index.items.tolist()) == [0, 2, 3, 4]
    node = index.step(0, [0], [freed[0]])
    assert index.step(1, node, [freed[1]]).tolist() == [-1]


# --- versions ---------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**16), st.integers(1, 12), st.integers(0, 4), st.booleans())
@settings(max_examples=60, deadline=None)
def test_drift_counts_as_the_loop_does(seed, n, n_new, ragged):
    generator = np.random.default_rng(seed)

    def table(rows):
        codes = generator.integers(0, 3, size=(rows, 3))
        if ragged:
            codes[np.arange(3) >= generator.integers(1, 4, size=rows)[:, None]] = -1
        return codes

    old = table(n)
    new = np.concatenate([old, table(n_new)])
    changed = generator.random(n) < 0.4
    new[:n][changed] = table(int(changed.sum()))
    before, after = ItemCodes.from_int(old, (3, 3, 3), "c"), ItemCodes.from_int(new, (3, 3, 3), "d" if n_new else "c")
    found = drift(before, after)
    assert found.moved.tolist() == [k for k in range(n) if old[k].tolist() != new[k].tolist()]
    assert found.kept == pytest.approx(1 - len(found.moved) / n)
    assert found.new.tolist() == list(range(n, n + n_new))
    for level in range(3):
        assert found.n_moved_level[level] == sum(old[k, level] != new[k, level] for k in range(n))
        same = [old[k, : level + 1].tolist() == new[k, : level + 1].tolist() for k in range(n)]
        assert found.kept_prefix[level] == pytest.approx(sum(same) / n)
    for rows, count in ((old.tolist(), found.collisions_before), (new.tolist(), found.collisions_after)):
        assert count == sum(rows.count(row) > 1 for row in rows)


def test_adjusted_rand_sees_that_the_groups_are_the_same_under_other_names():
    codes = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]])
    renamed = (codes + np.array([[1, 0]])) % 3
    found = drift(ItemCodes(codes, (3, 3), "c"), ItemCodes(renamed, (3, 3), "c"))
    assert found.kept == 0 and found.adjusted_rand[0] == 1
    shorter = drift(ItemCodes(codes, (3, 3), "c"), ItemCodes(codes[:, :1], (3,), "c"))
    assert shorter.kept == 0 and shorter.n_moved_level == (0,) and not shorter.same_sizes
    assert "level sizes differ" in shorter.table()
    mixed = drift(ItemCodes(codes, (3, 3), "c"), ItemCodes(codes[[0, 2, 4, 1, 3, 5]], (3, 3), "c"))
    assert mixed.adjusted_rand[0] < 0.5


def test_drift_names_items_and_refuses_other_catalogs():
    catalog = catalog_of(3).retire(["i0"])
    child = catalog.append(["z"], {"title": ["z"]}).retire(["i2"])
    before = ItemCodes(np.array([[0], [1], [2]]), (4,), catalog.fingerprint)
    after = ItemCodes(np.array([[0], [3], [2], [2]]), (4,), child.fingerprint)
    found = drift(before, after, catalogs=(catalog, child))
    assert found.retired.tolist() == [2]
    plain = json.loads(json.dumps(found.to_json(child)))
    assert (plain["moved"], plain["new"], plain["retired"]) == (["i1"], ["z"], ["i2"])
    assert plain["collisions_after"] == 2 and plain["collisions_before"] == 0 and plain["same_sizes"]
    text = found.table(child)
    assert "1 of 3" in text and "moved items: i1" in text and "2 after" in text
    with pytest.raises(FingerprintMismatch, match="not the beginning"):
        stranger = ItemCatalog(("a", "b", "c", "d"), {"title": [""] * 4})
        drift(before, replace(after, catalog=stranger.fingerprint), catalogs=(catalog, stranger))
    with pytest.raises(FingerprintMismatch, match="after: codes belong"):
        drift(before, after, catalogs=(catalog, catalog))
    with pytest.raises(DataError, match="two catalogs of 3 items"):
        drift(before, replace(before, catalog="other"))


@given(st.integers(0, 2**16), st.booleans(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_codes_extend_those_that_they_begin_with_and_no_others(seed, ragged, shared):
    generator = np.random.default_rng(seed)
    table = generator.integers(0, 3, size=(6, 2))
    if ragged:
        table[[1, 3], 1] = -1
    whole = ItemCodes.from_int(table, (3, 3), "child", shared_vocabulary=shared)
    for n in range(1, 7):
        head = ItemCodes.from_int(table[:n], (3, 3), "parent", shared_vocabulary=shared)
        assert whole.extends(head.fingerprint, n, "parent") == (head.ragged == whole.ragged)
        assert not whole.extends(head.fingerprint, n, "child") and not whole.extends(head.fingerprint, n - 1, "parent")
        other = ItemCodes.from_int(table[:n], (3, 3), "parent", shared_vocabulary=not shared)
        larger = ItemCodes.from_int(table[:n], (4, 4), "parent", shared_vocabulary=shared)
        changed = table[:n].copy()
        changed[0, 0] = (changed[0, 0] + 1) % 3
        moved = ItemCodes.from_int(changed, (3, 3), "parent", shared_vocabulary=shared)
        assert not any(whole.extends(c.fingerprint, n, "parent") for c in (other, larger, moved))
    assert not whole.extends(whole.fingerprint, 7, "child") and whole.extends(whole.fingerprint, 6, "child")


def test_the_same_input_gives_the_same_bytes():
    vectors, catalog = planted(), catalog_of(60)
    source = TokenizerSource.of(catalog, embeddings=ItemEmbeddings(vectors[:60], catalog.fingerprint))
    child = child_of(catalog, vectors[:60], [f"n{k}" for k in range(15)], vectors[60:])
    found = []
    for _ in range(2):
        tokenizer = RqKMeans(RqKMeansSettings(n_levels=2, level_size=12, collisions="reassign"))
        found.append(append(tokenizer, tokenizer.fit(source, seed=1), child))
    assert found[0].codes.fingerprint == found[1].codes.fingerprint and found[0].report == found[1].report
