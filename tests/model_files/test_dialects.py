"""One adapter in several dialects: the same layers, and the same numbers; where scales stand."""

import json
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from probex_jax.errors import ProbexError
from probex_jax.model_files import fingerprint, open_model
from probex_jax.model_files.adapters.modules import slices

RANK, ALPHA = 4, 2.0
# Canonical name to (rows, columns), or of a convolution to (rows, inputs, height, width).
LAYERS = {
    "unet.down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_q": (6, 5),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0": (6, 6),
    "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj": (8, 3),
    "unet.up_blocks.1.resnets.2.conv1": (7, 3, 3, 3),
    "unet.up_blocks.3.attentions.2.proj_in": (4, 4, 1, 1),
    "text_encoder.text_model.encoder.layers.11.self_attn.q_proj": (5, 5),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1": (9, 5),
}


def drawn():
    """Layer to factors as PyTorch has them: up [O, R, 1...] and down [R, I, k...]."""
    rng = np.random.default_rng(0)
    factors = {}
    for name, (rows, inputs, *kernel) in LAYERS.items():
        up = rng.normal(size=(rows, RANK, *[1] * len(kernel))).astype("f4")
        factors[name] = up, rng.normal(size=(RANK, inputs, *kernel)).astype("f4")
    return factors


def update(up, down, scale):
    """The matrix that is meant, in float64."""
    rows, rank = up.shape[:2]
    product = np.float64(up).reshape(rows, rank) @ np.float64(down).reshape(rank, -1)
    return scale * product


def kohya(name):
    part, _, path = name.partition(".")
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[part]
    return prefix + path.replace(".", "_")


def written(folder, dialect, scale):
    """The adapter, its scale multiplied into `up` where the dialect has no place for it."""
    tensors, config = {}, None
    for name, (up, down) in drawn().items():
        if dialect == "diffusers":
            tensors[f"{name}.lora.up.weight"] = np.float32(scale) * up
            tensors[f"{name}.lora.down.weight"] = down
        elif dialect == "kohya":
            tensors[f"{kohya(name)}.lora_up.weight"] = up
            tensors[f"{kohya(name)}.lora_down.weight"] = down
            tensors[f"{kohya(name)}.alpha"] = np.array(scale * RANK, "f4")
        else:
            middle = {"peft default": ".default", "peft hyphens": ".my-adapter"}.get(dialect, "")
            path = f"base_model.model.{name.partition('.')[2]}"
            tensors[f"{path}.lora_B{middle}.weight"] = up
            tensors[f"{path}.lora_A{middle}.weight"] = down
            root = dialect == "peft root"
            alpha = scale * (RANK**0.5 if root else RANK)
            config = {"r": RANK, "lora_alpha": alpha, "use_rslora": root}
    folder.mkdir()
    save_file(tensors, folder / "adapter.safetensors")
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.37])
def test_one_adapter_in_every_dialect_is_the_same(tmp_path, scale):
    prints = set()
    for dialect in ("diffusers", "kohya", "peft", "peft default", "peft hyphens", "peft root"):
        with open_model(written(tmp_path / dialect, dialect, scale)) as m:
            assert m.left_out == {}, dialect
            assert m.unscaled == ()
            assert set(m.layers) == set(LAYERS)
            prints.add(fingerprint(m))
            for name, (up, down) in drawn().items():
                expected = update(up, down, scale)
                assert m.layers[name].shape == expected.shape
                matrix = m.matrix(name)
                assert matrix.shape == expected.shape
                np.testing.assert_allclose(matrix.dense(), expected, rtol=1e-5, atol=1e-6)
                rows = [0, expected.shape[0] - 1]
                np.testing.assert_allclose(m.rows(name, rows), expected[rows], rtol=1e-5, atol=1e-6)
    assert len(prints) == 1


@pytest.mark.parametrize(
    "expected",
    [
        "text_encoder.text_model.encoder.layers.1.mlp.fc2",
        "text_encoder_2.text_model.encoder.layers.1.self_attn.out_proj",
        "unet.down_blocks.0.resnets.1.time_emb_proj",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k_ip",
        "unet.up_blocks.0.upsamplers.0.conv",
    ],
)
def test_underscores_of_kohya_become_the_dots_of_modules(expected):
    part, _, path = expected.partition(".")
    prefixes = {"unet": ["unet"], "text_encoder": ["te", "te1"], "text_encoder_2": ["te2"]}
    for prefix in prefixes[part]:
        [found] = slices(f"lora_{prefix}_{path.replace('.', '_')}")
        assert found.layer == expected


