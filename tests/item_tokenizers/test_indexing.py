from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.data.catalog import ItemCatalog
from genrec.data.histories import Histories
from genrec.data.interactions import Interactions
from genrec.data.splits import leave_one_out
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.indexing import (
    Independent,
    RandomIds,
    RandomSettings,
    Sequential,
    SequentialSettings,
    distinct_rows,
)
from genrec.item_tokenizers.text_pieces import digits
from genrec.testing.tokenizer_contract import TokenizerContract, planted_source
from genrec.vocab.token_map import TokenMap


class Contract(TokenizerContract):
    needs_vectors = False

    def source(self):
        train = Histories.from_lists([[5, 3, 5], [], [40, 3, 2, 1], [89]])
        return replace(planted_source(), embeddings=None, train=train)


class TestIndependent(Contract):
    def make(self):
        return Independent()


class TestRandomDigits(Contract):
    def make(self):
        return RandomIds()


class TestRandomCodes(Contract):
    def make(self):
        return RandomIds(RandomSettings(written="codes", n_levels=2, level_size=(10, 9)))


class TestSequential(Contract):
    def make(self):
        return Sequential(SequentialSettings(order="random"))


del Contract


def numbers_of(codes, base=10):
    """The number that each row of digits writes."""
    return [
        sum(d * base**at for at, d in enumerate(reversed([d for d in row if d >= 0])))
        for row in codes.as_int().tolist()
    ]


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20), st.integers(2, 300))
@settings(max_examples=60, deadline=None)
def test_digits_are_divisions(numbers, base):
    found = digits(np.array(numbers), base).tolist()
    for number, row in zip(numbers, found, strict=True):
        expected = []
        while number or not expected:
            number, digit = divmod(number, base)
            expected.insert(0, digit)
        assert row == expected + [-1] * (len(row) - len(expected))
    assert min(row.count(-1) for row in found) == 0


def test_independent_codes_are_the_order_of_the_keys():
    source = planted_source()
    codes = Independent().fit(source, seed=0)
    assert codes.level_sizes == (90,)
    assert codes.codes[np.argsort(source.item_keys), 0].tolist() == list(range(90))


@pytest.mark.parametrize("base", [10, 7])
@pytest.mark.parametrize("n_numbers", [None, 90, 100, 5000])
def test_random_numbers_are_distinct_and_in_range(n_numbers, base):
    tokenizer = RandomIds(RandomSettings(first_number=970, n_numbers=n_numbers, base=base))
    codes = tokenizer.fit(planted_source(), seed=0)
    numbers = numbers_of(codes, base)
    assert len(set(numbers)) == 90
    assert min(numbers) >= 970 and max(numbers) < 970 + (n_numbers or 90)
    assert codes.pieces == (tuple("0123456789") if base == 10 else ())
    assert tokenizer.fit(planted_source(), seed=1).fingerprint != codes.fingerprint


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_distinct_rows(sizes, share, seed):
    n = int(share * np.prod(sizes))
    rows = distinct_rows(tuple(sizes), n, np.random.default_rng(seed))
    assert rows.shape == (n, len(sizes))
    assert len(set(map(tuple, rows.tolist()))) == n
    assert n == 0 or ((rows >= 0) & (rows < sizes)).all()


@pytest.mark.parametrize("sizes", [(5, 4), (40, 30, 20)])  # dealt from all rows, and by rejection
def test_distinct_rows_are_spread_evenly(sizes):
    found = np.stack([distinct_rows(sizes, 10, np.random.default_rng(seed)) for seed in range(300)])
    for codes in (found[:, :, 0].ravel(), found[:, 0, 0]):  # of all rows, and of the first
        expected = len(codes) / sizes[0]
        counts = np.bincount(codes, minlength=sizes[0])
        assert ((counts - expected) ** 2 / expected).sum() < sizes[0] - 1 + 5 * np.sqrt(2 * sizes[0])  # chi square


def test_random_codes_fill_what_there_is_and_no_more():
    tokenizer = RandomIds(RandomSettings(written="codes", n_levels=2, level_size=(10, 9)))
    codes = tokenizer.fit(planted_source(), seed=0)
    assert len({tuple(row) for row in codes.codes.tolist()}) == 90
    assert (codes.level_sizes, codes.shared_vocabulary) == ((10, 9), False)
    with pytest.raises(DataError, match="90 items do not fit into 81 identifiers"):
        RandomIds(replace(tokenizer.settings, level_size=9)).fit(planted_source(), seed=0)
    with pytest.raises(DataError, match="fit"):
        RandomIds(RandomSettings(n_numbers=89)).fit(planted_source(), seed=0)


