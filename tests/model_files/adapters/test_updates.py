"""Updates of every method and spelling: the layers that they are of, and the numbers."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from probex_jax.errors import ProbexError
from probex_jax.matrices import LowRank
from probex_jax.model_files import fingerprint, open_model

LAYER = "model.layers.0.self_attn.q_proj"
RANK, ALPHA = 4, 2.0


def drawn(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype("f4")


def opened(folder, tensors, **configs):
    folder.mkdir(exist_ok=True)
    save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, folder / "a.safetensors")
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    return open_model(folder / "a.safetensors")


def dense(model, layer):
    matrix = model.matrix(layer)
    return matrix.dense() if isinstance(matrix, LowRank) else matrix


UP, DOWN = drawn(24, RANK), drawn(RANK, 16)
PEFT = {"adapter_config": {"r": RANK, "lora_alpha": ALPHA}}
MLX = {"adapter_config": {"lora_parameters": {"rank": RANK, "scale": ALPHA / RANK}}}
TRAINED = {"alpha": np.float32(ALPHA)}
# Endings of up and down, how they are stored, and where the scale stands.
SPELLINGS = {
    "PEFT": ("lora_B.weight", "lora_A.weight", PEFT),
    "PEFT, named": ("lora_B.default.weight", "lora_A.default.weight", PEFT),
    "PEFT, older": ("lora_B.default", "lora_A.default", PEFT),
    "loralib": ("lora_B", "lora_A", PEFT),
    "kohya": ("lora_up.weight", "lora_down.weight", TRAINED),
    "diffusers": ("lora.up.weight", "lora.down.weight", TRAINED),
    "early diffusers": ("lora_linear_layer.up.weight", "lora_linear_layer.down.weight", TRAINED),
    "in one word": ("loraB.weight", "loraA.weight", TRAINED),
    "ComfyUI": ("lora_B.weight", "lora_A.weight", TRAINED),
    "MLX": ("lora_b", "lora_a", MLX),
}


@pytest.mark.parametrize("path", [LAYER, f"base_model.model.{LAYER}", f"module.{LAYER}"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_lora_in_every_spelling_is_the_same_update(tmp_path, spelling, path):
    up, down, scale = SPELLINGS[spelling]
    factors = (UP.T, DOWN.T) if spelling == "MLX" else (UP, DOWN)
    tensors = {f"{path}.{up}": factors[0], f"{path}.{down}": factors[1]}
    is_tensor = "alpha" in scale
    tensors |= {f"{path}.{end}": value for end, value in scale.items()} if is_tensor else {}
    with opened(tmp_path, tensors, **({} if is_tensor else scale)) as m:
        assert (dict(m.left_out), m.unscaled) == ({}, ())
        expected = np.float64(UP) @ DOWN * ALPHA / RANK
        info = m.layers[LAYER]
        assert ([*m.layers], info.shape, info.rank) == ([LAYER], (24, 16), RANK)
        np.testing.assert_allclose(m.matrix(LAYER).dense(), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(m.rows(LAYER, [5, 0]), expected[[5, 0]], rtol=1e-5, atol=1e-6)
        found = fingerprint(m)
    with opened(
        tmp_path / "other",
        {f"{LAYER}.lora_B.weight": UP[:, :1], f"{LAYER}.lora_A.weight": DOWN[:1]},
    ) as m:
        assert fingerprint(m) == found


@pytest.mark.parametrize("path", ["model.embed_tokens", "transformer.wte"])
def test_loras_of_embeddings_are_entries_by_dimensions(tmp_path, path):
    entries, dims = drawn(50, RANK), drawn(RANK, 8)
    peft = {f"{path}.lora_embedding_A": entries.T, f"{path}.lora_embedding_B": dims.T}
    mlx = {f"{path}.lora_a": entries, f"{path}.lora_b": dims}
    for tensors in (peft, mlx):
        with opened(tmp_path, tensors) as m:
            np.testing.assert_allclose(m.matrix(path).dense(), entries @ dims, atol=1e-5)


def test_layers_that_are_only_numbered_have_their_number(tmp_path):
    tensors = {
        f"unet:{n}:{half}": UP if half == "up" else DOWN for n in (0, 11) for half in ("up", "down")
    }
    with opened(tmp_path, tensors) as m:
        assert [*m.layers] == ["unet.0", "unet.11"]
        np.testing.assert_allclose(m.matrix("unet.11").dense(), UP @ DOWN, atol=1e-5)


def test_a_core_between_the_factors_is_multiplied_in(tmp_path):
    """LyCORIS's LoCon of kernels, decomposed by Tucker."""
    path = "lora_unet_conv_in"
    up, mid, down = drawn(6, 3, 1, 1), drawn(3, 2, 3, 3), drawn(2, 5, 1, 1)
    tensors = {f"{path}.lora_up.weight": up, f"{path}.lora_mid.weight": mid}
    tensors |= {f"{path}.lora_down.weight": down, f"{path}.alpha": np.float32(1)}
    expected = np.einsum("or,rskl,si->oikl", up[..., 0, 0], mid, down[..., 0, 0]).reshape(6, -1) / 2
    with opened(tmp_path, tensors) as m:
        assert m.layers["unet.conv_in"].rank == 3
        np.testing.assert_allclose(m.matrix("unet.conv_in").dense(), expected, atol=1e-5)
        np.testing.assert_allclose(m.rows("unet.conv_in", [4]), expected[[4]], atol=1e-5)