def test_a_lora_of_an_unknown_module_is_read_under_the_name_it_has(tmp_path):
    up, down = np.ones((3, 2), "f4"), np.ones((2, 3), "f4")
    strange = {"lora_unet_zebra_x.lora_up.weight": up, "lora_unet_zebra_x.lora_down.weight": down}
    strange["lora_unet_zebra_x.alpha"] = np.array(1, "f4")
    hada = {"lora_unet_mid_block.hada_w1_a": up}
    known = {"lora_unet_conv_in.lora_up.weight": up, "lora_unet_conv_in.lora_down.weight": down}
    save_file(strange | hada | known, tmp_path / "a.safetensors")
    with open_model(tmp_path / "a.safetensors") as m:
        assert list(m.layers) == ["unet.conv_in", "unet.zebra_x"]
        assert [*m.left_out] == [*hada]
        assert "LoHa" in m.left_out["lora_unet_mid_block.hada_w1_a"]
        assert m.unscaled == ("unet.conv_in",)
        np.testing.assert_array_equal(m.matrix("unet.conv_in").dense(), up @ down)


def test_attention_processors_are_read(tmp_path):
    path = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor"
    tensors = {}
    for module in ("to_q", "to_out"):
        tensors[f"{path}.{module}_lora.up.weight"] = np.ones((3, 2), "f4")
        tensors[f"{path}.{module}_lora.down.weight"] = np.ones((2, 3), "f4")
    save_file(tensors, tmp_path / "a.safetensors")
    with open_model(tmp_path / "a.safetensors") as m:
        attention = path.removesuffix(".processor")
        assert list(m.layers) == [f"{attention}.to_out.0", f"{attention}.to_q"]


def peft(folder, config, path="base_model.model.conv_in", **others):
    tensors = {
        f"{path}.lora_B.weight": np.ones((3, 2), "f4"),
        f"{path}.lora_A.weight": np.ones((2, 3), "f4"),
        **others,
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("path", "config", "scale"),
    [
        ("conv_in", None, None),
        ("conv_in", {"r": 2}, None),
        ("conv_in", {"lora_alpha": 4}, 2),
        ("conv_in", {"lora_alpha": 4, "alpha_pattern": {"conv_in": 1}}, 0.5),
        ("conv_in", {"lora_alpha": 4, "alpha_pattern": {"in": 1, "conv_out": 1}}, 2),
        ("conv_in", {"lora_alpha": 4, "alpha_pattern": {"^conv_in": 1}}, 0.5),
        ("conv_in", {"lora_alpha": 4, "alpha_pattern": {"conv_in$": 1}}, 0.5),
        ("conv_in", {"lora_alpha": 4, "alpha_pattern": {"^in": 1}}, 2),
        ("conv_in", {"lora_alpha": 0}, 0),
        # The first pattern that matches counts; after "^" a pattern is a whole name.
        (
            "unet.a.b.to_q",
            {"lora_alpha": 4, "alpha_pattern": {"b.to_q": 6, "to_q": 8, "unet.a.b.to_q": 2}},
            3,
        ),
        ("unet.a.to_q", {"lora_alpha": 4, "alpha_pattern": {r"^unet\.a\.to_q": 6}}, 3),
        ("unet.a.to_q", {"lora_alpha": 4, "alpha_pattern": {r".*\.to_q": 6}}, 3),
        ("unet.a.to_q", {"lora_alpha": 4, "alpha_pattern": {"^to_q": 6, "^unet.a.to_q$": 8}}, 4),
    ],
)
def test_alpha_of_peft_is_in_its_config(tmp_path, path, config, scale):
    with open_model(peft(tmp_path, config, f"base_model.model.{path}")) as m:
        [name] = m.layers
        assert m.unscaled == ((name,) if scale is None else ())
        expected = np.full((3, 3), 2.0 if scale is None else 2.0 * scale)
        np.testing.assert_array_equal(m.matrix(name).dense(), expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lora_alpha": float("nan")}, "alpha is nan, expected a number"),
        ({"lora_alpha": 1e9}, "alpha is 1000000000.0, expected a number"),
        ({"lora_alpha": 1, "alpha_pattern": [1]}, "alpha_pattern is not an object"),
        ({"lora_alpha": 1, "alpha_pattern": {"(": 1}}, r"adapter_config\.json"),
    ],
)
def test_a_config_that_says_no_number_is_one_line(tmp_path, config, message):
    with (
        open_model(peft(tmp_path, config)) as m,
        pytest.raises(ProbexError, match=message),
    ):
        m.matrix("unet.conv_in")


