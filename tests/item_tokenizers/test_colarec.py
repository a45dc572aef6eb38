from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import ConfigError, DataError
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.colarec import ColaRec, ColaRecSettings
from genrec.item_tokenizers.fitted import nearest_groups
from genrec.testing.tokenizer_contract import CATALOG, TokenizerContract, planted_source

SMALL = ColaRecSettings(n_levels=3, level_size=6)


def source_of(n_items=90, cold=(), n_groups=6):
    """Collaborative vectors in groups, zero for cold items; content vectors are others."""
    found = planted_source(n_items, n_groups=n_groups, seed=1).embeddings.vectors.copy()
    found[list(cold)] = 0
    return replace(planted_source(n_items), collaborative=ItemEmbeddings(found, CATALOG, {}))


class TestContract(TokenizerContract):
    needs_vectors = False

    def make(self):
        return ColaRec(SMALL)

    def source(self):
        return source_of(cold=range(5))

    def test_one_item_and_all_alike(self):
        for n in (1, 5):
            same = TokenizerSource(
                CATALOG,
                np.arange(n, dtype=np.uint64)[::-1],
                collaborative=ItemEmbeddings(np.ones((n, 3), np.float32), CATALOG, {}),
            )
            assert self.make().fit(same, seed=0).collisions() == []


@pytest.mark.parametrize(("n_levels", "size", "n_items"), [(2, 9, 81), (3, 4, 50), (3, 4, 64), (4, 3, 70), (3, 2, 8)])
def test_clusters_keep_their_limits_up_to_a_full_house(n_levels, size, n_items):
    codes = ColaRec(ColaRecSettings(n_levels=n_levels, level_size=size)).fit(source_of(n_items), seed=0)
    rows = codes.codes.tolist()
    assert codes.level_sizes == (size,) * n_levels and not codes.ragged
    assert len(set(map(tuple, rows))) == n_items
    for depth in range(1, n_levels):
        members = Counter(tuple(row[:depth]) for row in rows)
        assert max(members.values()) <= size ** (n_levels - depth)
    for prefix, count in Counter(tuple(row[:-1]) for row in rows).items():
        assert sorted(row[-1] for row in rows if tuple(row[:-1]) == prefix) == list(range(count))


def test_planted_groups_are_the_first_level():
    source = source_of(120, n_groups=5)
    codes = ColaRec(ColaRecSettings(level_size=5, n_levels=4)).fit(source, seed=0).codes
    vectors = source.collaborative.vectors
    spread = [vectors[codes[:, 0] == c].std(axis=0).mean() for c in range(5)]
    assert max(spread) < 2  # within a group 1, over all groups 6
    deeper = [vectors[(codes[:, :2] == pair).all(axis=1)].std(axis=0).mean() for pair in {(0, 0), (1, 1)}]
    assert max(deeper) < max(spread)


def test_last_codes_follow_the_hashes():
    source = source_of()
    codes = ColaRec(SMALL).fit(source, seed=0).codes
    for prefix in np.unique(codes[:, :2], axis=0):
        inside = np.flatnonzero((codes[:, :2] == prefix).all(axis=1))
        by_key = inside[np.argsort(source.item_keys[inside])]
        assert codes[by_key, 2].tolist() == list(range(len(inside)))


def test_the_order_of_the_catalog_does_not_matter():
    source = source_of(cold=(3, 7, 20))
    order = np.random.default_rng(0).permutation(90)
    turned = TokenizerSource(
        CATALOG,
        source.item_keys[order],
        embeddings=ItemEmbeddings(source.embeddings.vectors[order], CATALOG, {}),
        collaborative=ItemEmbeddings(source.collaborative.vectors[order], CATALOG, {}),
    )
    plain, other = (ColaRec(SMALL).fit(s, seed=0).codes for s in (source, turned))
    assert other.tolist() == plain[order].tolist()


def test_cold_items_join_their_neighbour_and_move_nobody():
    n, cold = 90, [80, 81, 82]
    source = source_of(n, cold)
    content = np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32)
    content[cold] = content[[0, 1, 2]] / 2
    source = replace(source, embeddings=ItemEmbeddings(content, CATALOG, {}))
    tokenizer = ColaRec(replace(SMALL, level_size=8))
    codes = tokenizer.fit(source, seed=0).codes
    assert codes[cold, :2].tolist() == codes[[0, 1, 2], :2].tolist()
    warm = np.delete(np.arange(n), cold)
    alone = TokenizerSource(
        CATALOG,
        source.item_keys[warm],
        collaborative=ItemEmbeddings(source.collaborative.vectors[warm], CATALOG, {}),
    )
    assert ColaRec(tokenizer.settings).fit(alone, seed=0).codes.tolist() == codes[warm].tolist()
    assert tokenizer.report["n_cold"] == 3


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(0, 12), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_nearest_groups_equals_taking_turns(seed, n_groups, n_lost, most_room):
    generator = np.random.default_rng(seed)
    n = n_lost + 3 * n_groups
    content = generator.normal(size=(n, 3)).astype(np.float32)
    groups = np.concatenate([np.repeat(np.arange(n_groups) * 2, 3), np.full(n_lost, -1)])
    mixed = generator.permutation(n)
    groups, keys = groups[mixed], generator.permutation(n).astype(np.uint64)
    room = generator.integers(0, most_room + 1, size=2 * n_groups)
    expected, left = groups.copy(), room.copy()
    unit = content / np.linalg.norm(content, axis=1, keepdims=True)
    for item in sorted(np.flatnonzero(groups < 0), key=lambda n: keys[n]):
        near = [n for n in np.flatnonzero(groups >= 0) if left[groups[n]] > 0]
        if not near:
            with pytest.raises(DataError, match="room"):
                nearest_groups(content, groups, room, keys)
            return
        best = max(near, key=lambda n: unit[n] @ unit[item])
        expected[item] = groups[best]
        left[groups[best]] -= 1
    assert nearest_groups(content, groups, room, keys).tolist() == expected.tolist()


def test_sources_it_cannot_use():
    source = source_of(cold=(1,))
    for broken, message in (
        (replace(source, collaborative=None), "collaborative"),
        (replace(source, embeddings=None), "item vectors"),
        (source_of(cold=range(90)), "every row is zero"),
        (source_of(217), "217 items do not fit into 216 identifiers"),
    ):
        with pytest.raises(DataError, match=message):
            ColaRec(SMALL).fit(broken, seed=0)


@pytest.mark.parametrize("wrong", [{"n_levels": 1}, {"level_size": 1}, {"max_iterations": 0}])
def test_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ColaRecSettings(**wrong)
