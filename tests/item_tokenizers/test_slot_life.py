"""Set identifiers of a growing catalog: nothing published moves, nothing retired comes back."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.catalog import ItemCatalog
from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import DataError, FingerprintMismatch
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.sets import SetRec, SetRecSettings
from genrec.item_tokenizers.slot_life import _alternatives, append_slots, moved_sets, retire_slots, slot_drift
from genrec.item_tokenizers.slots import ItemSlots

NAMES = ("collaborative", "semantic 1")


class Looked:
    """A fitted slot tokenizer that cuts an item's vector into two slots, as it is or as the nearest codewords."""

    def __init__(self, books: tuple[np.ndarray, ...] = ()):
        self.books, self.settings, self.slot_names = books, SimpleNamespace(kind="looked"), NAMES

    def encode(self, source: TokenizerSource) -> ItemSlots:
        x = source.vectors().reshape(source.n_items, 2, -1)
        if not self.books:
            return ItemSlots(x, NAMES, source.catalog)
        codes = [[int(((book - row[at]) ** 2).sum(axis=1).argmin()) for at, book in enumerate(self.books)] for row in x]
        return ItemSlots.of_codes(np.array(codes), self.books, NAMES, source.catalog)


def source_of(catalog: ItemCatalog, vectors: np.ndarray) -> TokenizerSource:
    return TokenizerSource.of(catalog, embeddings=ItemEmbeddings(vectors.astype(np.float32), catalog.fingerprint))


def catalog_of(n: int) -> ItemCatalog:
    return ItemCatalog(tuple(f"i{k}" for k in range(n)), {"title": [""] * n})


def slow_append(published, raw, retired, unique):
    """Sets of the new items, one after the other; every free set that differs in one slot is looked at."""
    codes = [tuple(row) for row in published.codes.tolist()]
    wanted = [tuple(row) for row in raw.codes.tolist()]
    forbidden = {code for code, gone in zip(codes, retired, strict=True) if gone}
    asked = [code in forbidden or (unique and code in (*codes, *wanted[:at])) for at, code in enumerate(wanted)]
    asked = [a and bool(raw.vectors[at].any()) for at, a in enumerate(asked)]
    taken = {*codes, *(code for code, a in zip(wanted, asked, strict=True) if not a)}
    out = list(wanted)
    # sets are served in the order in which they are first asked for, and the items of a set in key order
    for code in dict.fromkeys(code for code, a in zip(wanted, asked, strict=True) if a):
        options = []
        for at, book in enumerate(raw.codebooks):
            for k, word in enumerate(book):
                if k != code[at] and word.any() and book[code[at]].any():
                    other = (*code[:at], k, *code[at + 1 :])
                    cost = ((word - book[code[at]].astype(np.float64)) ** 2).sum()
                    options.append((float(cost), at, k, other))
        free = [option[3] for option in sorted(options) if option[3] not in taken]
        for at in [at for at, (w, a) in enumerate(zip(wanted, asked, strict=True)) if a and w == code]:
            out[at] = free.pop(0)  # IndexError: none is left
            taken.add(out[at])
    return out


