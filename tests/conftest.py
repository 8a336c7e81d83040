"""Strict modes for every test, and a toy zoo that takes milliseconds."""

import mmap
import os
import tempfile
import warnings
from importlib import util
from pathlib import Path

import jax
import jaxlib
import numpy as np
import pytest
from safetensors.numpy import save_file

import probex_jax as px

jax.config.update("jax_numpy_rank_promotion", "raise")

# What commands keep for the user is kept for the tests alone.
_CACHE = tempfile.TemporaryDirectory(prefix="probex-jax-cache-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name

# Tests start many processes that compile the same programs: all of a run share them.
_COMPILED = tempfile.TemporaryDirectory(prefix="probex-jax-compiled-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _COMPILED.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _quick_to_compile() -> str:
    """XLA's flags for tests, which compile much and compute little.

    Without optimisation compilation takes half the time, with the older emitters a third of that.
    XLA ends a process that names a flag which it does not know; the experimental one is named only
    where the library holds its name.
    """
    flags = "--xla_backend_optimization_level=0"
    for path in Path(jaxlib.__file__).parent.glob("libjax_common.*"):
        with (
            path.open("rb") as library,
            mmap.mmap(library.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            if content.find(b"xla_cpu_use_fusion_emitters") >= 0:
                flags += " --xla_cpu_use_fusion_emitters=false"
    return flags


os.environ.setdefault("XLA_FLAGS", _quick_to_compile())
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

_LONGEST_ID = 60


def pytest_make_parametrize_id(val):
    """A name for hostile texts, which may be megabytes; None to leave it to pytest."""
    if isinstance(val, str | bytes) and len(val) > _LONGEST_ID:
        return f"{val[:20]!r} and {len(val) - 20:,} more"
    return None


CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")
COLOURS, ANIMALS = ("red", "blue", "green", "pink"), CLASSES[:4]
CONCEPTS = tuple(f"{colour} {animal}" for colour in COLOURS for animal in ANIMALS)
HELD_OUT = ("red cat", "blue ant", "pink dog")


def write_toy_model(folder, labels, rng, *, signal=0.6):
    """A model whose layer `a.weight` carries its classes; `b.weight` (a convolution) is noise."""
    directions = np.random.default_rng(7).normal(size=(len(CLASSES), 12, 16))
    chosen = [CLASSES.index(label) for label in labels]
    weights = {
        "a.weight": signal * directions[chosen].sum(0) + rng.normal(size=(12, 16)),
        "b.weight": rng.normal(size=(6, 2, 3, 3)),
        "c.bias": rng.normal(size=5),
    }
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: value.astype(np.float32) for name, value in weights.items()}
    save_file(arrays, folder / "model.safetensors", {"dataset_chosen_targets": str(list(labels))})


def write_toy_zoo(root, n_models=100, *, seed=0):
    """A zoo in three splits: 70, 10 and 20 % of the models."""
    rng = np.random.default_rng(seed)
    for index in range(n_models):
        split = ("train", "val", "test")[(index >= 0.7 * n_models) + (index >= 0.8 * n_models)]
        labels = [CLASSES[i] for i in rng.permutation(len(CLASSES))[:3]]
        write_toy_model(root / split / f"model_{index:04d}", labels, rng)
    return root


def write_toy_lora(folder, concept, rng, *, rank=3):
    """A LoRA whose layer `a` carries the colour and the animal of its concept; `b` is noise."""
    draws = np.random.default_rng(7)
    up = {word: draws.normal(size=(12, 1)) for word in COLOURS + ANIMALS}
    down = {word: draws.normal(size=(1, 16)) for word in COLOURS + ANIMALS}
    words = concept.split()
    noise = rank - len(words)
    weights = {
        "a.lora.up.weight": np.hstack([*(up[w] for w in words), rng.normal(size=(12, noise))]),
        "a.lora.down.weight": np.vstack(
            [*(down[w] for w in words), 0.3 * rng.normal(size=(noise, 16))]
        ),
        "b.lora.up.weight": rng.normal(size=(6, rank)),
        "b.lora.down.weight": rng.normal(size=(rank, 8)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: (0.01 * value).astype(np.float32) for name, value in weights.items()}
    save_file(arrays, folder / "pytorch_lora_weights.safetensors", {"concept": concept})


def write_toy_lora_zoo(root, *, seed=0):
    """LoRAs of ranks 2 to 4 in five splits, 12 of each concept."""
    rng = np.random.default_rng(seed)
    seen = ("train",) * 8 + ("val",) * 2 + ("test",) * 2
    held_out = ("val_holdout",) * 4 + ("test_holdout",) * 8
    for index in range(12 * len(CONCEPTS)):
        concept = CONCEPTS[index % len(CONCEPTS)]
        split = (held_out if concept in HELD_OUT else seen)[index // len(CONCEPTS)]
        write_toy_lora(root / split / f"lora_{index:04d}", concept, rng, rank=2 + index % 3)
    return root


@pytest.fixture(scope="session")
def toy_lora_zoo(tmp_path_factory):
    """Folder of a toy zoo of LoRAs; not to be changed by a test."""
    return write_toy_lora_zoo(tmp_path_factory.mktemp("zoos") / "ToyLoRA")


@pytest.fixture(scope="session")
def toy_lora_store(toy_lora_zoo, tmp_path_factory):
    """The toy zoo of LoRAs, packed; not to be changed by a test."""
    return px.pack(px.scan(toy_lora_zoo), tmp_path_factory.mktemp("stores") / "ToyLoRA").store


@pytest.fixture(scope="session")
def toy_zoo(tmp_path_factory):
    """Folder of a toy zoo; not to be changed by a test."""
    return write_toy_zoo(tmp_path_factory.mktemp("zoos") / "Toy")


@pytest.fixture(scope="session")
def toy_store(toy_zoo, tmp_path_factory):
    """The toy zoo, packed; not to be changed by a test."""
    return px.pack(px.scan(toy_zoo), tmp_path_factory.mktemp("stores") / "Toy").store


@pytest.fixture(scope="session")
def cluster():
    """A Ray cluster on this machine with two workers at a time; it goes when the tests end."""
    if util.find_spec("ray") is None:
        pytest.skip("needs ray")
    from probex_jax.engine import Cluster

    found = Cluster("local", workers=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LanceDB's of forks, if it is imported
        found.size()
    yield found
    import ray

    ray.shutdown()


@pytest.fixture(scope="module")
def server():
    """S3 on localhost for a module of tests, without faults: `tests.s3`."""
    from tests import s3  # which imports moto

    with s3.serving() as app:
        yield app


@pytest.fixture
def at(server, request, monkeypatch):
    """The address of a folder of a test's own in that bucket; waits are short."""
    from probex_jax.buckets import stores
    from tests import s3
    from tests.hub import IMPATIENT

    monkeypatch.setattr(stores, "PATIENCE", IMPATIENT)
    return f"s3://{s3.BUCKET}/{request.node.name}"
