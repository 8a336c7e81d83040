"""What is no batch of matrices is refused, not read as something else."""

import jax
import jax.numpy as jnp
import pytest

from probex_jax.encoders import Dense, MVProbe, ProbeX, statistics
from probex_jax.matrices import LowRank, centred, combination, gram, inner, project
from tests.numeric import draw

H, W = 6, 5


def started(encoder):
    return lambda x: encoder.init_with_output(jax.random.key(0), x)


READERS = {
    "ProbeX": started(ProbeX(4, 3, 2)),
    "MVProbe": started(MVProbe(4, 3, 2)),
    "Dense": started(Dense(2)),
    "Dense, standardised": started(Dense(2, standardise=True)),
    "statistics": statistics,
    "project": lambda x: project(x, jnp.ones([H, 2]), jnp.ones([W, 2])),
    "inner": lambda x: inner(x, jnp.ones([H, W, 2])),
    "centred": lambda x: centred(x, jnp.ones([H, W])),
    "gram": lambda x: gram(x, x),
    "combination": lambda x: combination(x, jnp.ones([x.shape[0], 2])),
}
BATCHES = {
    "one matrix": draw(0, H, W),
    "batches of batches": draw(0, 2, 3, H, W),
    "factors of batches": LowRank(draw(0, 2, 3, H, 2), draw(1, 2, 3, 2, W)),
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("reader", READERS)
def test_another_number_of_axes_is_refused(reader, batch):
    x = BATCHES[batch]
    with pytest.raises(ValueError, match=r"\[N, H, W\].*" + repr(x.shape).replace("(", r"\(")[:-1]):
        READERS[reader](x)


def test_batches_side_by_side_are_batches():
    x, encoder = draw(0, 2, 3, H, W), ProbeX(4, 3, 2)
    params = encoder.init(jax.random.key(0), x[0])
    assert jax.vmap(lambda x: encoder.apply(params, x))(x).shape == (2, 3, 2)
