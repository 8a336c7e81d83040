"""Programs with any number of models, lowered for platforms that are not here."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from probex_jax.encoders import Dense, MVProbe, ProbeX, Statistics
from probex_jax.heads import ClassHead, TextHead
from probex_jax.matrices import LowRank
from tests.numeric import draw, error

H, W, R, T = 48, 64, 2, 5
SMALL = {"n_probes": 4, "proj_dim": 3, "rep_dim": T}
ENCODERS = {
    "probex": ProbeX(**SMALL),
    "probex, left first": ProbeX(n_probes=40, proj_dim=1, rep_dim=T),
    "mvprobe": MVProbe(**SMALL),
    "dense": Dense(T),
    "standardised": Dense(T, standardise=True),
    "statistics": Statistics(T),
}
BATCHES = {
    "dense": lambda n: draw(n, n, H, W),
    "factors": lambda n: LowRank(draw(n, n, H, R), draw(n + 1, n, R, W)),
}


class Model(nn.Module):
    """An encoder with both heads on it."""

    encoder: nn.Module

    @nn.compact
    def __call__(self, x):
        e_NT = self.encoder(x)
        texts = TextHead(T, logit_scale=2.0)(e_NT, jnp.ones([3, 6]))
        return e_NT, ClassHead(4)(e_NT), texts


def of_any_size(x):
    """The shapes of a batch, with a number of models that is open."""
    (n,) = jax.export.symbolic_shape("n")
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((n, *leaf.shape[1:]), leaf.dtype), x)


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("name", ENCODERS)
def test_one_export_serves_any_platform_and_any_number_of_models(name, kind):
    model, batch = Model(ENCODERS[name]), BATCHES[kind]
    apply = jax.jit(model.apply)
    variables = jax.jit(model.init)(jax.random.key(0), batch(1))
    platforms = ["cpu", "cuda", "tpu"]
    exported = jax.export.export(apply, platforms=platforms)(variables, of_any_size(batch(1)))
    assert exported.platforms == tuple(platforms)
    for n in (1, 3):
        found = exported.call(variables, batch(n))
        for actual, expected in zip(found, apply(variables, batch(n)), strict=True):
            assert actual.shape == expected.shape
            assert error(actual, np.asarray(expected, np.float64)) <= 1e-6


@pytest.mark.parametrize(("platform", "loops"), [("cpu", True), ("cuda", False), ("tpu", False)])
@pytest.mark.parametrize("prepared", [False, True])
def test_only_a_cpu_loops_over_dense_matrices(platform, loops, prepared):
    """The text decides, of the gradient, too, not the machine that lowers it."""
    encoder, x = ENCODERS["mvprobe"], draw(0, 3, H, W)
    params = jax.eval_shape(encoder.init, jax.random.key(0), x)

    def total(params, x):
        read = encoder.prepare(x)[np.array([2, 0])] if prepared else x
        return jnp.sum(encoder.apply(params, read))

    exported = jax.export.export(jax.jit(jax.grad(total)), platforms=[platform])(params, x)
    assert ("stablehlo.while" in exported.mlir_module()) == loops
