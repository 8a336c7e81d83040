"""Convolution and pooling by im2col against XLA's own; running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probex_jax.zoo.miniature.params import initialise
from probex_jax.zoo.miniature.resnet import ResNet, conv, max_pool


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [7, 8])
def test_conv_is_a_convolution(kernel, stride, side):
    rng = np.random.default_rng(kernel + stride)
    x_CHWB = rng.normal(size=(3, side, side + 2, 4)).astype(np.float32)
    weight_OCKK = rng.normal(size=(5, 3, kernel, kernel)).astype(np.float32)
    expected = jax.lax.conv_general_dilated(
        x_CHWB,
        weight_OCKK,
        (stride, stride),
        [(kernel // 2, kernel // 2)] * 2,
        dimension_numbers=("CHWN", "OIHW", "CHWN"),
    )
    ours = jax.jit(conv, static_argnums=2)(weight_OCKK, x_CHWB, stride)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_max_pool_pads_with_nothing():
    x_CHWB = -1 - np.random.default_rng(0).random((2, 8, 8, 3)).astype(np.float32)
    expected = jax.lax.reduce_window(
        x_CHWB, -np.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), [(0, 0), (1, 1), (1, 1), (0, 0)]
    )
    np.testing.assert_array_equal(max_pool(jnp.asarray(x_CHWB)), expected)


def test_training_normalises_by_the_batch_and_moves_the_running_statistics():
    model = ResNet(embedding_size=8, hidden_sizes=(8, 16), depths=(1, 1))
    params = initialise(model.shapes(3), jax.random.key(0))
    images_BSS = 5 + jax.random.normal(jax.random.key(1), (6, 16, 16))
    at = "resnet.embedder.embedder.normalization."
    train = jax.jit(lambda params: model.apply(params, images_BSS, train=True))
    use = jax.jit(lambda params: model.apply(params, images_BSS)[0])
    in_training, running = train(params)
    assert set(running) == {name for name in params if "running" in name or "tracked" in name}
    assert running[at + "num_batches_tracked"] == 1
    assert np.abs(running[at + "running_mean"]).max() > 0
    assert not np.allclose(in_training, use(params), atol=1e-2)
    for _ in range(200):
        _, running = train(params | running)
    # The running variance is the unbiased one, so only nearly the batch's.
    np.testing.assert_allclose(use(params | running), in_training, rtol=0.2, atol=0.2)
