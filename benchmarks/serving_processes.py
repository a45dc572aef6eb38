"""The endpoint as users start it, in processes of its own: starts, kills, and the figures of vLLM.

Suite: serving. The figures of vLLM come from benchmarks/serving_vllm.py, run by the Python that GENREC_VLLM_PYTHON
names.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from run import Figure, Measured, Options

GENERATE = "generate with a dictionary trie"


@contextmanager
def endpoint(run: Path, *options: str) -> Any:
    """`genrec serve` with a process that watches it: its address and the watching process."""
    command = [sys.executable, "-m", "genrec.cli.main", "serve", str(run), "--port", "0", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1], process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.stdout.close()


def restarts(options: Options, n_kills: int = 20) -> Measured:
    """Kill the serving process under load; the longest time without an answer, and what clients met."""
    import asyncio

    from genrec.serving.press import press
    from genrec.testing.shop_endpoint import IDS, save_shop

    bodies = [json.dumps({"history": [each], "timeout": 60}).encode() for each in IDS[:8]]
    outages: list[float] = []
    statuses: dict[str, int] = {}

    async def one(url: str, worker: int) -> None:
        load = asyncio.create_task(press(url, bodies, clients=2, seconds=2.0, pause=0.02))
        await asyncio.sleep(1.0)
        os.kill(worker, signal.SIGKILL)
        killed = time.monotonic()
        found = await load  # a client that waits for the next process gets its answer
        if not any(at > killed for at in found.at):
            found = await press(url, bodies, clients=1, seconds=0.01)
        outages.append(min(at for at in found.at if at > killed) - killed)
        for status, count in found.statuses.items():
            statuses[str(status)] = statuses.get(str(status), 0) + count

    with tempfile.TemporaryDirectory() as folder, endpoint(save_shop(Path(folder) / "shop")) as (url, process):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        for _ in range(n_kills):
            asyncio.run(one(url, int(children.read_text().split()[0])))
            assert process.stdout.readline().startswith("serving ")
    spread = {"wall": [round(each, 2) for each in outages], "statuses": statuses}
    load = f"load {os.getloadavg()[0]:.1f}"
    return Measured(max(outages), spread, f"{n_kills} kills under load, {load}", "0 = a connection broke in an answer")


def start_seconds(options: Options) -> Measured:
    """Wall time from `genrec serve` to the first answer over HTTP."""
    import urllib.request

    from genrec.testing.shop_endpoint import save_shop

    times = []
    with tempfile.TemporaryDirectory() as folder:
        run = save_shop(Path(folder) / "shop")
        for _ in range(3):
            start = time.monotonic()
            with endpoint(run) as (url, _):
                body = json.dumps({"history": ["item-01"]}).encode()
                request = urllib.request.Request(f"{url}/v1/recommendations", body)
                with urllib.request.urlopen(request, timeout=60) as reply:
                    assert reply.status == 200
                times.append(time.monotonic() - start)
    load = os.getloadavg()[0]
    return Measured(
        min(times), {"wall": [round(t, 2) for t in times]}, f"best of 3, load {load:.1f}", "a shop of 40 items"
    )


def in_vllm(options: Options) -> dict[str, Any] | None:
    """What benchmarks/serving_vllm.py found; None where GENREC_VLLM_PYTHON names no Python with vLLM."""
    python = os.environ.get("GENREC_VLLM_PYTHON")
    if python is None:
        return None
    if "vllm" not in options.cache:
        script = Path(__file__).with_name("serving_vllm.py")
        done = subprocess.run([python, str(script)], stdout=subprocess.PIPE, text=True, check=True)
        options.cache["vllm"] = json.loads(done.stdout.splitlines()[-1])
    return dict(options.cache["vllm"])


NO_VLLM = "GENREC_VLLM_PYTHON names no Python with vLLM (bash serve/vllm_cpu.sh .venv-vllm makes one)"


def vllm_lists(options: Options) -> Measured:
    """Share of the lists over vLLM (the plugin, and /v1/completions) that equal those of generate."""
    found = in_vllm(options)
    if found is None:
        return Measured(None, note=NO_VLLM)
    counts = [pair for name, pair in found["lists"].items() if not name.endswith("torch")]
    n = sum(total for _, total in counts)
    budget = f"{n} lists; catalogs of 5,000 items with 256 first codes and of 30 that share theirs"
    return Measured(sum(same for same, _ in counts) / n, found["lists"], budget)


def vllm_ratio(options: Options) -> Measured:
    """CPU time of vLLM's own beam search, the catalog as a logits processor, over that of the plugin; 10 beams."""
    found = in_vllm(options)
    if found is None:
        return Measured(None, note=NO_VLLM)
    return Measured(
        found["b10"]["ratio"], found["b10"]["cpu_s"], "5 rounds of 40 requests from 8 clients, servers in turn"
    )


FIGURES = [
    Figure("restart_outage_seconds", "s wall", restarts, "< 5"),
    Figure("vllm_lists_equal_share", "share", vllm_lists, "1", GENERATE),
    Figure(
        "vllm_ratio_to_constrained_beam_search_b10",
        "ratio",
        vllm_ratio,
        ">= 0.9",
        "vLLM's beam search with the catalog as a logits processor",
    ),
    Figure("start_seconds", "s wall", start_seconds, "", quick=True),
]
