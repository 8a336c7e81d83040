"""Whether units of two models vary alike, whatever the order of what they are connected to.

Letters: N units, F features, K directions, T orders.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.linalg import eigh

_BLOCK = 2**22


def leading(parts: Sequence[np.ndarray], most: int) -> np.ndarray | None:
    """The directions in which units vary most over several matrices.

    Args:
      parts: of each matrix, the units with their features [N, F].
      most: of the directions.

    Returns:
      The directions [N, K], float32, each as long as the root of its share; None if units do
      not differ.
    """
    kernel_NN: np.ndarray | None = None
    for x_NF in parts:
        centred_NF = np.asarray(x_NF - x_NF.mean(0), np.float64)
        size = np.square(centred_NF).sum()
        if size > 0 and np.isfinite(size):
            own_NN = centred_NF @ centred_NF.T / size
            kernel_NN = own_NN if kernel_NN is None else kernel_NN + own_NN
    if kernel_NN is None:
        return None
    least = max(0, len(kernel_NN) - most)
    values, vectors_NK = eigh(kernel_NN, subset_by_index=(least, len(kernel_NN) - 1))
    return (vectors_NK * np.sqrt(np.maximum(values, 0))).astype(np.float32)


def against_orders(
    one_NK: np.ndarray, other_NK: np.ndarray, orders: int, seed: Sequence[int]
) -> tuple[float, float]:
    """Tests whether directions of the same units fit better than with one side in random orders.

    Args:
      one_NK: directions of `leading`.
      other_NK: others of as many units; their number may differ.
      orders: how many random orders are drawn.
      seed: decides the orders.

    Returns:
      The p-value, and how many standard deviations the fit is above the mean.

    Example:
      >>> x_NK = leading([np.random.default_rng(0).normal(size=(32, 4))], 4)
      >>> against_orders(x_NK, x_NK, 999, (0,))[0]
      0.001
    """
    rng = np.random.default_rng(seed)
    found = float(np.square(other_NK.T @ one_NK).sum())
    places_N = np.arange(len(one_NK))
    step = max(1, _BLOCK // one_NK.size)
    drawn = []
    for begin in range(0, orders, step):
        tiled_TN = np.tile(places_N, (min(step, orders - begin), 1))
        one_TNK = one_NK[rng.permuted(tiled_TN, axis=1)]
        drawn.append(np.square(other_NK.T @ one_TNK).sum((1, 2)))
    drawn_T = np.concatenate(drawn)
    # A little is for sums of the same numbers in another order.
    p_value = (1 + int((drawn_T >= found * (1 - 1e-6)).sum())) / (orders + 1)
    spread = float(drawn_T.std())
    return p_value, (found - float(drawn_T.mean())) / spread if spread > 0 else 0.0
