"""Several models in one file: each by itself."""

import numpy as np
from safetensors.numpy import save_file

from probex_jax.model_files import fingerprint, open_model


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
