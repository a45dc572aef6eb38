"""The promises every slot tokenizer keeps, as a test class to inherit from.

::

    class TestMine(SlotContract):
        def make(self) -> SlotTokenizer:
            return MySlots(MySettings(n_semantic=2, dim=8))

Axes: N items, n slots, D width. Encoding an item among others and alone may differ in the last bits of a vector
(matrix products of other sizes), not more. Stability: experimental.
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
from genrec.item_tokenizers.base import KIND, SlotTokenizer, TokenizerSource
from genrec.item_tokenizers.registry import load_slot_tokenizer, load_tokenizer
from genrec.item_tokenizers.slots import COLLABORATIVE, ItemSlots
from genrec.seeding import rng
from genrec.testing.tokenizer_contract import CATALOG, planted_source

Reals = npt.NDArray[np.float64]


def planted_slot_source(n_items: int = 90, width: int = 6, seed: int = 0) -> TokenizerSource:
    """:func:`planted_source` with collaborative vectors; items 3, 13, 23, … are cold (all zeros)."""
    vectors = rng(seed, "planted collaborative").normal(size=(n_items, width)).astype(np.float32)
    vectors[10::10] = vectors[9:-1:10]  # the copies are copies here too
    vectors[3::10] = 0
    return replace(
        planted_source(n_items, seed=seed), collaborative=ItemEmbeddings(vectors, CATALOG, {"kind": "planted"})
    )


def summed_scores(slots: ItemSlots, queries: dict[str, npt.NDArray[Any]], order: tuple[str, ...]) -> Reals:
    """Scores of all items for users with one query per slot, float64 ``[U, N]``: the sum over slots, one at a time.

    ::

        score(u, i) = sum over names of <queries[name][u], slots.slot(name)[i]>
    """
    users = len(next(iter(queries.values())))
    scores = np.zeros((users, len(slots)))
    for user in range(users):
        for item in range(len(slots)):
            for name in order:
                scores[user, item] += np.dot(
                    queries[name][user].astype(np.float64), slots.slot(name)[item].astype(np.float64)
                )
    return scores


class SlotContract:
    """Subclass it, override :meth:`make` (an unfitted slot tokenizer, small and quick), inherit the checks."""

    def make(self) -> SlotTokenizer:
        """A new unfitted slot tokenizer; called several times per test."""
        raise NotImplementedError

    def source(self) -> TokenizerSource:
        """What the tokenizer is fitted on."""
        return planted_slot_source()

    def test_it_is_a_slot_tokenizer(self) -> None:
        """It has the protocol's members, and says before ``fit`` which slots it gives."""
        tokenizer = self.make()
        assert isinstance(tokenizer, SlotTokenizer)
        assert tokenizer.gives == "slots"
        assert isinstance(tokenizer.settings, type(tokenizer).Settings)
        assert tokenizer.fit(self.source(), seed=3).names == tokenizer.slot_names

    def test_slots_fit_the_catalog(self) -> None:
        """One row per item, the catalog's fingerprint; zeros exactly where the source knows nothing."""
        source = self.source()
        slots = self.make().fit(source, seed=3)
        assert slots.check(source.catalog, source.n_items) is slots
        if source.collaborative is not None and COLLABORATIVE in slots.names:
            known = slots.known[:, slots.names.index(COLLABORATIVE)]
            np.testing.assert_array_equal(known, source.collaborative.known)

    def test_order_of_slots_does_not_matter(self) -> None:
        """Slots given in another order are the same set: equality, fingerprint, report, file, sums of scores."""
        slots = self.make().fit(self.source(), seed=3)
        generator = rng(0, "order of slots")
        queries = {name: generator.normal(size=(2, slots.dim)) for name in slots.names}
        expected = summed_scores(slots, queries, slots.names)
        for _ in range(3):
            order = generator.permutation(slots.n_slots)
            turned = reordered(slots, order)
            assert turned == slots
            assert turned.report() == slots.report()
            np.testing.assert_array_equal(turned.vectors, slots.vectors)
            names = tuple(slots.names[at] for at in order)
            np.testing.assert_allclose(summed_scores(turned, queries, names), expected, rtol=1e-12, atol=1e-12)

    def test_codes_stand_for_their_vectors(self) -> None:
        """A discrete identifier's vectors are its codewords, looked up one by one; a continuous one has no codes."""
        slots = self.make().fit(self.source(), seed=3)
        if slots.codes is None:
            with pytest.raises(DataError, match="continuous"):
                slots.codes_for_metrics()
            return
        for item in range(0, len(slots), 7):
            for at in range(slots.n_slots):
                word = slots.codebooks[at][int(slots.codes[item, at])]
                assert word.tolist() == slots.vectors[item, at].tolist()

    def test_fit_is_deterministic(self, tmp_path: Path) -> None:
        """Same source and seed: same slots, and the same digests of all files of tokenizer and slots."""
        found = []
        for name in ("a", "b"):
            tokenizer = self.make()
            slots = tokenizer.fit(self.source(), seed=3)
            tokenizer.save(tmp_path / name)
            slots.save(tmp_path / f"{name}-slots")
            read = [artifacts.read(tmp_path / folder) for folder in (name, f"{name}-slots")]
            found.append([slots.fingerprint, *(manifest.files for manifest in read)])
        assert found[0] == found[1]

    def test_global_random_state_is_left_alone(self) -> None:
        """Fitting neither reads nor moves the global generators of numpy and torch."""
        import torch

        before, torch_before = _global_state(), torch.random.get_rng_state()
        self.make().fit(self.source(), seed=3)
        assert _global_state() == before
        assert torch.equal(torch.random.get_rng_state(), torch_before)

    def test_inputs_stay_untouched(self) -> None:
        """Fitting and encoding write into none of the arrays they are given."""
        source, tokenizer = self.source(), self.make()
        arrays: list[npt.NDArray[Any]] = [source.item_keys, source.vectors(), source.collaborative_vectors()]
        copies = [array.copy() for array in arrays]
        tokenizer.fit(source, seed=3)
        tokenizer.encode(source)
        for array, copy in zip(arrays, copies, strict=True):
            np.testing.assert_array_equal(array, copy)

    def test_saved_tokenizer_encodes_alike(self, tmp_path: Path) -> None:
        """Saving and loading (by class, and by kind) changes neither settings nor a bit of any slot."""
        source, tokenizer = self.source(), self.make()
        slots = tokenizer.fit(source, seed=3)
        tokenizer.save(tmp_path / "tokenizer")
        for back in (
            type(tokenizer).load(tmp_path / "tokenizer", catalog=source.catalog),
            load_slot_tokenizer(tmp_path / "tokenizer"),
        ):
            assert back.settings == tokenizer.settings
            assert back.encode(source) == slots
        slots.save(tmp_path / "slots")
        again = ItemSlots.load(tmp_path / "slots", catalog=source.catalog)
        np.testing.assert_array_equal(again.vectors, slots.vectors)
        assert again == slots

    def test_codes_are_not_expected_of_it(self, tmp_path: Path) -> None:
        """What expects an item tokenizer that gives codes refuses this one."""
        tokenizer = self.make()
        tokenizer.fit(self.source(), seed=3)
        tokenizer.save(tmp_path / "tokenizer")
        with pytest.raises(ConfigError, match="gives codes"):
            load_tokenizer(tmp_path / "tokenizer")

    def test_saved_tokenizer_names_its_catalog(self, tmp_path: Path) -> None:
        """Loading tokenizer or slots for another catalog is refused."""
        tokenizer = self.make()
        tokenizer.fit(self.source(), seed=3).save(tmp_path / "slots")
        tokenizer.save(tmp_path / "tokenizer")
        assert artifacts.read(tmp_path / "tokenizer", kind=KIND).catalog == CATALOG
        for kind, folder in ((type(tokenizer), "tokenizer"), (ItemSlots, "slots")):
            with pytest.raises(FingerprintMismatch):
                kind.load(tmp_path / folder, catalog="0" * 32)

    def test_new_items_get_slots(self) -> None:
        """Items encode however many there are, each by itself, with or without collaborative vectors."""
        source, tokenizer = self.source(), self.make()
        tokenizer.fit(source, seed=3)
        together = tokenizer.encode(source)
        assert together.check(source.catalog, source.n_items) is together
        for item in range(0, source.n_items, 7):
            alone = tokenizer.encode(source.take([item]))
            np.testing.assert_allclose(alone.vectors[0], together.vectors[item], rtol=1e-4, atol=1e-5)
        new = TokenizerSource.of_vectors(source.vectors()[::2] + np.float32(0.25))
        slots = tokenizer.encode(new)
        assert len(slots) == new.n_items
        if COLLABORATIVE in slots.names:
            assert not slots.slot(COLLABORATIVE).any()

    def test_wrong_vectors_are_refused(self) -> None:
        """Another width than it was fitted on, of either kind of vectors."""
        source, tokenizer = self.source(), self.make()
        tokenizer.fit(source, seed=3)
        narrow = ItemEmbeddings(source.vectors()[:, :-1], CATALOG, {})
        with pytest.raises(DataError):
            tokenizer.encode(replace(source, embeddings=narrow))
        narrow = ItemEmbeddings(source.collaborative_vectors()[:, :-1], CATALOG, {})
        with pytest.raises(DataError):
            tokenizer.encode(replace(source, collaborative=narrow))

    def test_unfitted_tokenizer_says_so(self, tmp_path: Path) -> None:
        """Neither encode nor save before fit."""
        with pytest.raises(NotFitted):
            self.make().encode(self.source())
        with pytest.raises(NotFitted):
            self.make().save(tmp_path / "tokenizer")

    def test_sources_without_items_or_vectors_are_refused(self) -> None:
        """An empty catalog, and a missing table of either kind of vectors."""
        source = self.source()
        with pytest.raises(DataError):
            self.make().fit(TokenizerSource(source.catalog, np.zeros(0, dtype=np.uint64)), seed=3)
        for part in ("embeddings", "collaborative"):
            missing: dict[str, Any] = {part: None}
            with pytest.raises(DataError):
                self.make().fit(replace(source, **missing), seed=3)

    def test_one_item_and_all_alike(self) -> None:
        """A catalog of one item, and one whose items cannot be told apart, still get finite slots."""
        source = self.source()
        assert source.embeddings is not None and source.collaborative is not None
        for rows in ([0], [0] * 5):
            same = TokenizerSource(
                source.catalog,
                source.item_keys[: len(rows)],
                ItemEmbeddings(source.embeddings.vectors[rows], source.catalog, {}),
                collaborative=ItemEmbeddings(source.collaborative.vectors[rows], source.catalog, {}),
            )
            slots = self.make().fit(same, seed=3)
            assert len(slots) == len(rows)
            assert len(slots.collisions()) == (len(rows) > 1)


def reordered(slots: ItemSlots, order: npt.ArrayLike) -> ItemSlots:
    """The same slots, handed over in another order."""
    at = np.asarray(order)
    names = tuple(slots.names[k] for k in at)
    if slots.codes is None:
        return ItemSlots(slots.vectors[:, at], names, slots.catalog)
    books = tuple(slots.codebooks[k] for k in at)
    return ItemSlots(slots.vectors[:, at], names, slots.catalog, slots.codes[:, at], books)


def _global_state() -> list[Any]:
    return [np.asarray(part).tolist() for part in np.random.get_state(legacy=True)]  # noqa: NPY002 - looked at only
