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


@pytest.mark.parametrize(
    ("module", "kernel", "bias"),
    [
        ("params/h/Dense_0", (3, 8, 32), (3, 32)),
        ("params/h/attn/query", (3, 8, 2, 4), (3, 2, 4)),
        ("params/h/attn/query", (3, 8, 32), (3, 32)),
        ("params/h/attn/out", (3, 2, 4, 8), (3, 8)),
        ("params/h/Conv_0", (3, 5, 5, 8, 32), (3, 32)),
        ("params/h/DenseGeneral_0", (3, 8, 6, 32), (3, 6, 32)),
        ("params/h/wi", (8, 3, 32), (32, 3)),
    ],
)
def test_stacked_layers_are_left_out_whole(module, kernel, bias):
    norm = (8, 3) if kernel[0] == 8 else (3, 8)
    shapes = {f"{module}/kernel": kernel, f"{module}/bias": bias, "params/h/norm/scale": norm}
    found = forms(**shapes, **{"params/stem/kernel": (4, 4, 3, 8), "params/norm/scale": (8,)})
    assert found.pop("params/stem/kernel") == ("stem.weight", (8, 3, 4, 4))
    assert found.pop("params/norm/scale") == ("norm.weight", (8,))
    assert all(isinstance(reason, str) for reason in found.values())
    assert "stacked" in found["params/h/norm/scale"]


def test_stacked_norms_tell_of_stacked_kernels():
    shapes = {"params/h/attn/q_proj/kernel": (3, 8, 8), "params/h/norm/scale": (3, 8)}
    assert all("stacked" in reason for reason in forms(**shapes).values())
    shapes = {"params/h/mlp/gating_einsum": (3, 2, 8, 32), "params/h/norm/scale": (3, 8)}
    assert all("stacked" in reason for reason in forms(**shapes).values())


def test_of_four_axes_only_windows_are_convolutions():
    shapes = {"params/attn/qkv/kernel": (8, 3, 2, 4), "params/attn/qkv/bias": (3, 2, 4)}
    shapes["params/attn/DenseGeneral_0/kernel"] = (8, 2, 4)
    assert all("order of axes" in reason for reason in forms(**shapes).values())
    assert "order of axes" in forms(**{"params/a/kernel": (8, 3, 2, 4)})["params/a/kernel"]
    found = forms(**{"params/a/kernel": (3, 3, 2, 4), "params/a/bias": (4,)})
    assert found["params/a/kernel"] == ("a.weight", (4, 2, 3, 3))


def test_names_of_haiku():
    shapes = {
        "mlp/~/linear_0/w": ((8, 32), ("mlp.~.linear_0.weight", (32, 8))),
        "mlp/~/linear_0/b": ((32,), ("mlp.~.linear_0.bias", (32,))),
        "last/w": ((32, 4), ("last.weight", (4, 32))),
        "conv2_d/w": ((5, 3, 2, 6), ("conv2_d.weight", (6, 2, 5, 3))),
        "norm/scale": ((8,), ("norm.weight", (8,))),
        "norm/offset": ((8,), ("norm.bias", (8,))),
    }
    found = forms(**{name: shape for name, (shape, _) in shapes.items()})
    assert found == {name: expected for name, (_, expected) in shapes.items()}
    shapes = {"head/logits//weights": (8, 4), "head/logits//bias": (4,), "head/query_w": (8, 2, 4)}
    found = forms(**shapes)
    assert found["head/logits//weights"] == ("head.logits.weight", (4, 8))
    assert "order of axes" in found["head/query_w"]


def test_matrices_of_either_order_are_not_taken_as_pytorchs():
    """Gemma's, and those of trees that nothing tells of."""
    names = ("attn/q_einsum/w", "mlp/gating_einsum", "mlp/linear", "a/w")
    shapes = {name: (2, 3, 4)[-2 - name.count("einsum") :] for name in names}
    found = forms(**shapes, **{"embedder/input_embedding": (5, 4)})
    assert found.pop("embedder/input_embedding")[1] == (5, 4)
    assert all("order of axes" in reason for reason in found.values())
    assert forms(**{"a/w": (2, 3), "a/b": (2,)})["a/w"] == ("a.w", (2, 3))
    assert forms(**{"a/w": (2, 3), "a/weight": (2, 3)})["a/w"] == ("a.w", (2, 3))


def test_a_module_may_be_called_as_a_collection_is():
    assert forms(**{"params/target/a/kernel": (3, 4)})["params/target/a/kernel"][0] == (
        "target.a.weight"
    )


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
    shapes = {"a.kernels": (2, 2), "fc.w": (2, 3), "fc.b": (3,)}
    assert forms(nested=False, **shapes) == {name: (name, shape) for name, shape in shapes.items()}
    shapes = {"norm.scale": (3,), "embedding": (2, 3)}
    assert forms(nested=False, **shapes) == {name: (name, shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", ["", "/", "..", "params", "params/", "a" * 10**6, "a/" * 10**5])
def test_any_name_is_answered(name):
    assert len(forms(**{name: (2, 2), "x/kernel": (2, 2)})) == 2
