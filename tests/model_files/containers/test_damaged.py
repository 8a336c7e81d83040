"""Every container cut short and with flipped bits: read, or refused in one line that names it."""

import sys
import time

import numpy as np
import pytest

from probex_jax.errors import ProbexError
from probex_jax.model_files import open_model
from tests.model_files.fuzz_seeds import CONTAINERS
from tests.model_files.fuzz_target import SECONDS, read_all

FILES = {
    "gguf": "a.gguf",
    "msgpack": "a.msgpack",
    "npz": "a.npz",
    "npz packed": "a.npz",
    "hdf5": "a.weights.h5",
    "hdf5 old": "a.h5",
    "keras": "a.keras",
}


def outcome(path, data):
    path.write_bytes(data)
    began = time.process_time()
    found = read_all(path.parent)
    assert time.process_time() - began < SECONDS
    return found


@pytest.mark.parametrize("kind", FILES)
def test_truncated_files_are_refused(tmp_path, kind):
    data, path = CONTAINERS[kind](), tmp_path / FILES[kind]
    assert outcome(path, data) == "opened"
    for twentieth in range(20):
        assert outcome(path, data[: len(data) * twentieth // 20]) == "refused"


@pytest.mark.parametrize("kind", FILES)
def test_flipped_bits_are_refused_or_read(tmp_path, kind):
    rng = np.random.default_rng(0)
    data, path = CONTAINERS[kind](), tmp_path / FILES[kind]
    found = []
    for _ in range(12):
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[rng.integers(len(data), size=3)] ^= rng.integers(1, 256, 3).astype(np.uint8)
        found.append(outcome(path, damaged.tobytes()))
    assert "refused" in found


@pytest.mark.parametrize("name", ["a.gguf", "a.msgpack", "a.npz", "a.h5", "a.keras"])
@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"\xff" * 5000, b"\x80\x04\x95." + bytes(50)])
def test_other_files_of_these_names_are_refused(tmp_path, name, data):
    assert outcome(tmp_path / name, data) == "refused"


@pytest.mark.parametrize(
    ("kind", "extra"), [("gguf", "gguf"), ("hdf5", "keras"), ("keras", "keras")]
)
def test_without_its_package_the_extra_is_named(tmp_path, monkeypatch, kind, extra):
    path = tmp_path / FILES[kind]
    path.write_bytes(CONTAINERS[kind]())
    for module in ("gguf", "pyfive"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ProbexError, match=f"extra '{extra}'"):
        open_model(path)
