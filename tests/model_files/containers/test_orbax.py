"""Checkpoints of Orbax; damaged and hostile ones are refused."""

import json
import os

import numpy as np
import orbax.checkpoint as v0
import pytest
from orbax.checkpoint import v1 as ocp

from probex_jax.errors import ProbexError
from probex_jax.model_files import Limits, open_model
from tests.model_files.fuzz_target import CHUNK, TREE, ZARR

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:UserWarning")
KERNEL = np.arange(6, dtype="f4").reshape(2, 3)


def small(path, zarr=ZARR, tree=TREE, chunk=None):
    """A checkpoint of one array, written by hand."""
    (path / "a.kernel").mkdir(parents=True)
    (path / "_METADATA").write_bytes(tree)
    (path / "a.kernel" / ".zarray").write_bytes(zarr)
    (path / "a.kernel" / "0.0").write_bytes(CHUNK["a.kernel/0.0"] if chunk is None else chunk)
    return path


def test_keys_with_dots_and_nested_lists(tmp_path):
    tree = {"params": {"layer.0": [{"kernel": KERNEL}, {"kernel": KERNEL + 1}]}}
    ocp.save_pytree(tmp_path / "a", tree)
    with open_model(tmp_path / "a") as m:
        assert [*m.layers] == ["layer.0.0.weight", "layer.0.1.weight"]
        np.testing.assert_array_equal(m.matrix("layer.0.1.weight"), KERNEL.T + 1)


def test_of_several_items_the_parameters_are_read_and_of_several_steps_the_newest(tmp_path):
    with v0.CheckpointManager(tmp_path) as manager:
        for step in (2, 10):
            manager.save(
                step,
                args=v0.args.Composite(
                    params=v0.args.StandardSave({"fc": {"kernel": KERNEL + step}}),
                    optimizer=v0.args.StandardSave({"mu": KERNEL}),
                    extra=v0.args.JsonSave({"a": 1}),
                ),
            )
    (tmp_path / "11.orbax-checkpoint-tmp-12").mkdir()
    with open_model(tmp_path) as m:
        assert [*m.layers] == ["fc.weight"]
        np.testing.assert_array_equal(m.matrix("fc.weight"), KERNEL.T + 10)


def test_a_config_beside_and_what_changes_is_noticed(tmp_path):
    small(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text('{"model_type": "mine"}')
    with open_model(tmp_path / "a") as m:
        assert m.config == {"model_type": "mine"}
        assert m.layers["a.weight"].shape == (3, 2)
        m.check_unchanged()
        (tmp_path / "a" / "a.kernel" / "0.0").write_bytes(bytes(25))
        with pytest.raises(ProbexError, match="changed"):
            m.check_unchanged()


def changed(**fields):
    return json.dumps(json.loads(ZARR) | fields).encode()


HOSTILE = {
    "a shape beyond memory": (changed(shape=[2**30, 2**30]), "unpacked"),
    "a chunk beyond memory": (changed(chunks=[2**30, 2**30]), "unpacked"),
    "no JSON": (b"{", "Orbax"),
    "another compressor": (changed(compressor={"id": "pickle"}), "Orbax"),
    "an unknown dtype": (changed(dtype="|O"), "Orbax"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_arrays_are_refused_in_one_line(tmp_path, case):
    data, fragment = HOSTILE[case]
    with pytest.raises(ProbexError, match=fragment) as caught:
        open_model(small(tmp_path / "a", zarr=data))
    assert str(caught.value).startswith(str(tmp_path / "a"))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("tree", [b"[", b"[]", b'{"tree_metadata": {"a": 7}}', b"[" * 10**5])
def test_hostile_trees_are_refused_in_one_line(tmp_path, tree):
    with pytest.raises(ProbexError, match="_METADATA"):
        open_model(small(tmp_path / "a", tree=tree))


def test_missing_and_short_chunks_are_no_zeros(tmp_path):
    path = small(tmp_path / "a")
    for damage in (lambda: (path / "a.kernel" / "0.0").write_bytes(bytes(5)),
                   lambda: (path / "a.kernel" / "0.0").unlink()):  # fmt: skip
        damage()
        with open_model(path) as m, pytest.raises(ProbexError, match=r"'a/kernel'"):
            m.matrix("a.weight")


def test_links_that_lead_out_are_refused(tmp_path):
    path = small(tmp_path / "a")
    (tmp_path / "secret").write_bytes(bytes(24))
    (path / "a.kernel" / "0.0").unlink()
    (path / "a.kernel" / "0.0").symlink_to(tmp_path / "secret")
    with pytest.raises(ProbexError, match="leads out"):
        open_model(path)


def test_a_pipe_is_refused(tmp_path):
    path = small(tmp_path / "a")
    (path / "a.kernel" / "0.0").unlink()
    os.mkfifo(path / "a.kernel" / "0.0")
    with pytest.raises(ProbexError, match=r"0\.0: not a regular file"):
        open_model(path)


def test_damaged_bytes_end_in_one_line_or_are_read(tmp_path):
    """Orbax has no checksums of arrays; whatever is damaged, nothing else happens."""
    ocp.save_pytree(tmp_path / "a", {"fc": {"kernel": np.ones((20, 30), "f4")}})
    rng = np.random.default_rng(0)
    files = [p for p in (tmp_path / "a").rglob("*") if p.is_file() and p.stat().st_size]
    refusals = []
    for path in files:
        data = path.read_bytes()
        for trial in range(12):
            damaged = bytearray(data)
            if trial % 3:
                damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
            else:
                del damaged[len(data) * trial // 12 :]
            path.write_bytes(damaged)
            try:
                with open_model(tmp_path / "a") as m:
                    for name in m.all_layers:
                        m.matrix(name)
            except ProbexError as error:
                refusals.append(str(error))
        path.write_bytes(data)
    assert len(refusals) > 20
    assert all(line.isprintable() and len(line) < 700 for line in refusals)
    open_model(tmp_path / "a").close()


def test_the_limit_of_tensors_holds(tmp_path):
    ocp.save_pytree(tmp_path / "a", {str(number): KERNEL for number in range(6)})
    with pytest.raises(ProbexError, match="limit"):
        open_model(tmp_path / "a", limits=Limits(tensors=5))


def test_an_empty_folder_of_steps_is_no_model(tmp_path):
    os.makedirs(tmp_path / "run" / "10" / "default")
    with pytest.raises(ProbexError, match="no model here"):
        open_model(tmp_path / "run")
