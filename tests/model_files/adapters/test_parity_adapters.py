"""Adapters as their own tools load them: the matrix read here is the difference that they make."""

import numpy as np
import pytest

from probex_jax.matrices import LowRank
from probex_jax.model_files import open_model

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


def dense(matrix):
    return matrix.dense() if isinstance(matrix, LowRank) else matrix


def check(path, expected, vectors=0):
    """Compares all layers; `expected` are updates [out, in, k...] by name."""
    with open_model(path) as m:
        assert (dict(m.left_out), len(m.vectors)) == ({}, vectors)
        assert sorted(m.layers) == sorted(expected)
        for name, update in expected.items():
            update = np.asarray(update, "f8").reshape(len(update), -1)
            scale = np.abs(update).max()
            found = dense(m.matrix(name))
            np.testing.assert_allclose(found, update, rtol=0, atol=1e-6 * scale, err_msg=name)


def small_llama(**settings):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=64, **settings,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def randomised(model):
    import torch

    for name, parameter in model.named_parameters():
        if any(word in name for word in ("lora_", "hada_", "lokr_")):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def deltas(model):
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach().numpy()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


TARGETS = ["q_proj", "down_proj"]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("LoraConfig", {"r": 4, "lora_alpha": 6, "target_modules": [*TARGETS, "embed_tokens"]}),
        ("LoraConfig", {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": TARGETS}),
        ("LoHaConfig", {"r": 4, "alpha": 6, "target_modules": TARGETS}),
        ("LoKrConfig", {"r": 2, "alpha": 6, "target_modules": TARGETS}),
        ("LoKrConfig", {"r": 64, "alpha": 6, "target_modules": TARGETS}),
        ("LoKrConfig", {"r": 2, "alpha": 6, "decompose_both": True, "target_modules": TARGETS}),
    ],
)
def test_peft_on_a_language_model(tmp_path, kind, settings):
    import peft

    model = randomised(peft.get_peft_model(small_llama(), getattr(peft, kind)(**settings)))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    check(tmp_path, deltas(model))


def test_peft_on_gpt_2_whose_weights_are_inputs_by_outputs(tmp_path):
    import peft
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32))
    config = peft.LoraConfig(r=4, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    model = randomised(peft.get_peft_model(model, config))
    model.save_pretrained(tmp_path)
    check(tmp_path, {name: delta.T for name, delta in deltas(model).items()})


def test_of_peft_s_dora_the_low_rank_part_is_read(tmp_path):
    import peft

    config = peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=TARGETS)
    model = randomised(peft.get_peft_model(small_llama(), config))
    model.save_pretrained(tmp_path)
    with open_model(tmp_path) as m:
        assert all("DoRA" in reason for reason in m.unread.values())
        assert len(m.unread) == len(m.layers) == 4
        for name, delta in deltas(model).items():
            np.testing.assert_allclose(dense(m.matrix(name)), delta, atol=1e-5)


@pytest.mark.parametrize("parameters", [("down_proj",), ("gate_up_proj", "down_proj")])
def test_peft_on_stacked_experts(tmp_path, parameters):
    import peft
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        hidden_size=16, intermediate_size=24, moe_intermediate_size=24, num_experts=4,
        num_experts_per_tok=2, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=32, head_dim=8,
    )  # fmt: skip
    settings = peft.LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=[],
        target_parameters=[f"mlp.experts.{p}" for p in parameters],
    )
    model = randomised(peft.get_peft_model(Qwen3MoeForCausalLM(config), settings))
    model.save_pretrained(tmp_path)
    expected = {}
    for _, module in model.named_modules():
        if hasattr(module, "parameter_name"):
            stacked = module.get_delta_weight("default").detach().numpy()
            for number, delta in enumerate(stacked):
                layer = f"model.layers.0.mlp.experts.{number}.{module.parameter_name}"
                expected[layer] = delta
    check(tmp_path, expected)


ALGOS = {
    "lora": {},
    "locon": {"use_tucker": True},
    "loha": {},
    "loha, Tucker": {"use_tucker": True},
    "lokr": {"factor": 4},
    "lokr, both": {"factor": 4, "decompose_both": True},
    "lokr, Tucker": {"factor": 2, "use_tucker": True},
    "lokr, whole": {"factor": 4, "full_matrix": True},
    "full": {},
}


