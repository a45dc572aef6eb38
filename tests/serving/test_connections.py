"""Clients that send slowly, and clients that come while the server stops: raw sockets, no model."""

import asyncio
import json
import socket
import threading
import time

import pytest

uvicorn = pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")


async def hello(scope, receive, send):
    if scope["path"] == "/slow":
        await asyncio.sleep(0.7)
    if scope["method"] == "POST" and scope["path"] == "/body":
        while (await receive()).get("more_body"):
            pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def served():
    from genrec.serving.connections import impatient
    from genrec.serving.server import _Server

    at = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        hello, log_config=None, lifespan="off", http=impatient(0.8, 1.2), ws="none", timeout_keep_alive=2,
        timeout_graceful_shutdown=10, h11_max_incomplete_event_size=32_768,
    )  # fmt: skip
    server = _Server(config, None)
    port = at.getsockname()[1]
    # a copy, as the watching process has one: the socket goes on listening
    held = at.dup()
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[at])))
    thread.start()
    yield port, server
    server.should_exit = True
    thread.join(20)
    held.close()


def connected(port):
    found = socket.create_connection(("127.0.0.1", port), timeout=5)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return found


def answer(connection):
    connection.settimeout(5)
    parts = []
    try:
        while part := connection.recv(4096):
            parts.append(part)
    except ConnectionResetError:
        parts.append(b"(reset)")
    return b"".join(parts)


def answers(connection, n):
    """Whether so many good answers come on a connection that stays open."""
    read = b""
    while read.count(b"\r\n\r\nok") < n:
        part = connection.recv(4096)
        if not part:
            return False
        read += part
    return read.count(b"HTTP/1.1 200") == n


def cut_after(connection, pieces, gap=0.05, limit=8.0):
    """Seconds until the server cuts a client that sends these bytes one by one, over and over; None = it does not."""
    started = time.monotonic()
    connection.setblocking(False)
    number = 0
    while time.monotonic() - started < limit:
        try:
            connection.send(pieces[number % len(pieces)])
            if connection.recv(4096) == b"":
                return time.monotonic() - started
        except BlockingIOError:
            pass
        except (ConnectionResetError, BrokenPipeError):
            return time.monotonic() - started
        number += 1
        time.sleep(gap)
    return None


def test_headers_that_dribble_are_cut(served):
    port, _ = served
    with connected(port) as one:
        seconds = cut_after(one, [b"GET / HTTP/1.1\r\n", *[b"x"] * 1000])
        assert seconds is not None and 0.6 < seconds < 4
    with connected(port) as silent:  # nothing at all
        started = time.monotonic()
        assert answer(silent) in (b"", b"(reset)") and time.monotonic() - started < 4


def test_a_connection_may_be_used_again_and_then_dribbles_in_vain(served):
    port, _ = served
    with connected(port) as one:
        for _ in range(3):
            one.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert answers(one, 1)
            time.sleep(0.4)  # three of them take longer than the headers of one may
        seconds = cut_after(one, [b"GET / HTTP/1.1\r\n", *[b"x"] * 1000])
        assert seconds is not None and seconds < 6
    with connected(port) as one:  # two requests at once: the second is not cut while the first is answered
        one.sendall(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n" * 2)
        assert answers(one, 2)
    with connected(port) as one:  # a body that is not read does not hold the connection
        one.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n")
        assert answers(one, 1)
        seconds = cut_after(one, [b"x"])
        assert seconds is not None and seconds < 6


def test_who_comes_while_the_server_stops_is_told_at_once(served):
    port, server = served
    with connected(port) as early, connected(port) as idle:
        early.sendall(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        time.sleep(0.2)
        server.should_exit = True
        time.sleep(0.4)
        with connected(port) as late:
            started = time.monotonic()
            late.sendall(b"POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
            told = answer(late)
            assert told.startswith(b"HTTP/1.1 503") and b"retry-after: 1" in told and b"connection: close" in told
            assert b'"shutting_down"' in told and time.monotonic() - started < 1.0
        assert answer(idle) == b""
        assert answer(early).startswith(b"HTTP/1.1 200")  # what was under way is answered


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 60_000,
    ],
    ids=["a line", "no host", "large headers"],
)
def test_what_is_no_http_is_answered_as_every_other_error(served, sent):
    port, _ = served
    with connected(port) as one:
        one.sendall(sent)
        head, _, body = answer(one).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400") and b"application/json" in head and b"connection: close" in head.lower()
    assert json.loads(body)["error"]["code"] == "invalid_http"
