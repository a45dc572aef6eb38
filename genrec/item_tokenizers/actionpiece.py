"""Tokens merged from the features of items and their neighbours in a history (ActionPiece).

Axes: N items, C categories (features of an item), V tokens, U histories, E items in all histories. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from genrec import recipes
from genrec.data.histories import Histories
from genrec.errors import ConfigError, DataError, NotFitted
from genrec.item_tokenizers.actionpiece_features import FeatureQuantizer, with_buckets
from genrec.item_tokenizers.actionpiece_fitted import FittedPieces
from genrec.item_tokenizers.actionpiece_learning import MergeLearner
from genrec.item_tokenizers.actionpiece_segment import SetSegmenter, merge_adjacent, merge_items, shuffled_features
from genrec.item_tokenizers.actionpiece_vocab import MergeVocabulary
from genrec.item_tokenizers.base import (
    Scaling,
    TokenizerSource,
    TokenizerState,
    check_at_least,
    load_state,
    save_state,
)
from genrec.item_tokenizers.codes import ItemCodes, check_catalog
from genrec.item_tokenizers.quantizers.kmeans import checked_rows
from genrec.item_tokenizers.quantizers.product import ROTATIONS, Rotation, fit_product
from genrec.item_tokenizers.segmenter import TokenRows
from genrec.progress import ProgressBar
from genrec.seeding import derive, rng

Int32 = npt.NDArray[np.int32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ActionPieceSettings:
    """Settings of :class:`ActionPiece`; ConfigError for values out of range (experimental).

    n_tokens: size V of the vocabulary, features included. n_levels, level_size: product codes of the item vectors, one
    feature each. n_buckets: values of one more feature that tells items with equal codes apart (0 = none).
    rotation, iterations, standardize, rows_per_code: of the product codes, as in ``product``.
    """

    kind: Literal["actionpiece"] = "actionpiece"
    n_tokens: int = 40_000
    n_levels: int = 4
    level_size: int = 256
    n_buckets: int = 128
    rotation: Rotation = "opq"
    iterations: int = 50
    standardize: bool = False
    rows_per_code: int | None = None

    def __post_init__(self) -> None:
        least = dict.fromkeys(("n_tokens", "n_levels", "rows_per_code"), 1)
        check_at_least(self, {**least, "level_size": 2, "n_buckets": 0, "iterations": 0})
        if self.rotation not in ROTATIONS:
            raise ConfigError(f"rotation: expected one of {', '.join(ROTATIONS)}, got {self.rotation!r}")


class ActionPiece:
    """Context-aware tokens of histories; recipe: ``tokenizers/actionpiece.yaml`` (experimental).

    ::

        an item = an unordered set of features;  a history = sets, with an empty slot between neighbours
        repeat:  merge the heaviest pair of tokens, weight 2/M inside a set of M, 1/(M1 M2) between neighbours
                 (inside a set the new token stays there, between two it fills the slot)

    Hou et al. 2025 ("ActionPiece: Contextually Tokenizing Action Sequences for Generative Recommendation",
    2502.13581). A :class:`~genrec.item_tokenizers.segmenter.HistorySegmenter`: the same item has other tokens beside
    other neighbours. :meth:`segment` with a seed puts the features of every item in random order first (set permutation
    regularisation): a new seed for every epoch, several for an ensemble.

    Features are product codes of the item vectors, fitted on the items that occur in training (whiten the vectors, as
    the paper does, where they are made), and a bucket from a hash of the item's key; or any codes, given to ``fit``.

    Where we differ. Counts are exact integers; in the published code the pairs that vanish in a merge stay in
    the counts, so it learns other merges, some twice: numbers published with it are not those of this vocabulary.
    A rule is merged inside all items before it is merged between them, as its weights and the deterministic
    segmentation have it; the published code goes item by item. Every value of every feature has a token, whether or
    not it occurs. Padding has no number here: 40,000 tokens without it. Only items of the fit can be segmented so far.
    """

    Settings: ClassVar[type[Any]] = ActionPieceSettings
    gives: ClassVar[Literal["tokens"]] = "tokens"
    can_encode_new: ClassVar[bool] = False

    def __init__(self, settings: ActionPieceSettings | None = None) -> None:
        self.settings = settings or ActionPieceSettings()
        self.report: dict[str, Any] = {}
        self._fitted: FittedPieces | None = None

    def fit(
        self, source: TokenizerSource, *, seed: int, features: ItemCodes | None = None, progress: bool = True
    ) -> TokenRows:
        """Learn features and merges from vectors and training histories; the target tokens of every item.

        features: codes of any item tokenizer, in the place of product codes; the bucket is added to them, too.
        progress: a bar where somebody watches. Raises DataError without training histories or (unless ``features`` are
        given) item vectors, for more items with equal codes than buckets, and for fewer tokens than features.
        """
        train = source.histories()
        if not len(train.items):
            raise DataError("train: expected some events to learn merges from, got none")
        quantizer = None
        if features is None:
            quantizer = self._quantizer(source, train, seed)
            features = quantizer.codes(checked_rows(source.vectors()), self.settings.level_size, source.catalog)
        check_catalog("features", features.catalog, source.catalog)
        if len(features) != source.n_items:
            raise DataError(f"features: expected {source.n_items} rows (one per item), got {len(features)}")
        unique = with_buckets(features, source.item_keys, self.settings.n_buckets, seed=seed)
        sizes = unique.level_sizes
        tokens_NC = unique.as_int() + np.cumsum([0, *sizes])[:-1]
        learner = MergeLearner(tokens_NC[train.items], train.offsets, sizes)
        vocabulary = learner.learn(self.settings.n_tokens, progress=progress)
        self._fitted = FittedPieces(unique, vocabulary, quantizer)
        targets = self.target_tokens(np.arange(source.n_items))
        self.report = {
            "n_tokens": vocabulary.n_tokens,
            "n_merges": len(vocabulary.pairs),
            "last_count": float(vocabulary.counts[-1] / vocabulary.weights.unit) if len(vocabulary.pairs) else None,
            "target_tokens": int(vocabulary.fits_one_item.sum()),
            "tokens_per_training_item": learner.n_left / len(train.items),
            "tokens_per_target": float(targets.lengths.mean()),
            "raw": features.report(),
        }
        return targets

    def encode(self, source: TokenizerSource) -> ItemCodes:
        """Product codes of any items by their vectors, without the bucket; ConfigError where features were given."""
        quantizer = self._learned.quantizer
        if quantizer is None:
            raise ConfigError(
                "this actionpiece was fitted on given features and cannot make those of new items",
                hint="use the item tokenizer that made them",
            )
        return quantizer.codes(checked_rows(source.vectors()), self.settings.level_size, source.catalog)

    @property
    def n_tokens(self) -> int:
        """Size V of the vocabulary."""
        return self.vocabulary.n_tokens

    @property
    def features(self) -> ItemCodes:
        """The features of every item, no two alike; each level is a category. NotFitted before ``fit``."""
        return self._learned.features

    @property
    def vocabulary(self) -> MergeVocabulary:
        """Base tokens and rules; NotFitted before ``fit``."""
        return self._learned.vocabulary

    def segment(self, histories: Histories, *, seed: int | None = None, progress: bool = True) -> TokenRows:
        """The tokens of every history.

        Without a seed: merges on the sets, the one with the highest count times present weight first
        (:class:`~.actionpiece_segment.SetSegmenter`). With one: the features of every item in random order, then
        neighbouring tokens merged by the oldest rule first (:func:`~.actionpiece_segment.merge_adjacent`): faster, and
        more tokens. One seed is one view of the whole table: a row differs at another place in it. DataError for
        item numbers that are not of the catalog.
        """
        tokens_EC = self._learned.tokens_of(histories.items)
        spans = list(pairwise(histories.offsets.tolist()))
        bar = ProgressBar(spans, desc="actionpiece", unit="history", show=progress)
        if seed is None:
            cut, rows = SetSegmenter(self.vocabulary), tokens_EC.tolist()
            return TokenRows.from_lists((cut(rows[start:end]) for start, end in bar), self.n_tokens)
        flat = shuffled_features(tokens_EC, rng(seed, "actionpiece", "view")).ravel().tolist()
        width, rules = tokens_EC.shape[1], self.vocabulary.rules
        found = (merge_adjacent(flat[start * width : end * width], rules) for start, end in bar)
        return TokenRows.from_lists(found, self.n_tokens)

    def target_tokens(self, items: npt.ArrayLike) -> TokenRows:
        """The tokens of each of these items alone, coarse before fine, one to C each; none for all at once."""
        found_NC = merge_items(self.vocabulary, self._learned.tokens_of(np.asarray(items)))
        offsets = np.concatenate([[0], np.cumsum((found_NC >= 0).sum(axis=1))])
        return TokenRows(offsets, found_NC[found_NC >= 0].astype(np.int32), self.n_tokens)

    def expand(self, rows: TokenRows) -> TokenRows:
        """Each token replaced by the base tokens that it stands for, in the order in which they were merged."""
        return self._learned.expand(rows)

    def items_of(self, rows: TokenRows) -> Int32:
        """The item that has exactly the features of each row, int32 ``[U]``; -1 where there is none."""
        return self._learned.items_of(rows)

    def target_mask(self) -> npt.NDArray[np.bool_]:
        """Tokens whose features can be of one item (no category twice), bool ``[V]``."""
        return self.vocabulary.fits_one_item.copy()

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write an ``item_tokenizer`` artifact; NotFitted before ``fit``."""
        fitted = self._learned
        meta = {"report": self.report, "category_sizes": list(fitted.features.level_sizes)}
        state = TokenizerState(recipes.to_json(self.settings), fitted.features.catalog, fitted.arrays(), meta, [])
        save_state(path, state, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path, *, catalog: str | None = None) -> Self:
        """Read an ``item_tokenizer`` artifact of kind ``actionpiece``."""
        state = load_state(path, kind=cls.Settings.kind, catalog=catalog)
        tokenizer = cls(recipes.from_dict(cls.Settings, state.settings))
        tokenizer.report = state.meta["report"]
        tokenizer._fitted = FittedPieces.of(state.arrays, tuple(state.meta["category_sizes"]), state.catalog)
        return tokenizer

    @property
    def _learned(self) -> FittedPieces:
        if self._fitted is None:
            raise NotFitted("this item tokenizer has not been fitted", hint="call fit, or load a saved one")
        return self._fitted

    def _quantizer(self, source: TokenizerSource, train: Histories, seed: int) -> FeatureQuantizer:
        """Scaling and product quantizer, fitted on the items that occur in training."""
        given = checked_rows(source.vectors())
        if given.shape[1] < self.settings.n_levels:
            raise DataError(
                f"vectors: expected a width of at least n_levels ({self.settings.n_levels}), got {given.shape[1]}"
            )
        seen = given[np.unique(train.items)]
        scaling = Scaling.fit(seen, standardize=self.settings.standardize)
        quantizer = fit_product(
            scaling.apply(seen),
            self.settings.n_levels,
            self.settings.level_size,
            rotation=self.settings.rotation,
            seed=derive(seed, "actionpiece"),
            iterations=self.settings.iterations,
            rows_per_code=self.settings.rows_per_code,
        )
        return FeatureQuantizer(scaling, quantizer)
