"""What lies in serve/: names and paths in it exist, the scripts run."""

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from genrec.cli.main import app
from genrec.testing.shop_endpoint import IDS, save_shop

ROOT = Path(__file__).resolve().parents[2]
SERVE = ROOT / "serve"


def queries_of(board):
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def samples(client):
    """Metric name → its labels, as the endpoint exposes them after requests of every kind."""
    from prometheus_client.parser import text_string_to_metric_families

    shop = client()
    for body in ({"history": [IDS[1], "nobody"]}, {"history": []}, {"top_k": 0}):
        shop.recommend(**body)
    shop.admin("reload")
    found = {}
    for family in text_string_to_metric_families(shop.call("GET", "/metrics").body.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_the_dashboard_asks_for_metrics_and_labels_that_exist(client):
    known = samples(client)
    board = json.loads((SERVE / "grafana.json").read_text())
    known = {name: labels | {"instance"} for name, labels in known.items()}  # which Prometheus adds
    asked = queries_of(board)
    assert len(asked) > 10 and len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for query in asked:
        names = re.findall(r"genrec_\w+", query)
        assert names and set(names) <= set(known), query
        labels = {label.strip() for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(",")}
        labels |= {label for inside in re.findall(r"\{([^}]*)\}", query) for label in re.findall(r"(\w+)=", inside)}
        assert all(labels <= known[name] for name in names), query
        assert query.count("(") == query.count(")")
    shown = {name for query in asked for name in re.findall(r"genrec_\w+", query)}
    bare = {re.sub("_(bucket|sum|count)$", "", name) for name in shown}
    unshown = {n for n in known if n.startswith("genrec_") and not n.endswith("_created")}
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in unshown} == bare  # nothing is measured in vain


def test_prometheus_is_sent_to_a_route_that_exists():
    from genrec.serving.guard import ROUTES

    (job,) = yaml.safe_load((SERVE / "prometheus.yml").read_text())["scrape_configs"]
    assert ROUTES["GET", job["metrics_path"]] == "key" and job["authorization"]["type"] == "Bearer"


def instructions():
    text = (SERVE / "Containerfile").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def test_the_container_file_names_what_exists():
    from genrec.serving.guard import ROUTES

    steps = instructions()
    by_word = dict(steps)
    assert re.search(r"python:3\.\d+\.\d+-", by_word["FROM"])  # pinned
    copied = [part for word, rest in steps if word == "COPY" for part in rest.split()[:-1]]
    assert copied and all((ROOT / part).exists() for part in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {"pyproject.toml", "README.md", "LICENSE", "genrec"}
    needed |= set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"])
    assert needed <= set(copied)
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', by_word["RUN"])
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])
    (torch,) = re.findall(r"torch==([\d.]+)", by_word["RUN"])
    assert f"torch=={torch}" in (ROOT / "constraints.txt").read_text().split()
    assert by_word["USER"].isdigit() and int(by_word["USER"]) > 0
    order = [word for word, _ in steps]
    assert order.index("USER") < order.index("ENTRYPOINT")
    verb, command = json.loads(by_word["ENTRYPOINT"]), json.loads(by_word["CMD"])
    assert verb[0] in project["project"]["scripts"]
    options = {name for each in get_command(app).commands[verb[1]].params for name in each.opts}
    assert {word for word in command if word.startswith("--")} <= options
    port = command[command.index("--port") + 1]
    (url,) = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", by_word["HEALTHCHECK"])
    assert url[0] == port == by_word["EXPOSE"] and ROUTES["GET", url[1]] == "open"
    assert command[command.index("--journal") + 1].startswith(by_word["VOLUME"])


def test_percentiles_of_answers():
    from genrec.serving.press import Answered

    found = Answered(seconds=[n / 1000 for n in range(200, 0, -1)], statuses=Counter({200: 200, 429: 3}))
    told = found.summary(4.0)
    assert (told["p50_ms"], told["p99_ms"], told["per_second"], told["answers"]) == (101.0, 199.0, 50.0, 203)
    assert Answered().summary(1.0)["p99_ms"] is None


def script(name, *arguments, **more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}
    command = [sys.executable, str(SERVE / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.slow
def test_the_scripts_measure_an_endpoint(tmp_path):
    pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
    run = save_shop(tmp_path / "shop")
    history = ["--history", f"{IDS[1]},{IDS[2]}", "--history", IDS[7]]
    options = ["--minutes", 0.3, "--growth", 30, "--json", tmp_path / "soak.json"]
    soaked = script("soak.py", run, *history, *options, GENREC_API_KEY="the-api-key")
    assert soaked.returncode == 0, soaked.stderr
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["answers"] > 20 and set(found["statuses"]) == {"200"} and found["files_left"] <= 0
    assert found["rss_mb"] and min(found["rss_mb"]) > 50
    command = [sys.executable, "-m", "genrec.cli.main", "serve", str(run), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GENREC_API_KEY": "the-api-key"}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().split()[-1]
        refused = script("load_test.py", url, *history, "--clients", "1", "--seconds", 0.5)
        assert refused.returncode == 1 and '"401"' in refused.stdout
        environment = {**environment, "PYTHONPATH": str(ROOT)}
        asked = [sys.executable, str(SERVE / "load_test.py"), url, *history]
        asked += ["--clients", "1,3", "--seconds", "1.5", "--json", str(tmp_path / "load.json")]
        done = subprocess.run(asked, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
        server.stdout.close()
    rows = json.loads((tmp_path / "load.json").read_text())
    assert [row["clients"] for row in rows] == [1, 3]
    assert all(row["statuses"]["200"] > 0 and 0 < row["p50_ms"] <= row["p99_ms"] for row in rows)
