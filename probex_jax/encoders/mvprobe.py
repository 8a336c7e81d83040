"""MVProbe: the encoder of Heo, Seo and Yoo, "What Linear Probes Miss"."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from probex_jax.encoders.linear import Linear, cast, common_dtype, products_at, symmetric_uniform
from probex_jax.matrices import (
    Centred,
    LowRank,
    Matrices,
    Picked,
    Squared,
    batch_shape,
    contract,
    for_each,
    respond,
    respond_again,
    squared,
)

BRANCHES = ("xu", "xxtu", "xtu", "xtxu")


class MVProbe(nn.Module):
    """Probes a weight matrix from both of its sides, once and twice.

        S1 = X U,   S2 = X Xᵀ W,   S3 = Xᵀ Q,   S4 = Xᵀ X Z
        e = M [relu(Ŝ1ᵀ P1), …, relu(Ŝ4ᵀ P4)] + b,   Ŝ = (S - mean S) / (std S + 1e-8)

    Each branch has its own probes and projection; mean and standard deviation are over all entries
    of the responses of one model. The projected responses [U, V] are flattened probe-major and
    encoded together by M [4 · U · V, T]. Initialised as ProbeX.

    Args:
      n_probes: number of probes U of a branch.
      proj_dim: size V of a projected response.
      rep_dim: size T of the representation.
      branches: some of "xu", "xxtu", "xtu" and "xtxu".
      standardise: whether responses are standardised.
      relu: whether projected responses pass a ReLU.
      dtype: of the computation; None promotes the input and the parameters, as in Flax.
      param_dtype: of the parameters at initialisation.
      precision: of the products, a `jax.lax.Precision` or its name; None for JAX's default.

    Raises:
      ValueError: if `branches` is empty or has another name.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> encoder = MVProbe(n_probes=8, proj_dim=8, rep_dim=16)
      >>> x = jax.random.normal(jax.random.key(1), [4, 32, 64])
      >>> variables = encoder.init(jax.random.key(0), x)
      >>> jax.jit(encoder.apply)(variables, x).shape
      (4, 16)

    References:
      arXiv 2605.23410.
    """

    n_probes: int = 128
    proj_dim: int = 128
    rep_dim: int = 512
    branches: tuple[str, ...] = BRANCHES
    standardise: bool = True
    relu: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None

    def __post_init__(self) -> None:
        unknown = [repr(name) for name in self.branches if name not in BRANCHES]
        if unknown or not self.branches:
            found = ", ".join(unknown) or "none"
            raise ValueError(f"branches: expected some of {', '.join(BRANCHES)}, got {found}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Matrices | Squared | Picked) -> jax.Array:
        """[N, H, W] weight matrices -> [N, T] representations."""
        n_models, rows, columns = batch_shape(x)
        sides = {"xu": (columns, rows), "xxtu": (rows, rows)}
        sides |= {"xtu": (rows, columns), "xtxu": (columns, columns)}
        probes, projections = {}, {}
        for name in self.branches:
            probed, left = sides[name]
            start = symmetric_uniform(self.n_probes)
            shape = probed, self.n_probes
            probes[name] = self.param(f"probes_{name}", start, shape, self.param_dtype)
            start, shape = symmetric_uniform(left), (left, self.proj_dim)
            projections[name] = self.param(f"projection_{name}", start, shape, self.param_dtype)
        dtype = common_dtype(self.dtype, x, *probes.values(), *projections.values())
        probes, projections = cast((probes, projections), dtype)

        def features(x):
            responses = _responses(cast(x, dtype), probes)
            projected = [
                contract(responses[name], projections[name], standardised=self.standardise)
                for name in self.branches
            ]
            return jnp.stack([nn.relu(p) if self.relu else p for p in projected], axis=-3)

        with products_at(self.precision):
            features_NF = for_each(features, x).reshape(n_models, -1)
        numeric = self.dtype, self.param_dtype, self.precision
        return Linear(self.rep_dim, *numeric, name="encoder")(features_NF)

    def prepare(self, x: Matrices) -> Matrices | Squared:
        """[N, H, W] matrices to be read many times, with products that all reads share."""
        twice = {"of_rows": "xxtu" in self.branches, "of_columns": "xtxu" in self.branches}
        if isinstance(x, LowRank | Centred) or not any(twice.values()):
            return x
        with products_at(self.precision):
            return squared(x if self.dtype is None else cast(x, self.dtype), **twice)


def _responses(x: Matrices | Squared, probes: dict[str, jax.Array]) -> dict[str, Matrices]:
    """Sᵀ [..., U, H] or [..., U, W] of each branch, for matrices [..., H, W]."""
    matrices: Any = x.matrices if isinstance(x, Squared) else x
    rows, columns = (x.rows, x.columns) if isinstance(x, Squared) else (None, None)
    # Two branches share one product with X, and two one with its transpose.
    of_x = _respond(matrices, probes, ("xu", "xtxu") if columns is None else ("xu",))
    of_xt = _respond(matrices.mT, probes, ("xtu", "xxtu") if rows is None else ("xtu",))
    if "xxtu" in of_xt:
        of_xt["xxtu"] = respond_again(matrices, of_xt["xxtu"])
    if "xtxu" in of_x:
        of_x["xtxu"] = respond_again(matrices.mT, of_x["xtxu"])
    of_squares = ({} if rows is None else _respond(rows, probes, ("xxtu",))) | (
        {} if columns is None else _respond(columns, probes, ("xtxu",))
    )
    return of_x | of_xt | of_squares


def _respond(
    x: Matrices, probes: dict[str, jax.Array], names: tuple[str, ...]
) -> dict[str, Matrices]:
    names = tuple(name for name in names if name in probes)
    return dict(zip(names, respond(x, *(probes[n] for n in names)), strict=True)) if names else {}
