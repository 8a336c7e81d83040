"""Suite `engine`: threads of one process beside a cluster of as many, and what a part costs.

Small models are embedded, each read slowed by 10 ms, as a server or a busy file system does: by 16
threads of this process, and by two workers with 8 each. The clock starts once all workers have
answered. Then parts of which nothing is to be done: what is left is the engine. Both are here, on
the same cores: a cluster on one machine brings nothing there, and should cost little.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import util
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

import probex_jax as px
from experiments.benchmarks.figures import Figure
from probex_jax.engine import HERE, Cluster, Engine, Part, Work, in_parts
from probex_jax.experts import Card, MemberCard
from probex_jax.fitting import OneClass, build_network
from probex_jax.search import find_models
from probex_jax.search.embedding import Asked, embedding

_WAIT_S, _WORKERS, _THREADS = 0.01, 2, 16
_PART, _SHAPE, _FILES = 32, (64, 64), 200

DEFAULT = {"models": 2000, "parts": 500}
QUICK = {"models": 640, "parts": 100}


@dataclass(frozen=True)
class _Slow:
    """Makes work that embeds models, reads of which take longer, and tells which process did it."""

    expert: px.Expert

    def __call__(self) -> Work:
        work = embedding(self.expert, _PART, None)

        def read(asked: Asked) -> Any:
            time.sleep(_WAIT_S)
            return work.read(asked)

        def compute(part: Part, read: Sequence[Any]) -> Sequence[int]:
            assert all(isinstance(vector, np.ndarray) for _, vector in work.compute(part, read))
            return [os.getpid()] * len(part)

        return Work(read, compute, work.close)


def _nothing() -> Work:
    return Work(lambda item: item, lambda part, read: [os.getpid()] * len(part))


def measure(sizes: Mapping[str, Any], repeats: int) -> list[Figure]:
    """The figures of the suite; none without ray."""
    if util.find_spec("ray") is None:
        return []
    cluster = Cluster("local", workers=_WORKERS)
    engines: Mapping[str, tuple[Engine, int, int]] = {
        "2 workers of 8 threads": (cluster, _WORKERS, _THREADS // _WORKERS),
        "16 threads": (HERE, 1, _THREADS),
    }
    with tempfile.TemporaryDirectory() as folder:
        models = list(_models(Path(folder)))
        asked = [Asked(model, str(model.path), None) for model in models]
        of_models = _in_turns(engines, _Slow(_expert()), asked, sizes["models"], _PART, repeats)
        of_parts = _in_turns(engines, _nothing, asked, sizes["parts"], 1, repeats)
    costs = {name: f"{1e3 * s[len(s) // 2] / w:.2f} ms" for name, (w, s) in _sorted(of_parts)}
    return [
        Figure(
            f"embedding {sizes['models']} models, 10 ms a read",
            "models/s",
            *of_models,
            limit="16 threads",
            limit_is="as many threads of one process",
        ),
        Figure("parts without work", "parts/s", *of_parts, notes={"a part": costs}),
    ]


def _sorted(
    found: tuple[dict[str, float], dict[str, list[float]]],
) -> Iterator[tuple[str, tuple[float, list[float]]]]:
    work, seconds = found
    return ((name, (work[name], sorted(seconds[name]))) for name in work)


def _in_turns(
    engines: Mapping[str, tuple[Engine, int, int]],
    make: Callable[[], Work],
    items: Sequence[Any],
    count: int,
    size: int,
    repeats: int,
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """What each engine did in a run, and the seconds of every run."""
    found: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(repeats):
        for name, (engine, workers, readers) in engines.items():
            parts = in_parts(cycle(items), size)
            done = engine.map(make, parts, readers=readers)
            found[name].append(_steady(done, workers, -(-count // size)))
    return dict.fromkeys(engines, float(-(-count // size) * size)), found


def _steady(done: Iterable[tuple[Part, Sequence[int]]], workers: int, parts: int) -> float:
    """Seconds for so many parts, once so many processes have done one."""
    results, seen = iter(done), set[int]()
    while len(seen) < workers:
        seen |= set(next(results)[1])
    # What is done by then, and waits its turn.
    for _ in islice(results, 8 * workers):
        pass
    start = time.perf_counter()
    for _ in islice(results, parts):
        pass
    return time.perf_counter() - start


def _expert() -> px.Expert:
    encoder = {"name": "probex", "n_probes": 8, "proj_dim": 8, "rep_dim": 16}
    network = build_network(encoder, head="class", n_outputs=2)
    variables = network.init(jax.random.key(0), jnp.ones([1, *_SHAPE]))
    member = MemberCard(encoder, "fc.weight", _SHAPE)
    return px.Expert(variables, Card("Small", ("one", "two"), (member,), "class", OneClass()))


def _models(folder: Path) -> Iterator[Any]:
    for number in range(_FILES):
        weights = np.random.default_rng(number).normal(size=_SHAPE).astype("f4")
        save_file({"fc.weight": weights}, folder / f"{number:03d}.safetensors")
    yield from find_models(folder)
