"""Packing model files from a warm page cache, against copying the same bytes; and its memory.

Each repeat copies the model files with two threads and packs them with two workers, one after the
other, onto the same file system. Neither flushes to the disk: both end in the page cache. A copy is
taken in two ways. `shutil.copyfile` leaves it to the kernel, which moves pages without showing them
to the program. The other reads 1 MiB at a time into a buffer and writes that, which is the least
that a program does which looks at the bytes, as packing does for NaN and checksums; the buffer
begins with a page, since some of AMD's processors copy to 16 bytes behind one at a fifth of the
speed. The same bytes are copied as are packed: where one layer is packed, the limit is a copy of
that layer's bytes out of every file into one file of their own each. The ratio of CPU times is what
others on the machine disturb least.

What was written is cut to nothing after each turn and removed at the end: ext4 is slow to make
files where others were removed seconds before, and memory that a virtual machine never touched is
slow to come.

Memory is the peak of a process that packs so many models, which are links to one file.

Suite `pack` of `experiments.benchmark` prints it.
"""

import mmap
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import probex_jax as px
from experiments.benchmarks import memory

THREADS = 2
# Name: number of models, shapes of their layers, and which layers are packed.
_LARGE = [(384, 384)] * 24 + [(768, 384)] * 6 + [(768, 768)] * 6
_KINDS: dict[str, tuple[int, Sequence[tuple[int, int]], str | None]] = {
    "large": (20, _LARGE, None),
    "large, one layer": (20, _LARGE, "layer.030.weight"),
    "small": (300, [(256, 256)] * 4, None),
}
_MEMORY_LAYERS = [(256, 256)] * 2
_BUFFER_BYTES = 2**20
_OF_THREAD = threading.local()


def measure(
    repeats: int = 5, memory_models: Sequence[int] = (200, 2000), folder: str | None = None
) -> list[dict[str, Any]]:
    """Rates of packing beside those of copying, and peaks of memory.

    Args:
      repeats: timed turns of each.
      memory_models: numbers of models whose packing is weighed.
      folder: where models and stores are written; the system's temporary folder if None.

    Returns:
      Rows of two kinds, by `what`: "rate" and "memory".
    """
    rows = []
    with tempfile.TemporaryDirectory(dir=folder) as name:
        for kind, (n_models, shapes, layers) in _KINDS.items():
            zoo = Path(name) / f"zoo {n_models}"
            if not zoo.exists():
                write_models(zoo, n_models, shapes)
            rows.append({"what": "rate", "models": kind, **_rates(zoo, layers, repeats)})
        for n_models in memory_models:
            zoo, store = Path(name) / f"links {n_models}", Path(name) / f"packed {n_models}"
            write_models(zoo, n_models, _MEMORY_LAYERS, is_linked=True)
            found = memory.fresh(pack_once, str(zoo), str(store))
            rows.append(
                {
                    "what": "memory",
                    "models": n_models,
                    "GB": n_models * sum(4 * h * w for h, w in _MEMORY_LAYERS) / 1e9,
                    "imports, MiB": round(found["start_mib"], 1),
                    "peak, MiB": round(found["peak_mib"], 1),
                    "models/s": n_models / found["result"],
                }
            )
            shutil.rmtree(store)
    return rows


def pack_once(zoo: str, store: str) -> float:
    """Packs a zoo into a new store; the seconds that it took."""
    start = time.perf_counter()
    px.pack(px.scan(zoo), store, readers=THREADS)
    return time.perf_counter() - start


