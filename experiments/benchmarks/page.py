"""Times the web page under many users: searches and descriptions at once.

An index is filled up with random vectors and served by another process. Then all requests are sent
at once, as programs and as the page send them. None may fail. Latency is that of each request;
memory is the server's, its peak and what it holds.

Example:
  python -m experiments.benchmarks.page --demo=out/demo
"""

import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np
from absl import flags

from experiments import cli
from experiments.benchmarks import figures
from experiments.demo_language import TREE
from experiments.steps import Row
from probex_jax.errors import ProbexError
from probex_jax.search import Index, ModelTable, find_models

_DEMO = flags.DEFINE_string("demo", None, "Workdir of a demo that was run.", required=True)
_INDEXED = flags.DEFINE_integer("indexed", 10_000, "Models in the index.", lower_bound=1)
_SEARCHES = flags.DEFINE_integer("searches", 100, "Searches at once.", lower_bound=1)
_DESCRIBED = flags.DEFINE_integer("described", 30, "Descriptions at once.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often all of them are sent.", lower_bound=1)
_MOST_S = flags.DEFINE_float(
    "most_s", None, "Fail if the p95 of searches at once is over so many seconds.", lower_bound=0
)
_OUT = flags.DEFINE_string("out", None, "JSON file for the figures.")

_TIMEOUT_S = 120
_PER_COMMIT = 5000
# As the page asks.
_PAGE = {"Accept": "text/html"}

Ask = Callable[[httpx.AsyncClient, int], Awaitable[None]]


def filled(index: Path, folder: Path, n_models: int) -> Path:
    """A copy of an index with vectors in random directions to fill it up; returns its path."""
    path = folder / "index"
    shutil.copytree(index, path)
    about, rng = Index.open(path).about, np.random.default_rng(0)
    dim = about["expert"]["rep_dim"]
    table = ModelTable(path, dim)
    while (missing := n_models - len(table)) > 0:
        names = [f"filler_{len(table) + n:06d}" for n in range(min(missing, _PER_COMMIT))]
        rows = [
            {"id": name, "path": f"/{name}", "split": "train", "labels": ["x"], "text": "a filler"}
            for name in names
        ]
        table.add(rows, rng.normal(size=(len(rows), dim)))
    table.compact()
    return path


@contextmanager
def served(forest: Path, index: Path) -> Iterator[tuple[str, int]]:
    """The address and process number of `serve`, while this lasts."""
    command = [sys.executable, "-m", "experiments.serve", "--port=0"]
    given = [f"--forest={forest}", f"--index={index}"]
    with subprocess.Popen([*command, *given], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().partition(" ")[0]
        if not address:
            raise ProbexError("the server did not start; what it says stands above")
        try:
            yield address, process.pid
        finally:
            process.terminate()


async def _search(client: httpx.AsyncClient, number: int) -> None:
    answer = await client.get("/api/search", params={"query": f"an inverted three {number}"})
    if len(answer.json()["hits"]) != 10:
        raise ProbexError(answer.text)


async def _search_on_page(client: httpx.AsyncClient, number: int) -> None:
    asked = {"query": f"an inverted three {number}", "k": "12"}
    answer = await client.get("/api/search", params=asked, headers=_PAGE)
    if answer.text.count("<li>") != 12:
        raise ProbexError(answer.text)


def _describing(files: Sequence[bytes], headers: Mapping[str, str], shown: str) -> Ask:
    async def describe(client: httpx.AsyncClient, number: int) -> None:
        content = files[number % len(files)]
        answer = await client.post("/api/describe", content=content, headers=headers)
        if shown not in answer.text:
            raise ProbexError(answer.text)

    return describe


async def _measured(what: str, users: Sequence[httpx.AsyncClient], ask: Ask, rounds: int) -> Row:
    """All users ask at once, some times; one before, so that what is compiled is compiled."""
    n = len(users)
    await ask(users[0], 0)

    async def timed(number: int) -> float:
        start = time.perf_counter()
        await ask(users[number % n], number)
        return time.perf_counter() - start

    seconds: list[float] = []
    failures: list[BaseException] = []
    for turn in range(1, rounds + 1):
        # Other texts each time: those that were asked for are remembered.
        numbers = range(turn * n, (turn + 1) * n)
        answers = await asyncio.gather(*map(timed, numbers), return_exceptions=True)
        failures += [answer for answer in answers if isinstance(answer, BaseException)]
        seconds += [answer for answer in answers if isinstance(answer, float)]
    if failures:
        print(cli.one_line(f"{what}: {failures[0]!r}"), file=sys.stderr)
    p50, p95 = np.percentile(seconds, [50, 95]) if seconds else (np.nan, np.nan)
    figures = {"median, s": float(p50), "p95, s": float(p95), "longest, s": max(seconds, default=0)}
    return {"what": what, "at once": n, "rounds": rounds, "failed": len(failures), **figures}


async def _all(address: str, pid: int) -> list[Row]:
    models = find_models(Path(_DEMO.value) / "hidden")
    files = [model.path.read_bytes() for model in models]
    n, rounds = _SEARCHES.value, _ROUNDS.value
    async with AsyncExitStack() as stack:
        users = [
            # One each, as they would have: a single client is busy sharing out its connections.
            await stack.enter_async_context(httpx.AsyncClient(base_url=address, timeout=_TIMEOUT_S))
            for _ in range(max(n, _DESCRIBED.value))
        ]
        # A client takes longer to begin than a search: each has its connection before it is timed.
        await asyncio.gather(*(user.get("/api") for user in users))
        rows = []
        for what, ask, at_once in (
            ("search, /api", _search, 1),
            ("search, /api", _search, n),
            ("search, page", _search_on_page, 1),
            ("search, page", _search_on_page, n),
            ("describe, /api", _describing(files, {}, '"tree"'), 1),
            ("describe, /api", _describing(files, {}, '"tree"'), _DESCRIBED.value),
            ("describe, page", _describing(files, _PAGE, "Download"), _DESCRIBED.value),
            ("search, /api", _search, n),
        ):
            row = await _measured(what, users[:at_once], ask, rounds)
            rows.append({**row, "peak, MiB": _mib(pid, "VmHWM"), "held, MiB": _mib(pid, "VmRSS")})
    return rows


def _mib(pid: int, field: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith(field)]
    return int(line.split()[1]) // 1024


def main() -> int:
    demo = Path(_DEMO.value)
    if not (demo / "indexes" / TREE).is_dir():
        raise ProbexError(f"{demo}: no demo was run here; probex demo makes one")
    with tempfile.TemporaryDirectory() as folder:
        index = filled(demo / "indexes" / TREE, Path(folder), _INDEXED.value)
        with served(demo / "forest", index) as (address, pid):
            rows = asyncio.run(_all(address, pid))
    print(cli.table(rows))
    figures.keep(_OUT.value, rows, indexed=_INDEXED.value)
    return int(any(row["failed"] for row in rows) or _are_slow(rows))


def _are_slow(rows: Sequence[Row]) -> bool:
    """Whether many searches at once take longer than is asked for; then it is said."""
    searches = [
        row for row in rows if str(row["what"]).startswith("search") and row["at once"] != 1
    ]
    p95 = max((float(str(row["p95, s"])) for row in searches), default=0.0)
    if _MOST_S.value is None or p95 <= _MOST_S.value:
        return False
    print(f"p95 of searches at once: {p95:.2f} s, over {_MOST_S.value} s", file=sys.stderr)
    return True


if __name__ == "__main__":
    cli.run(main)
