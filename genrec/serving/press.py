"""Asks an endpoint over and over, by many clients at once, and says how long the answers took."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PATH = "/v1/recommendations"


@dataclass
class Answered:
    """What clients met (internal).

    at, seconds: when each good answer came, and after how long; statuses: how many of each, 0 = no answer came.
    """

    at: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    def summary(self, wall: float) -> dict[str, Any]:
        """For people: milliseconds at the median and the 99th percentile of the good answers, and how many a second."""
        ordered = sorted(self.seconds)

        def part(share: float) -> float | None:
            return None if not ordered else round(1000 * ordered[min(int(share * len(ordered)), len(ordered) - 1)], 2)

        return {
            "answers": sum(self.statuses.values()),
            "per_second": round(self.statuses[200] / wall, 1),
            "p50_ms": part(0.5),
            "p99_ms": part(0.99),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
        }


async def press(
    url: str, bodies: Sequence[bytes], *, clients: int, seconds: float, key: str | None = None, pause: float = 0.0
) -> Answered:
    """Let ``clients`` ask for ``seconds``, each the next thing as soon as it has an answer (internal).

    bodies: what is asked, in turn. pause: seconds between an answer and the next question. A connection that breaks is
    counted as status 0 and opened again.
    """
    host, port = urlsplit(url).hostname or "localhost", urlsplit(url).port or 80
    out, until = Answered(), time.monotonic() + seconds
    auth = "" if key is None else f"Authorization: Bearer {key}\r\n"
    head = f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\n{auth}Content-Type: application/json\r\nContent-Length: "
    asked = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]

    async def client(number: int) -> None:
        while time.monotonic() < until:
            try:
                reader, writer = await asyncio.open_connection(host, port)
                try:
                    while time.monotonic() < until:
                        await _one(reader, writer, asked[number % len(asked)], out)
                        number += clients
                        await asyncio.sleep(pause)
                finally:
                    writer.close()
            except (OSError, asyncio.IncompleteReadError, ValueError, IndexError):
                out.statuses[0] += 1
                await asyncio.sleep(0.05)

    await asyncio.gather(*(client(number) for number in range(clients)))
    return out


async def _one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, out: Answered) -> None:
    started = time.monotonic()
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status = int(head.split(" ", 2)[1])
    length = int(head.split("content-length:", 1)[1].split("\r\n", 1)[0])
    await reader.readexactly(length)
    out.statuses[status] += 1
    if status == 200:
        out.at.append(time.monotonic())
        out.seconds.append(out.at[-1] - started)
    if "connection: close" in head:
        raise ConnectionResetError


def held(pid: int) -> dict[str, float]:
    """Megabytes of memory and number of open files of a process on Linux, its children included (internal)."""
    found = {"rss_mb": 0.0, "files": 0.0}
    for each in [pid, *_children(pid)]:
        try:
            status = Path(f"/proc/{each}/status").read_text()
            found["files"] += len(os.listdir(f"/proc/{each}/fd"))  # noqa: PTH208
        except OSError:  # it has ended
            continue
        found["rss_mb"] += int(status.split("VmRSS:", 1)[1].split()[0]) / 1024
    return found


def _children(pid: int) -> list[int]:
    try:
        direct = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return direct + [each for child in direct for each in _children(child)]
