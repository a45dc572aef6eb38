"""Asks an endpoint over and over, by clients that wait for answers or come at a rate, and says how long it took."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PATH = "/v1/recommendations"
_BROKEN = (OSError, asyncio.IncompleteReadError, ValueError, IndexError)


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
    (host, port), asked = _place(url), _requests(url, bodies, key)
    out, until = Answered(), time.monotonic() + seconds

    async def client(number: int) -> None:
        while time.monotonic() < until:
            try:
                reader, writer = await asyncio.open_connection(host, port)
                try:
                    while time.monotonic() < until:
                        goes_on = await _one(reader, writer, asked[number % len(asked)], out)
                        number += clients
                        if not goes_on:
                            break
                        await asyncio.sleep(pause)
                finally:
                    writer.close()
            except _BROKEN:
                out.statuses[0] += 1
                await asyncio.sleep(0.05)

    await asyncio.gather(*(client(number) for number in range(clients)))
    return out


@dataclass
class Rushed(Answered):
    """What clients met that come at a rate of their own (internal).

    per_second: how many came; recovered: seconds from the last of them to the first good answer to one who came after
    it; drained: to the end of all.
    """

    per_second: float = 0.0
    recovered: float = 0.0
    drained: float = 0.0


async def rush(url: str, bodies: Sequence[bytes], *, rate: float, seconds: float, limit: float = 60.0) -> Rushed:
    """Ask ``rate`` times a second for ``seconds``, however long the answers take, then until one is good (internal).

    bodies: what is asked, in turn. limit: seconds after the last one, when nothing more is waited for.
    """
    (host, port), asked, out = _place(url), _requests(url, bodies, None), Rushed()
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def one(request: bytes) -> None:
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = free.pop() if free else await asyncio.open_connection(host, port)
            if await _one(reader, writer, request, out):
                free.append((reader, writer))
                writer = None
        except _BROKEN:
            out.statuses[0] += 1
        finally:
            if writer is not None:
                writer.close()

    started = time.monotonic()
    tasks = []
    for number in range(round(rate * seconds)):
        await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
        tasks.append(asyncio.create_task(one(asked[number % len(asked)])))
    last = time.monotonic()
    out.per_second = len(tasks) / (last - started)
    after = asyncio.create_task(_until_good(url, asked[0], last + limit))
    _, left = await asyncio.wait(tasks, timeout=limit)
    out.drained = time.monotonic() - last
    for each in left:
        each.cancel()
    out.statuses.update([0] * len(left))
    out.recovered = await after - last
    for _, writer in free:
        writer.close()
    return out


async def _until_good(url: str, request: bytes, until: float) -> float:
    """When the first good answer came to one who asks again and again; the end of time where none did."""
    out = Answered()
    while time.monotonic() < until and not out.at:
        with contextlib.suppress(*_BROKEN, TimeoutError):
            reader, writer = await asyncio.open_connection(*_place(url))
            try:
                await asyncio.wait_for(_one(reader, writer, request, out), max(0.01, until - time.monotonic()))
            finally:
                writer.close()
            await asyncio.sleep(0.02)
    return out.at[0] if out.at else float("inf")


def _place(url: str) -> tuple[str, int]:
    return urlsplit(url).hostname or "localhost", urlsplit(url).port or 80


def _requests(url: str, bodies: Sequence[bytes], key: str | None) -> list[bytes]:
    """The bytes of whole requests."""
    auth = "" if key is None else f"Authorization: Bearer {key}\r\n"
    head = f"POST {PATH} HTTP/1.1\r\nHost: {_place(url)[0]}\r\n{auth}Content-Type: application/json\r\n"
    return [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies]


async def _one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, out: Answered) -> bool:
    """One answer; whether the connection can be used again."""
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
    return "connection: close" not in head


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
