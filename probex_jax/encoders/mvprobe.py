"""MVProbe: the encoder of Heo, Seo and Yoo, "What Linear Probes Miss"."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from probex_jax.encoders.linear import Linear, symmetric_uniform
from probex_jax.matrices import Matrices, contract, respond, respond_again, standardise

BRANCHES = ("xu", "xxtu", "xtu", "xtxu")


class MVProbe(nn.Module):
    """Probes a weight matrix from both of its sides, once and twice.

        S1 = X U,   S2 = X Xᵀ W,   S3 = Xᵀ Q,   S4 = Xᵀ X Z
        e = M [relu(Ŝ1ᵀ P1), …, relu(Ŝ4ᵀ P4)] + b,   Ŝ = (S - mean S) / (std S + 1e-8)

    Each branch has probes and a projection of its own; mean and standard deviation are over all
    entries of the responses of one model. The projected responses [U, V] are flattened probe-major
    and encoded together by M [4 · U · V, T]. All start as ProbeX's do.

    Args:
      n_probes: number of probes U of a branch.
      proj_dim: size V of a projected response.
      rep_dim: size T of the representation.
      branches: which of "xu", "xxtu", "xtu" and "xtxu" there are, in this order.
      standardise: whether responses are standardised.
      relu: whether projected responses pass a ReLU.

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

    @nn.compact
    def __call__(self, x: Matrices) -> jax.Array:
        """[N, H, W] weight matrices -> [N, T] representations."""
        flat = [
            self._project(name, response).reshape(x.shape[0], -1)
            for name, response in self._responses(x).items()
        ]
        return Linear(self.rep_dim, name="encoder")(jnp.concatenate(flat, axis=-1))

    def _responses(self, x: Matrices) -> dict[str, Matrices]:
        # One product with X, and one with its transpose, for what two branches have of it.
        of_x = self._respond(x, ("xu", "xtxu"))
        of_xt = self._respond(x.mT, ("xtu", "xxtu"))
        if "xxtu" in of_xt:
            of_xt["xxtu"] = respond_again(x, of_xt["xxtu"])
        if "xtxu" in of_x:
            of_x["xtxu"] = respond_again(x.mT, of_x["xtxu"])
        responses = of_x | of_xt
        return {name: responses[name] for name in self.branches}

    def _respond(self, x: Matrices, names: tuple[str, ...]) -> dict[str, Matrices]:
        names = tuple(name for name in names if name in self.branches)
        size = x.shape[-1], self.n_probes
        probes = [
            self.param(f"probes_{name}", symmetric_uniform(self.n_probes), size) for name in names
        ]
        return dict(zip(names, respond(x, *probes), strict=True)) if names else {}

    def _project(self, name: str, response: Matrices) -> jax.Array:
        rows = response.shape[-2]
        shape = rows, self.proj_dim
        projection_HV = self.param(f"projection_{name}", symmetric_uniform(rows), shape)
        if self.standardise:
            response = standardise(response)
        projected_NUV = contract(response, projection_HV)
        return nn.relu(projected_NUV) if self.relu else projected_NUV
