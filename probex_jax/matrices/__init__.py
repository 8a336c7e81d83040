"""Weight matrices of many models, dense or kept as factors, and the products that encoders need.

Dimension letters, here and in all array code: N models, H rows, W columns, U probes,
V projections, T representation, Y outputs, R rank.
"""

from probex_jax.matrices.batch import batch_shape, may_be_sharded
from probex_jax.matrices.centred import Centred, centred, dense
from probex_jax.matrices.kernels import combination, gram, standardise
from probex_jax.matrices.low_rank import LowRank, stack
from probex_jax.matrices.products import (
    Matrices,
    contract,
    inner,
    project,
    respond,
    respond_again,
)
from probex_jax.matrices.squared import Picked, Squared, for_each, squared

__all__ = [
    "Centred",
    "LowRank",
    "Matrices",
    "Picked",
    "Squared",
    "batch_shape",
    "centred",
    "combination",
    "contract",
    "dense",
    "for_each",
    "gram",
    "inner",
    "may_be_sharded",
    "project",
    "respond",
    "respond_again",
    "squared",
    "stack",
    "standardise",
]
