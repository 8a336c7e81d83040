"""Indexing models of the simulated hub, by one engine or another, and what that takes."""

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from experiments.benchmarks import memory
from experiments.models import Models
from probex_jax.bucket_paths import as_path
from probex_jax.engine import Engine, Work, engine_of
from probex_jax.engine.work import Part, Size
from probex_jax.experts import load_experts

_LOOK_S = 1.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Reading:
    """An engine whose workers have so many reader threads."""

    engine: Engine
    readers: int

    @property
    def is_here(self) -> bool:
        """As the engine's."""
        return self.engine.is_here

    def size(self) -> Size:
        """As the engine's."""
        return self.engine.size()

    def map(
        self,
        make: Callable[[], Work],
        parts: Iterable[Part],
        *,
        readers: int = 4,
        ahead: int = 1,
        computes: bool = True,
    ) -> Generator[tuple[Part, Sequence[Any]]]:
        """As the engine's."""
        return self.engine.map(make, parts, readers=self.readers, ahead=ahead)


@contextmanager
def hub(*behaviour: str) -> Iterator[tuple[str, int]]:
    """A simulated hub in a process of its own; gives its address and the process's number."""
    command = [sys.executable, "-m", "experiments.benchmarks.hub", *behaviour]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), process.pid
        finally:
            process.terminate()


def indexed(
    expert: str, models: str, index: str, engine: str, workers: int, readers: int
) -> dict[str, Any]:
    """Adds the models of a list to an index.

    Args:
      expert: a --workdir of train.
      models: a file with a model a line.
      index: its folder.
      engine: as `engine_of`.
      workers: as `engine_of`.
      readers: threads of each worker.

    Returns:
      Seconds, those before the first model, CPU seconds of this process, and counts.
    """
    from probex_jax.search import Index

    moments: list[float] = []
    start = time.perf_counter()
    found = Index.create_or_open(index, load_experts(as_path(expert))["val_holdout"])
    done = found.add_models(
        Models([], models),
        engine=Reading(engine_of(engine, workers), readers),
        on_model=lambda reason: moments.append(time.perf_counter()) if not moments else None,
    )
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "s": time.perf_counter() - start,
        "first, s": (moments or [start])[0] - start,
        "cpu, s": used.ru_utime + used.ru_stime,
        "added": done.added,
        "unchanged": done.unchanged,
        "failed": len(done.failed),
        "why": next(iter(done.failed.values()), ""),
        "rows": len(found),
    }


def measure(
    work: Callable[..., dict[str, Any]], *arguments: Any, behaviour: Sequence[str] = ()
) -> dict[str, Any]:
    """Runs work in a fresh process beside a hub, and notes what both and all workers take.

    Args:
      work: as `indexed`.
      *arguments: its arguments.
      behaviour: flags of the hub.
    """
    with hub(*behaviour) as (url, pid), _watched() as peaks:
        os.environ["HF_ENDPOINT"] = url
        done = memory.fresh(work, *arguments)
        asked = httpx.get(f"{url}/stats").json()
        hub_s = cpu_s(pid)
    workers = [mib for name, mib in peaks.values() if name.startswith("ray::Worker")]
    return {
        **done["result"],
        "driver peak, MiB": done["peak_mib"],
        "workers peak, MiB": workers,
        "all peak, MiB": sum(mib for _, mib in peaks.values()),
        "hub cpu, s": hub_s,
        **{f"asked {kind}": number for kind, number in asked.items()},
    }


@contextmanager
def _watched() -> Iterator[dict[int, tuple[str, float]]]:
    """The peaks of memory of all descendants of this process, by number: name and MiB."""
    peaks: dict[int, tuple[str, float]] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_LOOK_S):
            for pid in _descendants(os.getpid()):
                with suppress(OSError, IndexError):
                    name = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
                    status = Path(f"/proc/{pid}/status").read_text()
                    kib = int(status.split("VmHWM:")[1].split()[0])
                    peaks[pid] = (name, kib / 2**10)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        ended.set()
        watcher.join()


def _descendants(pid: int) -> list[int]:
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found, new = [], [pid]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, times)) / _TICKS


def write_list(path: Path, first: int, last: int) -> None:
    """Writes the addresses of models `first` to `last`, a line each."""
    path.write_text("".join(f"hf://sim/{n:07}\n" for n in range(first, last + 1)))


def megabytes(folder: Path) -> float:
    """The size of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
