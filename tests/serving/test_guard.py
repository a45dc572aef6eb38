"""Keys, sizes, times, and requests that are wrong in every way."""

import asyncio
import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genrec.errors import ConfigError
from genrec.serving.guard import ROUTES
from genrec.serving.settings import ServeSettings
from genrec.testing.shop_endpoint import IDS, make_shop, make_text_shop, save_shop

CANARY = "canary-5e1f"


def test_every_route_has_a_guard_and_only_health_is_open(client):
    shop = client(settings=ServeSettings(api_key="the-api-key", admin_key="admin-key"))
    served = {(m, r.path) for r in shop.app.routes for m in (r.methods or ()) if m != "HEAD"}
    assert served == set(ROUTES)
    assert [path for (_, path), guard in ROUTES.items() if guard == "open"] == ["/health"]
    for (method, path), guard in [*ROUTES.items(), (("GET", "/nowhere"), "key"), (("PUT", "/health"), "key")]:
        for header in ("", "Bearer wrong-key", "Bearer the-api-key2", "the-api-key", "Bearer thé-api-key"):
            assert (shop.call(method, path, authorization=header).status == 401) == (guard != "open"), (path, header)
        if guard != "open":
            assert shop.call(method, path).headers["www-authenticate"] == "Bearer"
        if guard == "admin":  # the other key does not do
            assert shop.call(method, path, authorization="Bearer the-api-key").status == 401
    assert shop.call("GET", "/version", authorization="Bearer the-api-key").status == 200


def test_admin_routes_are_off_without_a_key(client):
    shop = client(settings=ServeSettings())
    for method, path in (each for each, guard in ROUTES.items() if guard == "admin"):
        assert shop.call(method, path).status == 403
    assert shop.call("GET", "/version").status == 200


def test_no_other_spelling_of_a_path_passes_the_guard(client):
    shop = client(settings=ServeSettings(api_key="the-api-key"))
    body, key = {"items": ["item-01"]}, "Bearer the-api-key"
    for (method, path), guard in ROUTES.items():
        for other in (
            f"{path}\n",
            f"{path}/",
            f"/{path}",
            f"{path}//",
            path.upper(),
            f"{path}?",
            f"{path}\x00",
            f"{path} ",
        ):
            assert shop.call(method, other, body, authorization=key).status == 404, other
            assert shop.call(method, other, body).status == 401
        for how in {"GET", "POST", "HEAD", "OPTIONS", "PUT", "TRACE"} - {method}:
            assert shop.call(how, path, body, authorization=key).status == 405
        if guard == "admin":
            assert shop.call(method, path, body, authorization=key).status == 403
    assert shop.registry.current.store.snapshot.version == 0


def test_a_condition_that_cannot_be_computed_is_its_own_request_s_error(client):
    shop = client()
    for text in (
        "price < " + "9" * 400,
        " " * 500,
        "x" * 500 + "<",
        "price <= -" + "9" * 400,
        "price in , ,",
        "kind in ",
    ):
        started = time.monotonic()
        assert shop.recommend(history=["item-01"], where=[text]).status in (200, 400)
        assert time.monotonic() - started < 5
    assert shop.recommend(history=["item-01"], where=["price in 3,4,5"]).status == 200


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"host": "0.0.0.0"}, "no key"),
        ({"host": "example.org"}, "no key"),
        ({"api_key": "short"}, "at least 8"),
        ({"admin_key": "with a space"}, "at least 8"),
        ({"max_batch": 0}, "max_batch"),
        ({"timeout_seconds": -1.0}, "timeout_seconds"),
    ],
)
def test_unsafe_settings_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        ServeSettings(**changes)
    assert ServeSettings(host="0.0.0.0", api_key="long-enough").host == "0.0.0.0"


@pytest.mark.parametrize(("top_k", "n_beams", "status"), [(60, None, 200), (61, None, 400), (1, 61, 400), (1, 60, 200)])
def test_a_longer_list_does_not_go_beyond_the_limit_of_beams(client, top_k, n_beams, status):
    reply = client(settings=ServeSettings(max_beams=60)).recommend(history=[], top_k=top_k, n_beams=n_beams)
    assert reply.status == status
    if status != 200:
        assert reply.json["error"]["code"] == "too_large"
        assert reply.json["error"]["param"] == ("top_k" if n_beams is None else "n_beams")


def test_a_model_that_is_searched_with_more_beams_than_the_limit_is_not_loaded(client, tmp_path):
    pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
    from genrec.serving.server import loading

    run = save_shop(tmp_path / "run")
    with pytest.raises(ConfigError, match="with 60 beams, and --max-beams is 59"):
        loading(run, ServeSettings(max_beams=59))(1)
    loading(run, ServeSettings(max_beams=60))(1).close()


def test_a_proof_counts_in_a_batch_with_all_beams_that_it_may_take():
    from genrec.serving.schemas import RecommendationRequest

    shop = make_shop()
    plain, proof = ({"history": [], "n_beams": 10, "exact": exact} for exact in (False, True))
    for most in (20, 500):
        shop.max_beams = most
        assert shop.rows(RecommendationRequest(**plain)) == 10
        assert shop.rows(RecommendationRequest(**proof)) == min(most, shop.recommender.index.n_identifiers)
    shop.close()


