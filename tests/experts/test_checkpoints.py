"""Checkpoints: what is stored, what comes back, and what earlier versions stored."""

import shutil

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from probex_jax.errors import ProbexError
from probex_jax.experts import checkpoints

CARD = {"tree": "Mini", "classes": ["one", "two"]}


def same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def disk_bytes(path):
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "0": {"weight": rng.normal(size=[5, 3]).astype("f4"), "bias": np.float32(2)},
        "1": {"weight": rng.normal(size=[3, 5]).astype("f4").T, "count": np.array([7, -7])},
        "2": {"large": rng.normal(size=[300, 200]).astype("f4"), "none": {}},
    }


def test_arrays_come_back_with_their_bits(tmp_path, arrays):
    checkpoints.save(tmp_path / "e", arrays, CARD)
    found, card = checkpoints.load(tmp_path / "e")
    same(found, jax.tree.map(np.asarray, arrays))
    assert card == CARD


def test_checkpoints_of_earlier_versions_are_read(tmp_path, arrays):
    """They had an array of Orbax for each of ours."""
    arrays = jax.tree.map(np.asarray, arrays)
    metadata = {**CARD, "content_hash": checkpoints.content_hash(arrays, CARD)}
    ocp.save(tmp_path / "e", arrays, custom_metadata=metadata)
    found, card = checkpoints.load(tmp_path / "e")
    same(found, arrays)
    assert card == CARD


def test_what_members_share_is_stored_once(tmp_path):
    centre = np.random.default_rng(0).normal(size=[400, 300]).astype("f4")
    bias = np.random.default_rng(1).normal(size=[5000]).astype("f4")
    one = {"0": {"centre": centre, "bias": bias}}
    checkpoints.save(tmp_path / "one", one, CARD)
    several = {str(n): {"centre": centre.copy(), "bias": bias.copy()} for n in range(4)}
    checkpoints.save(tmp_path / "several", several, CARD)
    assert disk_bytes(tmp_path / "several") < 1.1 * disk_bytes(tmp_path / "one")
    same(checkpoints.load(tmp_path / "several")[0], several)


@pytest.mark.parametrize(
    "places",
    [
        [],
        {"0": {"bias": 3}},
        {"0": {"bias": ["float32", 0]}},
        {"0": {"bias": ["float64", 0, []]}},
        {"0": {"bias": ["float32", 0, [2, 9]]}},
        {"0": {"bias": ["float32", 0.5, ["x"]]}},
    ],
)
def test_places_that_are_none(tmp_path, places):
    stored = {"float32": np.ones([1], "f4")}
    metadata = {**CARD, "content_hash": "", "arrays_at": places}
    ocp.save(tmp_path / "e", stored, custom_metadata=metadata)
    with pytest.raises(ProbexError, match=str(tmp_path / "e")):
        checkpoints.load(tmp_path / "e")


def test_a_full_disk_is_one_line_and_what_is_there_stays(tmp_path, arrays, monkeypatch, capfd):
    checkpoints.save(tmp_path / "e", {"old": np.ones(3, "f4")}, CARD)
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=100_000))
    with pytest.raises(ProbexError, match="e: no space left on the disk"):
        checkpoints.save(tmp_path / "e", arrays, CARD)
    assert capfd.readouterr() == ("", "")
    same(checkpoints.load(tmp_path / "e")[0], {"old": np.ones(3, "f4")})
    assert [path.name for path in tmp_path.iterdir()] == ["e"]
