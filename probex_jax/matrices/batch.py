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

    Returns:
      N, H and W.

    Raises:
      ValueError: if x does not have three axes; the message names its shape.

    Example:
      >>> import jax.numpy as jnp
      >>> batch_shape(jnp.ones([5, 2, 3]))
      (5, 2, 3)
    """
    if len(x.shape) != 3:
        raise ValueError(f"expected a batch of matrices [N, H, W], got shape {x.shape}")
    n_models, rows, columns = x.shape
    return n_models, rows, columns


def may_be_sharded(x: Any) -> bool:
    """Whether a batch may be sharded over several devices of a mesh, as far as tracing shows.

    The forms that are fastest on one CPU merge the batch axis with another axis or loop over it. On
    a sharded batch, Explicit mesh axes make both an error; Auto axes gather the whole batch.

    Args:
      x: a pytree of arrays.

    Returns:
      With Explicit axes, whether any axis of x is sharded. With Auto axes, whose sharding is
      unknown before compilation, whether x is on a mesh of several devices. False inside
      `shard_map`, where x is one device's part.

    Example:
      >>> import jax.numpy as jnp
      >>> may_be_sharded(jnp.ones([5, 2, 3]))
      False
    """
    return any(_may_be_sharded(jax.typeof(leaf).sharding) for leaf in jax.tree.leaves(x))


def _may_be_sharded(sharding: Any) -> bool:
    # A NumPy array has no mesh, but `in_shardings` may put it on the mesh of `jax.set_mesh`.
    mesh = jax.sharding.get_abstract_mesh() if sharding.mesh.empty else sharding.mesh
    sizes = zip(mesh.axis_types, mesh.axis_sizes, strict=True)
    unknown = any(kind == AxisType.Auto and size > 1 for kind, size in sizes)
    return unknown or any(axes is not None for axes in sharding.spec)


def at_least_float32(x: Any) -> jax.Array:
    """An array that means, deviations and lengths are computed from: bfloat16 is too coarse."""
    return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))


def with_leading_axes(shared: jax.Array, ndim: int) -> jax.Array:
    """An array shared by all matrices of a batch, with leading axes of size one.

    On one device `broadcast_to` would do. With Explicit mesh axes its result is typed as
    replicated, and so is its gradient, which is then gathered.

    Args:
      shared: [...] float.
      ndim: number of axes of the result.

    Example:
      >>> import jax.numpy as jnp
      >>> with_leading_axes(jnp.ones([2, 3]), 4).shape
      (1, 1, 2, 3)
    """
    return jnp.expand_dims(shared, tuple(range(ndim - shared.ndim)))