def test_diffusers_may_keep_alpha_in_the_header(tmp_path):
    """And writes the names of attention in its own way, the others in PEFT's."""
    up, down = np.ones((3, 2), "f4"), np.ones((2, 3), "f4")
    attention = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {
        f"{attention}.lora.up.weight": up,
        f"{attention}.lora.down.weight": down,
        "unet.conv_in.lora_B.weight": up,
        "unet.conv_in.lora_A.weight": down,
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_B.weight": up,
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": down,
    }
    about = {"unet.r": 2, "unet.lora_alpha": 6, "unet.alpha_pattern": {"conv_in": 1}}
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(about)})
    with open_model(tmp_path / "a.safetensors") as m:
        np.testing.assert_array_equal(m.matrix(attention).dense(), 3 * up @ down)
        np.testing.assert_array_equal(m.matrix("unet.conv_in").dense(), 0.5 * up @ down)
        assert m.unscaled == ("text_encoder.text_model.encoder.layers.0.mlp.fc1",)
    save_file(tensors, tmp_path / "b.safetensors", {"lora_adapter_metadata": "{"})
    with (
        open_model(tmp_path / "b.safetensors") as m,
        pytest.raises(ProbexError, match="metadata lora_adapter_metadata is not valid JSON"),
    ):
        m.matrix(attention)


def test_long_names_of_kohya_take_no_time():
    began = time.process_time()
    assert slices("lora_unet_" + "0_" * 500_000 + "to_q")
    assert time.process_time() - began < 1


def test_two_adapters_of_one_layer_are_refused(tmp_path):
    others = {
        "base_model.model.conv_in.lora_B.other.weight": np.ones((3, 2), "f4"),
        "base_model.model.conv_in.lora_A.other.weight": np.ones((2, 3), "f4"),
    }
    with pytest.raises(ProbexError, match="conv_in' has two"):
        open_model(peft(tmp_path, {}, **others))
    both = {f"unet.conv_in.lora.{half}.weight": np.ones((2, 2), "f4") for half in ("up", "down")}
    with pytest.raises(ProbexError, match=r"two LoRAs are of layer 'unet\.conv_in'"):
        open_model(peft(tmp_path, {}, **both))


def of_kohya(folder, alpha, *kernel):
    """One layer; with a kernel, its `up` is a convolution, which is not read."""
    tensors = {
        "lora_unet_conv_in.lora_up.weight": np.ones((3, 2, *kernel), "f4"),
        "lora_unet_conv_in.lora_down.weight": np.ones((2, 3), "f4"),
        "lora_unet_conv_in.alpha": alpha,
    }
    save_file(tensors, folder / "a.safetensors")
    return open_model(folder / "a.safetensors")


@pytest.mark.parametrize("dtype", ["f8", "f2", "i8", "i4", "i1"])
def test_alpha_may_be_of_any_kind_of_number(tmp_path, dtype):
    with of_kohya(tmp_path, np.array([3], dtype)) as m:
        np.testing.assert_array_equal(m.matrix("unet.conv_in").dense(), np.full((3, 3), 3.0))
        assert (m.left_out, m.unscaled) == ({}, ())


def test_of_a_layer_that_is_left_out_alpha_is_reported_too(tmp_path):
    with of_kohya(tmp_path, np.array(1, "f4"), 3, 3) as m:
        assert (dict(m.layers), m.left_out.keys()) == ({}, m.tensors.keys())
        assert len({*m.left_out.values()}) == 1
