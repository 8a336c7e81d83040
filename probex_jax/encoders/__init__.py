"""Pure Linen modules that turn a batch of weight matrices into representations.

Every encoder takes [N, H, W] (an array or `probex_jax.matrices.LowRank`) and returns [N, rep_dim];
any other number of axes is a ValueError. If the batch is sharded over models, so are the
representations. An encoder knows no file, config, optimiser or device.
"""

from probex_jax.encoders.dense import Dense
from probex_jax.encoders.linear import Linear
from probex_jax.encoders.mvprobe import MVProbe
from probex_jax.encoders.probex import ProbeX
from probex_jax.encoders.size import TINY, Rank, Size, log_rank, log_size
from probex_jax.encoders.statnn import N_STATISTICS, Statistics, statistics

__all__ = [
    "N_STATISTICS",
    "TINY",
    "Dense",
    "Linear",
    "MVProbe",
    "ProbeX",
    "Rank",
    "Size",
    "Statistics",
    "log_rank",
    "log_size",
    "statistics",
]
