"""A Flax model in every container, and its twin in PyTorch: layers, numbers and fingerprint."""

import flax.nnx as nnx
import jax
import numpy as np
import orbax.checkpoint as v0
import pytest
from flax import serialization
from flax.core import freeze
from flax.traverse_util import flatten_dict
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import save_file

import probex_jax as px
from probex_jax.model_files import fingerprint, open_model
from tests.model_files.containers.flax_model import drawn, twin


@pytest.fixture(scope="module")
def model():
    return drawn()


@pytest.fixture(scope="module")
def expected(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("twin") / "model.safetensors"
    save_file(twin(model), path)
    return contents(open_model(path))


def contents(opened):
    with opened as m:
        values = {name: m.matrix(name) for name in m.all_layers}
        return dict(m.all_layers), values, fingerprint(m)


def flat(variables, separator):
    names = flatten_dict(jax.tree.map(np.asarray, variables), sep=separator)
    return {name: np.ascontiguousarray(value) for name, value in names.items()}


def msgpack(path, variables):
    (path / "flax_model.msgpack").write_bytes(serialization.to_bytes(variables))


def whole_state(path, variables):
    """As a run of training leaves it: with the step and the optimiser."""
    moments = {"0": {"mu": variables["params"], "nu": variables["params"], "count": np.array(3)}}
    state = {"step": 3, **variables, "opt_state": moments}
    (path / "checkpoint_12").write_bytes(serialization.msgpack_serialize(jax.device_get(state)))
    (path / "checkpoint_9").write_bytes(b"older")


def npz(path, variables):
    moments = {f"opt/{name}": value for name, value in flat(variables, "/").items()}
    np.savez(path / "a.npz", **flat(variables, "/"), **moments)


def npz_of_columns(path, variables):
    columns = {name: np.asfortranarray(value) for name, value in flat(variables, "/").items()}
    np.savez_compressed(path / "a.npz", **columns)


def safetensors(separator):
    def save(path, variables):
        save_file(flat(variables, separator), path / "model.safetensors")

    return save


def orbax(path, variables):
    ocp.save_pytree(path / "checkpoint", variables)


def orbax_manager(path, variables):
    with v0.CheckpointManager(path / "run") as manager:
        older = jax.tree.map(np.zeros_like, variables)
        moments = {"mu": variables["params"]}
        for step, tree in ((9, older), (10, variables)):
            state = {**tree, "opt_state": moments, "step": step}
            manager.save(step, args=v0.args.StandardSave(state))


def orbax_without_ocdbt(path, variables):
    with v0.PyTreeCheckpointer(use_ocdbt=False) as checkpointer:
        checkpointer.save(path / "checkpoint", variables)


WRITERS = {
    "msgpack": msgpack,
    "msgpack of a run": whole_state,
    "npz": npz,
    "npz of columns": npz_of_columns,
    "safetensors with dots": safetensors("."),
    "safetensors with slashes": safetensors("/"),
    "Orbax": orbax,
    "Orbax of a run": orbax_manager,
    "Orbax without OCDBT": orbax_without_ocdbt,
}


def check(found, expected):
    layers, values, print_ = found
    assert layers == expected[0]
    assert print_ == expected[2]
    for name, value in values.items():
        np.testing.assert_array_equal(value, expected[1][name], err_msg=name)
        assert value.dtype == np.float32
        assert value.flags.c_contiguous
        assert value.flags.writeable


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:UserWarning")
@pytest.mark.parametrize("how", WRITERS)
def test_a_flax_model_is_its_twin_in_pytorch(model, expected, tmp_path, how):
    WRITERS[how](tmp_path, model)
    [*found] = tmp_path.iterdir()
    path = found[0] if len(found) == 1 and found[0].is_dir() else tmp_path
    check(contents(open_model(path)), expected)
    with open_model(path) as m:
        assert all("beside the parameters" in reason for reason in m.left_out.values())
        assert bool(m.left_out) == (how in ("msgpack of a run", "npz", "Orbax of a run"))
        m.check_unchanged()


@pytest.mark.parametrize("kind", [dict, freeze, jax.device_put, nnx.State])
def test_a_tree_in_memory_is_its_twin_in_pytorch(model, expected, kind):
    check(contents(px.open_params(kind(model))), expected)
