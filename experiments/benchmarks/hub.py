r"""Serves a simulated hub, whose models are made when asked for.

Its repositories are sim/0000001, sim/0000002, … It answers what readers of models ask Hugging
Face's hub: a repository's commit and list of files, small files, and byte ranges of weights by way
of a redirect to a CDN; late, and with "too many requests" beyond a quota per window, if told so.
`/stats` says what was asked. Run it in a process of its own; the first line that it prints is its
address, which others take as HF_ENDPOINT.

Example:
  python -m experiments.benchmarks.hub --api_ms=150 --cdn_ms=60
"""

import asyncio
import hashlib
import json
import math
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import uvicorn
from absl import flags

from experiments import cli
from experiments.benchmarks.repository.models import Models

_PORT = flags.DEFINE_integer("port", 0, "Port on localhost; 0 for any.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of models and latencies.")
_API_MS = flags.DEFINE_float("api_ms", 0, "Median latency of the API.", lower_bound=0)
_RESOLVE_MS = flags.DEFINE_float("resolve_ms", 0, "That of redirects and small files.", 0)
_CDN_MS = flags.DEFINE_float("cdn_ms", 0, "That of byte ranges.", lower_bound=0)
_SPREAD = flags.DEFINE_float(
    "spread", 0.4, "Standard deviation of the logarithm of latencies.", lower_bound=0
)
_API_QUOTA = flags.DEFINE_integer("api_quota", 0, "Requests of the API a window; 0 for any.", 0)
_RESOLVE_QUOTA = flags.DEFINE_integer("resolve_quota", 0, "Requests of files a window.", 0)
_WINDOW_S = flags.DEFINE_float("window_s", 300, "Seconds of a window.", lower_bound=1)
_CARDS = flags.DEFINE_bool("cards", True, "Whether repositories hold README.md and config.json.")

_REVISION = re.compile(r"/api/models/sim/(\d{7})(?:/revision/(?:main|[0-9a-f]{40}))?")
_FILE = re.compile(r"/sim/(\d{7})/resolve/(?:main|[0-9a-f]{40})/([\w.]+)")
_CDN = re.compile(r"/cdn/(\d{7})")
_RANGE = re.compile(rb"bytes=(\d+)-(\d+)")
_WEIGHTS = "model.safetensors"

_Answer = tuple[int, dict[str, str], bytes]


@dataclass(frozen=True)
class Behaviour:
    """How a hub answers.

    Args:
      seed: of its models and latencies.
      latency_ms: medians by kind of request: "api", "resolve", "cdn".
      spread: standard deviation of the logarithm of latencies.
      quotas: requests a window by kind; any number of a kind that is missing.
      window_s: seconds of a window.
      cards: whether repositories hold README.md and config.json.
    """

    seed: int = 0
    latency_ms: tuple[tuple[str, float], ...] = ()
    spread: float = 0.4
    quotas: tuple[tuple[str, int], ...] = ()
    window_s: float = 300.0
    cards: bool = True


