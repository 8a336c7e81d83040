"""Strict modes for every test, and a toy zoo that takes milliseconds."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import probex_jax as px

jax.config.update("jax_numpy_rank_promotion", "raise")

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")


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


@pytest.fixture(scope="session")
def toy_zoo(tmp_path_factory):
    """Folder of a toy zoo; not to be changed by a test."""
    return write_toy_zoo(tmp_path_factory.mktemp("zoos") / "Toy")


@pytest.fixture(scope="session")
def toy_store(toy_zoo, tmp_path_factory):
    """The toy zoo, packed; not to be changed by a test."""
    return px.pack(px.scan(toy_zoo), tmp_path_factory.mktemp("stores") / "Toy").store
