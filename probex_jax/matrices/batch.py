"""What tracing shows of a batch of matrices: its shape, and whether it may be sharded."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType


def batch_shape(x: Any) -> tuple[int, int, int]:
    """The shape (N, H, W) of a batch of matrices.

    Args:
      x: [N, H, W], anything with a shape.

    Raises:
      ValueError: if x does not have three axes; the message names its shape.

    Example:
      >>> import jax.numpy as jnp
      >>> batch_shape(jnp.ones([5, 2, 3]))
      (5, 2, 3)
    """
    if len(x.shape) != 3:
        raise ValueError(f"expected a batch of matrices [N, H, W], got an array of shape {x.shape}")
    n_models, rows, columns = x.shape
    return n_models, rows, columns


def may_be_sharded(x: Any) -> bool:
    """Whether a batch is sharded over several devices of a mesh, as far as tracing shows.

    Forms that are fast on one device merge the batch axis with others, or loop over it. For a
    sharded batch the first is an error with explicit mesh axes; with automatic ones, both gather
    the batch on every device.

    Args:
      x: a pytree of arrays.

    Returns:
      With explicit axes, whether any axis of x is sharded. With automatic axes, which show no
      sharding until the program is compiled, whether x is on a mesh of several devices. False
      inside `shard_map`, where x is one device's part.

    Example:
      >>> import jax.numpy as jnp
      >>> may_be_sharded(jnp.ones([5, 2, 3]))
      False
    """
    return any(_may_be_sharded(jax.typeof(leaf).sharding) for leaf in jax.tree.leaves(x))


def _may_be_sharded(sharding: Any) -> bool:
    # An array from the host has no mesh, but `in_shardings` may put it on that of `jax.set_mesh`.
    mesh = jax.sharding.get_abstract_mesh() if sharding.mesh.empty else sharding.mesh
    sizes = zip(mesh.axis_types, mesh.axis_sizes, strict=True)
    automatic = any(kind == AxisType.Auto and size > 1 for kind, size in sizes)
    return automatic or any(axes is not None for axes in sharding.spec)


def of_all(shared: jax.Array, ndim: int) -> jax.Array:
    """What all matrices of a batch share, with leading axes of size one.

    Broadcast to the shape of the batch, it would be typed as replicated over an explicit mesh, and
    its gradient would gather the batch.

    Args:
      shared: [...] float.
      ndim: number of axes of the result.

    Example:
      >>> import jax.numpy as jnp
      >>> of_all(jnp.ones([2, 3]), 4).shape
      (1, 1, 2, 3)
    """
    return jnp.expand_dims(shared, tuple(range(ndim - shared.ndim)))
