"""Endpoints that are closed when a test ends, and a vLLM server played by a model in this process."""

import contextlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest


@pytest.fixture
def client():
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        pytest.importorskip(package, reason="the extra 'serve' is not installed")
    from genrec.testing.shop_endpoint import ShopClient

    made = []

    def make(**options):
        made.append(ShopClient(**options))
        return made[-1]

    yield make
    for each in made:
        each.close()


class Server:
    """A vLLM server as HttpEngine sees it.

    statuses: what the next completions get instead of answers. well: whether /health says 200; words: its text
    tokenizer, None = there is no /tokenize. together: a barrier that completions wait at; hang: an event that every
    call waits for. slowly: answers come byte by byte.
    """

    def __init__(self, key=None):
        self.model, self.calls, self.statuses, self.key, self.shift = None, [], [], key, 0.0
        self.models = [{"id": "shop", "max_model_len": 64}]
        self.connections, self.together, self.slowly, self.sent = [], None, False, 0
        self.well, self.words, self.hang, self.asked = True, None, None, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                super().setup()
                outer.connections.append(self.connection)

            def do_GET(self):
                self.wait()
                if self.path == "/health":
                    return self.reply(200 if outer.well else 503, {})
                self.reply(200, {"data": outer.models})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.wait()
                if self.path == "/tokenize":
                    if outer.words is None:
                        return self.reply(404, {"detail": "Not Found"})
                    assert body["add_special_tokens"] is False
                    try:
                        found = outer.words(body["prompt"], add_special_tokens=False)["input_ids"]
                    except Exception:  # a word-level tokenizer without an unknown token, as vLLM answers then
                        return self.reply(500, {"error": {}})
                    return self.reply(200, {"tokens": found})
                assert self.path == "/v1/completions"
                outer.calls.append(body)
                if outer.together is not None:
                    outer.together.wait(20)
                if outer.key and self.headers["Authorization"] != f"Bearer {outer.key}":
                    return self.reply(401, {"error": "Unauthorized"})
                if outer.statuses:
                    return self.reply(outer.statuses.pop(0), {})
                self.reply(200, outer.answer(body))

            def wait(self):
                outer.asked.append(self.path)
                if outer.hang is not None:
                    outer.hang.wait(20)

            def reply(self, status, body):
                raw = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                if outer.slowly:
                    return self.drip(raw)
                self.wfile.write(raw)

            def drip(self, raw):
                with contextlib.suppress(OSError):
                    for outer.sent in range(min(200, len(raw))):
                        self.wfile.write(raw[outer.sent : outer.sent + 1])
                        time.sleep(0.05)

            def log_message(self, *_):
                pass

        self.handler = Handler
        self.start()

    def start(self, port=0):
        self.http = ThreadingHTTPServer(("127.0.0.1", port), self.handler)
        self.http.handle_error = lambda *_: None  # a client that hangs up
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def die(self):
        """End, with all connections."""
        self.close()
        for each in self.connections:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def answer(self, body):
        assert body["max_tokens"] == 1 and body["return_tokens_as_token_ids"] and len(body["logprob_token_ids"]) <= 128
        ids = body["logprob_token_ids"]
        from genrec.models.engine_scorer import Ask
        from genrec.testing.engines import ModelEngine

        rows = ModelEngine(self.model).logprobs([Ask(prompt, [], np.array(ids)) for prompt in body["prompt"]])
        tops = [{f"token_id:{i}": float(v) + self.shift for i, v in zip(ids, row, strict=True)} for row in rows]
        return {"choices": [{"index": n, "logprobs": {"top_logprobs": [top]}} for n, top in enumerate(tops)][::-1]}

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.close()


@pytest.fixture
def over_http(server):
    from genrec.serving.http_engine import HttpEngine

    made = []

    def make(answering, **options):
        server.model = answering
        made.append(HttpEngine(server.url, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()
