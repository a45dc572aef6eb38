"""How fast an endpoint answers: median and 99th percentile for 1, 8 and 32 clients.

    python serve/load_test.py http://localhost:8000 --history B001,B002 --json load.json

The key is read from GENREC_API_KEY. Clients and server on one machine share its cores, so the load average is told.
"""

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

from genrec.serving.press import press


def main() -> None:
    """Read the options, ask, print a line of JSON for each number of clients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--history", action="append", help="item ids, ID,ID,...; several times for several users")
    parser.add_argument("--requests", help="a file of requests, one JSON object a line, instead of --history")
    parser.add_argument("--clients", default="1,8,32", help="numbers of clients, one after the other")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each number of clients")
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--json", help="write the figures to this file")
    given = parser.parse_args()
    if given.requests:
        bodies = [line for line in Path(given.requests).read_bytes().splitlines() if line.strip()]
    else:
        histories = [each.split(",") for each in given.history or [""]]
        asked = [{"history": [i for i in ids if i], "top_k": given.top_k} for ids in histories]
        bodies = [json.dumps(each).encode() for each in asked]
    rows = []
    for clients in map(int, given.clients.split(",")):
        key = os.environ.get("GENREC_API_KEY")
        found = asyncio.run(press(given.url, bodies, clients=clients, seconds=given.seconds, key=key))
        row = {"clients": clients, **found.summary(given.seconds), "load_average": round(os.getloadavg()[0], 2)}
        rows.append(row)
        print(json.dumps(row), flush=True)
    if given.json:
        Path(given.json).write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if any(set(row["statuses"]) - {"200", "429"} for row in rows):
        sys.exit("answers other than 200 and 429: see statuses (0 = the connection broke)")


if __name__ == "__main__":
    main()