@given(st.integers(0, 10**6), st.booleans(), st.integers(1, 10), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_codes_equal_a_slow_search(seed, unique, n, n_new):
    generator = np.random.default_rng(seed)
    books = tuple(generator.normal(size=(k, 3)).astype(np.float32) for k in (4, 5))
    for book in books:
        book[-1] = 0  # unknown
    tokenizer, catalog = Looked(books), catalog_of(n)
    vectors = generator.normal(size=(n + n_new, 6)) * (generator.random((n + n_new, 1)) < 0.8)
    copies = n + np.flatnonzero(generator.random(n_new) < 0.6)
    vectors[copies] = vectors[generator.integers(n, size=len(copies))]
    published = tokenizer.encode(source_of(catalog, vectors[:n]))
    gone = [f"i{k}" for k in range(n) if generator.random() < 0.5]
    child = retire_slots(published, catalog, gone).append([f"n{k}" for k in range(n_new)], {"title": [""] * n_new})
    source = source_of(child, vectors)
    order = n + np.argsort(source.item_keys[n:], kind="stable")
    retired = np.zeros(n, bool) if child.retired is None else child.retired[:n]
    try:
        expected = slow_append(published, tokenizer.encode(source.take(order)), retired, unique)
    except IndexError:
        with pytest.raises(DataError, match="no free set of codes is left"):
            append_slots(tokenizer, published, source, unique=unique)
        return
    made = append_slots(tokenizer, published, source, unique=unique)
    assert made.slots.codes[order].tolist() == [list(code) for code in expected]
    np.testing.assert_array_equal(made.slots.codes[:n], published.codes)
    np.testing.assert_array_equal(made.slots.vectors[:n], published.vectors)
    assert made.slots.catalog == child.fingerprint and len(moved_sets(published, made.slots)) == 0
    known = made.slots.vectors.any(axis=(1, 2))
    sets = [tuple(row) for row in made.slots.codes.tolist()]
    retired_sets = {code for code, gone in zip(sets, retired, strict=False) if gone}
    assert not any(code in retired_sets for code, k in zip(sets[n:], known[n:], strict=True) if k)
    assert made.report.get("collisions", 0) == sum(sets.count(code) > 1 for code in sets[n:])
    if unique:
        assert all(sets.count(code) == 1 for code, k in zip(sets[n:], known[n:], strict=True) if k)


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=30, deadline=None)
def test_continuous_sets_are_told_apart_by_the_last_bits(seed, unique):
    generator = np.random.default_rng(seed)
    n, n_new, tokenizer = 6, 8, Looked()
    kinds = generator.normal(size=(3, 6)).astype(np.float32)
    kinds[2, 3:] = 0  # nothing known in the second slot
    vectors = kinds[generator.integers(3, size=n + n_new)]
    if seed % 2:
        vectors[0] = kinds[0]
        vectors[1] = kinds[0]
        vectors[1, 3 + np.abs(kinds[0, 3:]).argmax()] = np.nextafter(
            kinds[0, 3 + np.abs(kinds[0, 3:]).argmax()],
            np.float32(np.inf) * np.sign(kinds[0, 3:][np.abs(kinds[0, 3:]).argmax()]),
        )  # the nearest free set is taken too
    catalog = catalog_of(n)
    published = tokenizer.encode(source_of(catalog, vectors[:n]))
    child = retire_slots(published, catalog, ["i0", "i1"]).append(
        [f"n{k}" for k in range(n_new)], {"title": [""] * n_new}
    )
    made = append_slots(tokenizer, published, source_of(child, vectors), unique=unique)
    np.testing.assert_array_equal(made.slots.vectors[:n], published.vectors)
    np.testing.assert_allclose(made.slots.vectors.reshape(-1, 6), vectors, rtol=1e-5)
    rows = [row.tobytes() for row in made.slots.vectors]
    assert not {rows[0], rows[1]} & set(rows[n:])
    if unique:
        assert len(set(rows[n:])) == n_new and not set(rows[:n]) & set(rows[n:])
    n_asked = sum(any((v == vectors[at]).all() for at in (0, 1)) for v in vectors[n:])
    assert unique or made.report["other_set"] == n_asked
    assert made.report["collisions"] == sum(rows.count(row) > 1 for row in rows[n:])
    np.testing.assert_array_equal(made.slots.known[:, 1], vectors[:, 3:].any(axis=1))


