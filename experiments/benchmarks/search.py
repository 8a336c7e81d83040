"""A query of the ANN index against an exact scan of the same table, in the same process.

Models are drawn around centres, centres in random directions. A model is its centre of length 1
plus Gaussian noise whose length is SPREAD, so that at 0.7 two models of one centre have a cosine of
about 0.67, and of two centres about 0. Queries are drawn anew in the same way; none is stored.

Example:
  python -m experiments.benchmarks.search
"""

import tempfile
import time
from collections.abc import Iterator

import numpy as np
from absl import flags

from experiments import cli
from experiments.benchmarks import timing
from probex_jax.search import ModelTable

_MODELS = flags.DEFINE_integer("models", 100_000, "Stored vectors.")
_DIM = flags.DEFINE_integer("dim", 512, "Their dimension.")
_CENTRES = flags.DEFINE_integer("centres", 1_000, "What they are drawn around.")
_SPREAD = flags.DEFINE_float("spread", 0.7, "Length of the noise, that of a centre being 1.")
_QUERIES = flags.DEFINE_integer("queries", 200, "Queries that recall is measured on.")
_REPEATS = flags.DEFINE_integer("repeats", 51, "Timed queries; the median is printed.")

K = 10
_ROWS = 10_000


def main() -> None:
    rng = np.random.default_rng(0)
    centres = _unit(rng.normal(size=(_CENTRES.value, _DIM.value)))
    vectors, queries = _drawn(rng, centres, _MODELS.value), _drawn(rng, centres, _QUERIES.value)
    with tempfile.TemporaryDirectory() as folder:
        table = ModelTable(folder, _DIM.value, create=True)
        for start in range(0, len(vectors), _ROWS):
            part = vectors[start : start + _ROWS]
            table.add([{"path": str(start + n)} for n in range(len(part))], part)
        table.compact()
        start_s = time.perf_counter()
        table.build_ann()
        build_s = time.perf_counter() - start_s
        true = np.argpartition(-queries @ vectors.T, K, axis=1)[:, :K]
        hits = [_share(table.nearest(q, K), ids) for q, ids in zip(queries, true, strict=True)]
        turns = {"ann": iter(_endless(queries)), "exact": iter(_endless(queries))}
        measured = timing.seconds(
            {
                "ann": lambda: table.nearest(next(turns["ann"]), K),
                "exact": lambda: table.exactly_nearest(next(turns["exact"]), K),
            },
            _REPEATS.value,
        )
        row = {
            "models": _MODELS.value,
            "dim": _DIM.value,
            "centres": _CENTRES.value,
            "spread": _SPREAD.value,
            "p50, ms": 1e3 * measured["ann"],
            "exact p50, ms": 1e3 * measured["exact"],
            "ratio": measured["ann"] / measured["exact"],
            "recall@10": float(np.mean(hits)),
            "recall@10 as stored": table.recall(),
            "build, s": build_s,
        }
    print(cli.table([row]))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _drawn(rng: np.random.Generator, centres: np.ndarray, n: int) -> np.ndarray:
    noise = rng.normal(size=(n, centres.shape[1])) * _SPREAD.value / np.sqrt(centres.shape[1])
    return _unit(centres[rng.integers(len(centres), size=n)] + noise)


def _endless(queries: np.ndarray) -> Iterator[np.ndarray]:
    while True:
        yield from queries


def _share(found: list[dict], true: np.ndarray) -> float:
    return len({int(row["path"]) for row in found} & set(true.tolist())) / K


if __name__ == "__main__":
    cli.run(main)
