"""`genrec serve` as a process: the commands of its page, crashes, the end."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from genrec.testing.shop_endpoint import IDS, save_shop

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
    return save_shop(tmp_path_factory.mktemp("served") / "shop")


@pytest.fixture
def server(run):
    started = []

    def start(*options, **more):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GENREC_ADMIN_KEY": "admin-key", **more}
        command = [sys.executable, "-m", "genrec.cli.main", "serve", str(run), "--port", "0", *options]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        started.append(process)
        line = process.stdout.readline()
        assert line.startswith("serving "), line
        return process, line.split()[-1]

    yield start
    for process in started:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()
        process.stdout.close()


def ask(url, path="/v1/recommendations", body=None, **headers):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url + path, data, headers), timeout=60) as reply:
        return json.load(reply)


@pytest.mark.slow
def test_the_commands_of_the_page(server, monkeypatch):
    process, url = server()
    monkeypatch.setenv("GENREC_ADMIN_KEY", "admin-key")
    ids = {"B001": IDS[0], "B002": IDS[1], "B003": IDS[2], "U0001": "u3", "categories has Garden": "kind = tea"}

    def here(text):
        for old, new in {**ids, "localhost:8000": url.removeprefix("http://")}.items():
            text = text.replace(old, new)
        return text

    lines = [line for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]
    curls = [line for line in lines if line.startswith("curl ")]
    assert len(curls) == 6
    for line in curls:
        done = subprocess.run(here(line), shell=True, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and done.stdout and "error" not in json.loads(done.stdout), (line, done.stdout)
    (client,) = re.findall(r"^```py\n(.*?)^```", PAGE, re.M | re.S)
    done = subprocess.run([sys.executable, "-c", here(client)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.count("item-") > 5, done.stderr
    assert ask(url, "/v1/catalog")["filters"] == ["cheap", "in_stock"]
    found = ask(url, body={"history": [IDS[3]], "filter": "in_stock & cheap"})["data"][0]["items"]
    assert IDS[1] in [each["id"] for each in found] and len(found) < 3
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


@pytest.mark.slow
def test_a_killed_server_is_started_again_and_forgets_nothing(server, tmp_path):
    process, url = server("--journal", str(tmp_path / "changes.jsonl"))
    first = ask(url, body={"history": [IDS[3]]})["data"][0]["items"][0]["id"]
    ask(url, "/v1/admin/retire", {"items": [first]}, Authorization="Bearer admin-key")
    for _ in range(2):
        (worker,) = psutil.Process(process.pid).children()
        worker.kill()
        worker.wait(30)
        # no request is refused: it waits until the next process has loaded
        assert first not in [i["id"] for i in ask(url, body={"history": [IDS[3]]})["data"][0]["items"]]
        assert process.stdout.readline().startswith("serving ")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


@pytest.mark.slow
def test_no_server_is_left_alone(server):
    process, url = server()
    (worker,) = psutil.Process(process.pid).children()
    process.kill()
    worker.wait(60)
    with pytest.raises(urllib.error.URLError):
        ask(url, "/health")
    process, _ = server("--one-process")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


@pytest.mark.slow
def test_a_server_that_is_told_to_stop_answers_what_it_has(server):
    process, url = server()
    answers = []

    def one(n):
        try:
            answers.append(ask(url, body={"inputs": [{"history": [IDS[n]]}] * 20, "top_k": 40})["object"])
        except (urllib.error.URLError, ConnectionError) as error:
            answers.append(type(error).__name__)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(8)]
    for each in threads:
        each.start()
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    for each in threads:
        each.join(60)
    assert process.wait(60) == 0
    assert answers == ["list"] * 8


@pytest.mark.slow
def test_what_cannot_be_served_is_said_at_once(run, tmp_path):
    for arguments, words in (
        ([str(tmp_path / "nowhere")], "no such folder"),
        ([str(tmp_path)], "not an artifact"),
        ([str(run), "--host", "0.0.0.0"], "GENREC_API_KEY"),
    ):
        command = [sys.executable, "-m", "genrec.cli.main", "serve", *arguments, "--port", "0"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env={**os.environ, "GENREC_API_KEY": ""}
        )
        assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
