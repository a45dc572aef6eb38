"""The schema of the routes: bodies and answers, keys, errors, and the limits of this very server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import fastapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from genrec.serving.guard import ROUTES
from genrec.serving.replies import (
    CatalogCard,
    Changed,
    Failure,
    Lists,
    Models,
    PackageVersions,
    RolledBack,
    Status,
    Versions,
)
from genrec.serving.schemas import LONGEST_ID, FieldChange, FilterChange, ItemsChange, RecommendationRequest
from genrec.serving.settings import ServeSettings

Schema = dict[str, Any]
REPLIES: dict[str, type[BaseModel] | None] = {
    "/health": Status,
    "/ready": Status,
    "/version": PackageVersions,
    "/metrics": None,
    "/v1/models": Models,
    "/v1/catalog": CatalogCard,
    "/v1/recommendations": Lists,
    "/v1/admin/retire": Changed,
    "/v1/admin/filters": Changed,
    "/v1/admin/fields": Changed,
    "/v1/admin/reload": Versions,
    "/v1/admin/rollback": RolledBack,
}
"""What each path answers; None = text."""
BODIES: dict[str, type[BaseModel]] = {
    "/v1/recommendations": RecommendationRequest,
    "/v1/admin/retire": ItemsChange,
    "/v1/admin/filters": FilterChange,
    "/v1/admin/fields": FieldChange,
}
ERRORS = {
    400: "Something is wrong with the request.",
    401: "The key is missing or wrong.",
    403: "The server has no admin key: these routes are off.",
    404: "No such model or user.",
    408: "The body did not arrive in time.",
    409: "No other model answers: none is known, or it did not load.",
    413: "The body is too large.",
    429: "Too many wait; Retry-After says when to come back.",
    503: "Not now; Retry-After says when to come back.",
    504: "The time was up before there was an answer.",
}
BEARER = {"type": "http", "scheme": "bearer"}
_REF = "#/components/schemas/{model}"


def describe(
    app: fastapi.FastAPI,
    settings: ServeSettings,
    *,
    at: Callable[[str], str] = lambda path: path,
    admin: Mapping[str, str] = BEARER,
) -> None:
    """Let ``/openapi.json`` say what this server takes and answers (internal).

    settings: the limits and keys it names. at: from a path of the application to where clients find it. admin: how the
    key for admins is shown; where that is no bearer's, the other key stands before every path.
    """
    made: Schema = {}

    def whole() -> Schema:
        if not made:
            made.update(_whole(fastapi.FastAPI.openapi(app), settings, at, dict(admin)))
        return made

    app.openapi = whole  # type: ignore[method-assign]


def _whole(routes: Schema, settings: ServeSettings, at: Callable[[str], str], admin: Schema) -> Schema:
    """routes: paths, methods and their words, as FastAPI reads them from the functions."""
    types: list[type[BaseModel]] = [*BODIES.values(), *(each for each in REPLIES.values() if each is not None), Failure]
    _, schemas = models_json_schema([(each, "validation") for each in dict.fromkeys(types)], ref_template=_REF)
    parts = schemas["$defs"]
    for name, values in _limits(settings).items():
        for field, limits in values.items():
            _limit(parts[name]["properties"][field], limits)
    paths: Schema = {}
    for path, methods in routes["paths"].items():
        for method, found in methods.items():
            words = {key: found[key] for key in ("summary", "description", "operationId") if key in found}
            guard = ROUTES[method.upper(), path]
            security = _security(guard, settings, alone=admin == BEARER)
            paths.setdefault(at(path), {})[method] = {
                **words, **_body(path), "responses": _responses(path, guard), "security": security,
            }  # fmt: skip
    return {
        "openapi": routes["openapi"],
        "info": routes["info"],
        "paths": paths,
        "components": {"schemas": parts, "securitySchemes": {"key": BEARER, "admin": admin}},
    }


def _security(guard: str, settings: ServeSettings, *, alone: bool) -> list[Schema]:
    """The keys that a request shows. alone: nobody else's key stands before every path."""
    keys = [] if guard == "open" else [guard]
    if not alone and guard != "key":
        keys = ["key", *keys]
    shown = [each for each in keys if each == "admin" or settings.api_key is not None]
    return [{each: [] for each in shown}] if shown else []


def _body(path: str) -> Schema:
    if path not in BODIES:
        return {}
    return {"requestBody": {"required": True, "content": _json(BODIES[path])}}


def _json(kind: type[BaseModel]) -> Schema:
    return {"application/json": {"schema": {"$ref": _REF.format(model=kind.__name__)}}}


def _responses(path: str, guard: str) -> Schema:
    statuses = {401} if guard != "open" else set()
    statuses |= {400, 408, 413} if path in BODIES else set()
    statuses |= {404, 429, 503, 504} if path == "/v1/recommendations" else set()
    statuses |= {503} if path == "/ready" else set()
    if guard == "admin":
        statuses |= {403, 503} if path in BODIES else {403, 409}
    kind = REPLIES[path]
    found: Schema = {
        "200": {
            "description": "The answer.",
            "content": {"text/plain": {"schema": {"type": "string"}}} if kind is None else _json(kind),
        }
    }
    for status in sorted(statuses):
        found[str(status)] = {"description": ERRORS[status], "content": _json(Failure)}
        if status in (429, 503) and guard != "admin":
            found[str(status)]["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return {**found, "default": {"description": "Another error.", "content": _json(Failure)}}


def _limits(settings: ServeSettings) -> dict[str, dict[str, Schema]]:
    """Schema → field → what it may be at most."""
    text, listed = {"maxLength": LONGEST_ID}, {"maxItems": settings.max_listed}
    user = {"history": {"maxItems": settings.max_history}, "user": text, "query": text}
    request: dict[str, Schema] = {
        **user, "model": text, "filter": text, "where": {"items": text, **listed}, "allow": listed, "deny": listed,
        "inputs": {"maxItems": settings.max_inputs}, "n_beams": {"maximum": settings.max_beams},
        "top_k": {"maximum": min(settings.max_top_k, settings.max_beams)},
    }  # fmt: skip
    return {
        "Input": user,
        "RecommendationRequest": request,
        "ItemsChange": {"items": listed},
        "FilterChange": {"items": listed},
        "FieldChange": {"values": {"maxProperties": settings.max_listed}},
    }


_TYPES = {
    "maxItems": "array",
    "items": "array",
    "maxLength": "string",
    "maximum": "integer",
    "maxProperties": "object",
}


def _limit(field: Schema, limits: Schema) -> None:
    """Write limits into the schema of a field, or of what it may be beside null."""
    for name, value in limits.items():
        (part,) = [each for each in field.get("anyOf", [field]) if each.get("type") == _TYPES[name]]
        part[name] = {**part[name], **value} if name == "items" else min(value, part.get(name, value))
