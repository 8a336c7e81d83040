"""The parts of single-file checkpoints."""

import pytest

from probex_jax.model_files.parts import parts


def test_a_checkpoint_of_stable_diffusion():
    expected = {
        "cond_stage_model.": ["cond_stage_model.transformer.text_model.embeddings.position_ids"],
        "first_stage_model.": ["first_stage_model.encoder.conv_in.weight"],
        "model.diffusion_model.": ["model.diffusion_model.input_blocks.0.0.weight"],
        "model_ema.": ["model_ema.diffusion_modelinput_blocks00weight"],
    }
    names = [name for part in expected.values() for name in part]
    assert parts([*names, "alphas_cumprod"]) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["conditioner.embedders.0.a", "conditioner.embedders.1.model.b"],
         ["conditioner.embedders.0.", "conditioner.embedders.1."]),
        (["model.diffusion_model.a"], ["model.diffusion_model."]),
        (["text_encoders.clip_l.a", "text_encoders.t5xxl.a", "vae.a", "model.diffusion_model.b"],
         ["model.diffusion_model.", "text_encoders.clip_l.", "text_encoders.t5xxl.", "vae."]),
        (["unet.a", "text_encoder.b", "text_encoder_2.b"],
         ["text_encoder.", "text_encoder_2.", "unet."]),
        (["transformer.transformer_blocks.0.a", "vae.b"], ["transformer.", "vae."]),
        (["diffusion_model.a", "vae.b"], ["diffusion_model.", "vae."]),
    ],
)  # fmt: skip
def test_files_of_several_models(names, expected):
    assert [*parts(names)] == expected


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["unet.a", "b"],
        ["diffusion_model.a"],
        ["transformer.h.0.a", "transformer.wte.weight", "lm_head.weight"],
        ["transformer.h.0.a", "vae.b"],
        ["net.a", "network.b"],
        ["model.layers.0.a", "vision_model.b"],
        ["vit.encoder.a", "classifier.weight"],
    ],
)
def test_files_of_one_model(names):
    assert parts(names) == {}
