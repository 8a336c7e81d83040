"""How many rows a second the driver alone commits to an index, when workers have them ready."""

import os
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.repository.approximate import row_of
from probex_jax.bucket_paths import as_path
from probex_jax.engine import HERE, Work
from probex_jax.engine.work import Part, Size
from probex_jax.experts import load_experts
from probex_jax.search import FoundModel, Index


class Ready:
    """An engine whose results are there already: rows with random vectors."""

    is_here = True

    def __init__(self, dim: int):
        self._rng, self._dim = np.random.default_rng(0), dim

    def size(self) -> Size:
        """As `Engine.size`."""
        return HERE.size()

    def map(
        self,
        make: Callable[[], Work],
        parts: Iterable[Part],
        *,
        readers: int = 4,
        ahead: int = 1,
        computes: bool = True,
    ) -> Generator[tuple[Part, Sequence[Any]]]:
        """As `Engine.map`."""
        for part in parts:
            vectors_NT = self._rng.standard_normal((len(part), self._dim), np.float32)
            yield (
                part,
                [(row_of(int(a.model.id)), v) for a, v in zip(part, vectors_NT, strict=True)],
            )


def begun(folder: str, expert: str, table: str) -> None:
    """Makes an index of an expert that holds the rows of a table; none if that is ""."""
    Index.create_or_open(folder, load_experts(as_path(expert))["val_holdout"])
    if table:
        shutil.rmtree(Path(folder) / "models.lance")
        # Files of a table never change.
        shutil.copytree(table, folder, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    Path(target).unlink(missing_ok=True)
    os.link(source, target)


def committed(folder: str, expert: str, first: int, count: int) -> dict[str, float]:
    """Adds `count` ready models from number `first` on to an index; rows a second."""
    index = Index.create_or_open(folder, load_experts(as_path(expert))["val_holdout"])
    models = (_model(number) for number in range(first, first + count))
    before, start, cpu = len(index), time.perf_counter(), time.process_time()
    done = index.add_models(models, engine=Ready(index.about["expert"]["rep_dim"]))
    took_s = time.perf_counter() - start
    assert done.added == count, done
    cpu_s = time.process_time() - cpu
    return {"before": before, "rows/s": count / took_s, "s": took_s, "cpu, s": cpu_s}


def _model(number: int) -> FoundModel:
    return FoundModel(f"{number:07}", "", Path(f"hf://sim/{number:07}"))
