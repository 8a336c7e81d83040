"""Sizes of matrices: against float64, and without multiplying factors out."""

import jax
import numpy as np
import pytest

from probex_jax.encoders import TINY, Rank, Size, log_rank, log_size
from probex_jax.matrices import Centred, LowRank

RNG = np.random.default_rng(0)
UP, DOWN = RNG.normal(size=[5, 7, 2]).astype("f4"), RNG.normal(size=[5, 2, 6]).astype("f4")
CENTRE = LowRank(RNG.normal(size=[7, 2]).astype("f4"), RNG.normal(size=[2, 6]).astype("f4"))
MATRICES = {
    "dense": (UP @ DOWN, UP @ DOWN),
    "factors": (LowRank(UP, DOWN), UP @ DOWN),
    "less a centre": (Centred(LowRank(UP, DOWN), CENTRE), UP @ DOWN - CENTRE.up @ CENTRE.down),
}


@pytest.mark.parametrize("kind", MATRICES)
def test_it_is_the_root_of_the_mean_square(kind):
    x, multiplied = MATRICES[kind]
    expected = np.log(np.sqrt(np.mean(np.square(multiplied, dtype=np.float64), axis=(1, 2))))
    np.testing.assert_allclose(log_size(x)[:, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", MATRICES)
def test_the_encoder_is_linear_in_it(kind):
    x, _ = MATRICES[kind]
    y, variables = Size(rep_dim=3).init_with_output(jax.random.key(0), x)
    weight, bias = (np.asarray(variables["params"][name]) for name in ("weight", "bias"))
    np.testing.assert_allclose(y, np.asarray(log_size(x)) @ weight + bias, rtol=1e-5)


def test_the_rank_of_factors_is_the_number_of_their_directions():
    """However many there are to fill up, on either side; a square tells classes of ranks apart."""
    up, down = RNG.normal(size=[3, 7, 8]).astype("f4"), RNG.normal(size=[3, 8, 6]).astype("f4")
    up[0, :, 2:], down[1, 4:] = 0, 0
    found = log_rank(LowRank(up, down))
    np.testing.assert_array_equal(found, [[1, 1], [2, 4], [3, 9]])
    np.testing.assert_array_equal(log_rank(Centred(LowRank(up, down), CENTRE)), found)
    y, variables = Rank(rep_dim=2).init_with_output(jax.random.key(0), LowRank(up, down))
    weight, bias = (np.asarray(variables["params"][name]) for name in ("weight", "bias"))
    np.testing.assert_allclose(y, np.asarray(found) @ weight + bias, rtol=1e-5)


def test_what_is_zero_has_a_size_nevertheless():
    np.testing.assert_allclose(log_size(np.zeros([2, 3, 3], "f4")), np.log(TINY), rtol=1e-6)
