"""ProbeX: the encoder of Horwitz et al., "Learning on Model Weights using Tree Experts"."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from probex_jax.encoders.linear import Linear, entries, products_at, promote, symmetric_uniform
from probex_jax.matrices import Matrices, batch_shape, project


class ProbeX(nn.Module):
    """Passes learned probes through a weight matrix and encodes the responses.

        e = sum_l M_l · relu(Vᵀ X u_l) + b

    The probes u_l are the columns of `probes` [W, U]; the projection V [H, V] is shared by all of
    them; the encoders M_l of all probes are one matrix [U · V, T], flattened probe-major. All start
    uniform in ±1/sqrt(fan_in), but the probes in ±1/sqrt(U), as in the reference.

    Without the ReLU it is a linear map of X whose weight has a Tucker decomposition; `ClosedForm`
    fits that.

    Args:
      n_probes: number of probes U.
      proj_dim: size V of a projected response.
      rep_dim: size T of the representation.
      relu: whether the responses pass a ReLU.
      standardise: whether every matrix is first given mean 0 and standard deviation 1 over its
        entries, as `Dense` does.
      dtype: of the computation; None promotes the input and the parameters, as in Flax.
      param_dtype: of the parameters at initialisation.
      precision: of the products, a `jax.lax.Precision` or its name; None for JAX's default.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> encoder = ProbeX(n_probes=8, proj_dim=8, rep_dim=16)
      >>> x = jnp.ones([4, 32, 64])
      >>> variables = encoder.init(jax.random.key(0), x)
      >>> jax.jit(encoder.apply)(variables, x).shape
      (4, 16)

    References:
      arXiv 2410.13569, section 4.2.
    """

    n_probes: int = 128
    proj_dim: int = 128
    rep_dim: int = 512
    relu: bool = True
    standardise: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None

    @nn.compact
    def __call__(self, x: Matrices) -> jax.Array:
        """[N, H, W] weight matrices -> [N, T] representations."""
        n_models, rows, columns = batch_shape(x)
        start = symmetric_uniform(self.n_probes)
        u_WU = self.param("probes", start, (columns, self.n_probes), self.param_dtype)
        start = symmetric_uniform(rows)
        v_HV = self.param("projection", start, (rows, self.proj_dim), self.param_dtype)
        x, u_WU, v_HV = promote(x, u_WU, v_HV, dtype=self.dtype)
        with products_at(self.precision):
            response_NUV = project(self.read(x), v_HV, u_WU).mT
        if self.relu:
            response_NUV = nn.relu(response_NUV)
        numeric = self.dtype, self.param_dtype, self.precision
        encoder = Linear(self.rep_dim, *numeric, name="encoder")
        return encoder(response_NUV.reshape(n_models, -1))

    def read(self, x: Matrices) -> Matrices:
        """[N, H, W] weight matrices -> the [N, H, W] entries that the probes pass through."""
        return entries(x, self.standardise)
