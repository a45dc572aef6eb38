"""One served model: requests in ids, answers in ids, by the catalog version of the moment.

Axes: N items, U users of a batch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from genrec.data.catalog import ItemCatalog, column_kind
from genrec.data.histories import Histories
from genrec.decoding.catalog_store import CatalogStore
from genrec.decoding.filters import ItemFilter
from genrec.decoding.interface import Normalize, Recommendations, SearchOptions
from genrec.decoding.snapshot import CatalogSnapshot
from genrec.errors import ConfigError
from genrec.models.bundle import load_bundle
from genrec.models.engine_weights import weights_of
from genrec.models.explain import PathStep, explain
from genrec.serving.digests import CatalogDigest, of_bundle
from genrec.serving.listable import catalog_of, first_listable, not_allowed
from genrec.serving.patience import look_of_thread
from genrec.serving.problems import Problem
from genrec.serving.rules import Rules
from genrec.serving.run_catalog import catalog_and_log, first_snapshot
from genrec.serving.schemas import RecommendationRequest
from genrec.serving.settings import ServeSettings
from genrec.serving.telemetry import Metrics, Stopwatch
from genrec.serving.users import Asked, LogHistories, asked_of
from genrec.serving.users import Query as Query

if TYPE_CHECKING:
    import torch

    from genrec.data.interactions import Interactions
    from genrec.models.engine_scorer import Engine
    from genrec.models.recommender import GenerativeRecommender

NORMALIZE: dict[str | None, Normalize | None] = {None: None, "raw": "vocab", "renormalized": "children"}


@dataclass(frozen=True)
class Answer:
    """One list. source: "model", or "popular" for a user without a known item; certified: None = not examined.

    paths: how the search came to each item, where that was asked for.
    """

    ids: list[str]
    scores: list[float | None]
    source: str
    skipped: int
    certified: bool | None
    normalize: str | None
    catalog_version: int
    catalog: str
    catalog_digest: str
    paths: list[list[PathStep]] | None = None


class ServedModel:
    """A recommender, its catalog in service, and the log of its run if there is one (internal).

    name: what requests call it; version: grows with every load. max_beams: of an exact search. digest, place: of the
    bundle, weights: name of its weights; None = it is in no file. Several threads may call :meth:`answer` where the
    model runs in an engine, otherwise one; the store's changes may come from any.
    """

    def __init__(
        self,
        recommender: GenerativeRecommender,
        catalog: ItemCatalog,
        *,
        name: str,
        version: int = 0,
        log: Interactions | None = None,
        max_beams: int = ServeSettings.max_beams,
        digest: str | None = None,
        place: Path | None = None,
        weights: str | None = None,
    ) -> None:
        self.weights, self._lock = weights, threading.RLock()
        self.recommender, self.name, self.version, self.log = recommender, name, version, log
        self.store = CatalogStore(first_snapshot(recommender, catalog), publish=recommender.swap)
        self._log = None if log is None else LogHistories(log)
        counts = np.zeros(len(catalog), np.int64) if log is None else np.bincount(log.item, minlength=len(catalog))
        self._popular_first: npt.NDArray[np.int64] = np.argsort(-counts, kind="stable")
        self.max_beams = max_beams
        self._rules = Rules(catalog)
        self._alive: tuple[CatalogSnapshot, ItemFilter] | None = None
        self._kinds: tuple[ItemCatalog, dict[str, str]] | None = None
        self.loaded = time.time()
        self.digest, self.place = digest, place
        self._catalog_digest = CatalogDigest()

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        name: str | None = None,
        version: int = 0,
        base: str | None = None,
        max_beams: int = ServeSettings.max_beams,
        engine: Engine | None = None,
        dtype: torch.dtype | None = None,
    ) -> ServedModel:
        """A run folder or a bundle. engine, dtype: where the model runs, see :func:`load_bundle`.

        Raises what :func:`load_bundle` raises, ArtifactError where there is no catalog.
        """
        bundle = load_bundle(path, base=base, engine=engine, dtype=dtype)
        catalog, log = catalog_and_log(bundle, path)
        shown = name or path.resolve().name
        return cls(
            bundle.recommender,
            catalog,
            name=shown,
            version=version,
            log=log,
            max_beams=max_beams,
            digest=of_bundle(bundle.manifest),
            place=path.resolve(),
            weights=weights_of(bundle.manifest),
        )

    def catalog_digest(self, snapshot: CatalogSnapshot) -> str:
        """What identifies the content of a version of the catalog, in any process."""
        with self._lock:
            return self._catalog_digest.of(snapshot)

    def rows(self, request: RecommendationRequest) -> int:
        """Identifiers that are kept for each user of a request while it is searched; of a proof, as many as it may."""
        beams = self.recommender.settings.beams(request.n_beams, request.top_k)
        return max(beams, min(self.max_beams, self.recommender.now.index.n_identifiers)) if request.exact else beams

    def field_kinds(self, snapshot: CatalogSnapshot) -> dict[str, str]:
        """Field of the catalog → its type, for those who write conditions."""
        catalog = catalog_of(snapshot)
        if self._kinds is None or self._kinds[0] is not catalog:
            self._kinds = (catalog, {name: column_kind(name, values) for name, values in catalog.fields.items()})
        return dict(self._kinds[1])

    def warm_up(self) -> None:
        """One search, so that the first request doesn't wait for what is loaded or compiled once.

        Its history is the longest there is, so an engine that cannot take it says so now.
        """
        snapshot = self.store.snapshot
        items = snapshot.index.items
        n_codes = (snapshot.codes.as_int() >= 0).sum(axis=1)[items]
        longest = items[n_codes.argmax() :][:1].tolist() if len(items) else []
        history = longest * self.recommender.history_cap
        self.recommender.recommend([history], SearchOptions(top_k=1, exclude_seen=False), users=[""])

    def close(self) -> None:
        """End the store's thread."""
        self.store.close()

    def check(self, request: RecommendationRequest) -> None:
        """Raise ConfigError for filters that the catalog does not know."""
        try:
            self._rules.of(request, self.store.snapshot)
        except Problem as problem:
            raise ConfigError(problem.message) from None

    # --- answers ---------------------------------------------------------------------------------------------

    def answer(self, queries: Sequence[Query], metrics: Metrics) -> list[Answer | Exception]:
        """Lists for users that ask in the same way; what is wrong with one is its own answer."""
        view = self.recommender.now  # one version for the whole batch, whatever is changed meanwhile
        snapshot = view.snapshot
        assert snapshot is not None, "the store has published one"
        out: list[Answer | Exception | None] = [None] * len(queries)
        asked: list[Asked] = []
        with self._lock:
            for place, query in enumerate(queries):
                try:
                    asked.append(asked_of(place, query, snapshot, self._rules, log=self._log, prompts=view.prompts))
                except Exception as error:  # whatever is wrong with one user, the others have their lists
                    out[place] = error
        started = time.monotonic()
        found = self._search(
            view, [each for each in asked if len(each.history) or each.query is not None], queries[0].request, metrics
        )
        metrics.stages.labels("search").observe(time.monotonic() - started)
        started = time.monotonic()
        with self._lock:
            for each in asked:
                answer = found.get(each.place) or self._popular(each, queries[each.place], snapshot)
                out[each.place] = answer
                self._count(each, answer, queries[each.place].request, metrics, snapshot)
        metrics.stages.labels("map").observe(time.monotonic() - started)
        assert all(each is not None for each in out)
        return [each for each in out if each is not None]

    def _search(
        self, view: GenerativeRecommender, asked: list[Asked], request: RecommendationRequest, metrics: Metrics
    ) -> dict[int, Answer]:
        """Place → answer of users with a history. request: any of them, since they ask in the same way."""
        snapshot = view.snapshot
        if not asked or snapshot is None:
            return {}
        options = SearchOptions(
            top_k=request.top_k,
            n_beams=request.n_beams,
            exclude_seen=request.exclude_seen,
            normalize=NORMALIZE[request.scores],
            filter=[each.allowed for each in asked],
            exact=request.exact,
            max_beams=self.max_beams,
        )
        histories = Histories.from_lists([each.history for each in asked])
        queries = [each.query for each in asked] if any(each.query is not None for each in asked) else None
        look = look_of_thread()
        watch, users = Stopwatch(look), [each.user or "" for each in asked]
        lists = view.lists(histories, options, users=users, queries=queries, look=watch)
        watch("")
        if view.device.type == "cpu":  # a GPU works on after it was told to: to time a part of it is to wait for it
            metrics.told(watch)
        found = {each.place: self._listed(each, lists, row, snapshot) for row, each in enumerate(asked)}
        if request.explain:
            for each, items in zip(asked, lists.items, strict=True):
                if look is not None:
                    look()
                paths = self._paths(view, each, items[items >= 0], options, lists.normalize)
                found[each.place] = replace(found[each.place], paths=paths)
        return found

    def _paths(
        self,
        view: GenerativeRecommender,
        asked: Asked,
        items: npt.NDArray[np.int32],
        options: SearchOptions,
        normalize: str | None,
    ) -> list[list[PathStep]]:
        return explain(
            view,
            asked.history,
            items,
            normalize=normalize,
            user=asked.user or "",
            allowed=asked.allowed,
            exclude_seen=options.exclude_seen,
            query=asked.query,
        )

    def _listed(self, asked: Asked, lists: Recommendations, row: int, snapshot: CatalogSnapshot) -> Answer:
        items = lists.items[row]
        n = int((items >= 0).sum())
        return Answer(
            ids=catalog_of(snapshot).ids_of(items[:n]),
            scores=[float(score) for score in lists.scores[row][:n]],
            source="model",
            skipped=asked.skipped,
            certified=None if lists.certified is None else bool(lists.certified[row]),
            normalize=lists.normalize,
            catalog_version=snapshot.version,
            catalog=snapshot.codes.catalog,
            catalog_digest=self.catalog_digest(snapshot),
        )

    def _popular(self, asked: Asked, query: Query, snapshot: CatalogSnapshot) -> Answer:
        """The most bought allowed items, for a user of whom nothing is known; the earlier item first where equal."""
        best = first_listable(self._popular_first, asked.allowed, query.request.top_k, snapshot)
        return Answer(
            ids=catalog_of(snapshot).ids_of(best),
            scores=[None] * len(best),
            source="popular",
            skipped=asked.skipped,
            certified=None,
            normalize=None,
            catalog_version=snapshot.version,
            catalog=snapshot.codes.catalog,
            catalog_digest=self.catalog_digest(snapshot),
        )

    def searches(self) -> list[str]:
        """The kinds of queries that the model was trained on: "search", "search_with_history"."""
        prompts = self.recommender.prompts
        return [] if prompts is None else sorted(prompts.searches)

    def _count(
        self, asked: Asked, answer: Answer, request: RecommendationRequest, metrics: Metrics, snapshot: CatalogSnapshot
    ) -> None:
        metrics.items.inc(len(answer.ids))
        metrics.skipped.inc(answer.skipped)
        metrics.cold.inc(answer.source == "popular")
        metrics.unknown_users.inc(asked.unknown)
        metrics.invalid.inc(not_allowed(catalog_of(snapshot).numbers(answer.ids), asked.allowed, snapshot))
        if len(answer.ids) < request.top_k:
            seen = asked.history if request.exclude_seen else asked.history[:0]
            metrics.short.inc(len(answer.ids) < min(request.top_k, self._n_allowed(asked.allowed, seen, snapshot)))

    def _n_allowed(self, allowed: ItemFilter | None, seen: npt.NDArray[np.int32], snapshot: CatalogSnapshot) -> int:
        """How many items a request may get."""
        if self._alive is None or self._alive[0] is not snapshot:
            self._alive = (snapshot, ItemFilter.of_mask(~snapshot.retired, snapshot.codes.catalog))
        may = self._alive[1] if allowed is None else allowed & self._alive[1]
        return len(may) - int(may.has(np.unique(seen)).sum())
