"""How many rows a second the driver alone commits to an index, when workers have them ready."""

import resource
import time
from pathlib import Path

import numpy as np

from experiments.benchmarks.repository.approximate import _row


def commits(folder: str, path: str, count: int, rows: int, every: int) -> list[dict[str, float]]:
    """Commits ready rows, a few at a time, to a table that grows.

    Args:
      folder: of the table.
      path: of vectors, .npy.
      count: rows in all.
      rows: of a commit.
      every: rows after which the rate since the last such moment is noted.

    Returns:
      A row for each such moment.
    """
    from probex_jax.search import ModelTable

    vectors = np.load(path, mmap_mode="r")
    table = ModelTable(folder, vectors.shape[1], create=True)
    start, found, before = time.perf_counter(), [], 0
    cpu = time.process_time()
    for first in range(0, count, rows):
        part = np.array(vectors[first : min(first + rows, count)])
        table.add([_row(first + n) for n in range(len(part))], part)
        done = first + len(part)
        if done // every > before // every or done == count:
            s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
            files = sum(1 for _ in Path(folder).rglob("*"))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
            found.append(
                {
                    "rows": done,
                    "rows/s": (done - before) / s,
                    "cpu": cpu_s / s,
                    "files": files,
                    "peak": peak,
                }
            )
            print(found[-1], flush=True)
            start, cpu, before = time.perf_counter(), time.process_time(), done
    return found
