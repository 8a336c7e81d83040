"""Odd safetensors files."""

import json

import numpy as np
from safetensors.numpy import save, save_file

from probex_jax.model_files import open_model

W = np.arange(6, dtype="f4").reshape(2, 3)


def test_metadata_may_be_null(tmp_path):
    data = save({"w": W})
    size = int.from_bytes(data[:8], "little")
    header = json.dumps({"__metadata__": None, **json.loads(data[8 : 8 + size])}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    with open_model(path) as m:
        assert (m.metadata, [*m.layers]) == ({}, ["w"])
        np.testing.assert_array_equal(m.matrix("w"), W)


def test_tensors_without_axes_and_without_elements(tmp_path):
    tensors = {"scalar": np.array(2.5, "f4"), "none": np.ones((0, 3), "f4"), "w": W}
    save_file(tensors, tmp_path / "model.safetensors")
    with open_model(tmp_path) as m:
        assert m.tensor("scalar").shape == ()
        assert m.matrix("scalar") == 2.5
        assert m.tensor("none").shape == (0, 3)
        assert m.left_out == {"none": "empty"}
