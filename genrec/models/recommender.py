"""A generative model as a recommender: histories in, lists of items out.

Axes: U users, B users of a batch, M items asked for.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from genrec.data.histories import Histories
from genrec.decoding.diverse import diverse_lists
from genrec.decoding.exact import asked_items, score_items
from genrec.decoding.filters import Filters, ItemFilter, RankFilter, by_row
from genrec.decoding.index import CatalogIndex
from genrec.decoding.interface import Normalize, Recommendations, SearchOptions
from genrec.decoding.listing import CERTIFICATE_MARGIN, HALF_MARGIN, joined_lists
from genrec.decoding.sampling import Samples, check_seed, draw, joined_samples, row_keys
from genrec.decoding.scorer import Prompts, Scorer, Watched
from genrec.decoding.search import Batch, Search
from genrec.decoding.select import DeviceIndex
from genrec.decoding.snapshot import CatalogSnapshot
from genrec.errors import ConfigError, FingerprintMismatch
from genrec.item_tokenizers.codes import ItemCodes
from genrec.models.asked import check_asked, histories_asked, rows_of_like_length
from genrec.models.backbone import evaluating, layout_of, scorer_of
from genrec.models.decoding_settings import DecodingSettings as DecodingSettings
from genrec.models.engine_scorer import Engine, EngineScorer
from genrec.models.model_parts import check_parts, say_what_is_ignored
from genrec.models.prompting import build_prompts, item_tokens, users_asked
from genrec.vocab.token_map import TokenMap
from genrec.vocab.user_index import UserIndex

if TYPE_CHECKING:
    from genrec.data.catalog import ItemCatalog
    from genrec.models.template_prompts import TemplatePrompts

DEFAULT_TOP_K = 10


class GenerativeRecommender:
    """Recommends by beam search inside the catalog; a :class:`~genrec.decoding.interface.Recommender`.

    Users are batched by the length of their prompts; the answer for a batch equals the answers one by one.
    The model's own ``generation_config`` (sampling, penalties, …) plays no part.

    model: T5, Llama, Qwen2 or Qwen3. index: built from ``codes``. user_ids: the ids behind user numbers,
    needed if the vocabulary has user tokens and users are given as numbers. user_index: the codes of users, where the
    vocabulary has tokens for them; others are asked about as ``<unk_user>``. prompts: how a model is asked that was
    trained with words around histories; None = with the histories alone. engine: where the model runs; of
    ``model`` only the config counts then. Raises FingerprintMismatch if model, vocabulary, codes and index do not
    belong together. Stability: stable.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        token_map: TokenMap,
        codes: ItemCodes,
        index: CatalogIndex,
        settings: DecodingSettings | None = None,
        *,
        user_ids: Sequence[str] | None = None,
        prompts: TemplatePrompts | None = None,
        user_index: UserIndex | None = None,
        engine: Engine | None = None,
    ) -> None:
        check_parts(model, token_map, codes, index, user_index)
        self._published = codes
        self.model = model
        self.token_map = token_map
        self.codes = codes
        self.index = index
        self.settings = settings or DecodingSettings()
        self.user_ids, self.user_index = user_ids, user_index
        self.prompts = prompts
        self._tokens_NM = item_tokens(codes, token_map)
        self._scorer: Scorer = scorer_of(model, token_map) if engine is None else EngineScorer(engine, token_map)
        self._device_index: DeviceIndex | None = None
        self._rank_filters: WeakKeyDictionary[ItemFilter, RankFilter] = WeakKeyDictionary()
        self._live_filters: WeakKeyDictionary[ItemFilter, RankFilter] = WeakKeyDictionary()  # without retired items
        self._snapshot: CatalogSnapshot | None = None
        self._now: GenerativeRecommender | None = None  # what answers since the last swap
        self._load_catalog: Callable[[], ItemCatalog | None] = lambda: None
        say_what_is_ignored(model)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> GenerativeRecommender:
        """Load a bundle folder; see :func:`genrec.models.bundle.load_bundle`."""
        from genrec.models.bundle import load_bundle

        bundle = load_bundle(path, device=device, dtype=dtype)
        bundle.recommender._load_catalog = lambda: bundle.catalog
        return bundle.recommender

    @property
    def catalog(self) -> ItemCatalog | None:
        """Ids and titles of the items: those of the version that answers now if it has them, else those of the model.

        An item keeps its number, so the newest catalog reads the answers of all versions before. None where the model
        came without. Of a version with new items that has none (:class:`CatalogSnapshot`), the new numbers are unknown.
        """
        snapshot = self.now._snapshot
        return self._stored_catalog if snapshot is None or snapshot.catalog is None else snapshot.catalog

    @cached_property
    def _stored_catalog(self) -> ItemCatalog | None:
        return self._load_catalog()

    def swap(self, snapshot: CatalogSnapshot) -> None:
        """Answer from this version of the catalog from the next request on; requests under way keep the one they have.

        Every answer says from which (:attr:`Recommendations.version`). Requests may come from several threads, with a
        model in evaluation mode; settings count as they were at the last swap. Raises FingerprintMismatch for
        identifiers that do not begin with those the recommender was made with, or that have no tokens; nothing changes
        then. Stability: experimental.
        """
        now, first, codes = self._now or self, self._published, snapshot.codes
        if codes is not now.codes and not codes.extends(first.fingerprint, first.n_items, first.catalog):
            raise FingerprintMismatch(
                f"codes {codes.fingerprint[:8]} do not begin with codes {first.fingerprint[:8]}",
                hint="a model only understands the identifiers it was trained on, and items appended to them",
            )
        view = copy.copy(now)
        if codes is not now.codes:
            view._tokens_NM = item_tokens(codes, self.token_map)
            view.prompts = self.prompts and self.prompts.with_codes(codes)
        if snapshot.index is not now.index:
            view._device_index = None
            view._rank_filters = WeakKeyDictionary()
        before = now._snapshot
        if before is None or snapshot.index is not now.index or before.retired is not snapshot.retired:
            view._live_filters = WeakKeyDictionary()
        view.codes, view.index, view._snapshot, view._now = codes, snapshot.index, snapshot, None
        self.codes, self.index, self._now = codes, snapshot.index, view

    @property
    def now(self) -> GenerativeRecommender:
        """What answers requests now: a later swap leaves it as it is (internal)."""
        return self._now or self

    @property
    def snapshot(self) -> CatalogSnapshot | None:
        """The version of the catalog that answers now; None before the first :meth:`swap`."""
        return self.now._snapshot

    def allowed(self, filters: Filters, n_rows: int) -> list[ItemFilter | None]:
        """The items that each row may get, names looked up and retired items taken away (internal)."""
        found = self._named(filters, n_rows)
        live = None if self._snapshot is None else self._snapshot.live
        return found if live is None else [live if each is None else each & live for each in found]

    def _named(self, filters: Filters, n_rows: int) -> list[ItemFilter | None]:
        """The filter of every row, names looked up."""
        return by_row(filters, n_rows, None if self._snapshot is None else self._snapshot.filters)

    @property
    def n_items(self) -> int:
        """Number of items N of the catalog."""
        return self.now.codes.n_items

    @property
    def device(self) -> torch.device:
        """Where the search runs: with the model, or on the CPU where an engine has the model (internal)."""
        return self._scorer.device

    @property
    def history_cap(self) -> int:
        """How many events of a history enter the prompt, the newest ones."""
        return self.settings.max_items

    def recommend(
        self,
        histories: Histories | Sequence[Sequence[int]] | Sequence[Sequence[str]],
        options: SearchOptions | None = None,
        users: npt.ArrayLike | Sequence[str] | None = None,
        *,
        top_k: int | None = DEFAULT_TOP_K,
        queries: Sequence[str | None] | None = None,
    ) -> Recommendations:
        """Lists for all histories, in their order.

        histories: item numbers, or item ids where the model came with its catalog; oldest first.
        options: None = ``top_k`` items. Without a number of beams the model's own counts, or as many as items are
        asked for, if that is more. users: ids, or numbers into ``user_ids``; needed only by vocabularies with hashed
        users. queries: what the users search for, one text (or None) each, for a model that was trained on searches
        (the history may be empty then). Warns of fewer beams than ``top_k``, which may give shorter lists, and when
        decoding with another normaliser than the model was trained with; raises DataError for unknown items,
        ConfigError where ``top_k`` is said beside ``options``, and for queries to a model that cannot answer them.
        """
        if self._now is not None:
            return self._now.recommend(histories, options, users, top_k=top_k, queries=queries)
        if options is not None and top_k != DEFAULT_TOP_K:
            raise ConfigError(f"top_k: {top_k} beside options, which say {options.top_k}", hint="say it in the options")
        wanted = options or SearchOptions(top_k=top_k)
        n_beams = self.settings.beams(wanted.n_beams, wanted.top_k)
        self._normalize(wanted.normalize)
        if n_beams < (wanted.top_k or 0) and not wanted.exact and wanted.diversity is None:
            warnings.warn(
                f"n_beams={n_beams} finds {n_beams} identifiers: lists may be shorter than top_k={wanted.top_k} "
                f"(give {wanted.top_k} or more, or leave n_beams out)",
                stacklevel=2,
            )
        return self.lists(histories_asked(histories, self.n_items, lambda: self.catalog), wanted, users, queries)

    def lists(
        self,
        rows: Histories,
        wanted: SearchOptions,
        users: npt.ArrayLike | Sequence[str] | None = None,
        queries: Sequence[str | None] | None = None,
        look: Callable[[str], object] | None = None,
    ) -> Recommendations:
        """:meth:`recommend` of this version, without its warnings (internal).

        look: called before every step of the model, see :class:`~genrec.decoding.scorer.Watched`; what it raises ends
        the search. None = nobody looks.
        """
        normalize = self.settings.softmax(wanted.normalize)
        filters = self._named(wanted.filter, len(rows))
        margin = CERTIFICATE_MARGIN if self.model.dtype == torch.float32 else HALF_MARGIN
        n_beams = self.settings.beams(wanted.n_beams, wanted.top_k)
        scorer = self._over_index() if look is None else Watched(self._over_index(), look)
        search = Search(scorer, self._on_device(), wanted, n_beams, normalize, margin)
        found: list[Recommendations] = []
        order: list[npt.NDArray[np.int64]] = []
        with evaluating(self.model):
            for batch, prompts in self._batches(rows, users, queries):
                deny = rows.take(batch) if wanted.exclude_seen else None
                allowed = self._rank_filters_of([filters[row] for row in batch.tolist()])
                part = Batch(prompts, deny, allowed)
                found.append(search(part) if wanted.diversity is None else diverse_lists(search, part))
                order.append(batch)
        lists = joined_lists(found, order, width=wanted.top_k or 0, normalize=normalize)
        return lists if self._snapshot is None else replace(lists, version=self._snapshot.version)

    def sample(
        self,
        histories: Histories | Sequence[Sequence[int]] | Sequence[Sequence[str]],
        options: SearchOptions | None = None,
        users: npt.ArrayLike | Sequence[str] | None = None,
        *,
        seed: int | Sequence[int],
        temperature: float = 1.0,
    ) -> Samples:
        """Items drawn without replacement, in proportion to their probability among what is allowed, in drawn order.

        The distribution is that of :func:`genrec.decoding.sampling.draw`. A draw depends on the seed, the prompt and
        the options, not on the batch; users with the same prompt draw the same unless ``seed`` is one for each history.
        temperature: above 1 = flatter, below 1 = closer to :meth:`recommend`. Raises ConfigError for options that ask
        for ``exact`` or ``diversity`` (a draw is no ranking), otherwise as :meth:`recommend`. Stability: experimental.
        """
        if self._now is not None:
            return self._now.sample(histories, options, users, seed=seed, temperature=temperature)
        wanted = options or SearchOptions(top_k=DEFAULT_TOP_K)
        if wanted.exact or wanted.diversity is not None:
            raise ConfigError("sample: exact and diversity are for recommend", hint="leave them out (--max-per too)")
        if isinstance(self._scorer, EngineScorer) and temperature != 1:
            raise ConfigError(f"sample: expected temperature 1 of a model in an engine, got {temperature}")
        rows = histories_asked(histories, self.n_items, lambda: self.catalog)
        seeds = check_seed(seed, len(rows))
        filters = self._named(wanted.filter, len(rows))
        normalize = self._normalize(wanted.normalize)
        n_beams = self.settings.beams(wanted.n_beams, wanted.top_k)
        search = Search(self._over_index(), self._on_device(), wanted, n_beams, normalize)
        found: list[Samples] = []
        order: list[npt.NDArray[np.int64]] = []
        with evaluating(self.model):
            for at, prompts in self._batches(rows, users):
                allowed = self._rank_filters_of([filters[row] for row in at.tolist()])
                batch = Batch(prompts, rows.take(at) if wanted.exclude_seen else None, allowed)
                found.append(draw(search, batch, row_keys(prompts, seeds[at]), temperature=temperature))
                order.append(at)
        drawn = joined_samples(found, order, width=wanted.top_k or 0, normalize=search.normalize)
        return drawn if self._snapshot is None else replace(drawn, version=self._snapshot.version)

    def score(
        self,
        histories: Histories | Sequence[Sequence[int]],
        items: npt.ArrayLike | None = None,
        users: npt.ArrayLike | Sequence[str] | None = None,
        *,
        normalize: Normalize | None = None,
    ) -> npt.NDArray[np.float32]:
        """Log-probability of given items after each history, float32 ``[U, M]``.

        items: int ``[U, M]`` (-1 = padding, scored -inf); ``[M]`` for the same items for everyone; None = all N items
        of the catalog. -inf for items that cannot be listed: retired, or not indexed. Seen items are scored like
        others. Equal to the scores of :meth:`recommend` where both exist. The model sees each distinct prefix of a
        user's items once, in blocks of bounded memory (:func:`genrec.decoding.exact.score_items`). Raises DataError for
        numbers that no item has, and for another number of rows.
        """
        if self._now is not None:
            return self._now.score(histories, items, users, normalize=normalize)
        rows = histories_asked(histories, self.n_items, lambda: self.catalog)
        gone = self.index.rank_of < 0
        if self._snapshot is not None:
            gone |= self._snapshot.retired
        asked = None if items is None else asked_items(items, len(rows), self.n_items)
        if asked is not None:
            asked = np.where(gone[asked], -1, asked)
        how = self._normalize(normalize)
        width = self.n_items if asked is None else asked.shape[-1]
        out = np.full((len(rows), width), -np.inf, dtype=np.float32)
        with evaluating(self.model):
            for batch, prompts in self._batches(rows, users):
                some = asked if asked is None or asked.ndim == 1 else asked[batch]
                out[batch] = score_items(self._over_index(), self._on_device(), prompts, some, normalize=how)
        if asked is None:
            out[:, gone] = -np.inf
        return out

    def _normalize(self, asked: Normalize | None) -> Normalize:
        chosen = self.settings.softmax(asked)
        if chosen != self.settings.loss:
            warnings.warn(
                f"decoding with normalize={chosen!r} a model trained with the softmax over "
                f"{self.settings.loss!r}: scores and ranks differ from those it was trained for",
                stacklevel=3,
            )
        return chosen

    def _over_index(self) -> Scorer:
        return self._scorer.over(self.index) if isinstance(self._scorer, EngineScorer) else self._scorer

    def _rank_filters_of(self, filters: Sequence[ItemFilter | None]) -> list[RankFilter | None]:
        """The filter of every row over the ranks of the index; kept as long as the caller keeps his."""
        live = None if self._snapshot is None else self._snapshot.live_ranks  # None: nothing indexed is retired
        for each in filters:
            if each is not None and each not in self._rank_filters:
                self._rank_filters[each] = RankFilter.of(each, self.index)
            if each is not None and live is not None and each not in self._live_filters:
                self._live_filters[each] = self._rank_filters[each] & live
        kept = self._rank_filters if live is None else self._live_filters
        return [live if each is None else kept[each] for each in filters]

    def _batches(
        self,
        histories: Histories,
        users: npt.ArrayLike | Sequence[str] | None,
        queries: Sequence[str | None] | None = None,
    ) -> Iterator[tuple[npt.NDArray[np.int64], Prompts]]:
        """Row numbers and prompts of users with prompts of like length."""
        check_asked(len(histories), users, queries, prompts=self.prompts)
        of_user = users_asked(self.token_map, users, len(histories), user_ids=self.user_ids, index=self.user_index)
        recent = histories.last(self.settings.max_items)
        for batch in rows_of_like_length(recent, self.settings.batch_size):
            some, their = recent.take(batch), None if of_user is None else of_user[batch]
            if self.prompts is not None:
                yield batch, self.prompts(some, their, queries and [queries[row] for row in batch.tolist()])
            else:
                layout = layout_of(self.model)
                yield batch, build_prompts(layout, some, self._tokens_NM, self.token_map, their)

    def _on_device(self) -> DeviceIndex:
        device = self._scorer.device
        if self._device_index is None or self._device_index.device != device:
            self._device_index = DeviceIndex(self.index, device)
        return self._device_index