class Hub:
    """The ASGI application.

    Args:
      behaviour: how it answers.
      now: the clock of its windows.

    Attributes:
      asked: requests by kind, those refused ("429 api"), and bytes of bodies ("bytes").
    """

    def __init__(self, behaviour: Behaviour, now: Callable[[], float] = time.monotonic):
        self._now, self._behaviour = now, behaviour
        self._models = Models(behaviour.seed)
        self._size = len(self._models.weights(1))
        self._random = random.Random(behaviour.seed)
        self._latency_ms, self._quotas = dict(behaviour.latency_ms), dict(behaviour.quotas)
        self._used: Counter[str] = Counter()
        self._window = math.floor(now() / behaviour.window_s)
        self.asked: Counter[str] = Counter()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers a request."""
        kind, (status, headers, body) = self.answer(scope["path"], dict(scope["headers"]))
        self.asked[kind if status != 429 else f"429 {kind}"] += 1
        self.asked["bytes"] += len(body)
        if late_s := self._latency_s(kind):
            await asyncio.sleep(late_s)
        sent = [(name.encode(), value.encode()) for name, value in headers.items()]
        sent.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": sent})
        body = b"" if scope["method"] == "HEAD" else body
        await send({"type": "http.response.body", "body": body})

    def answer(self, path: str, headers: dict[bytes, bytes]) -> tuple[str, _Answer]:
        """The kind of a request, and status, headers and body of the answer."""
        if found := _FILE.fullmatch(path):
            number, name, asked = int(found[1]), found[2], headers.get(b"range", b"")
            return "resolve", self._refused("resolve") or self._file(number, name, asked)
        if found := _CDN.fullmatch(path):
            weights = self._models.weights(int(found[1]))
            return "cdn", _ranged(weights, headers.get(b"range", b""))
        if found := _REVISION.fullmatch(path):
            return "api", self._refused("api") or self._listed(int(found[1]))
        if path == "/stats":
            return "stats", (200, _JSON, json.dumps(self.asked).encode())
        return "other", (404, _JSON, b'{"error": "Not Found"}')

    def _latency_s(self, kind: str) -> float:
        median_ms = self._latency_ms.get(kind, 0)
        if not median_ms:
            return 0.0
        return median_ms / 1000 * self._random.lognormvariate(0, self._behaviour.spread)

    def _refused(self, kind: str) -> _Answer | None:
        """The answer to a request beyond the quota, in the form of Hugging Face's."""
        quota, window_s, now = self._quotas.get(kind), self._behaviour.window_s, self._now()
        if not quota:
            return None
        if (window := math.floor(now / window_s)) > self._window:
            self._window = window
            self._used.clear()
        self._used[kind] += 1
        if self._used[kind] <= quota:
            return None
        left_s = math.ceil((window + 1) * window_s - now)
        name = "resolvers" if kind == "resolve" else kind
        headers = {
            "retry-after": str(left_s),
            "ratelimit": f'"{name}";r=0;t={left_s}',
            "ratelimit-policy": f'"fixed window";"{name}";q={quota};w={window_s:.0f}',
        }
        return 429, headers, b'{"error": "We had to rate limit you"}'

    def _listed(self, number: int) -> _Answer:
        sha256 = hashlib.sha256(f"{self._behaviour.seed} {number}".encode()).hexdigest()
        lfs = {"sha256": sha256, "size": self._size, "pointerSize": 134}
        files = [{"rfilename": _WEIGHTS, "size": self._size, "blobId": sha256[:40], "lfs": lfs}]
        for name in ("README.md", "config.json") if self._behaviour.cards else ():
            body = self._small(number, name)
            blob = hashlib.sha1(body).hexdigest()
            files.append({"rfilename": name, "size": len(body), "blobId": blob})
        name = f"sim/{number:07}"
        about = {"id": name, "modelId": name, "sha": sha256[:40], "siblings": files}
        return 200, _JSON, json.dumps(about | {"private": False, "tags": []}).encode()

    def _small(self, number: int, name: str) -> bytes:
        return self._models.config() if name == "config.json" else self._models.readme(number)

    def _file(self, number: int, name: str, asked: bytes) -> _Answer:
        if name == _WEIGHTS:
            return 302, {"location": f"/cdn/{number:07}", "accept-ranges": "bytes"}, b""
        if not self._behaviour.cards or name not in ("README.md", "config.json"):
            return 404, {"x-error-code": "EntryNotFound"}, b""
        return _ranged(self._small(number, name), asked)


_JSON = {"content-type": "application/json"}


def _ranged(body: bytes, asked: bytes) -> _Answer:
    """A file or a range of it."""
    headers = {"accept-ranges": "bytes", "content-type": "application/octet-stream"}
    headers["last-modified"] = "Thu, 01 Jan 2026 00:00:00 GMT"
    if not (found := _RANGE.fullmatch(asked)):
        return 200, headers, body
    begin, end = int(found[1]), min(int(found[2]) + 1, len(body))
    if begin >= end:
        return 416, headers | {"content-range": f"bytes */{len(body)}"}, b""
    headers["content-range"] = f"bytes {begin}-{end - 1}/{len(body)}"
    return 206, headers, body[begin:end]


def server(behaviour: Behaviour) -> uvicorn.Server:
    """A server of a hub, to be run with a socket that listens."""
    config = uvicorn.Config(
        Hub(behaviour),
        access_log=False,
        log_level="warning",
        lifespan="off",
        timeout_keep_alive=60,
    )
    return uvicorn.Server(config)


def main() -> None:
    latency_ms = {"api": _API_MS.value, "resolve": _RESOLVE_MS.value, "cdn": _CDN_MS.value}
    quotas = {"api": _API_QUOTA.value, "resolve": _RESOLVE_QUOTA.value}
    behaviour = Behaviour(
        _SEED.value,
        tuple(latency_ms.items()),
        _SPREAD.value,
        tuple(quotas.items()),
        _WINDOW_S.value,
        _CARDS.value,
    )
    with socket.create_server(("127.0.0.1", _PORT.value), backlog=2048) as listening:
        print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        server(behaviour).run(sockets=[listening])


if __name__ == "__main__":
    cli.run(main)
