"""How many requests a second the simulated hub answers by itself, on one core."""

import asyncio
import time
from urllib.parse import urlsplit

from experiments.benchmarks.repository import indexing

_SECONDS, _CONNECTIONS = 5.0, 16


def rate() -> dict[str, float]:
    """Requests a second, and a CPU second, over 16 connections; the four of each model."""
    with indexing.hub() as (url, pid):
        start, before_s = time.perf_counter(), indexing.cpu_s(pid)
        count = asyncio.run(_asked(url, start + _SECONDS))
        took_s, used_s = time.perf_counter() - start, indexing.cpu_s(pid) - before_s
        return {"requests/s": count / took_s, "requests/CPU s": count / used_s}


async def _asked(url: str, end: float) -> int:
    return sum(await asyncio.gather(*(_one(url, n, end) for n in range(_CONNECTIONS))))


async def _one(url: str, connection: int, end: float) -> int:
    """Requests over one connection; an HTTP library would take longer than the hub."""
    at, count, number = urlsplit(url), 0, connection * 10_000
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    while time.perf_counter() < end:
        number += 1
        for path, headers in (
            (f"/api/models/sim/{number:07}/revision/main", ""),
            (f"/sim/{number:07}/resolve/main/model.safetensors", ""),
            (f"/cdn/{number:07}", "Range: bytes=0-32767\r\n"),
            (f"/cdn/{number:07}", "Range: bytes=131288-143575\r\n"),
        ):
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {at.netloc}\r\n{headers}\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith((b"http/1.1 2", b"http/1.1 3")), head
            await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r")[0]))
            count += 1
    writer.close()
    await writer.wait_closed()
    return count