@pytest.mark.parametrize("algo", ALGOS)
def test_lycoris(tmp_path, algo):
    import torch
    from lycoris import create_lycoris
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = torch.nn.ModuleDict(
        {
            "fc1": torch.nn.Linear(24, 32),
            "conv1": torch.nn.Conv2d(16, 24, 3),
            "k_proj": torch.nn.Linear(32, 8),
        }
    )
    method = algo.partition(",")[0]
    network = create_lycoris(model, 1.0, linear_dim=3, linear_alpha=1.5, algo=method, conv_dim=3,
                             conv_alpha=1.5, **ALGOS[algo])  # fmt: skip
    network.apply_to()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if method == "full":
        for lora in network.loras:
            lora.weight.data += 0.1
    saved = {n: t.contiguous() for n, t in network.state_dict().items()}
    save_file(saved, tmp_path / "lycoris.safetensors")
    expected = {}
    for lora in network.loras:
        name = lora.lora_name.removeprefix("lycoris_")
        if method == "full":
            expected[name] = (lora.get_diff_weight(1.0)[0]).detach().numpy()
        else:
            is_lora = method in ("lora", "locon")
            weight = lora.make_weight() * lora.scale if is_lora else lora.get_weight(lora.shape)
            expected[name] = weight.detach().numpy()
    check(tmp_path, expected, vectors=len(network.loras) * (method == "full"))


def flux():
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=16, pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    )  # fmt: skip


def wan():
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
        out_channels=4, text_dim=16, freq_dim=8, ffn_dim=32, num_layers=1,
    )  # fmt: skip


def qwen_image():
    from diffusers import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=12,
        num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(4, 4, 4),
    )  # fmt: skip


def factors(modules, up, down, rank=3, **others):
    """Random factors of modules, {path: (outputs, inputs)}, with two endings."""
    tensors = {}
    for number, (path, (rows, columns)) in enumerate(modules.items()):
        rng = np.random.default_rng(number)
        tensors[f"{path}.{up}"] = rng.normal(size=(rows, rank)).astype("f4")
        tensors[f"{path}.{down}"] = rng.normal(size=(rank, columns)).astype("f4")
        tensors |= {f"{path}.{end}": np.asarray(value, "f4") for end, value in others.items()}
    return tensors


# The diffusers pipeline, its transformer, and modules in the spelling of another tool.
LOADED = {
    "Flux, kohya": (
        "FluxPipeline",
        flux,
        {
            "lora_unet_double_blocks_0_img_attn_qkv": (96, 32),
            "lora_unet_double_blocks_0_txt_attn_qkv": (96, 32),
            "lora_unet_double_blocks_0_img_attn_proj": (32, 32),
            "lora_unet_double_blocks_0_img_mlp_0": (128, 32),
            "lora_unet_double_blocks_0_txt_mlp_2": (32, 128),
            "lora_unet_double_blocks_0_img_mod_lin": (192, 32),
            "lora_unet_single_blocks_0_linear2": (32, 160),
            "lora_unet_single_blocks_0_modulation_lin": (96, 32),
        },
        ("lora_up.weight", "lora_down.weight"),
        {"alpha": 2.0},
    ),
    "Wan, musubi": (
        "WanPipeline",
        wan,
        {
            **{
                f"lora_unet_blocks_0_{attention}_attn_{which}": (24, 24)
                for attention in ("self", "cross")
                for which in "qkvo"
            },
            "lora_unet_blocks_0_ffn_0": (32, 24),
            "lora_unet_blocks_0_ffn_2": (24, 32),
        },
        ("lora_up.weight", "lora_down.weight"),
        {"alpha": 2.0},
    ),
    "Wan, its own": (
        "WanPipeline",
        wan,
        {
            "diffusion_model.blocks.0.self_attn.v": (24, 24),
            "diffusion_model.blocks.0.cross_attn.o": (24, 24),
            "diffusion_model.blocks.0.ffn.0": (32, 24),
        },
        ("lora_B.weight", "lora_A.weight"),
        {},
    ),
    "Qwen-Image, musubi": (
        "QwenImagePipeline",
        qwen_image,
        {
            "lora_unet_transformer_blocks_0_attn_to_q": (24, 24),
            "lora_unet_transformer_blocks_0_attn_add_k_proj": (24, 24),
            "lora_unet_transformer_blocks_0_img_mlp_net_0_proj": (96, 24),
        },
        ("lora_up.weight", "lora_down.weight"),
        {"alpha": 2.0},
    ),
}


@pytest.mark.parametrize("case", LOADED)
def test_diffusers_loads_the_same_update(tmp_path, case):
    import diffusers
    import torch
    from safetensors.numpy import save_file

    name, make, modules, endings, others = LOADED[case]
    tensors = factors(modules, *endings, **others)
    save_file(tensors, tmp_path / "lora.safetensors")
    pipeline = getattr(diffusers, name)
    state = {n: torch.from_numpy(t.copy()) for n, t in tensors.items()}
    found = pipeline.lora_state_dict(state)
    found, alphas = found if isinstance(found, tuple) else (found, None)
    transformer = make()
    arguments = {"network_alphas": alphas} if name == "FluxPipeline" else {}
    pipeline.load_lora_into_transformer(found, transformer=transformer, **arguments)
    updates = {
        f"transformer.{module}": layer.get_delta_weight("default_0").detach().numpy()
        for module, layer in transformer.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    check(tmp_path, updates)
