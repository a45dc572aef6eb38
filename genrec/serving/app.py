"""The routes, over a registry of models: requests in, answers and errors out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import fastapi
from fastapi import Request, Response
from starlette.exceptions import HTTPException

from genrec import __version__
from genrec.decoding.snapshot import CatalogSnapshot
from genrec.errors import GenrecError
from genrec.models.explain import as_json
from genrec.serving.batching import Batcher, Job
from genrec.serving.engines import gone
from genrec.serving.guard import Guard, body_of
from genrec.serving.lifecycle import Registry
from genrec.serving.model import Answer, Query, ServedModel
from genrec.serving.openapi import describe
from genrec.serving.problems import Problem
from genrec.serving.schemas import FieldChange, FilterChange, ItemsChange, RecommendationRequest, parsed
from genrec.serving.settings import ServeSettings
from genrec.serving.telemetry import CONTENT_TYPE, Metrics

log = logging.getLogger(__name__)


def create_app(
    registry: Registry, settings: ServeSettings, metrics: Metrics, *, engine_well: Callable[[], bool] = lambda: True
) -> fastapi.FastAPI:
    """The endpoint as an ASGI application. Stability: experimental.

    registry: what answers. engine_well: whether the engine that the model runs in answers, for ``/ready``. Every answer
    is JSON; every error has OpenAI's form. ``app.state.batcher`` is the queue.
    """
    app = fastapi.FastAPI(title="genrec", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.batcher = Batcher(
        registry.answer,
        max_batch=settings.max_batch,
        max_rows=settings.max_rows,
        max_waiting=settings.max_waiting,
        metrics=metrics,
        searches=settings.searches,
    )
    app.state.draining, app.state.engine_well = False, engine_well
    _errors(app)
    _reading_routes(app, registry, metrics)
    _recommendations(app, registry, settings)
    _admin_routes(app, registry, settings)
    describe(app, settings)
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    return app


def _errors(app: fastapi.FastAPI) -> None:
    @app.exception_handler(Problem)
    async def _problem(request: Request, problem: Problem) -> Response:
        headers, body = problem.written()
        return Response(body, problem.status, headers)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        words = {404: "no such route", 405: "the route does not take this method"}
        return await _problem(
            request, Problem(error.status_code, words.get(error.status_code, "the request cannot be answered"))
        )


def _reading_routes(app: fastapi.FastAPI, registry: Registry, metrics: Metrics) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """A model is loaded and takes requests, and its engine answers."""
        if app.state.draining:
            raise Problem(503, "the server is shutting down", code="shutting_down", retry_after=1)
        if not app.state.engine_well():
            raise gone()
        return {"status": "ready"}

    @app.get("/version")
    async def version() -> dict[str, Any]:
        """Versions of the package, the model and the catalog."""
        return {"genrec": __version__, **await _versions(registry.current)}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The served model, in OpenAI's form."""
        model = registry.current
        one = {"id": model.name, "object": "model", "created": int(model.loaded), "owned_by": "genrec"}
        return {"object": "list", "data": [{**one, "version": model.version, "digest": model.digest}]}

    @app.get("/v1/catalog")
    async def catalog() -> dict[str, Any]:
        """What can be asked for: number of items, fields, named filters."""
        return await asyncio.to_thread(_catalog, registry.current)

    @app.get("/metrics")
    async def measured() -> Response:
        """Prometheus metrics."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)


def _recommendations(app: fastapi.FastAPI, registry: Registry, settings: ServeSettings) -> None:
    @app.post("/v1/recommendations")
    async def recommendations(request: Request) -> dict[str, Any]:
        """Ranked items for one user or several; every item exists and is allowed."""
        arrived = time.monotonic()
        asked: RecommendationRequest = parsed(RecommendationRequest, await body_of(request.receive, settings), settings)
        if asked.model not in (None, registry.current.name):
            raise Problem(404, "model: no such model; /v1/models lists them", param="model", code="model_not_found")
        if asked.n_beams is not None and asked.n_beams < asked.top_k:
            raise Problem(400, "n_beams: expected at least top_k", param="n_beams", code="too_few_beams")
        seconds = min(asked.timeout or settings.timeout_seconds, settings.timeout_seconds)
        queries = [Query(asked, user) for user in asked.users]
        rows = registry.current.rows(asked)
        if rows > settings.max_beams:  # of the list's length: a request's own n_beams is known to be within the limit
            raise Problem(
                400, f"top_k: at most {settings.max_beams}, the limit of beams", param="top_k", code="too_large"
            )
        jobs = [Job(query, query.key, arrived + seconds, rows) for query in queries]
        app.state.batcher.submit(jobs)
        found = await _answers(request, jobs, arrived + seconds)
        data = [_listed(index, answer) for index, (_, answer) in enumerate(found)]
        # the users of one request may have been searched in two batches, on both sides of a swap: each says its own
        return {
            "id": request.state.request_id,
            "object": "list",
            "created": int(time.time()),
            "model": found[0][0].name,
            "data": [
                {**each, "model_version": model.version, "model_digest": model.digest}
                for each, (model, _) in zip(data, found, strict=True)
            ],
        }


async def _answers(request: Request, jobs: list[Job], deadline: float) -> list[tuple[ServedModel, Answer]]:
    """Wait for all jobs; where the time is up or the client has gone, those that wait are dropped."""
    futures = [asyncio.wrap_future(job.future) for job in jobs]
    gone = asyncio.ensure_future(_disconnected(request))
    waiting = set(futures)
    try:
        while waiting:
            left = max(deadline - time.monotonic(), 0)
            done, _ = await asyncio.wait({*waiting, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if gone in done:
                raise Problem(400, "the client has gone", code="disconnected")
            if not done or any(each.cancelled() for each in done):
                raise Problem(504, "no answer in time", code="deadline")
            waiting -= done
        return [each.result() for each in futures]
    except GenrecError as error:
        log.error("a request was not answered: %s", error)
        raise Problem(400, "the request does not fit the model", code="invalid_request") from None
    finally:
        gone.cancel()
        for job in jobs:
            job.gone.set()
        for each in futures:
            if not each.cancel() and not each.cancelled():
                each.exception()  # seen: another one of the request was raised


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _listed(index: int, answer: Answer) -> dict[str, Any]:
    return {
        "index": index,
        "items": _items(answer),
        "source": answer.source,
        "skipped_items": answer.skipped,
        "certified": answer.certified,
        "normalize": answer.normalize,
        "catalog_version": answer.catalog_version,
        "catalog": answer.catalog[:12],
        "catalog_digest": answer.catalog_digest,
    }


def _items(answer: Answer) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"id": i, "score": score} for i, score in zip(answer.ids, answer.scores, strict=True)
    ]
    for item, path in zip(found, answer.paths or (), strict=answer.paths is not None):
        item["path"] = [as_json(step) for step in path]
    return found


def _admin_routes(app: fastapi.FastAPI, registry: Registry, settings: ServeSettings) -> None:
    async def change(request: Request, kind: str, schema: Any) -> dict[str, Any]:
        asked = parsed(schema, await body_of(request.receive, settings), settings)
        said = {"kind": kind, **asked.model_dump(exclude_none=kind == "filter")}
        return await asyncio.to_thread(registry.change, said)

    @app.post("/v1/admin/retire")
    async def retire(request: Request) -> dict[str, Any]:
        """List these items no more; unknown ids are counted and passed over."""
        return await change(request, "retire", ItemsChange)

    @app.post("/v1/admin/filters")
    async def filters(request: Request) -> dict[str, Any]:
        """Name a filter, or give a name another meaning."""
        return await change(request, "filter", FilterChange)

    @app.post("/v1/admin/fields")
    async def fields(request: Request) -> dict[str, Any]:
        """Give a number field other values; filters that follow from it change with it."""
        return await change(request, "field", FieldChange)

    @app.post("/v1/admin/reload")
    async def reload() -> dict[str, Any]:
        """Load again what is at the place of the model; where that fails, the present one stays."""
        return await _versions(await asyncio.to_thread(registry.reload))

    @app.post("/v1/admin/rollback")
    async def rollback() -> dict[str, Any]:
        """Answer from the model before; a server that starts again does so too, if its folder is still there."""
        model = await asyncio.to_thread(registry.rollback)
        return {**await _versions(model), "kept": registry.kept}


async def _versions(model: ServedModel) -> dict[str, Any]:
    """In a thread: a catalog that has changed is read for its digest, and the model's lock is waited for."""
    return await asyncio.to_thread(versions, model)


def versions(model: ServedModel, snapshot: CatalogSnapshot | None = None) -> dict[str, Any]:
    """Which model and catalog answer (internal). snapshot: None = the present version."""
    snapshot = snapshot or model.store.snapshot
    return {
        "model": model.name,
        "model_version": model.version,
        "model_digest": model.digest,
        "catalog_version": snapshot.version,
        "catalog": snapshot.codes.catalog[:12],
        "catalog_digest": model.catalog_digest(snapshot),
    }


def _catalog(model: ServedModel) -> dict[str, Any]:
    """In a thread: all of one model and one version of its catalog, whatever is changed meanwhile."""
    snapshot = model.store.snapshot
    return {
        **versions(model, snapshot),
        "n_items": snapshot.n_items,
        "n_retired": int(snapshot.retired.sum()),
        "fields": model.field_kinds(snapshot),
        "filters": list(snapshot.filters.names),
        "searches": model.searches(),
        "history_store": model.log is not None,
    }
