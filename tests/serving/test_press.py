"""Clients that come at a rate, against a server that answers so much and no more."""

import asyncio
import json

from genrec.serving.press import rush


async def against(answer, **how):
    """What clients met at a server; answer: from the number of requests in work to a status, None = it hangs up."""
    busy, serving = 0, []

    async def serve(reader, writer):
        nonlocal busy
        serving.append(asyncio.current_task())
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                busy += 1
                status = answer(busy)
                if status == 200:
                    await asyncio.sleep(0.1)
                busy -= 1
                if status is None:
                    return
                writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\nok".encode())
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        met = await rush(url, [json.dumps({"history": []}).encode()], **how)
        await asyncio.gather(*serving)  # the clients have hung up
        return met


def test_they_come_however_long_the_answers_take():
    """Two at a time, a tenth of a second each: of 60 in half a second most are refused, and then all is well."""
    met = asyncio.run(against(lambda busy: 200 if busy <= 2 else 429, rate=120, seconds=0.5))
    assert sum(met.statuses.values()) == 60 and set(met.statuses) == {200, 429}
    assert met.statuses[429] > 30 and met.statuses[200] == len(met.at)
    assert 0.1 <= met.recovered < 30 and 0 <= met.drained < 30 and met.per_second <= 125


def test_what_breaks_is_counted_and_no_recovery_is_none():
    met = asyncio.run(against(lambda busy: None, rate=100, seconds=0.1, limit=0.2))
    assert met.statuses == {0: 10} and met.recovered == float("inf")
