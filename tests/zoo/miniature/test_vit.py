"""The transformer against a plain NumPy one in float64, written from its definition."""

import math

import jax
import numpy as np

from probex_jax.zoo.miniature.params import initialise
from probex_jax.zoo.miniature.vit import ViT
from tests.zoo.miniature.reading import Layers


def _perturbed(shapes):
    """Parameters in which no bias is zero and no scale is one, so that none can be left out."""
    params = initialise(shapes, jax.random.key(0))
    rng = np.random.default_rng(1)
    return {
        name: value + 0.1 * rng.normal(size=value.shape).astype(np.float32)
        for name, value in params.items()
    }


def _reference(params, images_BSS, heads, blocks):
    layers = Layers(params, heads)
    params, dense, norm = layers.params, layers.dense, layers.norm

    def logits(image):
        at = "vit.embeddings."
        weight = params[at + "patch_embeddings.projection.weight"]
        tokens = [params[at + "cls_token"][0, 0]]
        for row in range(0, 8, 2):
            for column in range(0, 8, 2):
                patch = image[row : row + 2, column : column + 2]
                tokens.append(
                    (weight[:, 0] * patch).sum((1, 2))
                    + params[at + "patch_embeddings.projection.bias"]
                )
        x = np.stack(tokens) + params[at + "position_embeddings"][0]
        for index in range(blocks):
            at = f"vit.encoder.layer.{index}."
            names = [f"{at}attention.attention.{part}" for part in ("query", "key", "value")]
            names.append(f"{at}attention.output.dense")
            x = x + layers.attention(norm(x, at + "layernorm_before"), *names)
            h = dense(norm(x, at + "layernorm_after"), at + "intermediate.dense")
            h = h * 0.5 * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
            x = x + dense(h, at + "output.dense")
        return dense(norm(x, "vit.layernorm")[0], "classifier")

    return np.stack([logits(image) for image in images_BSS])


def test_logits_agree_with_the_definition():
    model = ViT()
    params = _perturbed(model.shapes(10))
    images_BSS = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8))
    ours_YB, running = jax.jit(model.apply)(params, images_BSS.astype(np.float32))
    assert running == {}
    expected_BY = _reference(params, images_BSS, model.num_attention_heads, 2)
    np.testing.assert_allclose(ours_YB.T, expected_BY, rtol=1e-5, atol=1e-5)


def test_every_parameter_matters():
    model = ViT()
    params = _perturbed(model.shapes(10))
    images_BSS = jax.random.uniform(jax.random.key(2), (4, 8, 8))
    gradient = jax.jit(jax.grad(lambda p: (model.apply(p, images_BSS)[0] ** 2).sum()))(params)
    # A key's bias shifts all scores of a query alike, which softmax undoes.
    idle = [name for name, value in gradient.items() if np.abs(value).max() < 1e-5]
    assert all(name.endswith("key.bias") for name in idle), idle
