"""Does an endpoint grow? A steady load on `genrec serve RUN`; memory and open files of its processes over time (Linux).

    python serve/soak.py runs/demo --history B001,B002 --minutes 30 --json soak.json

Exit code 1: an answer was neither 200 nor 429, memory grew by more than a megabyte a minute after the warm-up, or
open files were left behind.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from genrec.serving.press import held, press


async def soaked(url, pid, bodies, clients, seconds):
    """Load the endpoint, first for a tenth of the time to warm it up; the figures."""
    samples = []

    async def look() -> None:
        started = time.monotonic()
        while True:
            await asyncio.sleep(max(seconds / 60, 0.5))
            samples.append({"minutes": (time.monotonic() - started) / 60, **held(pid)})

    key = os.environ.get("GENREC_API_KEY")  # the server asks for it, where it is set
    await press(url, bodies, clients=clients, seconds=seconds / 10, key=key)  # the warm-up
    await asyncio.sleep(1.0)
    before = held(pid)
    looking = asyncio.create_task(look())
    found = await press(url, bodies, clients=clients, seconds=seconds, key=key)
    looking.cancel()
    await asyncio.sleep(2.0)  # connections are closed
    times, sizes = [s["minutes"] for s in samples], [s["rss_mb"] for s in samples]
    mean_t, mean_s = sum(times) / len(times), sum(sizes) / len(sizes)
    spread = sum((t - mean_t) ** 2 for t in times)
    slope = sum((t - mean_t) * (s - mean_s) for t, s in zip(times, sizes, strict=True)) / spread
    left = held(pid)["files"] - before["files"]
    return {**found.summary(seconds), "rss_mb_per_minute": round(slope, 2), "rss_mb": sizes, "files_left": left}


def main() -> None:
    """Start the endpoint, load it, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--history", action="append", help="item ids, ID,ID,...; several times for several users")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--growth", type=float, default=1.0, help="megabytes a minute that are forgiven")
    parser.add_argument("--json", help="write the figures to this file")
    given = parser.parse_args()
    bodies = [json.dumps({"history": each.split(",")}).encode() for each in given.history or []] or [b'{"history": []}']
    command = [sys.executable, "-m", "genrec.cli.main", "serve", given.run, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        found = asyncio.run(soaked(url, server.pid, bodies, given.clients, given.minutes * 60))
    finally:
        server.terminate()
        server.wait(60)
    print(json.dumps({name: value for name, value in found.items() if name != "rss_mb"}))
    if given.json:
        Path(given.json).write_text(json.dumps(found, indent=1), encoding="utf-8")
    wrong = set(found["statuses"]) - {"200", "429"}
    if wrong or found["rss_mb_per_minute"] > given.growth or found["files_left"] > 0:
        sys.exit("the endpoint failed or grew: see the figures")


if __name__ == "__main__":
    main()
