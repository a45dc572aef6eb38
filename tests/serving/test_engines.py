"""The endpoint over engines: vLLM's client and a vLLM server, both played by a model in this process."""

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from genrec.errors import ConfigError, FingerprintMismatch
from genrec.models.engine_scorer import Ask
from genrec.serving.patience import Patience, waited_for, with_patience
from genrec.serving.problems import Problem
from genrec.serving.settings import ServeSettings
from genrec.testing.engines import ModelEngine
from genrec.testing.shop_endpoint import IDS, N, make_shop, save_shop
from genrec.testing.vllm_doubles import FakeClient, missing_modules

SIDE_BY_SIDE = ServeSettings(max_batch=1, searches=4, admin_key="admin-key")


@pytest.fixture
def vllm(monkeypatch):
    """Enough of vLLM's modules to import, where it is not installed."""
    import sys

    for name, module in missing_modules().items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def loop():
    """An event loop in a thread of its own, as vLLM's is for those who search."""
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever, daemon=True)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join(10)
    made.close()


@pytest.fixture
def in_vllm(vllm, loop):
    """From a model to an engine over a client; the client is in ``clients``."""
    from genrec.serving.vllm_engine import VllmEngine

    def make(model, max_len=512, lora=None, **client):
        make.clients.append(FakeClient(model, **client))
        return VllmEngine(make.clients[-1], loop, max_len=max_len, lora=lora)

    make.clients = []
    return make


def requests(n):
    """Random requests with rules of every kind."""
    random = np.random.default_rng(0)
    for number in range(n):
        ids = [IDS[i] for i in random.integers(0, N, 6)]
        asked = {"history": ids[: number % 4], "top_k": int(random.integers(1, 30)), "exact": number % 5 == 4}
        asked |= [{}, {"where": ["price < 30"]}, {"deny": ids[4:]}, {"allow": ids}, {"exclude_seen": False}][number % 5]
        yield asked | {"scores": ["raw", "renormalized", None][number % 3]}


@pytest.mark.parametrize("kind", ["vllm", "http"])
def test_the_lists_are_those_of_the_model_in_this_process(client, in_vllm, over_http, kind):
    make = {"vllm": in_vllm, "http": over_http}[kind]
    here, there = client(), client(settings=SIDE_BY_SIDE, load=lambda v: make_shop(v, engine=make))
    for each in (here, there):
        each.admin("retire", {"items": [IDS[3], IDS[12]]})
    for asked in requests(30):
        ours, theirs = here.recommend(**asked), there.recommend(**asked)
        assert ours.status == theirs.status == 200
        for one, other in zip(ours.json["data"], theirs.json["data"], strict=True):
            assert [each["id"] for each in one["items"]] == [each["id"] for each in other["items"]]
            scores = [np.array([each["score"] or 0 for each in side["items"]]) for side in (one, other)]
            np.testing.assert_allclose(*scores, rtol=0, atol=1e-5)
            assert one["certified"] == other["certified"] and one["normalize"] == other["normalize"]


@pytest.mark.parametrize("scores", ["raw", "renormalized"])
def test_masses_are_those_of_the_model_in_this_process(client, in_vllm, scores):
    here, there = client(), client(settings=SIDE_BY_SIDE, load=lambda v: make_shop(v, engine=in_vllm))
    asked = {"history": [IDS[4]], "top_k": 3, "explain": True, "scores": scores, "where": ["price < 30"]}
    ours, theirs = (shop.recommend(**asked).json["data"][0]["items"] for shop in (here, there))
    for one, other in zip(ours, theirs, strict=True):
        for step, same in zip(one["path"], other["path"], strict=True):
            assert step["mass"] == pytest.approx(same["mass"], abs=1e-5)
            assert step["logp"] == pytest.approx(same["logp"], abs=1e-5)


def test_users_of_a_request_are_searched_side_by_side(client, in_vllm, loop):
    shop = client(settings=SIDE_BY_SIDE, load=lambda v: make_shop(v, engine=in_vllm))
    (fake,) = in_vllm.clients
    before, fake.hold = fake.started, asyncio.Event()
    replies = []
    users = [{"history": [IDS[n]]} for n in range(3)]
    asking = threading.Thread(target=lambda: replies.append(shop.recommend(inputs=users)))
    asking.start()
    until = time.monotonic() + 20
    while fake.started < before + 3 and time.monotonic() < until:
        time.sleep(0.01)
    assert fake.started == before + 3  # the first read of each, before any has an answer
    loop.call_soon_threadsafe(fake.hold.set)
    asking.join(30)
    assert [len(one["items"]) for one in replies[0].json["data"]] == [10, 10, 10]


