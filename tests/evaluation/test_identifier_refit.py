"""Figures that need an item tokenizer fitted again: appended codes beside those of a new fit."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from genrec.data.catalog import ItemCatalog
from genrec.data.histories import Histories
from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import DataError
from genrec.evaluation.identifier_refit import _compared, _grown, append_figures
from genrec.item_tokenizers.base import TokenizerSource
from genrec.item_tokenizers.codes import ItemCodes
from genrec.item_tokenizers.life import append
from genrec.item_tokenizers.rqkmeans import RqKMeans, RqKMeansSettings
from genrec.item_tokenizers.spectral import Spectral, SpectralSettings
from genrec.seeding import derive, rng

N = 120


def shop() -> TokenizerSource:
    generator = np.random.default_rng(0)
    group = np.arange(N) // 20
    catalog = ItemCatalog(tuple(f"i{n}" for n in range(N)), {"title": [f"thing {n}" for n in range(N)]})
    vectors = (3 * np.eye(6, 8)[group] + generator.normal(size=(N, 8))).astype(np.float32)
    rows = [generator.choice(20, 5, replace=False) + 20 * (user % 6) for user in range(80)]
    return TokenizerSource.of(
        catalog, embeddings=ItemEmbeddings(vectors, catalog.fingerprint), train=Histories.from_lists(rows)
    )


@pytest.mark.parametrize("collisions", ["suffix", "reassign", "shared"])
def test_append_against_a_new_fit_equals_slow_definitions(collisions: str) -> None:
    source = shop()
    settings = RqKMeansSettings(n_levels=2, level_size=12, collisions=collisions)
    seed = derive(4, "inspect", "refit")
    fresh = RqKMeans(settings).fit(source, seed=seed)
    figures = append_figures(settings, source, fresh, 4)
    assert figures == append_figures(settings, source, fresh, 4)

    drawn = rng(4, "inspect", "append").permutation(N).tolist()  # six of 120 are new
    order = sorted(drawn[6:]) + sorted(drawn[:6])
    ids, vectors = source.fields().ids, source.vectors()
    old = ItemCatalog(tuple(ids[n] for n in order[:114]), {"title": [""] * 114})
    child = old.append([ids[n] for n in order[114:]], {"title": [""] * 6})
    parts = [
        TokenizerSource.of(part, embeddings=ItemEmbeddings(vectors[order[: len(part)]], part.fingerprint))
        for part in (old, child)
    ]
    tokenizer = RqKMeans(settings)
    published = tokenizer.fit(parts[0], seed=seed)
    rows = append(tokenizer, published, parts[1]).codes.as_int().tolist()
    assert rows[:114] == published.as_int().tolist() and figures["append_moved"] == 0
    for depth in (1, 2):
        groups = [str(row[:depth]) for row in rows], [str(fresh.as_int()[n, :depth].tolist()) for n in order]
        assert figures["append_adjusted_rand"][depth - 1] == pytest.approx(adjusted_rand_score(*groups))
        known = [row[:depth] for row in rows[:114]]
        share = np.mean([row[:depth] in known for row in rows[114:]])
        assert figures["append_occupied"][depth - 1] == pytest.approx(share)
        pairs = [(a, b) for a in range(N) for b in range(a) if groups[0][a] == groups[0][b]]
        kept = [groups[1][a] == groups[1][b] for a, b in pairs]
        if pairs:
            assert figures["append_pairs_kept"][depth - 1] == pytest.approx(np.mean(kept))
        else:
            assert figures["append_pairs_kept"][depth - 1] is None
    assert len(figures["append_occupied"]) == 2  # the suffix numbers items: it is left out
    assert 0.3 < figures["append_adjusted_rand"][0] <= 1


def test_published_items_lose_the_events_of_new_ones() -> None:
    source = shop()
    order = np.array([*range(5, N), *range(5)])
    parent, child = _grown(source, order, N - 5)
    assert parent.train is not None and child.train is not None and source.train is not None
    for part, size in ((parent, N - 5), (child, N)):
        place = {item: at for at, item in enumerate(order[:size].tolist())}
        expected = [[place[item] for item in row if item in place] for row in source.train.to_lists()]
        assert part.train is not None and part.train.to_lists() == expected
        assert part.fields().ids == tuple(f"i{n}" for n in order[:size])
        np.testing.assert_array_equal(part.vectors(), source.vectors()[order[:size]])
        np.testing.assert_array_equal(part.item_keys, source.item_keys[order[:size]])
    assert child.fields().extends(parent.catalog, N - 5)


def test_a_tokenizer_of_histories_is_appended_to_by_neighbours() -> None:
    source = shop()
    settings = SpectralSettings(n_clusters=6, max_leaf=8)
    fresh = Spectral(settings).fit(source, seed=derive(0, "inspect", "refit"))
    figures = append_figures(settings, source, fresh, 0)
    assert figures["append_moved"] == 0 and figures["append_occupied"][0] == 1
    assert figures["append_adjusted_rand"][0] > 0.5


def test_a_moved_identifier_is_seen() -> None:
    published = ItemCodes(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), (2, 3), "c")
    rows = np.array([[0, 0], [0, 2], [1, 0], [1, 1], [0, 1], [1, 2]])
    found = _compared(published, ItemCodes(rows, (2, 3), "d"), ItemCodes(1 - rows % 2, (2, 3), "d"), 2)
    assert found["append_moved"] == 1 / 4
    assert found["append_occupied"] == [1, 0]


def test_no_room_is_an_error_here() -> None:
    source = shop()
    settings = RqKMeansSettings(n_levels=1, level_size=N - 6, collisions="reassign")
    with pytest.raises(DataError, match="do not fit"):
        append_figures(settings, source, RqKMeans(RqKMeansSettings(n_levels=1, level_size=N)).fit(source, seed=0), 0)
