"""Names and axes of JAX's parameters in PyTorch."""

import pytest

from probex_jax.model_files.flax_names import torch_forms
from probex_jax.model_files.safetensors_header import TensorInfo


def forms(nested=True, **shapes):
    tensors = {name: TensorInfo("F32", shape) for name, shape in shapes.items()}
    found = torch_forms(tensors, nested)
    assert found.keys() == tensors.keys()
    return {name: form.reason or (form.name, form.shape) for name, form in found.items()}


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("params/a/kernel", (3, 4), ("a.weight", (4, 3))),
        ("params/a/Conv_0/kernel", (3, 2, 4, 5), ("a.Conv_0.weight", (5, 4, 3, 2))),
        ("params/Conv_0/kernel", (3, 4, 5), ("Conv_0.weight", (5, 4, 3))),
        ("params/stem/kernel", (2, 2, 2, 4, 5), ("stem.weight", (5, 4, 2, 2, 2))),
        ("params/attn/query/kernel", (6, 2, 3), ("attn.query.weight", (6, 6))),
        ("params/attn/query/bias", (2, 3), ("attn.query.bias", (6,))),
        ("params/attn/out/kernel", (2, 3, 5), ("attn.out.weight", (5, 6))),
        ("params/attn/v_proj/kernel", (6, 4), ("attn.v_proj.weight", (4, 6))),
        ("params/Embed_0/embedding", (9, 4), ("Embed_0.weight", (9, 4))),
        ("params/norm/scale", (4,), ("norm.weight", (4,))),
        ("params/pos_embedding", (1, 9, 4), ("pos_embedding", (1, 9, 4))),
        ("params/a/kernel/value", (3, 4), ("a.weight", (4, 3))),
        ("params/params/a/kernel", (3, 4), ("a.weight", (4, 3))),
        ("state/params/a/kernel", (3, 4), ("a.weight", (4, 3))),
        ("model/params/a/kernel", (3, 4), ("a.weight", (4, 3))),
        ("target/encoder/a/kernel", (3, 4), ("encoder.a.weight", (4, 3))),
        ("batch_stats/bn/mean", (4,), ("bn.running_mean", (4,))),
        ("model/layers/0/self_attn/q_proj/kernel", (3, 4),
         ("model.layers.0.self_attn.q_proj.weight", (4, 3))),
        ("h/0/attn/c_attn/kernel", (12, 4), ("h.0.attn.c_attn.weight", (4, 12))),
        ("tf/layer_._0/dense/kernel:0", (3, 4), ("tf.layer.0.dense.weight", (4, 3))),
        ("rnn/recurrent_kernel", (3, 12), ("rnn.recurrent_weight", (12, 3))),
    ],
)  # fmt: skip
def test_names_and_shapes(name, shape, expected):
    assert forms(**{name: shape})[name] == expected


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("params/Dense_0/kernel", (2, 3, 4)),
        ("params/ConvTranspose_0/kernel", (3, 3, 4, 5)),
        ("params/attn/query/kernel", (2, 6, 2, 3)),
        ("params/Conv_0/kernel", (65, 3, 4, 5)),
        ("a/depthwise_kernel", (3, 3, 4, 5)),
        ("a/recurrent_kernel", (3, 3, 4)),
    ],
)
def test_kernels_of_unknown_axes_are_left_out(name, shape):
    assert "order of axes" in forms(**{name: shape})[name]


def test_what_lies_beside_the_parameters_is_left_out():
    shapes = dict.fromkeys(("params/a/kernel", "opt_state/0/mu/a/kernel", "ema/a/w"), (2, 3))
    found = forms(**shapes, step=())
    assert found.pop("params/a/kernel") == ("a.weight", (3, 2))
    assert all("beside the parameters" in reason for reason in found.values())
    found = forms(**{"model/a/kernel": (2, 3), "opt_state/mu/a/kernel": (2, 3), "step": ()})
    assert found["model/a/kernel"] == ("a.weight", (3, 2))
    assert "opt_state" in found["opt_state/mu/a/kernel"]


def test_statistics_of_nnx_and_of_keras():
    names = ("bn/mean", "bn/var", "bn/scale", "bn/bias", "fc/kernel", "stat/mean")
    found = forms(**{name: (2, 2) if "kernel" in name else (2,) for name in names})
    assert [found[name][0] for name in names] == [
        *("bn.running_mean", "bn.running_var", "bn.weight", "bn.bias", "fc.weight", "stat.mean")
    ]
    names = ("bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance", "fc/kernel")
    found = forms(**{name: (2, 2) if "kernel" in name else (2,) for name in names})
    assert [found[name][0] for name in names] == [
        *("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "fc.weight")
    ]


def test_names_that_would_be_one_stay():
    found = forms(**{"a/kernel": (2, 3), "a/scale": (3,), "params/b/kernel": (2, 3)})
    assert found["params/b/kernel"] == ("b.weight", (3, 2))
    found = forms(**{"fc/kernel": (2, 3), "fc/scale": (3,), "x/params/fc/kernel": (2, 3)})
    assert found["fc/kernel"][0] == "fc.weight"
    assert found["fc/scale"][0] == "fc.scale"
    found = forms(**{"params/fc/kernel": (2, 3), "batch_stats/fc/kernel": (2, 3)})
    assert found["params/fc/kernel"][0] == "params/fc/kernel"


def test_files_of_pytorch_stay_as_they_are():
    shapes = {"a/b.kernel": (2, 3), "norm.scale": (3,), "fc.weight": (2, 3)}
    assert forms(nested=False, **shapes) == {name: (name, shape) for name, shape in shapes.items()}
    shapes = {"norm.scale": (3,), "embedding": (2, 3)}
    assert forms(nested=False, **shapes) == {name: (name, shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", ["", "/", "..", "params", "params/", "a" * 10**6, "a/" * 10**5])
def test_any_name_is_answered(name):
    assert len(forms(**{name: (2, 2), "x/kernel": (2, 2)})) == 2