def loha(path, rank, rows=24, columns=16, kernel=()):
    halves = {
        f"w{n}_{h}": s for n in "12" for h, s in (("a", (rows, rank)), ("b", (rank, columns)))
    }
    if kernel:
        halves |= {f"w{n}_a": (rank, rows) for n in "12"} | {
            f"t{n}": (rank, rank, *kernel) for n in "12"
        }
    return {
        f"{path}.hada_{role}": drawn(*shape, seed=ord(role[1])) for role, shape in halves.items()
    }


@pytest.mark.parametrize(("rank", "is_factored"), [(2, True), (4, False)])
def test_a_loha_is_the_product_of_entries(tmp_path, rank, is_factored):
    tensors = loha(LAYER, rank)
    one, other = (
        np.float64(tensors[f"{LAYER}.hada_w{n}_a"]) @ tensors[f"{LAYER}.hada_w{n}_b"] for n in "12"
    )
    with opened(tmp_path, tensors | {f"{LAYER}.alpha": np.float32(1)}) as m:
        matrix, info = m.matrix(LAYER), m.layers[LAYER]
        assert isinstance(matrix, LowRank) is is_factored
        assert (info.rank, info.kind) == ((4, "lora") if is_factored else (None, "update"))
        dense = matrix.dense() if is_factored else matrix
        np.testing.assert_allclose(dense, one * other / rank, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(m.rows(LAYER, [7]), dense[[7]], rtol=1e-5, atol=1e-6)


def test_a_loha_of_kernels_has_two_cores(tmp_path):
    tensors = loha(LAYER, 2, 6, 5, (3, 3))
    halves = []
    for n in "12":
        a, b, t = (tensors[f"{LAYER}.hada_{role}"] for role in (f"w{n}_a", f"w{n}_b", f"t{n}"))
        halves.append(np.einsum("ijkl,jr,ip->prkl", t, b, a))
    with opened(tmp_path, tensors) as m:
        matrix = m.matrix(LAYER)
        dense = matrix.dense() if isinstance(matrix, LowRank) else matrix
        np.testing.assert_allclose(dense, (halves[0] * halves[1]).reshape(6, -1), atol=1e-4)


# Roles and shapes of a LoKr of a layer of 24x16, and what its scale is divided by.
LOKR = {
    "two whole halves": ({"w1": (4, 4), "w2": (6, 4)}, None),
    "the second factored": ({"w1": (4, 4), "w2_a": (6, 2), "w2_b": (2, 4)}, 2),
    "both factored": ({"w1_a": (4, 1), "w1_b": (1, 4), "w2_a": (6, 1), "w2_b": (1, 4)}, 1),
    "wide": ({"w1": (2, 4), "w2": (12, 4)}, None),
}


@pytest.mark.parametrize("case", LOKR)
def test_a_lokr_is_kronecker_s_product(tmp_path, case):
    shapes, rank = LOKR[case]
    parts = {role: drawn(*shape, seed=len(role)) for role, shape in shapes.items()}
    one, other = (
        parts[w] if w in parts else np.float64(parts[f"{w}_a"]) @ parts[f"{w}_b"]
        for w in ("w1", "w2")
    )
    expected = np.kron(one, other) * (ALPHA / rank if rank else 1)
    tensors = {f"{LAYER}.lokr_{role}": value for role, value in parts.items()}
    with opened(tmp_path, tensors | {f"{LAYER}.alpha": np.float32(ALPHA)}) as m:
        assert (dict(m.left_out), m.unscaled) == ({}, ())
        matrix = m.matrix(LAYER)
        assert m.layers[LAYER].shape == matrix.shape == (24, 16)
        dense = matrix.dense() if isinstance(matrix, LowRank) else matrix
        np.testing.assert_allclose(dense, expected, rtol=1e-5, atol=1e-5)


def test_a_lokr_of_peft_is_always_scaled(tmp_path):
    tensors = {f"base_model.model.{LAYER}.lokr_w1": drawn(4, 4)}
    tensors |= {f"base_model.model.{LAYER}.lokr_w2": drawn(6, 4)}
    config = {"peft_type": "LOKR", "r": 8, "alpha": 4}
    with opened(tmp_path, tensors, adapter_config=config) as m:
        dense = m.matrix(LAYER)
        dense = dense.dense() if isinstance(dense, LowRank) else dense
        np.testing.assert_allclose(dense, np.kron(drawn(4, 4), drawn(6, 4)) / 2, atol=1e-5)


def test_the_method_and_the_rank_make_no_other_architecture(tmp_path):
    """An adapter of the same layers can be of the same tree."""
    tensors = {"LoRA": {f"{LAYER}.lora_B.weight": UP, f"{LAYER}.lora_A.weight": DOWN}}
    tensors |= {f"LoHa {rank}": loha(LAYER, rank) for rank in (2, 4)}
    tensors["delta"] = {f"{LAYER}.diff": drawn(24, 16)}
    tensors["LoKr"] = {f"{LAYER}.lokr_w1": drawn(4, 4), f"{LAYER}.lokr_w2": drawn(6, 4)}
    assert len({fingerprint(opened(tmp_path, each)) for each in tensors.values()}) == 1
    whole = opened(tmp_path, {LAYER: drawn(24, 16)})
    assert fingerprint(whole) != fingerprint(opened(tmp_path, tensors["LoRA"]))


def test_a_delta_is_the_difference_itself(tmp_path):
    tensors = {"lora_unet_conv_in.diff": drawn(6, 4, 3, 3), "lora_unet_conv_in.diff_b": drawn(6)}
    with opened(tmp_path, tensors) as m:
        assert (m.layers["unet.conv_in"].kind, m.unscaled, dict(m.left_out)) == ("update", (), {})
        np.testing.assert_array_equal(m.matrix("unet.conv_in"), drawn(6, 4, 3, 3).reshape(6, -1))
        np.testing.assert_array_equal(m.matrix("unet.conv_in.bias")[:, 0], drawn(6))


def test_deltas_of_norms_are_vectors(tmp_path):
    tensors = {
        "lora_unet_conv_norm_out.w_norm": drawn(6),
        "lora_unet_conv_norm_out.b_norm": drawn(6),
    }
    with opened(tmp_path, tensors) as m:
        assert (dict(m.layers), dict(m.left_out)) == ({}, {})
        assert [*m.vectors] == ["unet.conv_norm_out", "unet.conv_norm_out.bias"]


def test_the_delta_of_a_modulation_is_that_of_the_table(tmp_path):
    tensors = {"diffusion_model.blocks.0.diff_m": drawn(1, 6, 32)}
    others = {"diffusion_model.blocks.0.modulation.diff": drawn(1, 6, 32)}
    with opened(tmp_path, tensors) as m:
        found = [*m.layers]
    with opened(tmp_path, others) as m:
        assert [*m.layers] == found
        assert m.layers[found[0]].is_update


def test_of_a_lora_for_control_what_is_called_up_and_down_is_one(tmp_path):
    """Beside layers that are whole."""
    path = "input_blocks.1.0.in_layers.2"
    tensors = {f"{path}.up": drawn(6, 2, 1, 1), f"{path}.down": drawn(2, 4, 3, 3)}
    whole = {"input_hint_block.0.weight": drawn(4, 3, 3, 3), "lora_controlnet": drawn(1)}
    with opened(tmp_path, tensors | whole) as m:
        assert set(m.layers) == {"unet.down_blocks.0.resnets.0.conv1", "input_hint_block.0.weight"}
        assert m.layers["unet.down_blocks.0.resnets.0.conv1"].rank == 2
    with opened(tmp_path, {f"{path}.up": drawn(6, 2), f"{path}.down": drawn(2, 4)}) as m:
        assert set(m.layers) == {f"{path}.up", f"{path}.down"}


MISFITS = {
    "LoHa": {"hada_w1_a": (4, 2), "hada_w1_b": (2, 4), "hada_w2_a": (5, 2), "hada_w2_b": (2, 4)},
    "LoHa, ranks": {
        "hada_w1_a": (4, 2),
        "hada_w1_b": (3, 4),
        "hada_w2_a": (4, 2),
        "hada_w2_b": (2, 4),
    },
    "LoKr": {"lokr_w1": (4, 4), "lokr_w2_a": (4, 2), "lokr_w2_b": (3, 4)},
    "LoKr, a kernel too many": {"lokr_w1": (4, 4), "lokr_w2_a": (4, 2, 3), "lokr_w2_b": (2, 4)},
    "LoKr, too large": {"lokr_w1": (700, 700), "lokr_w2": (700, 700)},
    "LoRA, too large": {
        "lora_up.weight": (4, 900),
        "lora_mid.weight": (900, 1, 900),
        "lora_down.weight": (1, 2000),
    },
    "LoHa, too large": {
        "hada_w1_a": (900, 1),
        "hada_t1": (900, 1, 900),
        "hada_w1_b": (1, 2000),
        "hada_w2_a": (1, 1),
        "hada_w2_b": (1, 2000 * 900),
    },
    "LoRA": {"lora_a": (4, 2), "lora_b": (3, 4)},
    "LoRA, mid": {
        "lora_up.weight": (4, 2),
        "lora_mid.weight": (3, 2, 3),
        "lora_down.weight": (2, 4),
    },
}


@pytest.mark.parametrize("case", MISFITS)
def test_factors_that_do_not_fit_are_one_line_that_names_the_layer(tmp_path, case):
    tensors = {f"{LAYER}.{end}": drawn(*shape) for end, shape in MISFITS[case].items()}
    with pytest.raises(ProbexError, match=r"model\.layers\.0\.self_attn\.q_proj"):
        opened(tmp_path, tensors)


def test_of_stacked_experts_each_has_an_update(tmp_path):
    path = "model.layers.0.mlp.experts.up_proj"
    up, down = drawn(8, 24, RANK), drawn(8, RANK, 16)
    with opened(tmp_path, {f"{path}.lora_B.weight": up, f"{path}.lora_A.weight": down}) as m:
        names = [f"model.layers.0.mlp.experts.{n}.up_proj" for n in range(8)]
        assert sorted(m.layers) == names
        np.testing.assert_allclose(m.matrix(names[5]).dense(), up[5] @ down[5], atol=1e-5)
        np.testing.assert_allclose(m.rows(names[5], [3]), (up[5] @ down[5])[[3]], atol=1e-5)


def test_a_fused_layer_beside_the_layers_in_it_is_left_out(tmp_path):
    """Some tools write both."""
    block = "diffusion_model.double_blocks.0.img_attn"
    fused = {f"{block}.qkv.lora_B.weight": drawn(48, 2), f"{block}.qkv.lora_A.weight": drawn(2, 16)}
    alone = "transformer.transformer_blocks.0.attn.to_q"
    split = {f"{alone}.lora_B.weight": drawn(16, 2), f"{alone}.lora_A.weight": drawn(2, 16)}
    with opened(tmp_path, fused | split) as m:
        assert [*m.layers] == [alone]
        assert set(m.unread) == set(fused)
        np.testing.assert_allclose(dense(m, alone), drawn(16, 2) @ drawn(2, 16), atol=1e-5)


def test_rows_of_a_layer_in_a_fused_one_are_its_own(tmp_path):
    path = "lora_unet_double_blocks_0_img_attn_qkv"
    up, down = drawn(48, 2), drawn(2, 16)
    with opened(tmp_path, {f"{path}.lora_up.weight": up, f"{path}.lora_down.weight": down}) as m:
        found = m.rows("transformer.transformer_blocks.0.attn.to_k", [3, 0])
        np.testing.assert_allclose(found, (up @ down)[[16 + 3, 16]], atol=1e-5)


def test_shift_and_scale_change_places_where_diffusers_has_them_so(tmp_path):
    path = "lora_unet_final_layer_adaLN_modulation_1"
    up, down = drawn(32, 2), drawn(2, 16)
    expected = np.concatenate([up[16:], up[:16]]) @ down
    with opened(tmp_path, {f"{path}.lora_up.weight": up, f"{path}.lora_down.weight": down}) as m:
        [layer] = m.layers
        np.testing.assert_allclose(dense(m, layer), expected, atol=1e-5)
        np.testing.assert_allclose(m.rows(layer, [1, 20]), expected[[1, 20]], atol=1e-5)


def test_a_fused_layer_whose_rows_do_not_divide_stays_whole(tmp_path):
    path = "diffusion_model.double_blocks.0.img_attn.qkv"
    with opened(
        tmp_path, {f"{path}.lora_B.weight": drawn(47, 2), f"{path}.lora_A.weight": drawn(2, 16)}
    ) as m:
        assert {name: info.shape for name, info in m.layers.items()} == {path: (47, 16)}


def test_factors_that_are_quantised_are_reported(tmp_path):
    tensors = {f"{LAYER}.lora_up.weight": UP, f"{LAYER}.lora_down.weight": DOWN}
    tensors = {name: value.astype(ml_dtypes.float8_e4m3fn) for name, value in tensors.items()}
    scales = {name + "_scale": np.float32([2]) for name in tensors}
    with opened(tmp_path, tensors | scales) as m:
        assert (dict(m.layers), dict(m.vectors)) == ({}, {})
        assert set(m.left_out) == set(tensors | scales)
