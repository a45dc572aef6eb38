"""Five times as many requests as an endpoint can answer: what it says, what memory it takes, how soon it recovers.

Suite: serving. The server (``genrec serve``) and its clients are processes of their own. As a script this file is the
clients, and prints what they met as a line of JSON:

    python benchmarks/serving_overload.py URL BODIES.jsonl --clients 64 --seconds 10
    python benchmarks/serving_overload.py URL BODIES.jsonl --rate 250 --seconds 10
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from run import Figure, Measured, Options
from serving_processes import endpoint

from genrec.serving.press import held, press, rush

TIMES, USERS, WAITING = 5, 8, 64
"""Requests over what can be answered; users in a request; users that may wait (a request is refused above)."""
HIDDEN = 512
"""Width of the model: eight users alone cost some 20 ms of CPU (T5 of TIGER's size: 72). Beside a model that costs next
to nothing, refusals would be a large part of the work."""


def clients(url: str, bodies: Path, samples: list[float], pid: int, **how: float) -> dict[str, Any]:
    """What clients in another process met; samples: gets the server's megabytes, four times a second."""
    options = [part for name, value in how.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, __file__, url, str(bodies), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            samples.append(held(pid)["rss_mb"])
            time.sleep(0.25)
        assert process.stdout is not None and process.returncode == 0
        return dict(json.loads(process.stdout.read()))


def overload(options: Options) -> dict[str, Any]:
    """The capacity of a server whose queue is never empty, then ``TIMES`` as many requests a second."""
    from genrec.testing.shop_endpoint import IDS, save_shop

    if "overload" in options.cache:
        return dict(options.cache["overload"])
    steady, rushed = (5, 10) if options.quick else (30, 120)
    calm: list[float] = []
    sizes: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        bodies = Path(folder) / "bodies.jsonl"
        asked = [
            {"inputs": [{"history": [IDS[(n + u) % 40]]} for u in range(USERS)], "top_k": 40, "exact": n % 7 == 0}
            for n in range(40)
        ]
        bodies.write_text("\n".join(map(json.dumps, asked)))
        waiting = ("--max-waiting", str(WAITING), "--timeout", "30")
        with endpoint(save_shop(Path(folder) / "shop", hidden_size=HIDDEN), *waiting) as (url, server):
            # as many as wait and are searched: the queue is never empty, and nobody is refused
            full = {"clients": WAITING // USERS, "seconds": steady}
            clients(url, bodies, calm, server.pid, **full)  # the first searches compile
            calm.clear()
            at_capacity = clients(url, bodies, calm, server.pid, **full)
            capacity = at_capacity["statuses"].get("200", 0) / steady
            assert capacity, f"nothing was answered: {at_capacity}"
            met = clients(url, bodies, sizes, server.pid, rate=TIMES * capacity, seconds=rushed)
    total = sum(met["statuses"].values())
    found = {
        "capacity": {"per_second": round(capacity, 1), "statuses": at_capacity["statuses"]},
        "overload": {name: met[name] for name in ("statuses", "per_second", "recovered", "drained")},
        "refused": round(met["statuses"].get("429", 0) / total, 3),
        "times_capacity": round(met["per_second"] / capacity, 2),
        "rss_mb": {"calm": round(max(calm), 1), "over_time": [round(s, 1) for s in sizes[:: max(1, len(sizes) // 12)]]},
        "largest_mb": round(max(sizes), 1), "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    options.cache["overload"] = found
    return found


def measured(options: Options, value: Any) -> Measured:
    """A figure of :func:`overload`; none where the server was not overloaded, whatever the reason."""
    found = overload(options)
    budget = f"{sum(found['overload']['statuses'].values())} requests at {found['times_capacity']} x capacity"
    if found["refused"] < 0.5:
        return Measured(None, found, budget, f"no overload: {100 * found['refused']:.0f} % were refused")
    return Measured(value(found), found, budget, f"{USERS} users in a request, {100 * found['refused']:.0f} % refused")


def wrong_answers(found: dict[str, Any]) -> int:
    """Answers other than 200 and 429; 0 = a connection broke."""
    return sum(n for status, n in found["overload"]["statuses"].items() if status not in ("200", "429"))


def growth(found: dict[str, Any]) -> float:
    """The largest size under overload over the largest at the capacity, in percent."""
    return float(100 * (found["largest_mb"] / found["rss_mb"]["calm"] - 1))


FIGURES = [
    Figure("overload_5xx", "requests", lambda o: measured(o, wrong_answers), "0", quick=True),
    Figure("overload_rss_growth", "%", lambda o: measured(o, growth), "< 20", quick=True),
    Figure("overload_recovery_seconds", "s wall", lambda o: measured(o, lambda f: f["overload"]["recovered"]), "< 5",
           quick=True),
]  # fmt: skip


def main() -> None:
    """Be the clients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("bodies", type=Path)
    parser.add_argument("--clients", type=int, help="clients that ask again as soon as they have an answer")
    parser.add_argument("--rate", type=float, help="or requests a second, whatever is answered")
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args()
    bodies = given.bodies.read_bytes().splitlines()
    if given.rate is None:
        found = asyncio.run(press(given.url, bodies, clients=given.clients, seconds=given.seconds))
        print(json.dumps(found.summary(given.seconds)))
    else:
        rushed = asyncio.run(rush(given.url, bodies, rate=given.rate, seconds=given.seconds))
        times = {name: round(getattr(rushed, name), 3) for name in ("per_second", "recovered", "drained")}
        print(json.dumps({**rushed.summary(given.seconds), **times}))


if __name__ == "__main__":
    main()
