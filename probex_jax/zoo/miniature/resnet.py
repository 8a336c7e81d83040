"""A small ResNet, computed as transformers' ResNetForImageClassification does.

Activations are [channels, rows, columns, images], and a convolution is one matrix product with
the im2col of its input: a convolution under `vmap` over models would be a grouped one, for
which XLA has no fast code on a CPU.

Letters: C channels in, O channels out, H rows, W columns, K side of a kernel, S side of an
image, B images, Y outputs.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from probex_jax.zoo.miniature.params import Params, Shapes, linear, per_feature

_NORM_EPS = 1e-5  # PyTorch's defaults of BatchNorm2d, which transformers uses
_NORM_MOMENTUM = 0.1


@dataclasses.dataclass(frozen=True)
class ResNet:
    """The architecture; the fields but the first are those of transformers' ResNetConfig.

    Attributes:
      image_size: side of the images; they are enlarged to it by repeating pixels, since the
        stem and its pooling shrink an image four times.
    """

    image_size: int = 16
    embedding_size: int = 16
    hidden_sizes: tuple[int, ...] = (16, 32)
    depths: tuple[int, ...] = (2, 2)

    def config(self) -> dict[str, Any]:
        """The architecture's part of config.json."""
        return {
            "model_type": "resnet",
            "architectures": ["ResNetForImageClassification"],
            **dataclasses.asdict(self),
            "num_channels": 1,
            "layer_type": "basic",
            "hidden_act": "relu",
            "downsample_in_first_stage": False,
        }

    def _layers(self) -> list[tuple[str, int, int, int]]:
        """Every residual layer: its name, channels in and out, and stride."""
        layers, channels = [], self.embedding_size
        for stage, (size, depth) in enumerate(zip(self.hidden_sizes, self.depths, strict=True)):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                at = f"resnet.encoder.stages.{stage}.layers.{index}."
                layers.append((at, channels, size, stride))
                channels = size
        return layers

    def shapes(self, n_outputs: int) -> Shapes:
        """Shape of every tensor of the model's file, by name."""
        shapes = _conv_shapes("resnet.embedder.embedder.", 1, self.embedding_size, 7)
        for at, inputs, outputs, stride in self._layers():
            if inputs != outputs or stride > 1:
                shapes |= _conv_shapes(at + "shortcut.", inputs, outputs, 1)
            shapes |= _conv_shapes(at + "layer.0.", inputs, outputs, 3)
            shapes |= _conv_shapes(at + "layer.1.", outputs, outputs, 3)
        shapes["classifier.1.weight"] = (n_outputs, self.hidden_sizes[-1])
        shapes["classifier.1.bias"] = (n_outputs,)
        return shapes

    def apply(
        self, params: Params, images_BSS: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, Params]:
        """Logits of a batch of images.

        Args:
          params: tensors as `shapes` lists them.
          images_BSS: float32 grey images.
          train: whether batch normalisation uses the batch's statistics, not the running ones.

        Returns:
          Logits [Y, B], and the running statistics after this batch (none unless `train`).
        """
        running: Params = {}
        unit = functools.partial(_conv_norm, params, running, train)
        x = jax.nn.relu(unit("resnet.embedder.embedder.", images_BSS.transpose(1, 2, 0)[None], 2))
        x = max_pool(x)
        for at, _, _, stride in self._layers():
            shortcut = at + "shortcut."
            residual = unit(shortcut, x, stride) if shortcut + _WEIGHT in params else x
            x = jax.nn.relu(unit(at + "layer.0.", x, stride))
            x = jax.nn.relu(unit(at + "layer.1.", x, 1) + residual)
        weight, bias = params["classifier.1.weight"], params["classifier.1.bias"]
        return weight @ x.mean((1, 2)) + bias[:, None], running


_WEIGHT = "convolution.weight"


def conv(weight_OCKK: jax.Array, x_CHWB: jax.Array, stride: int) -> jax.Array:
    """A convolution without bias, padded by half the kernel, as one matrix product."""
    outputs, _, kernel, _ = weight_OCKK.shape
    columns = im2col(x_CHWB, kernel, stride)
    columns = columns.reshape(-1, *columns.shape[2:])
    return linear(weight_OCKK.reshape(outputs, -1), columns)


def im2col(x_CHWB: jax.Array, kernel: int, stride: int, padding: float = 0.0) -> jax.Array:
    """The inputs of each tap of a kernel: [C, K·K, H', W', B]."""
    half = kernel // 2
    rows, columns = (-(-side // stride) for side in x_CHWB.shape[1:3])
    edge = ((0, 0), (half, half), (half, half), (0, 0))
    x_CHWB = jnp.pad(x_CHWB, edge, constant_values=padding) if half else x_CHWB
    taps = [
        x_CHWB[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
        for i in range(kernel)
        for j in range(kernel)
    ]
    return jnp.stack([tap[:, :rows, :columns] for tap in taps], axis=1)


def max_pool(x_CHWB: jax.Array) -> jax.Array:
    """Max pooling over 3×3 pixels, stride 2."""
    return im2col(x_CHWB, 3, 2, padding=-jnp.inf).max(1)


def _conv_norm(
    params: Params, running: Params, train: bool, at: str, x_CHWB: jax.Array, stride: int
) -> jax.Array:
    """A convolution and its batch normalisation; adds new running statistics to `running`."""
    y_OHWB = conv(params[at + _WEIGHT], x_CHWB, stride)
    at += "normalization."
    mean, variance = params[at + "running_mean"], params[at + "running_var"]
    if train:
        n = y_OHWB[0].size
        old_mean, old_variance = mean, variance
        mean, variance = y_OHWB.mean((1, 2, 3)), y_OHWB.var((1, 2, 3))
        unbiased = variance * (n / (n - 1))
        running[at + "running_mean"] = old_mean + _NORM_MOMENTUM * (mean - old_mean)
        running[at + "running_var"] = old_variance + _NORM_MOMENTUM * (unbiased - old_variance)
        running[at + "num_batches_tracked"] = params[at + "num_batches_tracked"] + 1
    scale = params[at + "weight"] * jax.lax.rsqrt(variance + _NORM_EPS)
    shift = params[at + "bias"] - mean * scale
    return y_OHWB * per_feature(scale, y_OHWB) + per_feature(shift, y_OHWB)


def _conv_shapes(at: str, inputs: int, outputs: int, kernel: int) -> Shapes:
    norm = at + "normalization."
    vectors = {
        norm + name: (outputs,) for name in ("weight", "bias", "running_mean", "running_var")
    }
    return {
        at + _WEIGHT: (outputs, inputs, kernel, kernel),
        **vectors,
        norm + "num_batches_tracked": (),
    }