def test_wide_nodes_are_asked_for_in_parts_of_128_and_every_read_has_the_adapter(in_vllm):
    engine = in_vllm(make_shop(with_log=False).recommender.model, lora="the adapter")
    ids = np.arange(10).repeat(30)
    (found,) = engine.logprobs([Ask([2], [3], ids)])
    (fake,) = in_vllm.clients
    assert fake.widths == [128, 128, 44] and fake.lora == ["the adapter"] * 3
    fake.most = 0
    engine.logprobs([Ask([2], [3], ids)] * 30)
    assert 0 < fake.most <= 64  # a search has a share of vLLM
    (wanted,) = ModelEngine(fake.model).logprobs([Ask([2], [3], ids)])
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_prompts_with_few_ids_share_a_call_and_those_with_many_do_not(server, over_http):
    engine = over_http(make_shop(with_log=False).recommender.model)
    few = [Ask([2, n], [], np.array([n, n + 1])) for n in range(8)]
    for found, wanted in zip(engine.logprobs(few), ModelEngine(server.model).logprobs(few), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert len(server.calls) == 1 and len(server.calls[0]["prompt"]) == 8
    assert engine.logprobs([]) == []


def test_an_engine_that_fails_is_a_503_that_says_when_to_come_back(client, in_vllm, caplog):
    failing = threading.Event()

    def before(tokens):
        if failing.is_set():
            raise RuntimeError("secret: out of memory at /models/x")

    shop = client(settings=SIDE_BY_SIDE, load=lambda v: make_shop(v, engine=lambda m: in_vllm(m, before=before)))
    failing.set()
    reply = shop.recommend(history=[IDS[0]])
    assert (
        reply.status == 503 and reply.json["error"]["code"] == "engine_failed" and reply.headers["retry-after"] == "1"
    )
    assert b"secret" not in reply.body and "out of memory" in caplog.text
    failing.clear()
    assert shop.recommend(history=[IDS[0]]).status == 200


def test_a_prompt_that_is_too_long_is_the_clients_error(client, in_vllm):
    shop = client(settings=SIDE_BY_SIDE, load=lambda v: make_shop(v, engine=in_vllm))
    shop.registry.current.recommender.now._scorer._engine._max_len = 9
    assert shop.recommend(history=[IDS[0]]).status == 200
    reply = shop.recommend(history=[IDS[0], IDS[1], IDS[2]])
    assert reply.status == 400 and reply.json["error"]["code"] == "prompt_too_long"


def test_an_engine_that_cannot_take_the_longest_history_is_refused(client, in_vllm):
    def start(max_len):
        client(settings=SIDE_BY_SIDE, load=lambda v: make_shop(v, engine=lambda m: in_vllm(m, max_len=max_len)))

    start(64)  # 20 items of 3 codes, a start, 2 codes, and the token to come
    with pytest.raises(ConfigError, match="longer than the 63 tokens"):
        start(63)


def test_a_client_that_goes_takes_its_reads_with_it(client, in_vllm, loop):
    shop = client(
        settings=ServeSettings(max_batch=1, searches=1), load=lambda v: make_shop(v, engine=lambda m: in_vllm(m))
    )
    (fake,) = in_vllm.clients
    before, fake.hold = fake.started, asyncio.Event()

    async def hang_up():
        gone = asyncio.Event()
        body = json.dumps({"history": [IDS[0]]}).encode()
        asked = asyncio.ensure_future(shop.asked("POST", "/v1/recommendations", (body,), gone=gone))
        while fake.started == before:
            await asyncio.sleep(0.01)
        gone.set()
        return (await asked).status

    assert asyncio.run(hang_up()) == 400
    until = time.monotonic() + 20
    while fake.aborted < fake.started - before and time.monotonic() < until:
        time.sleep(0.01)
    assert fake.aborted == fake.started - before > 0
    fake.hold = None
    assert shop.recommend(history=[IDS[0]]).status == 200  # the only thread is free again


def test_a_deadline_ends_the_wait(in_vllm):
    engine = in_vllm(make_shop(with_log=False).recommender.model)
    in_vllm.clients[0].hold = asyncio.Event()
    with with_patience(Patience(time.monotonic() + 0.1)), pytest.raises(Problem) as caught:
        engine.logprobs([Ask([2], [], np.array([3]))])
    assert caught.value.status == 504


def test_what_is_waited_for_may_raise_a_timeout_of_its_own():
    from concurrent.futures import Future

    future = Future()
    future.set_exception(TimeoutError("of the engine"))
    with pytest.raises(TimeoutError, match="of the engine"):
        waited_for(future)


def test_a_busy_server_is_asked_again_and_a_broken_one_is_not(server, over_http, caplog):
    ask = [Ask([2], [], np.array([3, 4]))]
    engine = over_http(make_shop(with_log=False).recommender.model)
    server.statuses = [503, 429]
    assert len(engine.logprobs(ask)[0]) == 2 and len(server.calls) == 3
    for statuses, calls in (([503] * 3, 3), ([400], 1)):
        server.statuses, server.calls = list(statuses), []
        with pytest.raises(Problem) as caught:
            engine.logprobs(ask)
        assert caught.value.status == 503 and len(server.calls) == calls
    server.shift = 20.0
    with pytest.raises(Problem):
        engine.logprobs(ask)
    assert "raw_logprobs" in caplog.text
    server.shift = float("nan")
    with pytest.raises(Problem):
        engine.logprobs(ask)
    assert "NaN instead of" in caplog.text


def test_connections_that_the_server_has_closed_are_no_failed_tries(server, over_http, monkeypatch):
    from genrec.serving import http_calls

    engine = over_http(make_shop(with_log=False).recommender.model)
    server.together = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        ask = [Ask([2], [], np.array([3]))]
        assert all(pool.map(engine.logprobs, [ask] * 4))  # so there are four idle ones
    server.together = None
    for each in server.connections:
        each.shutdown(socket.SHUT_RDWR)
    calls, connections = len(server.calls), len(server.connections)
    assert engine.logprobs(ask) and engine.logprobs(ask)
    assert len(server.calls) == calls + 2 and len(server.connections) == connections + 1
    monkeypatch.setattr(http_calls, "IDLE_SECONDS", -1.0)  # too old
    assert engine.logprobs(ask) and len(server.connections) == connections + 2


def test_another_thread_may_take_the_last_idle_connection(server, over_http):
    class Taken(list):
        def __bool__(self):
            return True

    engine = over_http(make_shop(with_log=False).recommender.model)
    engine._calls.close()
    engine._calls._idle = Taken()
    assert engine.logprobs([Ask([2], [], np.array([3]))])


def test_a_server_that_sends_byte_by_byte_holds_no_thread_beyond_the_deadline(server, over_http):
    engine = over_http(make_shop(with_log=False).recommender.model)
    server.slowly = True
    with with_patience(Patience(time.monotonic() + 0.3)), pytest.raises(Problem) as caught:
        engine.logprobs([Ask([2], [], np.arange(16))])
    engine.close()  # waits for the threads
    assert caught.value.status == 504 and server.sent < 100


def test_a_server_on_this_machine_with_other_weights_is_refused(server, over_http, tmp_path, caplog):
    run, other = save_shop(tmp_path / "run"), save_shop(tmp_path / "other", seed=1)
    over_http(None).check(run)
    assert "NOBODY CHECKS" in caplog.text
    caplog.clear()
    server.models[0]["root"] = str(run / "bundle" / "model")
    over_http(None).check(run)
    assert "NOBODY CHECKS" not in caplog.text
    with pytest.raises(FingerprintMismatch, match="other weights"):
        over_http(None).check(other)
    server.models.append({"id": "adapter", "parent": "shop", "root": str(tmp_path)})
    with pytest.raises(FingerprintMismatch, match="not that of the run"):
        over_http(None, model="adapter").check(run)


def test_what_cannot_be_a_server_is_refused(server, over_http):
    from genrec.serving.http_engine import HttpEngine

    for url in ("127.0.0.1:8000", "ftp://x", "http://user:secret@x/", "http://h:abc", "http://[h", "http://h/?secret"):
        with pytest.raises(ConfigError, match="--url: expected") as caught:
            HttpEngine(url)
        assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="GENREC_ENGINE_KEY") as caught:
        over_http(None, key="secret-key\n")
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="no model 'other'"):
        over_http(None, model="other")
    assert over_http(None).model == "shop"
    server.models.append({"id": "adapter", "parent": "shop"})
    assert over_http(None, model="adapter")._max_len == 64
    with pytest.raises(ConfigError, match="several models"):
        over_http(None)
    gone = server.url
    server.close()
    with pytest.raises(ConfigError, match="no vLLM server answers"):
        HttpEngine(gone)


def test_the_key_of_the_server_is_shown(server, over_http):
    server.key = "engine-key"
    ask = [Ask([2], [], np.array([3]))]
    model = make_shop(with_log=False).recommender.model
    assert over_http(model, key="engine-key").logprobs(ask)
    with pytest.raises(Problem):
        over_http(model).logprobs(ask)