@pytest.mark.parametrize("level_size", [0, 8])
def test_the_real_tokenizer_keeps_its_word(level_size):
    generator = np.random.default_rng(0)
    n, catalog = 40, catalog_of(40)
    content = generator.normal(size=(60, 8)).astype(np.float32)
    content[50:] = content[:10]  # re-listed: alike to the last bit
    beside = np.zeros((60, 4), np.float32)  # nothing is known of behaviour but of some published ones
    beside[10:n] = generator.normal(size=(30, 4))

    def source(of: ItemCatalog) -> TokenizerSource:
        m = len(of)
        both = [ItemEmbeddings(table[:m], of.fingerprint) for table in (content, beside)]
        return TokenizerSource.of(of, embeddings=both[0], collaborative=both[1])

    options = {"n_semantic": 2, "dim": 4, "hidden": (8,), "epochs": 2, "level_size": level_size}
    tokenizer = SetRec(SetRecSettings(**options))
    published = tokenizer.fit(source(catalog), seed=0)
    retired = retire_slots(published, catalog, [f"i{k}" for k in range(10)])
    child = retired.append([f"n{k}" for k in range(20)], {"title": [""] * 20})
    made = append_slots(tokenizer, published, source(child))
    assert made.slots == append_slots(tokenizer, published, source(child)).slots
    drift = slot_drift(published, made.slots)
    assert drift["moved"] == [] and set(drift["n_moved_slot"].values()) == {0} and drift["same_slots"]
    rows = [row.tobytes() for row in made.slots.vectors]
    assert not set(rows[:10]) & set(rows[n:])
    assert made.report["other_set"] >= 10
    new = np.arange(n, 60)
    turned = catalog.retire([f"i{k}" for k in range(10)]).append(
        [f"n{k}" for k in reversed(range(20))], {"title": [""] * 20}
    )
    content[n:], beside[n:] = content[new[::-1]].copy(), beside[new[::-1]].copy()
    back = append_slots(tokenizer, published, source(turned))
    np.testing.assert_allclose(back.slots.vectors[new[::-1]], made.slots.vectors[n:], rtol=1e-4, atol=1e-5)
    moved = ItemSlots(made.slots.vectors + np.float32(1), made.slots.names, "x")
    assert len(slot_drift(published, moved)["moved"]) == n


def test_what_does_not_fit_is_refused():
    catalog, tokenizer = catalog_of(3), Looked()
    vectors = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    published = tokenizer.encode(source_of(catalog, vectors[:3]))
    child = catalog.append(["n"], {"title": [""]})
    other = ItemCatalog(("a", "b", "c", "n"), {"title": [""] * 4})
    with pytest.raises(FingerprintMismatch, match="first items of catalog"):
        append_slots(tokenizer, published, source_of(other, vectors))
    with pytest.raises(DataError, match="of width 2, the published ones are"):
        append_slots(tokenizer, published, source_of(child, vectors[:, :4]))
    book = np.eye(3, dtype=np.float32)
    discrete = Looked((book, book))
    with pytest.raises(DataError, match="codebooks"):
        append_slots(discrete, published, source_of(child, vectors))
    assert append_slots(tokenizer, published, source_of(catalog, vectors[:3])).report["n_new"] == 0
    gone = retire_slots(published, catalog, ["i1"])
    assert gone.retired.tolist() == [False, True, False] and gone.fingerprint == published.catalog
    with pytest.raises(DataError, match=r"1 of these items are retired already, first \['i1'\]"):
        retire_slots(published, gone, ["i0", "i1"])
    with pytest.raises(DataError):
        retire_slots(published, catalog, ["nobody"])


def test_equal_codewords_are_one_set():
    """A codebook with a repeated codeword: codes differ, vectors do not, so the retired set is not given again."""
    book = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    slots = ItemSlots.of_codes(np.array([[0, 0], [1, 0], [2, 2]]), (book, book), ("a", "b"), "c")
    ids = slots.collision_ids()
    assert ids[0] == ids[1] != ids[2]
    slot, code = _alternatives(slots, np.array([0, 0]))
    assert all((book[k] != book[0]).any() for k in code.tolist()) and len(slot) == 2
