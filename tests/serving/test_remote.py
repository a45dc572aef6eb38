"""A vLLM server elsewhere that goes away, comes back, or is another one than the run's."""

import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.client import HTTPException

import numpy as np
import pytest

from genrec.errors import FingerprintMismatch
from genrec.item_tokenizers.codes import ItemCodes
from genrec.models.bundle import load_bundle, save_bundle
from genrec.models.engine_scorer import Ask
from genrec.serving.settings import ServeSettings
from genrec.testing.shop_endpoint import IDS, make_shop, make_text_shop, save_shop
from genrec.testing.text_models import byte_level_tokenizer
from genrec.vocab.token_map import TokenMap

SIDE_BY_SIDE = ServeSettings(max_batch=1, searches=4)


def until(holds, seconds=30):
    """Wait for it."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    assert holds()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_shop(tmp_path_factory.mktemp("remote") / "run")


@pytest.fixture
def watched(client, over_http, run, monkeypatch):
    """A shop over the server, which is looked at many times a second."""
    from genrec.serving import engine_watch

    monkeypatch.setattr(engine_watch, "SECONDS", 0.05)
    monkeypatch.setattr(engine_watch, "SOON", 0.05)
    engines = []

    def engine(model):
        engines.append(over_http(model))
        engines[-1].watch(run)
        return engines[-1]

    load = lambda version: make_shop(version, engine=engine)  # noqa: E731
    return client(settings=SIDE_BY_SIDE, load=load, engine_well=lambda: engines[0].well)


def ready(shop):
    return shop.call("GET", "/ready").status == 200


def test_ready_follows_the_server(server, watched, caplog):
    assert ready(watched) and watched.recommend(history=[IDS[0]]).status == 200
    port = server.http.server_port
    server.die()
    until(lambda: not ready(watched))
    for reply in (watched.call("GET", "/ready"), watched.recommend(history=[IDS[0]])):
        assert reply.status == 503 and reply.headers["retry-after"] == "2"
        assert reply.json["error"]["code"] == "engine_gone" and reply.json["error"]["type"] == "overloaded_error"
    assert watched.call("GET", "/health").status == 200
    assert watched.recommend(history=[]).json["data"][0]["source"] == "popular"  # no model is asked
    assert caplog.text.count("the engine is lost") == 1
    server.start(port)
    until(lambda: ready(watched))
    assert watched.recommend(history=[IDS[0]]).status == 200 and "the engine is back" in caplog.text


def test_an_engine_that_died_behind_its_server_is_lost_too(server, watched):
    server.well = False
    until(lambda: not ready(watched))
    server.well = True
    until(lambda: ready(watched))


def test_requests_under_way_end_when_the_server_hangs(server, watched, monkeypatch):
    from genrec.serving import http_engine

    monkeypatch.setattr(http_engine, "LOOK_SECONDS", 0.3)
    server.hang, begun = threading.Event(), time.monotonic()
    reply = watched.recommend(history=[IDS[0]], timeout=10)
    server.hang.set()
    assert reply.status == 503 and reply.json["error"]["code"] in ("engine_failed", "engine_gone")
    assert "retry-after" in reply.headers and time.monotonic() - begun < 9


def test_a_look_ends_in_time_however_slowly_the_server_sends(server, over_http, monkeypatch):
    from genrec.serving import http_engine

    engine = over_http(None)
    monkeypatch.setattr(http_engine, "LOOK_SECONDS", 0.3)
    server.models = [{"id": "shop", "max_model_len": 64, "root": "/" + "x" * 200}]
    server.slowly = True
    with pytest.raises((OSError, HTTPException)):
        engine._look()
    assert server.sent < 100


def test_who_passes_on_only_v1_is_no_lost_server(server, over_http):
    engine, reply = over_http(None), server.handler.reply
    server.handler.reply = lambda self, status, body: reply(self, 404 if self.path == "/health" else status, body)
    engine._look()


def test_a_server_that_comes_back_as_another_is_not_ready(server, watched, caplog):
    port = server.http.server_port
    server.die()
    until(lambda: not ready(watched))
    server.models = [{"id": "shop", "max_model_len": 32}]
    server.start(port)
    until(lambda: "another model now" in caplog.text)
    assert not ready(watched) and watched.recommend(history=[IDS[0]]).status == 503
    server.models = [{"id": "shop", "max_model_len": 64}]
    until(lambda: ready(watched))


def test_a_server_with_another_vocabulary_is_refused(server, over_http, run, tmp_path, caplog):
    over_http(None).check(run)
    assert "its vocabulary" in caplog.text  # and nobody checks it
    caplog.clear()
    server.words = load_bundle(run).recommender.token_map.text_tokenizer()
    over_http(None).check(run)
    assert "NOBODY CHECKS" in caplog.text and "its vocabulary" not in caplog.text
    for sizes in ((5, 4, 3), (4, 4, 2)):  # the last token is another one, or is not there
        other = ItemCodes.from_int(np.zeros((1, 3), int), sizes, "another catalog")
        server.words = TokenMap.of(other).text_tokenizer()
        with pytest.raises(FingerprintMismatch, match="other ids"):
            over_http(None).check(run)


def test_a_server_with_the_pretrained_model_is_refused(server, over_http, tmp_path):
    shop = make_text_shop()
    words = shop.recommender.prompts.encoder.vocabulary
    save_bundle(tmp_path, shop.recommender, catalog=shop.store.snapshot.catalog, vocabulary=words, overwrite=True)
    shop.close()
    server.words = words.tokenizer
    over_http(None).check(tmp_path)
    server.words = byte_level_tokenizer()  # as before it knew items
    with pytest.raises(FingerprintMismatch, match="other ids"):
        over_http(None).check(tmp_path)


def test_a_failed_look_leaves_requests_alone(server, watched, caplog):
    """One look may be bad luck."""
    fine = server.handler.do_GET
    failed = []

    def once(self):
        if self.path == "/health" and not failed:
            failed.append(self.path)
            return self.reply(500, {})
        fine(self)

    server.handler.do_GET = once
    before = len(server.asked)
    until(lambda: failed and len(server.asked) > before + 3)
    assert ready(watched) and "is lost" not in caplog.text


def test_looks_are_not_for_requests(server, over_http):
    engine = over_http(make_shop(with_log=False).recommender.model)
    server.asked.clear()
    engine.logprobs([Ask([2], [], np.array([3]))])
    assert server.asked == ["/v1/completions"]
    engine._look()
    assert server.asked == ["/v1/completions", "/health", "/v1/models"]


@pytest.mark.slow
def test_the_command_follows_the_server(server, run):
    def get(path):
        try:
            with urllib.request.urlopen(url + path, timeout=30) as reply:
                return reply.status
        except urllib.error.HTTPError as error:
            return error.code

    server.model = make_shop(with_log=False).recommender.model
    command = [sys.executable, "-m", "genrec.cli.main", "serve", str(run), "--engine", "http", "--url", server.url]
    with subprocess.Popen(
        [*command, "--port", "0", "--one-process"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            url = process.stdout.readline().split()[-1]
            assert get("/ready") == 200
            server.die()
            until(lambda: get("/ready") == 503)
            assert get("/health") == 200
            server.start(int(server.url.rsplit(":", 1)[1]))
            until(lambda: get("/ready") == 200)
        finally:
            process.terminate()
        assert process.wait(60) == 0
