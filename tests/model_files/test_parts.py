"""Several models in one file: which there are, and each by itself."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from probex_jax.model_files import fingerprint, open_model
from probex_jax.model_files.parts import parts


def drawn(*shape):
    return np.random.default_rng([*shape]).normal(size=shape).astype("f4")


UNET = {"input_blocks.1.1.proj_in.weight": drawn(8, 4, 1, 1), "out.0.bias": drawn(8)}
TEXT = {"transformer.text_model.encoder.layers.0.mlp.fc1.weight": drawn(6, 3)}
VAE = {"decoder.conv_in.weight": drawn(8, 4, 3, 3)}
PARTS = {"cond_stage_model.": TEXT, "first_stage_model.": VAE, "model.diffusion_model.": UNET}


def opened(folder, tensors):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return open_model(folder)


def test_each_part_has_the_fingerprint_and_layers_that_it_has_alone(tmp_path):
    tensors = {begin + n: t for begin, part in PARTS.items() for n, t in part.items()}
    with opened(tmp_path, tensors | {"alphas_cumprod": drawn(9)}) as m:
        assert [*m.parts] == [*PARTS]
        for begin, part in m.parts.items():
            alone = opened(tmp_path / begin, PARTS[begin])
            assert dict(part.all_layers) == dict(alone.all_layers)
            assert fingerprint(part) == fingerprint(alone) != fingerprint(m)
            for name in part.layers:
                np.testing.assert_array_equal(part.matrix(name), alone.matrix(name))
                np.testing.assert_array_equal(part.rows(name, [3]), m.rows(begin + name, [3]))


def test_a_file_that_is_one_model_has_no_parts(tmp_path):
    with opened(tmp_path, UNET) as m:
        assert dict(m.parts) == {}


def test_adapters_have_no_parts(tmp_path):
    """One in another spelling would have none, and its scales stand under whole names."""
    names = [
        f"{part}.text_model.encoder.layers.0.mlp.fc1" for part in ("text_encoder", "text_encoder_2")
    ]
    tensors = {f"{n}.lora_A.weight": drawn(2, 4) for n in names}
    with opened(tmp_path, tensors | {f"{n}.lora_B.weight": drawn(4, 2) for n in names}) as m:
        assert dict(m.parts) == {}


def test_a_part_that_is_closed_closes_no_other(tmp_path):
    tensors = {begin + n: t for begin, part in PARTS.items() for n, t in part.items()}
    with opened(tmp_path, tensors) as m:
        with m.parts["first_stage_model."] as vae:
            vae.matrix("decoder.conv_in.weight")
        m.matrix("first_stage_model.decoder.conv_in.weight")


def test_thousands_of_parts_are_none(tmp_path):
    with opened(tmp_path, {f"text_encoders.t{n}.w": drawn(2, 2) for n in range(3000)}) as m:
        assert dict(m.parts) == {}


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
