"""Approximate search among many vectors: recall, time, build, memory and disk, beside exact scans.

The vectors are representations that an expert gives to planted models (`models.Models`), in one
file; further ones are the queries. Random vectors, without any structure, are the bad case. Each
step runs in a process of its own.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from experiments.benchmarks.repository.models import Models
from probex_jax.bucket_paths import as_path
from probex_jax.experts import load_experts

K, QUERIES = 10, 200
# Name: what is asked of LanceDB; "" for `ModelTable.build_ann`.
INDEXES = {
    "ours": "",
    "HNSW SQ": "HnswSq(distance_type='cosine', num_partitions=1, m=16, ef_construction=128)",
    "IVF SQ": "IvfSq(distance_type='cosine')",
    "IVF PQ": "IvfPq(distance_type='cosine', num_sub_vectors=64)",
}
_DIM = 512
_BATCH, _ROWS = 5_000, 20_000


def represented(path: str, source: str, count: int, seed: int) -> dict[str, float]:
    """Writes vectors [count + QUERIES, T] of length 1.

    Args:
      path: of the .npy file.
      source: a --workdir of train, whose expert represents planted models; "classes" for vectors of
        512 with ten classes of twenty, nuisance and noise, whose intrinsic dimension is that of
        representations of fine-tuned models; "random" for those without structure.
      count: how many, without the queries.
      seed: of what is drawn.

    Returns:
      Seconds, and the intrinsic dimension.
    """
    start, rng, total = time.perf_counter(), np.random.default_rng(seed), count + QUERIES
    draw = {"classes": _of_classes, "random": _random}.get(source) or _of_expert(source)
    found = None
    for first in range(0, total, _BATCH):
        part_NT = draw(rng)
        if found is None:
            found = open_memmap(path, "w+", np.float32, (total, part_NT.shape[1]))
        part_NT /= np.linalg.norm(part_NT, axis=1, keepdims=True)
        found[first : first + _BATCH] = part_NT[: total - first]
    assert found is not None
    found.flush()
    return {"s": time.perf_counter() - start, "dimension": dimension(found[:20_000])}


def _random(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((_BATCH, _DIM), np.float32)


def _of_classes(rng: np.random.Generator) -> np.ndarray:
    directions_DT = np.random.default_rng(0).standard_normal((45, _DIM), np.float32)
    strengths_ND = 0.75 * rng.standard_normal((_BATCH, 45), np.float32)
    strengths_ND[:, :20] = rng.uniform(0.5, 1.5, (_BATCH, 20))
    strengths_ND[:, :20] *= rng.random((_BATCH, 20)).argsort(axis=1) < 10
    noise_NT = 0.5 * rng.standard_normal((_BATCH, _DIM), np.float32)
    return strengths_ND @ directions_DT + noise_NT


def _of_expert(workdir: str) -> Callable[[np.random.Generator], np.ndarray]:
    expert, models = load_experts(as_path(workdir))["val_holdout"], Models()
    return lambda rng: np.array(expert.encode(models.heads(rng, _BATCH)))


def dimension(vectors_NT: np.ndarray) -> float:
    """Intrinsic dimension by the ratio of the distances of two neighbours (TwoNN).

    Facco et al., Scientific Reports 7, 2017: the logarithms of the ratios are exponential; the
    largest tenth is left out.
    """
    some_QT = vectors_NT[:1000]
    squares_QN = 2 - 2 * some_QT @ vectors_NT.T
    nearest_Q3 = np.sqrt(np.maximum(np.partition(squares_QN, 2, axis=1)[:, :3], 0))
    nearest_Q3.sort(axis=1)
    logs_Q = np.sort(np.log(nearest_Q3[:, 2] / nearest_Q3[:, 1]))
    kept = int(0.9 * len(logs_Q))
    shares = np.arange(1, kept + 1) / len(logs_Q)
    return float(logs_Q[:kept] @ -np.log1p(-shares) / (logs_Q[:kept] @ logs_Q[:kept]))


def fill(folder: str, path: str, count: int) -> dict[str, float]:
    """Makes a table of the first vectors, without an approximate index."""
    from probex_jax.search import ModelTable

    vectors, start = np.load(path, mmap_mode="r"), time.perf_counter()
    table = ModelTable(folder, vectors.shape[1], create=True)
    for first in range(0, count, _ROWS):
        part = np.array(vectors[first : min(first + _ROWS, count)])
        rows = [row_of(first + n) for n in range(len(part))]
        table.add(rows, part)
    table.compact()
    return {"s": time.perf_counter() - start}


def row_of(number: int) -> dict[str, Any]:
    """A row as `Index.add_models` writes it."""
    labels = [f"planted {(number + n) % 20:02}" for n in (0, 3, 7)]
    stamp = f"{number * 2654435761 % 2**128:032x}"
    named = {"id": f"{number:07}", "path": f"hf://sim/{number:07}", "tree": "", "split": ""}
    return {**named, "labels": labels, "text": ", ".join(labels), "stamp": stamp}


def build(folder: str, path: str, index: str) -> dict[str, float]:
    """Builds an approximate index.

    Args:
      folder: of the table.
      path: of the vectors.
      index: one of the values of `INDEXES`.

    Returns:
      Seconds, and megabytes of the index.
    """
    import lancedb.index

    from probex_jax.search import ModelTable

    dim = np.load(path, mmap_mode="r").shape[1]
    table = ModelTable(folder, dim)
    table.needs_mending()  # as a writer it reads the latest version
    start, before = time.perf_counter(), _megabytes(Path(folder))
    if not index:
        table.build_ann()
    else:
        config = eval(index, vars(lancedb.index))
        table._table.create_index("vector", config=config, replace=True)
        table.keep_sums()
    return {"s": time.perf_counter() - start, "MB": _megabytes(Path(folder)) - before}


def ask(folder: str, path: str, count: int, way: str) -> dict[str, float]:
    """Seconds of a query (the median), the slowest tenth, and recall@10.

    Args:
      folder: of the table.
      path: of the vectors, the queries after the first `count`.
      count: vectors in the table.
      way: "ours" for `ModelTable.nearest`; "exact scan" for LanceDB's; "in memory" for a product
        with all vectors, as `Snapshot` has it.
    """
    from probex_jax.search import ModelTable

    vectors = np.load(path, mmap_mode="r")
    queries_QT = np.array(vectors[-QUERIES:])
    ask = _ways(ModelTable(folder, vectors.shape[1]), vectors, count)[way]
    times, hits = [], []
    for query_T in queries_QT[: 20 if way == "exact scan" else QUERIES]:
        start = time.perf_counter()
        found = ask(query_T)
        times.append(time.perf_counter() - start)
        hits.append(found)
    true_QK = _true(vectors, queries_QT, count)
    shares = [len(set(found) & set(true)) / K for found, true in zip(hits, true_QK, strict=False)]
    return {
        "ms": 1000 * statistics.median(times[1:]),
        "ms, 90 %": 1000 * statistics.quantiles(times[1:], n=10)[-1],
        "first, ms": 1000 * times[0],
        "recall@10": statistics.fmean(shares),
    }


def _ways(table: Any, vectors: np.ndarray, count: int) -> dict[str, Callable[..., list[int]]]:
    held: list[np.ndarray] = []

    def in_memory(query_T: np.ndarray) -> list[int]:
        if not held:
            held.append(np.array(vectors[:count]))
        similarities_N = np.vecdot(held[0], query_T)
        places = np.argpartition(-similarities_N, K)[:K]
        return places.tolist()

    def exact_scan(query_T: np.ndarray) -> list[int]:
        query = table._table.search(query_T).distance_type("cosine").bypass_vector_index()
        return [
            int(id)
            for id in query.limit(K).select(["id", "_distance"]).to_arrow()["id"].to_pylist()
        ]

    def ours(query_T: np.ndarray) -> list[int]:
        return [int(row["id"]) for row in table.nearest(query_T, K)]

    return {"ours": ours, "exact scan": exact_scan, "in memory": in_memory}


def _true(vectors: np.ndarray, queries_QT: np.ndarray, count: int) -> np.ndarray:
    """The K most similar of the first `count` vectors, a few at a time."""
    best_QK = np.full((len(queries_QT), K), -np.inf, np.float32)
    ids_QK = np.zeros((len(queries_QT), K), int)
    for first in range(0, count, 50_000):
        part_QN = queries_QT @ vectors[first : min(first + 50_000, count)].T
        both = np.concatenate([best_QK, part_QN], axis=1)
        ids = np.concatenate(
            [ids_QK, np.tile(first + np.arange(part_QN.shape[1]), (len(queries_QT), 1))], axis=1
        )
        places = np.argpartition(-both, K - 1, axis=1)[:, :K]
        best_QK, ids_QK = (np.take_along_axis(x, places, axis=1) for x in (both, ids))
    return ids_QK


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