def walked(rows, users, keys):
    """Slow version: numbers by first use, then by key."""
    number = {}
    for user in users:
        for item in rows[user]:
            number.setdefault(item, len(number))
    for item in sorted(set(range(len(keys))) - set(number), key=lambda n: keys[n]):
        number[item] = len(number)
    return [number[item] for item in range(len(keys))]


@given(st.lists(st.lists(st.integers(0, 8), max_size=5), max_size=6))
@settings(max_examples=60, deadline=None)
def test_sequential_numbers_follow_the_walk(rows):
    source = replace(planted_source(9), train=Histories.from_lists(rows))
    by_length = sorted(range(len(rows)), key=lambda u: len(rows[u]))
    by_length_down = sorted(range(len(rows)), key=lambda u: -len(rows[u]))
    for order, users in (("original", range(len(rows))), ("short_first", by_length), ("long_first", by_length_down)):
        codes = Sequential(SequentialSettings(order=order)).fit(source, seed=0)
        assert [n - 1001 for n in numbers_of(codes)] == walked(rows, users, source.item_keys.tolist())


def test_random_order_of_users_is_seeded_and_an_order_of_users():
    rows = [[n] for n in range(9)]
    source = replace(planted_source(9), train=Histories.from_lists(rows))
    settings = SequentialSettings(order="random", first_number=1)
    found = {seed: numbers_of(Sequential(settings).fit(source, seed=seed)) for seed in range(3)}
    assert all(sorted(numbers) == list(range(1, 10)) for numbers in found.values())
    assert len({tuple(numbers) for numbers in found.values()}) == 3
    assert numbers_of(Sequential(settings).fit(source, seed=1)) == found[1]


def test_valid_and_test_events_never_reach_the_numbers():
    """The leak of sequential indexing: number the answers too, and the answer is the next number."""
    n_users, length, n_items = 30, 6, 400
    generator = np.random.default_rng(0)
    ids = tuple(f"i{n}" for n in range(n_items))
    catalog = ItemCatalog(ids, {"title": list(ids)})
    events = generator.permutation(n_items)[: n_users * length].reshape(n_users, length)
    other = events.copy()
    other[:, -2:] = generator.permutation(other[:, -2:].ravel()).reshape(-1, 2)  # other answers, same training part

    def fitted(table, train_only=True):
        user = np.repeat(np.arange(n_users), length)
        time = np.tile(np.arange(length), n_users)
        users = tuple(f"u{n}" for n in range(n_users))
        log = Interactions(users, user, table.ravel(), time, n_items, catalog.fingerprint)
        split = leave_one_out(log)
        train = split.train() if train_only else Histories.from_lists(list(table))
        return np.array(numbers_of(Sequential().fit(TokenizerSource.of(catalog, train=train), seed=0)))

    numbers = fitted(events)
    assert fitted(other).tolist() == numbers.tolist()
    assert (numbers[events[:, 3]] - numbers[events[:, 2]] == 1).all()  # what the training part says
    assert (np.abs(numbers[events[:, -1]] - numbers[events[:, -3]]) > 2).mean() > 0.9
    leaking = fitted(events, train_only=False)
    assert (leaking[events[:, -1]] - leaking[events[:, -2]] == 1).all()


@pytest.mark.parametrize("make", [Independent, RandomIds, lambda: RandomIds(RandomSettings(written="codes"))])
def test_the_order_of_the_catalog_does_not_matter(make):
    source = planted_source()
    order = np.random.default_rng(0).permutation(90)
    turned = TokenizerSource(source.catalog, source.item_keys[order])
    plain, other = (make().fit(s, seed=0).as_int() for s in (source, turned))
    assert other.tolist() == plain[order].tolist()


def test_numbers_make_tokens():
    codes = RandomIds(RandomSettings(first_number=95, n_numbers=90)).fit(planted_source(), seed=0)
    assert codes.ragged and codes.shared_vocabulary
    tokens = TokenMap.of(codes)
    assert tokens.codes(tokens.token_ids(codes.as_int())).tolist() == codes.as_int().tolist()


@pytest.mark.parametrize(
    ("settings_class", "wrong"),
    [
        (RandomSettings, {"written": "words"}),
        (RandomSettings, {"first_number": -1}),
        (RandomSettings, {"n_numbers": 0}),
        (RandomSettings, {"base": 1}),
        (RandomSettings, {"level_size": (3, 4)}),
        (RandomSettings, {"level_size": 0}),
        (RandomSettings, {"text_tokenizer": "t5-small", "base": 16}),
        (SequentialSettings, {"order": "newest"}),
        (SequentialSettings, {"base": 1 << 17}),
    ],
)
def test_settings_out_of_range(settings_class, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        settings_class(**wrong)
