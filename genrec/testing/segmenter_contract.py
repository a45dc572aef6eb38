"""The promises every segmenter of histories keeps, as a test class to inherit from.

::

    class TestMine(SegmenterContract):
        def make(self) -> HistorySegmenter:
            return MySegmenter(MySettings(n_tokens=100))

Stability: experimental.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from genrec import artifacts
from genrec.data.histories import Histories
from genrec.errors import ConfigError, DataError, FingerprintMismatch, NotFitted
from genrec.item_tokenizers.base import KIND, TokenizerSource
from genrec.item_tokenizers.registry import build, load_segmenter, load_tokenizer
from genrec.item_tokenizers.segmenter import HistorySegmenter, TokenRows
from genrec.seeding import rng
from genrec.testing.tokenizer_contract import planted_source


def planted_history_source(n_items: int = 60, n_users: int = 80, seed: int = 0) -> TokenizerSource:
    """:func:`planted_source` with training histories that often go on to the next item number; the first is empty."""
    generator = rng(seed, "planted histories")
    rows: list[list[int]] = [[]]
    for _ in range(n_users - 1):
        row = [int(generator.integers(n_items))]
        for _ in range(int(generator.integers(8))):
            follows = generator.random() < 0.7
            row.append((row[-1] + 1) % n_items if follows else int(generator.integers(n_items)))
        rows.append(row)
    return replace(planted_source(n_items, seed=seed), train=Histories.from_lists(rows))


class SegmenterContract:
    """Subclass it, override :meth:`make` (an unfitted segmenter, small and quick), inherit the checks."""

    def make(self) -> HistorySegmenter:
        """A new unfitted segmenter; called several times per test."""
        raise NotImplementedError

    def source(self) -> TokenizerSource:
        """What the segmenter is fitted on; histories included."""
        return planted_history_source()

    def fitted(self) -> HistorySegmenter:
        """A segmenter fitted on :meth:`source`."""
        segmenter = self.make()
        segmenter.fit(self.source(), seed=3)
        return segmenter

    def test_it_is_a_segmenter(self, tmp_path: Path) -> None:
        """It has the protocol's members, and what expects codes refuses it."""
        segmenter = self.fitted()
        assert isinstance(segmenter, HistorySegmenter)
        assert segmenter.gives == "tokens"
        assert isinstance(segmenter.settings, type(segmenter).Settings)
        segmenter.save(tmp_path / "segmenter")
        with pytest.raises(ConfigError, match="gives codes"):
            load_tokenizer(tmp_path / "segmenter")
        with pytest.raises(ConfigError, match="gives codes"):
            build(segmenter.settings)

    def test_targets_stand_for_their_items(self) -> None:
        """Every item's target tokens are found again, in any order; all are allowed; part of a target is no item."""
        source, segmenter = self.source(), self.make()
        targets = segmenter.fit(source, seed=3)
        items = np.arange(source.n_items)
        assert targets.to_lists() == segmenter.target_tokens(items).to_lists()
        assert segmenter.target_tokens(items[::-3]).to_lists() == targets.take(items[::-3]).to_lists()
        assert segmenter.items_of(targets).tolist() == items.tolist()
        turned = TokenRows.from_lists([row[::-1] for row in targets.to_lists()], segmenter.n_tokens)
        assert segmenter.items_of(turned).tolist() == items.tolist()
        allowed = segmenter.target_mask()
        assert allowed.shape == (segmenter.n_tokens,)
        assert allowed[targets.tokens].all()
        broken = [rows for row in targets.to_lists() for rows in (row[1:], [*row, row[0]], [*row, *row])]
        found = segmenter.items_of(TokenRows.from_lists(broken, segmenter.n_tokens))
        assert (found == -1).all()

    @pytest.mark.parametrize("seed", [None, 0, 1])
    def test_features_are_conserved(self, seed: int | None) -> None:
        """The tokens of a history stand for the features of its items, no more, no fewer."""
        source, segmenter = self.source(), self.fitted()
        histories = source.histories()
        rows = segmenter.expand(segmenter.segment(histories, seed=seed)).to_lists()
        alone = segmenter.expand(segmenter.target_tokens(np.arange(source.n_items))).to_lists()
        for items, row in zip(histories.to_lists(), rows, strict=True):
            assert sorted(row) == sorted(feature for item in items for feature in alone[item])

    def test_without_seed_a_row_depends_on_itself_alone(self) -> None:
        """The one segmentation is the same again, in other company, and alone."""
        histories, segmenter = self.source().histories(), self.fitted()
        rows = segmenter.segment(histories).to_lists()
        assert segmenter.segment(histories).to_lists() == rows
        for n in range(0, len(rows), 9):
            assert segmenter.segment(histories.take([n])).to_lists() == [rows[n]]

    def test_a_seed_names_a_view(self) -> None:
        """One seed gives one segmentation, another seed another."""
        histories, segmenter = self.source().histories(), self.fitted()
        views = [segmenter.segment(histories, seed=seed).to_lists() for seed in (0, 0, 1)]
        assert views[0] == views[1] != views[2]

    def test_empty_histories(self) -> None:
        """A history without items has no tokens, with or without company."""
        segmenter = self.fitted()
        for seed in (None, 0):
            assert segmenter.segment(Histories.from_lists([]), seed=seed).to_lists() == []
            assert segmenter.segment(Histories.from_lists([[], []]), seed=seed).to_lists() == [[], []]
            found = segmenter.segment(Histories.from_lists([[], [0, 1], []]), seed=seed).to_lists()
            assert found[1] and not found[0] and not found[2]
        assert segmenter.target_tokens([]).to_lists() == []

    def test_unknown_items_are_refused(self) -> None:
        """Item numbers that are not of the catalog."""
        segmenter, n_items = self.fitted(), self.source().n_items
        for wrong in (-1, n_items):
            with pytest.raises(DataError):
                segmenter.segment(Histories.from_lists([[0, wrong]]))
            with pytest.raises(DataError):
                segmenter.target_tokens([wrong])

    def test_fit_is_deterministic(self, tmp_path: Path) -> None:
        """Same source and seed: same target tokens, and the same digests of all files."""
        found = []
        for name in ("a", "b"):
            segmenter = self.make()
            targets = segmenter.fit(self.source(), seed=3)
            segmenter.save(tmp_path / name)
            found.append((targets.to_lists(), artifacts.read(tmp_path / name, kind=KIND).files))
        assert found[0] == found[1]

    def test_inputs_and_global_random_state_stay_untouched(self) -> None:
        """Neither fitting nor segmenting writes into what it is given, or moves numpy's global generator."""
        source, segmenter, before = self.source(), self.make(), _global_state()
        histories = source.histories()
        arrays: list[npt.NDArray[Any]] = [source.item_keys, histories.offsets, histories.items]
        arrays += [] if source.embeddings is None else [source.vectors()]
        copies = [array.copy() for array in arrays]
        segmenter.fit(source, seed=3)
        mask = segmenter.target_mask()
        mask[:] = False  # a copy
        assert segmenter.target_mask().any()
        for seed in (None, 0):
            segmenter.segment(histories, seed=seed)
        for array, copy in zip(arrays, copies, strict=True):
            np.testing.assert_array_equal(array, copy)
        assert _global_state() == before

    def test_saved_segmenter_segments_alike(self, tmp_path: Path) -> None:
        """Saving and loading (by class, and by kind) changes neither settings nor a token."""
        source, segmenter = self.source(), self.fitted()
        segmenter.save(tmp_path / "segmenter")
        loaders: list[Callable[..., HistorySegmenter]] = [type(segmenter).load, load_segmenter]
        for load in loaders:
            back = load(tmp_path / "segmenter", catalog=source.catalog)
            assert back.settings == segmenter.settings
            assert back.n_tokens == segmenter.n_tokens
            np.testing.assert_array_equal(back.target_mask(), segmenter.target_mask())
            for seed in (None, 5):
                rows = [one.segment(source.histories(), seed=seed).to_lists() for one in (back, segmenter)]
                assert rows[0] == rows[1]
        with pytest.raises(FingerprintMismatch):
            load_segmenter(tmp_path / "segmenter", catalog="0" * 32)

    def test_unfitted_segmenter_says_so(self, tmp_path: Path) -> None:
        """Nothing works before fit."""
        segmenter, histories = self.make(), self.source().histories()
        calls: list[Callable[[], Any]] = [
            lambda: segmenter.segment(histories),
            lambda: segmenter.target_tokens([0]),
            segmenter.target_mask,
            lambda: segmenter.n_tokens,
            lambda: segmenter.save(tmp_path / "segmenter"),
        ]
        for call in calls:
            with pytest.raises(NotFitted):
                call()

    def test_sources_without_items_or_histories_are_refused(self) -> None:
        """An empty catalog, no training histories, and histories without events."""
        source = self.source()
        none = Histories.from_lists([[], []])
        empty = TokenizerSource(source.catalog, np.zeros(0, dtype=np.uint64))
        for wrong in (empty, replace(source, train=None), replace(source, train=none)):
            with pytest.raises(DataError):
                self.make().fit(wrong, seed=3)


def _global_state() -> list[Any]:
    return [np.asarray(part).tolist() for part in np.random.get_state(legacy=True)]  # noqa: NPY002 - looked at only
