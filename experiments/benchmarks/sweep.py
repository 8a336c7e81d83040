"""Suite `sweep`: every layer of small models in one process, against a process for each layer.

Two ViT-like blocks, 12 layers of 32x32 to 128x32, are swept by `probex train` in one process,
and by the same program as 12 processes of one layer, one after the other. All are started from a
shell, and compile what they run: there is no compilation cache. The limit is the rate of a large
matrix product on the FLOPs of the training. PyTorch trains the layers one after the other in one
process, reading the model files itself.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

import probex_jax as px
from experiments.benchmarks import products, programs, timing
from experiments.benchmarks.figures import PYTORCH, Figure, pytorch
from experiments.benchmarks.inputs import epoch_of
from probex_jax.fitting import Adam, Split, build_network

_CONFIG = "configs/probex.py:mini"
# What that config trains.
_ENCODER = {"name": "probex", "n_probes": 32, "proj_dim": 32, "rep_dim": 128}
_CLASSES = 10
_SPLITS = ("train", "train", "train", "val", "test")


@dataclass(frozen=True)
class Sizes:
    """How much is swept.

    Args:
      models: of all splits.
      blocks: of six layers each.
      width: of a block; its layers are [width, width], [4 width, width] and [width, 4 width].
      epochs: of each layer.
      alone: how many of the layers are trained alone; the time of all is worked out from theirs.
      more: further layers of [width, width], as ViT-Base's two.
      closed_form: whether they are then fitted in closed form, too.
    """

    models: int = 64
    blocks: int = 2
    width: int = 32
    epochs: int = 100
    alone: int = 12
    more: int = 0
    closed_form: bool = False

    def layers(self) -> dict[str, tuple[int, int]]:
        """Shapes by name."""
        w = self.width
        block = dict.fromkeys(("query", "key", "value", "out"), (w, w))
        block |= {"mlp_in": (4 * w, w), "mlp_out": (w, 4 * w)}
        found = {
            f"blocks.{n}.{name}.weight": shape
            for n in range(self.blocks)
            for name, shape in block.items()
        }
        return found | {f"more.{n}.weight": (w, w) for n in range(self.more)}


DEFAULT = Sizes()
QUICK = Sizes(alone=3)


def measure(sizes: Sizes, repeats: int, product_size: int | None = None) -> list[Figure]:
    """The figures of the suite."""
    return list(measured(sizes, repeats, product_size))


def measured(sizes: Sizes, repeats: int, product_size: int | None = None) -> Iterator[Figure]:
    """The figures of the suite, each as soon as it is there."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        zoo = _write_zoo(folder / "zoo", sizes)
        store = px.pack(px.scan(zoo), folder / "store").store
        workdirs = (folder / f"trained_{number}" for number in count())
        yield _by_descent(zoo, store, workdirs, sizes, repeats, product_size)
        if sizes.closed_form:
            given = ("-m", "experiments.train", f"--config.store={store.path}")
            title = f"{len(store.layers)} layers of {sizes.models} models, in closed form"
            seconds = timing.times(
                {"ours": lambda: programs.run(*given, f"--workdir={next(workdirs)}")},
                repeats,
                warm_up=False,
            )
            yield Figure(title, "layers/s", {"ours": float(len(store.layers))}, seconds)


def _by_descent(
    zoo: Path,
    store: px.LayerStore,
    workdirs: Iterator[Path],
    sizes: Sizes,
    repeats: int,
    product_size: int | None,
) -> Figure:
    numbers = np.linspace(0, len(store.layers) - 1, sizes.alone).astype(int)

    def in_one_process() -> None:
        _train(store.path, next(workdirs), sizes.epochs)

    def alone() -> None:
        for number in numbers:
            _train(store.path, next(workdirs), sizes.epochs, f"--config.layers={number}")

    multiply, product_flops = timing.product(product_size or timing.PRODUCT_SIZE)
    limit = "float32 product"
    processes = f"{len(store.layers)} processes of one layer"
    layers = float(len(store.layers))
    work = {"ours": layers, processes: float(sizes.alone)}
    candidates: dict[str, Callable] = {"ours": in_one_process, processes: alone}
    if pytorch():
        module = "experiments.benchmarks.pytorch"
        candidates[PYTORCH] = partial(programs.run, "-m", module, str(zoo), str(sizes.epochs))
        work[PYTORCH] = layers
    work[limit] = layers * product_flops / _flops(store, sizes.epochs)
    seconds = timing.times({**candidates, limit: multiply}, repeats, warm_up=False)
    rate = product_flops / statistics.median(seconds[limit]) / 1e9
    return Figure(
        f"{len(store.layers)} layers of {sizes.models} models, {sizes.epochs} epochs",
        "layers/s",
        work,
        seconds,
        limit=limit,
        limit_is=f"{limit} of {product_size or timing.PRODUCT_SIZE}³, {rate:,.0f} GFLOP/s",
        notes={"processes timed": sizes.alone, "s": statistics.median(seconds["ours"])},
    )


def _write_zoo(folder: Path, sizes: Sizes) -> Path:
    """Models whose layers carry their classes."""
    shapes, rng = sizes.layers(), np.random.default_rng(0)
    directions = {
        name: rng.standard_normal((_CLASSES, *shape), np.float32) for name, shape in shapes.items()
    }

    def write(number: int) -> None:
        rng = np.random.default_rng(number)
        classes = np.sort(rng.permutation(_CLASSES)[: _CLASSES // 2])
        tensors = {
            name: directions[name][classes].sum(axis=0) + rng.standard_normal(shape, np.float32)
            for name, shape in shapes.items()
        }
        path = folder / _SPLITS[number % len(_SPLITS)] / f"model_{number:03d}"
        path.mkdir(parents=True)
        labels = [f"class {label}" for label in classes]
        metadata = {"dataset_chosen_targets": str(labels)}
        save_file(tensors, path / "model.safetensors", metadata)

    with ThreadPoolExecutor() as threads:
        list(threads.map(write, range(sizes.models)))
    return folder


def _train(store: Path, workdir: Path, epochs: int, *more: str) -> None:
    settings = {"": _CONFIG, ".store": store, ".recipe.epochs": epochs}
    config = [f"--config{name}={value}" for name, value in settings.items()]
    programs.run("-m", "experiments.train", f"--workdir={workdir}", *config, *more)


def _flops(store: px.LayerStore, epochs: int) -> float:
    """Of all products of the training of all layers."""
    network = build_network(_ENCODER, "class", len(store.classes))
    y = jnp.asarray(store.targets("train"), jnp.float32)
    total = 0.0
    for shape in store.layers.values():
        epoch, arguments = epoch_of(network, Adam(), Split(jnp.zeros([len(y), *shape]), y))
        total += epochs * products.flops(epoch, *arguments)
    return total
