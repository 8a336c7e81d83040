"""Trees of parameters in memory."""

import flax.linen as nn
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probex_jax as px
from probex_jax.errors import ProbexError

W = np.arange(6, dtype="f4").reshape(2, 3)


def test_lists_dtypes_and_plain_trees():
    tree = {
        "blocks": [{"weight": W, "bias": W[0]}, {"weight": jnp.asarray(W + 1, jnp.bfloat16)}],
        "steps": 7,
        "rate": np.float64(0.5),
        "ids": np.arange(3),
    }
    model = px.open_params(tree, {"author": "me"})
    assert [*model.layers] == ["blocks.0.weight", "blocks.1.weight"]
    assert model.layers["blocks.1.weight"].dtype == "BF16"
    np.testing.assert_array_equal(model.matrix("blocks.1.weight"), W + 1)
    np.testing.assert_array_equal(model.rows("blocks.0.weight", [1]), W[[1]])
    assert {*model.vectors} == {"blocks.0.bias", "rate"}
    assert model.left_out == {"ids": "integer", "steps": "integer"}
    assert (model.metadata, model.config, model.warnings) == ({"author": "me"}, {}, ())


def test_what_is_read_is_the_callers_own():
    tree = {"w": W.copy()}
    model = px.open_params(tree)
    model.matrix("w")[:] = 0
    np.testing.assert_array_equal(model.matrix("w"), W)
    tree["w"] += 1
    np.testing.assert_array_equal(model.matrix("w"), W + 1)


def test_modules_of_nnx():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.fc = nnx.Linear(3, 2, rngs=rngs)
            self.norm = nnx.BatchNorm(2, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

    state = nnx.state(Net(nnx.Rngs(0)))
    model = px.open_params(state)
    np.testing.assert_array_equal(model.matrix("fc.weight"), np.asarray(state["fc"]["kernel"]).T)
    assert {"norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"} <= {*model.vectors}
    assert [*model.layers] == ["fc.weight"]
    assert all("rngs" in name for name in model.left_out)


def test_partitioned_and_frozen_parameters():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.ones, (None, "model"))
            return nn.Dense(2, kernel_init=init, name="fc")(x)

    variables = jax.jit(Net().init)(jax.random.key(0), jnp.ones((1, 3)))
    model = px.open_params(variables)
    assert [*model.layers] == ["fc.weight"]


class OfAnotherLibrary:
    """As a tensor of PyTorch on a GPU, which NumPy cannot read."""

    shape, dtype = (2, 3), "torch.float32"

    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert")


def test_an_array_alone_is_called_parameters():
    assert [*px.open_params(W).layers] == ["parameters"]


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ({}, "no tensors"),
        ({"a": None}, "no tensors"),
        ({"a": "text"}, "'a'"),
        ({"a": {"b": object()}}, "'a/b'"),
        ({"a": np.array(["x"])}, "'a'"),
        ({"..": {"a": W}}, "leads out"),
        ({"a": {"b": W}, "a/b": W}, "'a/b'"),
        ({"fc": {"kernel": jax.ShapeDtypeStruct((2, 3), "f4")}}, "'fc/kernel'"),
        ({"fc": {"kernel": OfAnotherLibrary()}}, "'fc/kernel'"),
        (jax.ShapeDtypeStruct((2, 3), "f4"), "'parameters'"),
    ],
)
def test_what_is_no_tree_of_arrays_is_refused(tree, named):
    with pytest.raises(ProbexError, match=named):
        px.open_params(tree)


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(ProbexError, match="'w'"):
        px.open_params({"w": W * np.nan}).matrix("w")
