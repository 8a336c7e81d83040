"""Suite `search`: a query of the ANN index, against an exact scan of the same table.

Models are drawn around centres, centres in random directions. A model is its centre of length 1
plus Gaussian noise whose length is `spread`, so that at 0.7 two models of one centre have a cosine
of about 0.67, and of two centres about 0. Queries are drawn anew in the same way; none is stored.
PyTorch scans the vectors in memory, where the table is on disk, in the page cache.
"""

import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.benchmarks import timing
from experiments.benchmarks.figures import PYTORCH, Figure, pytorch

K = 10
_ROWS = 10_000


@dataclass(frozen=True)
class Sizes:
    """What is searched.

    Args:
      models: stored vectors.
      dim: their dimension.
      centres: what they are drawn around.
      spread: length of the noise, that of a centre being 1.
      queries: that recall is measured on.
      per_run: queries of one timed run.
    """

    models: int = 100_000
    dim: int = 512
    centres: int = 1_000
    spread: float = 0.7
    queries: int = 200
    per_run: int = 10


DEFAULT = Sizes()
QUICK = Sizes(models=20_000, centres=200, queries=50)


def measure(sizes: Sizes, repeats: int) -> list[Figure]:
    """The figure of the suite."""
    from probex_jax.search import ModelTable  # what it needs is installed for searching alone

    rng = np.random.default_rng(0)
    centres = _unit(rng.normal(size=(sizes.centres, sizes.dim)))
    vectors = _drawn(rng, centres, sizes.models, sizes.spread)
    queries = _drawn(rng, centres, sizes.queries, sizes.spread)
    with tempfile.TemporaryDirectory() as folder:
        found = ModelTable(folder, sizes.dim, create=True)
        for start in range(0, len(vectors), _ROWS):
            part = vectors[start : start + _ROWS]
            found.add([{"path": str(start + n)} for n in range(len(part))], part)
        found.compact()
        start_s = time.perf_counter()
        found.build_ann()
        build_s = time.perf_counter() - start_s
        true = np.argpartition(-queries @ vectors.T, K, axis=1)[:, :K]
        hits = [_share(found.nearest(q, K), ids) for q, ids in zip(queries, true, strict=True)]
        ways = {
            "ours": lambda query: found.nearest(query, K),
            "exact scan": lambda query: _exact_scan(folder, query),
        }
        if torch := pytorch():
            ways[PYTORCH] = torch.scan(vectors, K)
        candidates = {name: _run(way, queries, sizes.per_run) for name, way in ways.items()}
        seconds = timing.times(candidates, repeats)
        recall = {"recall@10": float(np.mean(hits)), "recall@10 as stored": found.recall()}
    return [
        Figure(
            f"{sizes.models:,} vectors of {sizes.dim} around {sizes.centres:,} centres",
            "queries/s",
            dict.fromkeys(ways, float(sizes.per_run)),
            seconds,
            limit="exact scan",
            limit_is="exact scan of the same table",
            notes={**recall, "build, s": build_s, "spread": sizes.spread},
        )
    ]


def _run(way: Callable[[np.ndarray], Any], queries: np.ndarray, n: int) -> Callable[[], None]:
    """Asks the next n queries whenever it is called."""
    turn = itertools.cycle(queries)

    def run() -> None:
        for query in itertools.islice(turn, n):
            way(query)

    return run


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _drawn(rng: np.random.Generator, centres: np.ndarray, n: int, spread: float) -> np.ndarray:
    noise = rng.normal(size=(n, centres.shape[1])) * spread / np.sqrt(centres.shape[1])
    return _unit(centres[rng.integers(len(centres), size=n)] + noise)


def _share(found: list[dict], true: np.ndarray) -> float:
    return len({int(row["path"]) for row in found} & set(true.tolist())) / K


def _exact_scan(folder: str, query: np.ndarray) -> Any:
    """LanceDB's comparison with every row."""
    import lancedb

    found: Any = lancedb.connect(folder).open_table("models").search(query)
    return found.distance_type("cosine").bypass_vector_index().limit(K).to_arrow()
