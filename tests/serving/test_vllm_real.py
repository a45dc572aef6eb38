"""A real vLLM: started by `genrec serve --engine vllm`, asked over its plugin and over its own route.

bash serve/vllm_cpu.sh .venv-vllm && .venv-vllm/bin/python -m pip install pytest
.venv-vllm/bin/python -m pytest -m vllm tests/serving/test_vllm_real.py
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from genrec.serving.vllm_start import installed
from genrec.testing.shop_endpoint import IDS, ShopClient, make_shop, save_shop

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
SIZE = 64  # two heads of 32: on a CPU vLLM takes none that are smaller
STARTS = 1800  # seconds that it may take


@pytest.fixture(scope="module")
def vllm(tmp_path_factory):
    pytest.importorskip("vllm", reason="vLLM is not installed: bash serve/vllm_cpu.sh .venv-vllm")
    folder = tmp_path_factory.mktemp("real")
    run = save_shop(folder / "shop", hidden_size=SIZE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "genrec.cli.main", "serve", str(run), "--engine", "vllm", "--port", str(port)]
    command += ["--", "--dtype", "float32", "--max-model-len", "64"]
    more = {"VLLM_CPU_KVCACHE_SPACE": "1", "GENREC_API_KEY": "key-of-the-shop", "GENREC_ADMIN_KEY": "key-of-admins"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **more}, start_new_session=True)
        url, until = f"http://127.0.0.1:{port}", time.monotonic() + STARTS
        try:
            while True:
                assert process.poll() is None and time.monotonic() < until, (folder / "log").read_text()[-3000:]
                try:
                    urllib.request.urlopen(f"{url}/health", timeout=5).close()
                    break
                except OSError:
                    time.sleep(1)
            yield url, folder / "log"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def ask(url, path, body=None, key="key-of-the-shop", **headers):
    """Status and JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Authorization": f"Bearer {key}", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


REQUESTS = [
    {"history": [IDS[n] for n in (3, 17, 5)], "top_k": 10, "n_beams": 10, "scores": "raw"},
    {"history": [IDS[9]], "top_k": 60, "n_beams": 60},  # more than the catalog has
    {"history": [IDS[9], IDS[1]], "where": ["price < 25"], "deny": [IDS[2]], "scores": "renormalized"},
    {"inputs": [{"history": [IDS[n], IDS[n + 1]]} for n in range(20)], "exact": True},
    {"user": "u3", "explain": True},
    {"history": []},
]


def same(found, wanted):
    for one, other in zip(found["data"], wanted["data"], strict=True):
        assert [each["id"] for each in one["items"]] == [each["id"] for each in other["items"]]
        scores = [np.array([each["score"] or 0 for each in side["items"]]) for side in (one, other)]
        np.testing.assert_allclose(*scores, rtol=0, atol=1e-4)


def test_the_plugin_lists_what_the_endpoint_lists(vllm):
    url, log = vllm
    here = ShopClient(load=lambda v: make_shop(v, hidden_size=SIZE))
    for body in REQUESTS:
        status, found = ask(url, "/v1/genrec/recommendations", body)
        assert status == 200, found
        same(found, here.recommend(**body).json)
    here.close()
    if installed().cpu:  # which has the V1 runner
        assert "use this server for recommendations only" in log.read_text()


def test_a_search_here_over_its_own_route_lists_the_same(vllm, caplog):
    from genrec.serving.http_engine import HttpEngine
    from genrec.serving.settings import ServeSettings

    engine = HttpEngine(vllm[0], key="key-of-the-shop")
    engine.check(vllm[1].parent / "shop")
    engine._look()
    assert engine._ids_of("<a_0> <b_1>") is not None and "NOBODY CHECKS" not in caplog.text
    settings = ServeSettings(max_batch=1, searches=4)
    here = ShopClient(load=lambda v: make_shop(v, hidden_size=SIZE))
    there = ShopClient(settings, load=lambda v: make_shop(v, engine=lambda model: engine, hidden_size=SIZE))
    for body in REQUESTS:
        same(there.recommend(**body).json, here.recommend(**body).json)
    for each in (here, there):
        each.close()
    engine.close()


def test_keys_limits_and_changes(vllm):
    url, _ = vllm
    body = {"history": [IDS[0]], "top_k": 3}
    assert ask(url, "/v1/genrec/recommendations", body, key="another-key")[0] == 401
    assert ask(url, "/v1/genrec/recommendations", {**body, "top_k": 10**6})[0] == 400
    first = ask(url, "/v1/genrec/recommendations", body)[1]["data"][0]["items"][0]["id"]
    retire = {"items": [first]}
    assert ask(url, "/v1/genrec/admin/retire", retire)[0] == 401
    assert ask(url, "/v1/genrec/admin/retire", retire, key="key-of-admins")[0] == 401  # vLLM's guard stands before ours
    assert ask(url, "/v1/genrec/admin/retire", retire, **{"X-Genrec-Admin-Key": "key-of-admins"})[0] == 200
    assert ask(url, "/v1/genrec/catalog")[1]["n_retired"] == 1
    assert first not in [each["id"] for each in ask(url, "/v1/genrec/recommendations", body)[1]["data"][0]["items"]]