def write_models(
    zoo: Path, n_models: int, shapes: Sequence[tuple[int, int]], *, is_linked: bool = False
) -> None:
    """Writes models of float32 layers, of three classes, four in five of them for training.

    Args:
      zoo: folder of the zoo.
      n_models: how many.
      shapes: of their layers.
      is_linked: whether all are links to one file, which saves time and page cache.
    """
    rng = np.random.default_rng(0)
    layers = {
        f"layer.{number:03d}.weight": 0.02 * rng.standard_normal(shape, np.float32)
        for number, shape in enumerate(shapes)
    }
    first: Path | None = None
    for number in range(n_models):
        split = "train" if number % 5 else ("val", "test")[number % 2]
        path = zoo / split / f"{number:05d}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_linked and first is not None:
            os.link(first, path)
            continue
        first = path
        labels = {"dataset_chosen_targets": f"['class {number % 3}']"}
        save_file({name: w + np.float32(1e-4 * number) for name, w in layers.items()}, path, labels)


def _rates(zoo: Path, layers: str | None, repeats: int) -> dict[str, Any]:
    files = sorted(zoo.rglob("*.safetensors"))
    if layers is not None:
        files = _only(layers, files, zoo.parent / f"only {zoo.name} {layers}")
    file_bytes = sum(path.stat().st_size for path in files)
    runs = zoo.parent / f"runs {zoo.name} {layers}"
    packed_bytes = 0
    times: dict[str, list[tuple[float, float]]] = {"kernel": [], "buffer": [], "pack": []}
    for repeat in range(repeats + 1):  # the first warms up
        runs.mkdir(exist_ok=True)
        for name, copy in (("kernel", shutil.copyfile), ("buffer", _copy_through_buffer)):
            target = runs / f"{name} {repeat}"
            target.mkdir()
            times[name].append(_seconds(lambda: _copy_all(copy, files, target)))  # noqa: B023
            _empty(target)
        out = runs / f"pack {repeat}"
        times["pack"].append(
            _seconds(lambda: px.pack(px.scan(zoo), out, layers, readers=THREADS))  # noqa: B023
        )
        store = px.LayerStore.open(out)
        packed_bytes = 4 * len(store.models) * sum(h * w for h, w in store.layers.values())
        _empty(store.path)
    shutil.rmtree(runs)
    median, cpu = (
        {name: statistics.median(one[kind] for one in ones[1:]) for name, ones in times.items()}
        for kind in (0, 1)
    )
    rates = {
        name: (packed_bytes if name == "pack" else file_bytes) / seconds / 1e9
        for name, seconds in median.items()
    }
    return {
        "MB": packed_bytes / 1e6,
        "pack, GB/s": rates["pack"],
        "copyfile, GB/s": rates["kernel"],
        "read and write, GB/s": rates["buffer"],
        "pack / copyfile": rates["pack"] / rates["kernel"],
        "pack / read and write": rates["pack"] / rates["buffer"],
        "pack / copyfile, by CPU time": packed_bytes / file_bytes * cpu["kernel"] / cpu["pack"],
        "pack / read and write, by CPU time": packed_bytes
        / file_bytes
        * cpu["buffer"]
        / cpu["pack"],
    }


def _only(layer: str, files: Sequence[Path], folder: Path) -> list[Path]:
    """Files of the bytes of one layer, in the page cache as well."""
    folder.mkdir()
    made = []
    for path in files:
        made.append(folder / path.name)
        with px.open_model(path) as model:
            made[-1].write_bytes(model.tensor(layer).tobytes())
    return made


def _seconds(function: Callable[[], object]) -> tuple[float, float]:
    """Of the clock, and of all threads on the processors."""
    start, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - start, time.process_time() - cpu


def _copy_all(copy: Callable[[Path, Path], object], files: Sequence[Path], target: Path) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda path: copy(path, target / path.name), files))


def _copy_through_buffer(source: Path, target: Path) -> None:
    if not hasattr(_OF_THREAD, "buffer"):
        _OF_THREAD.buffer = memoryview(mmap.mmap(-1, _BUFFER_BYTES))
    buffer = _OF_THREAD.buffer
    with source.open("rb", buffering=0) as read, target.open("wb", buffering=0) as write:
        while count := read.readinto(buffer):
            write.write(buffer[:count])


def _empty(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            os.truncate(path, 0)