WRONG = {
    b"": 400,
    b"{": 400,
    b"\xff\xfe": 400,
    b"[]": 400,
    b"null": 400,
    b'{"history": ["a"], "history": ["b"]}': 400,
    b'{"history": [], "top_k": NaN}': 400,
    b'{"history": [], "top_k": 1e999}': 400,
    b'{"history": [], "top_k": 1.5}': 400,
    b'{"history": [], "top_k": true}': 400,
    b'{"history": [], "top_k": 0}': 400,
    b'{"history": [], "top_k": 1000000000}': 400,
    b'{"history": [], "n_beams": 1000000000}': 400,
    b'{"history": [], "top_k": 10, "n_beams": 9}': 400,
    b'{"history": ["\\ud800"]}': 400,
    b'{"history": "item-01"}': 400,
    b'{"history": [1]}': 400,
    b'{"history": null}': 400,
    b"{}": 400,
    b'{"inputs": []}': 400,
    b'{"inputs": [{}]}': 400,
    b'{"inputs": [{"history": []}], "history": []}': 400,
    b'{"history": [], "nonsense": 1}': 400,
    b'{"history": [], "filter": "nobody"}': 400,
    b'{"history": [], "filter": "__import__(1)"}': 400,
    b'{"history": [], "where": ["nofield < 1"]}': 400,
    b'{"history": [], "where": ["price"]}': 400,
    b'{"history": [], "where": ["title < 3"]}': 400,
    b'{"history": [], "scores": "odd"}': 400,
    b'{"history": [], "timeout": 0}': 400,
    b'{"history": [], "explain": "yes"}': 400,
    b'{"query": "tea"}': 400,
    b'{"query": ["tea"]}': 400,
    b'{"query": "tea", "inputs": [{"query": "tea"}]}': 400,
    b'{"inputs": [{"history": []}, {"history": []}], "top_k": 150, "explain": true}': 400,
    b'{"history": [], "top_k": ' + b"9" * 5000 + b"}": 400,
    b"[" * 100_000: 400,
    json.dumps({"history": ["x"] * 3000}).encode(): 400,
    json.dumps({"history": [], "deny": ["x"] * 20_000}).encode(): 400,
    json.dumps({"history": [], "filter": "a & " * 5000}).encode(): 400,
    json.dumps({"inputs": [{"history": []}] * 65}).encode(): 400,
    b'{"history": ["' + b"x" * (1 << 20) + b'"]}': 413,
}


def test_what_is_wrong_gets_a_clear_error_that_repeats_nothing(client):
    shop = client()
    for body, status in WRONG.items():
        reply = shop.call("POST", "/v1/recommendations", body)
        assert reply.status == status, (body[:80], reply.body[:300])
        error = reply.json["error"]
        assert error["message"] and error["type"] and len(reply.body) < 2000 and "x-request-id" in reply.headers
    for field in ("history", "user", "filter", "where", "scores", CANARY, "model", "timeout", "allow", "query"):
        for value in (CANARY, [CANARY], [[CANARY]], {CANARY: 1}, [f"{CANARY} < 3"], f"{CANARY} & x"):
            body = {"history": ["item-01"], field: value} if field != "user" else {"user": value}
            reply = shop.call("POST", "/v1/recommendations", body)
            assert reply.status in (200, 400, 404) and CANARY not in reply.body.decode(), (field, value, reply.body)
    assert shop.call("GET", f"/{CANARY}").status == 404
    assert CANARY not in shop.call("GET", f"/{CANARY}").body.decode()
    wrong = shop.call("GET", "/v1/recommendations")
    assert wrong.status == 405 and wrong.headers["allow"] == "POST"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8) | st.sampled_from(IDS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    "history",
    "user",
    "inputs",
    "top_k",
    "n_beams",
    "filter",
    "where",
    "allow",
    "deny",
    "exact",
    "scores",
    "model",
    "explain",
    "query",
)


def test_no_request_is_an_error_of_the_server(client):
    shops = (client(), client(load=make_text_shop))

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=5) | json_values | st.binary(max_size=60))
    def ask(body):
        raw = body if isinstance(body, bytes) else json.dumps(body).encode("utf-8", "surrogatepass")
        for shop in shops:
            reply = shop.call("POST", "/v1/recommendations", raw)
            assert reply.status in (200, 400, 404, 413), (reply.status, raw)

    ask()


def test_bodies_are_counted_as_they_come_and_must_come_in_time(client):
    shop = client(settings=ServeSettings(max_body_bytes=1000, body_seconds=0.05))
    path, chunks = "/v1/recommendations", [b"x" * 300] * 1000

    async def chunks_over():
        return await shop.asked("POST", path, chunks)

    over = asyncio.run(chunks_over())
    assert over.status == 413 and over.unread == 996 and over.headers["connection"] == "close"
    said = shop.call("POST", path, b"{}", content_length="1001")
    assert said.status == 413 and said.headers["connection"] == "close"
    for lie in ("-1", "1e3", "x", "9" * 400):
        assert shop.call("POST", path, b"{}", content_length=lie).status == 413

    async def never_ends():
        scope_done = asyncio.Event()
        real = shop.app

        async def receive_forever():
            await scope_done.wait()

        sent = []

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http", "http_version": "1.1", "method": "POST", "path": path, "raw_path": path.encode(),
            "query_string": b"", "root_path": "", "scheme": "http", "headers": [], "client": None, "server": None,
        }  # fmt: skip
        await real(scope, receive_forever, send)
        return sent[0]["status"]

    assert asyncio.run(never_ends()) == 408


def test_the_security_page_lists_every_route():
    page = (Path(__file__).resolve().parents[2] / "SECURITY.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `(\w+ /[\w/.]*)` \| (\w+) \|$", page, re.M)) == {
        f"{method} {path}": guard for (method, path), guard in ROUTES.items()
    }
