"""Keras's files in `data/` (`keras_files` writes them); hostile ones are refused."""

import shutil
import zipfile

import numpy as np
import pytest

from probex_jax.errors import ProbexError
from probex_jax.model_files import Limits, fingerprint, open_model
from tests.model_files.containers.keras_files import DATA

FILES = ("small.weights.h5", "small.h5", "small.keras")


def expected():
    """The weights as Keras has them in memory; in PyTorch's names and axes, by hand."""
    kept = np.load(DATA / "small.npz")
    by_leaf = {}
    for path in kept:
        layer, leaf = path.split("/")
        by_leaf[layer.rpartition("_")[0] or layer, leaf] = kept[path]
    norm = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean"}
    norm["moving_variance"] = "running_var"
    found = {
        f"batch_normalization.{new}": by_leaf["batch_normalization", n] for n, new in norm.items()
    }
    for layer in ("dense", "head"):
        found[f"{layer}.weight"] = by_leaf[layer, "kernel"].T
        found[f"{layer}.bias"] = by_leaf[layer, "bias"]
    found["stem.weight"] = np.einsum("kio->oik", by_leaf["stem", "kernel"])
    return found | {"stem.bias": by_leaf["stem", "bias"]}


@pytest.mark.parametrize("name", FILES)
def test_a_model_has_pytorchs_names_and_numbers_in_every_file(name):
    with open_model(DATA / name) as m:
        assert {*m.all_layers} == {*expected()}
        for layer, value in expected().items():
            np.testing.assert_array_equal(m.tensor(layer), value, err_msg=layer)
        with open_model(DATA / FILES[0]) as other:
            assert fingerprint(m) == fingerprint(other)
        m.check_unchanged()


def archived(path, compression=zipfile.ZIP_STORED, **files):
    with zipfile.ZipFile(path, "w", compression) as made:
        for name, data in files.items():
            made.writestr(name, data)


def test_hostile_archives(tmp_path):
    path, weights = tmp_path / "a.keras", (DATA / FILES[0]).read_bytes()
    for files, compression, fragment in (
        ({"config.json": "{}"}, zipfile.ZIP_STORED, r"no model\.weights\.h5"),
        ({"model.weights.h5": weights}, zipfile.ZIP_DEFLATED, "compressed"),
        ({"model.weights.h5": weights[:5000]}, zipfile.ZIP_STORED, "a.keras"),
        ({"model.weights.h5": b"hello"}, zipfile.ZIP_STORED, "HDF5"),
        ({"data.pkl": b"", "model.weights.h5": weights}, zipfile.ZIP_STORED, "PyTorch"),
    ):
        archived(path, compression, **files)
        with pytest.raises(ProbexError, match=fragment) as caught:
            open_model(path)
        assert str(caught.value).isprintable()


def test_the_limits_hold(tmp_path):
    shutil.copy(DATA / FILES[0], tmp_path)
    open_model(tmp_path).close()
    with pytest.raises(ProbexError, match="limit"):
        open_model(tmp_path, limits=Limits(header_bytes=1000))
    with pytest.raises(ProbexError, match="limit"):
        open_model(tmp_path, limits=Limits(tensors=5))
