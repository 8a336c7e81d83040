"""Suite `describe`: a cold start on one file, and how many files a second.

Makes a tree of synthetic models of about 1 MB, an expert of several of its layers, and a forest.
A cold start is the whole command, from the shell to the card, beside starting Python and importing
JAX. The rate is that of the whole command on a folder, and of the library on the same files when
its programs are compiled, each beside reading the same bytes with as many threads: from the page
cache, since the files were written just before. PyTorch reads the files one after the other and
asks linear experts of the same layers, with none of the checks; it tells no tree.
"""

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import probex_jax as px
from experiments.benchmarks import programs, timing
from experiments.benchmarks.figures import PYTORCH, Figure, pytorch
from probex_jax.fitting import ClosedForm
from probex_jax.forest import Forest, grow
from probex_jax.sweeps import sweep

_CLASSES = 10
_READERS = 4
# Models that the expert is fitted to, by split.
_KNOWN = {"train": 60, "val": 20, "test": 20}


@dataclass(frozen=True)
class Sizes:
    """What is described.

    Args:
      models: how many.
      size: rows and columns of each of their layers.
      layers: how many layers each has.
    """

    models: int = 1000
    size: int = 256
    layers: int = 4


DEFAULT = Sizes()
QUICK = Sizes(models=200)


def measure(sizes: Sizes, repeats: int) -> list[Figure]:
    """The figures of the suite."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        forest, layers = _forest(folder, sizes)
        unknown = [_unknown(folder, number) for number in range(sizes.models)]
        opened = Forest.load(forest)
        assert all(isinstance(one, px.Description) for one in opened.describe_all(unknown))
        describe = partial(programs.run, "-m", "experiments.describe", f"--forest={forest}")
        candidates: dict[str, Callable] = {
            "library": lambda: list(opened.describe_all(unknown)),
            "command": partial(describe, "--json", str(folder / "unknown")),
            "cold start": partial(describe, str(unknown[0])),
            "reading": partial(_read_all, unknown),
            "importing JAX": partial(programs.run, "-c", "import jax"),
        }
        if torch := pytorch():
            candidates[PYTORCH] = torch.describing(unknown, layers)
        seconds = timing.times(candidates, repeats)
        each = f"{unknown[0].stat().st_size / 2**20:.1f} MB"
    files = dict.fromkeys(candidates, float(sizes.models))
    ones = dict.fromkeys(candidates, 1.0)
    reading = f"reading the same files, {_READERS} threads, page cache"

    def figure(title: str, work: dict[str, float], names: Sequence[str], is_: str) -> Figure:
        runs = {name: seconds[name] for name in names if name in seconds}
        return Figure(title, "models/s", work, runs, limit=names[1], limit_is=is_)

    many = f"{sizes.models} files of {each}"
    return [
        figure(f"library, {many}", files, ("library", "reading", PYTORCH), reading),
        figure(f"command, {many}", files, ("command", "reading"), reading),
        figure(
            "cold start, one file", ones, ("cold start", "importing JAX"), "starting Python and JAX"
        ),
    ]


def _unknown(folder: Path, number: int) -> Path:
    return folder / "unknown" / f"{number:04d}.safetensors"


def _forest(folder: Path, sizes: Sizes) -> tuple[Path, dict[str, tuple]]:
    """Writes the models, and grows a forest that knows their tree; centre and directions of it."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(sizes.layers, sizes.size, sizes.size))
    directions = 0.02 * rng.normal(size=(_CLASSES, *root.shape))

    def write(path: Path) -> None:
        classes = rng.permutation(_CLASSES)[: _CLASSES // 2]
        weights = root + directions[classes].sum(axis=0) + 0.02 * rng.normal(size=root.shape)
        tensors = {f"layer.{n}.weight": w.astype(np.float32) for n, w in enumerate(weights)}
        path.parent.mkdir(parents=True, exist_ok=True)
        labels = [f"class {number}" for number in sorted(classes)]
        save_file(tensors, path, {"dataset_chosen_targets": str(labels)})

    for split, count in _KNOWN.items():
        for number in range(count):
            write(folder / "zoo" / split / f"{split}_{number}.safetensors")
    for number in range(sizes.models):
        write(_unknown(folder, number))
    store = px.pack(px.scan(folder / "zoo"), folder / "store").store
    found = sweep(
        store,
        folder / "experts",
        encoder={"name": "dense", "standardise": True},
        head="none",
        recipe=ClosedForm(),
        normalise="centre",
        committee=sizes.layers,
    )
    grow(folder / "forest", store, found.expert)
    layers = {
        f"layer.{n}.weight": (root[n], np.moveaxis(directions[:, n], 0, -1))
        for n in range(sizes.layers)
    }
    return folder / "forest", layers


def _read_all(paths: Sequence[Path]) -> None:
    with ThreadPoolExecutor(_READERS) as readers:
        list(readers.map(Path.read_bytes, paths))
