"""The promises every item tokenizer keeps, as a test class to inherit from.

::

    class TestMine(TokenizerContract):
        def make(self) -> ItemTokenizer:
            return MyTokenizer(MySettings(n_levels=2, level_size=8))

Axes: N items, D width. What is *not* promised: that permuting the items permutes the codes. Random starts are
drawn by row, so another order of the catalog may give other (equally good) codes; what may not happen is that
the order of items shows in the identifiers of items that are otherwise alike (``item_keys`` decide there).
Stability: experimental.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from genrec import artifacts
from genrec.embeddings.base import ItemEmbeddings
from genrec.errors import ConfigError, DataError, FingerprintMismatch, NotFitted
from genrec.item_tokenizers.base import KIND, ItemTokenizer, TokenizerSource
from genrec.item_tokenizers.registry import load_tokenizer
from genrec.seeding import id_hash, rng

CATALOG = "c0ffee" * 5 + "00"


def planted_source(n_items: int = 90, dim: int = 12, n_groups: int = 6, seed: int = 0) -> TokenizerSource:
    """Items in well separated groups, every tenth an exact copy of the one before (so that codes collide)."""
    generator = rng(seed, "planted source")
    centres = 6 * generator.normal(size=(n_groups, dim))
    vectors = centres[generator.integers(n_groups, size=n_items)] + generator.normal(size=(n_items, dim))
    vectors[10::10] = vectors[9:-1:10]
    ids = [f"item-{n}" for n in range(n_items)]
    return TokenizerSource(
        CATALOG, id_hash(ids, seed), ItemEmbeddings(vectors.astype(np.float32), CATALOG, {"kind": "planted"})
    )


class TokenizerContract:
    """Subclass it, override :meth:`make` (an unfitted tokenizer, small and quick), inherit the checks.

    ``needs_vectors``: False when no vectors are needed (then the checks of vectors are skipped).
    """

    needs_vectors = True

    def make(self) -> ItemTokenizer:
        """A new unfitted item tokenizer; called several times per test."""
        raise NotImplementedError

    def source(self) -> TokenizerSource:
        """What the tokenizer is fitted on; override for a tokenizer that needs more than vectors."""
        return planted_source()

    def unknown(self, source: TokenizerSource) -> TokenizerSource:
        """Items that ``source`` does not have; override for a tokenizer that needs more than vectors."""
        far = rng(0, "far away").normal(size=(5, source.vectors().shape[1])) * 100
        return TokenizerSource.of_vectors(np.concatenate([source.vectors()[::2] + 0.25, far]).astype(np.float32))

    def test_codes_fit_the_catalog(self) -> None:
        """One row per item, codes within the level sizes (ItemCodes checks), the catalog's fingerprint."""
        source = self.source()
        codes = self.make().fit(source, seed=3)
        assert len(codes) == source.n_items
        assert codes.catalog == source.catalog
        assert codes.report()["level_usage"][0] > 0

    def test_fit_is_deterministic(self) -> None:
        """Same source and seed: same codes, and the same bytes on disk but for the date."""
        first = self.make().fit(self.source(), seed=3)
        assert self.make().fit(self.source(), seed=3).fingerprint == first.fingerprint

    def test_save_is_deterministic(self, tmp_path: Path) -> None:
        """Same source and seed: the files have the same digests."""
        digests = []
        for name in ("a", "b"):
            tokenizer = self.make()
            tokenizer.fit(self.source(), seed=3)
            tokenizer.save(tmp_path / name)
            digests.append(artifacts.read(tmp_path / name, kind=KIND).files)
        assert digests[0] == digests[1]

    def test_global_random_state_is_left_alone(self) -> None:
        """Fitting neither reads nor moves numpy's global generator."""
        before = _global_state()
        self.make().fit(self.source(), seed=3)
        assert _global_state() == before

    def test_inputs_stay_untouched(self) -> None:
        """Fitting and encoding write into none of the arrays they are given."""
        source = self.source()
        copies = [array.copy() for array in _arrays(source)]
        tokenizer = self.make()
        tokenizer.fit(source, seed=3)
        if tokenizer.can_encode_new:
            tokenizer.encode(source)
        for array, copy in zip(_arrays(source), copies, strict=True):
            np.testing.assert_array_equal(array, copy)

    def test_saved_tokenizer_encodes_alike(self, tmp_path: Path) -> None:
        """Saving and loading (by class, and by kind) changes neither settings nor codes."""
        source, tokenizer = self.source(), self.make()
        tokenizer.fit(source, seed=3)
        tokenizer.save(tmp_path / "tokenizer")
        for back in (
            type(tokenizer).load(tmp_path / "tokenizer", catalog=source.catalog),
            load_tokenizer(tmp_path / "tokenizer"),
        ):
            assert back.settings == tokenizer.settings
            if tokenizer.can_encode_new:
                new = self.unknown(source)
                assert back.encode(new).as_int().tolist() == tokenizer.encode(new).as_int().tolist()

    def test_saved_tokenizer_names_its_catalog(self, tmp_path: Path) -> None:
        """Loading for another catalog is refused."""
        tokenizer = self.make()
        tokenizer.fit(self.source(), seed=3)
        tokenizer.save(tmp_path / "tokenizer")
        with pytest.raises(FingerprintMismatch):
            type(tokenizer).load(tmp_path / "tokenizer", catalog="0" * 32)

    def test_new_items_get_codes(self) -> None:
        """Items encode however many there are, each by itself; copies of known ones as the known ones."""
        source, tokenizer = self.source(), self.make()
        tokenizer.fit(source, seed=3)
        if not tokenizer.can_encode_new:
            pytest.skip("cannot encode new items")
        together = tokenizer.encode(source)
        assert len(together) == source.n_items
        assert together.catalog == source.catalog
        alone = [tokenizer.encode(source.take([n])).as_int()[0] for n in range(0, source.n_items, 7)]
        assert [row[row >= 0].tolist() for row in alone] == [
            row[row >= 0].tolist() for row in together.as_int()[::7]
        ]  # without padding
        new = self.unknown(source)
        assert len(tokenizer.encode(new)) == new.n_items

    def test_wrong_vectors_are_refused(self) -> None:
        """Another width than it was fitted on (values that are not finite never get into a source)."""
        source, tokenizer = self.source(), self.make()
        tokenizer.fit(source, seed=3)
        if not (tokenizer.can_encode_new and self.needs_vectors):
            pytest.skip("encodes no vectors")
        with pytest.raises(DataError):
            tokenizer.encode(TokenizerSource.of_vectors(source.vectors()[:, :-1]))

    def test_unfitted_tokenizer_says_so(self, tmp_path: Path) -> None:
        """Neither encode nor save before fit."""
        tokenizer = self.make()
        if tokenizer.can_encode_new:
            with pytest.raises(NotFitted):
                tokenizer.encode(self.source())
        with pytest.raises(NotFitted):
            tokenizer.save(tmp_path / "tokenizer")

    def test_sources_without_items_or_vectors_are_refused(self) -> None:
        """An empty catalog, and a missing table of vectors where one is needed."""
        source = self.source()
        empty = TokenizerSource(source.catalog, np.zeros(0, dtype=np.uint64))
        with pytest.raises(DataError):
            self.make().fit(empty, seed=3)
        if self.needs_vectors:
            with pytest.raises(DataError):
                self.make().fit(replace(source, embeddings=None), seed=3)

    def test_one_item_and_all_alike(self) -> None:
        """A catalog of one item, and one whose items cannot be told apart, still get (finite) codes."""
        source = self.source()
        if source.embeddings is None or source.train is not None:
            pytest.skip("needs a source of vectors only")
        for rows in ([0], [0] * 5):
            vectors = source.embeddings.vectors[rows]
            same = TokenizerSource(
                source.catalog, source.item_keys[: len(rows)], ItemEmbeddings(vectors, source.catalog, {})
            )
            assert len(self.make().fit(same, seed=3)) == len(rows)

    def test_policy_leaves_no_collision(self) -> None:
        """Unless the settings share identifiers, no two items have the same."""
        tokenizer = self.make()
        codes = tokenizer.fit(self.source(), seed=3)
        if getattr(tokenizer.settings, "collisions", "shared") != "shared":
            assert codes.collisions() == []

    def test_kind_is_its_own(self) -> None:
        """``kind`` of the settings leads back to the class; settings refuse a negative number of levels."""
        tokenizer = self.make()
        assert isinstance(tokenizer, ItemTokenizer)
        assert isinstance(tokenizer.settings, type(tokenizer).Settings)
        if hasattr(tokenizer.settings, "n_levels"):
            with pytest.raises(ConfigError, match="n_levels"):
                replace(tokenizer.settings, n_levels=-1)


def _arrays(source: TokenizerSource) -> list[npt.NDArray[Any]]:
    found: list[npt.NDArray[Any]] = [source.item_keys]
    found += [table.vectors[:] for table in (source.embeddings, source.collaborative) if table is not None]
    if source.train is not None:
        found += [source.train.offsets, source.train.items]
    return found


def _global_state() -> list[Any]:
    return [np.asarray(part).tolist() for part in np.random.get_state(legacy=True)]  # noqa: NPY002 - looked at only
