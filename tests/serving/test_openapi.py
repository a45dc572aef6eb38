"""The schema against what the server does: answers, errors, keys, limits."""

import json

import pytest

from genrec.serving.guard import ROUTES
from genrec.serving.settings import ServeSettings
from genrec.testing.shop_endpoint import IDS

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")


def referred(value):
    """All references of a schema."""
    if isinstance(value, list):
        return [each for part in value for each in referred(part)]
    if not isinstance(value, dict):
        return []
    return [*filter(None, [value.get("$ref")]), *(each for part in value.values() for each in referred(part))]


def test_every_answer_is_what_the_schema_says(client):
    from genrec.serving.openapi import REPLIES

    shop = client(settings=ServeSettings(admin_key="admin-key"))
    schema = shop.call("GET", "/openapi.json").json
    assert {(m.upper(), p) for p, found in schema["paths"].items() for m in found} == {
        each for each in ROUTES if each[1] != "/openapi.json"
    }
    parts = schema["components"]["schemas"]
    assert all(each.removeprefix("#/components/schemas/") in parts for each in referred(schema))
    admin = {"authorization": "Bearer admin-key"}
    asked = [
        *(("GET", path, b"", {}) for method, path in ROUTES if method == "GET"),
        ("POST", "/v1/recommendations", {"inputs": [{"history": [IDS[1]]}, {"history": []}]}, {}),
        ("POST", "/v1/recommendations", {"history": [IDS[1]], "explain": True}, {}),
        ("POST", "/v1/admin/retire", {"items": [IDS[3], "nobody"]}, admin),
        ("POST", "/v1/admin/filters", {"name": "cheap", "condition": "price < 25"}, admin),
        ("POST", "/v1/admin/fields", {"field": "price", "values": {IDS[5]: 2.5}}, admin),
        ("POST", "/v1/admin/reload", b"", admin),
        ("POST", "/v1/admin/rollback", b"", admin),
    ]
    assert {(method, path) for method, path, _, _ in asked} == set(ROUTES)
    for method, path, body, headers in asked:
        reply = shop.call(method, path, body, **headers)
        assert reply.status == 200, (path, reply.body)
        if (kind := REPLIES.get(path)) is not None:  # nothing is left out, and nothing else is there
            assert kind.model_validate(reply.json).model_dump(exclude_unset=True) == reply.json
            (content,) = schema["paths"][path][method.lower()]["responses"]["200"]["content"].values()
            assert content["schema"] == {"$ref": f"#/components/schemas/{kind.__name__}"}
            assert parts[kind.__name__]["required"]


def test_errors_are_said(client):
    from genrec.serving.replies import Failure

    shop = client(settings=ServeSettings(api_key="the-api-key"))
    key = {"authorization": "Bearer the-api-key"}
    paths = shop.call("GET", "/openapi.json", **key).json["paths"]
    for path, body, headers, status in (
        ("/v1/recommendations", {}, key, 400),
        ("/v1/recommendations", {}, {}, 401),
        ("/v1/recommendations", {"user": "nobody", "model": "other"}, key, 404),
        ("/v1/recommendations", b"x" * 2**21, key, 413),
        ("/v1/admin/reload", b"", key, 403),
    ):
        reply = shop.call("POST", path, body, **headers)
        assert reply.status == status and Failure.model_validate(reply.json).model_dump() == reply.json
        said = paths[path]["post"]["responses"][str(status)]["content"]["application/json"]["schema"]
        assert said == {"$ref": "#/components/schemas/Failure"}


def test_limits_and_keys_are_those_of_the_server(client):
    limits = ServeSettings(max_top_k=7, max_beams=70, max_history=5, max_inputs=3, max_listed=4, admin_key="admin-key")
    shop = client(settings=limits)
    schema = shop.call("GET", "/openapi.json").json
    fields = schema["components"]["schemas"]["RecommendationRequest"]["properties"]
    one, history = {"history": []}, fields["history"]["anyOf"][0]["maxItems"]
    for most, ask in (
        (fields["top_k"]["maximum"], lambda n: {**one, "top_k": n}),
        (fields["n_beams"]["anyOf"][0]["maximum"], lambda n: {**one, "top_k": 1, "n_beams": n}),
        (history, lambda n: {"history": [IDS[0]] * n}),
        (fields["inputs"]["anyOf"][0]["maxItems"], lambda n: {"inputs": [one] * n}),
        (fields["deny"]["maxItems"], lambda n: {**one, "deny": [IDS[0]] * n}),
        (fields["allow"]["anyOf"][0]["maxItems"], lambda n: {**one, "allow": [IDS[0]] * n}),
        (fields["where"]["maxItems"], lambda n: {**one, "where": ["kind = tea"] * n}),
    ):
        for n, status in ((most, 200), (most + 1, 400)):
            assert shop.recommend(**{"top_k": 2, **ask(n)}).status == status, (json.dumps(ask(n)), n)
    assert [each["post"]["security"] for path, each in schema["paths"].items() if "admin" in path] == [
        [{"admin": []}]
    ] * 5
    assert schema["paths"]["/v1/recommendations"]["post"]["security"] == []  # this server asks for no key
    keyed = client(settings=ServeSettings(api_key="the-api-key"))
    paths = keyed.call("GET", "/openapi.json", authorization="Bearer the-api-key").json["paths"]
    assert (
        paths["/v1/recommendations"]["post"]["security"] == [{"key": []}] and paths["/health"]["get"]["security"] == []
    )
