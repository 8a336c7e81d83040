"""Adapters that PEFT and diffusers write themselves, read here: the updates that PEFT computes."""

import numpy as np
import pytest

from probex_jax.model_files import open_model

pytestmark = [
    pytest.mark.parity,
    # What these packages say of others that are missing, and of their own coming changes.
    pytest.mark.filterwarnings("ignore"),
]

MODULES = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1", "ff.net.0.proj"]


def unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=6,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def adapted(**settings):
    """A U-Net with a random adapter, and the update of each of its layers as PEFT has it."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=MODULES, init_lora_weights=False, **settings)
    model = get_peft_model(unet(), config)
    updates = {
        f"unet.{name.removeprefix('base_model.model.')}": module.get_delta_weight("default")
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    return model, {name: w.detach().numpy().reshape(len(w), -1) for name, w in updates.items()}


def check(path, updates):
    with open_model(path) as file:
        assert file.left_out == {}
        assert set(file.layers) == set(updates)
        for name, expected in updates.items():
            found = file.matrix(name).dense()
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_alpha": 6},
        {"lora_alpha": 6, "use_rslora": True},
        {"lora_alpha": 6, "alpha_pattern": {"attn1.to_q": 1}, "rank_pattern": {"proj_in": 2}},
    ],
)
def test_peft(tmp_path, settings):
    model, updates = adapted(**settings)
    model.save_pretrained(tmp_path)
    check(tmp_path, updates)


@pytest.mark.parametrize("alpha", [4, 6])
def test_diffusers(tmp_path, alpha):
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    model, updates = adapted(lora_alpha=alpha)
    weights = get_peft_model_state_dict(model)
    weights = {name.removeprefix("base_model.model."): w for name, w in weights.items()}
    about = {} if alpha == 4 else {"r": 4, "lora_alpha": alpha}
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=convert_state_dict_to_diffusers(weights),
        unet_lora_adapter_metadata=about or None,
    )
    check(tmp_path, updates)


def test_kohya_as_diffusers_writes_it(tmp_path):
    from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    model, updates = adapted(lora_alpha=4)
    weights = get_peft_model_state_dict(model)
    weights = {name.replace("base_model.model", "unet"): w for name, w in weights.items()}
    save_file(convert_state_dict_to_kohya(weights), tmp_path / "lora.safetensors")
    check(tmp_path / "lora.safetensors", updates)
