"""Small members without a head: one program answers as all of them one by one do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probex_jax.experts import committee, together
from probex_jax.matrices import LowRank
from tests.experts.toys import draw, make_expert
from tests.numeric import error

SHAPES = {"a": (6, 5), "b": (4, 1), "c": (1, 1), "d": (1, 7), "e": (80, 60), "f": (64, 64)}
X = {layer: 3 + draw(number, 5, *shape) for number, (layer, shape) in enumerate(SHAPES.items())}
ENCODERS = [{"name": "statistics"}, {"name": "dense", "standardise": True}, {"name": "dense"}]
KINDS = [(ENCODERS[0], "none"), (ENCODERS[1], "centre"), (ENCODERS[2], "scale")]


def of(encoder, normalise, layer):
    about = {"encoder": encoder, "head": "none", "normalise": normalise, "classes": ["x", "y"]}
    return make_expert(layer, SHAPES[layer], **about)


def members(kinds, layers=SHAPES):
    """An expert with a member of each of the kinds on each layer, those of a layer apart."""
    found = [of(*kind, layer) for kind in kinds for layer in layers]
    return committee(found, weights=range(1, 1 + len(found)))


def one_by_one(expert, x):
    parts = [np.float64(member.logits(x[member.layer])) for member in expert.members]
    return np.sum(parts, axis=0)


@pytest.mark.parametrize(
    "kinds", [KINDS[:2], [KINDS[0], KINDS[2]], [(ENCODERS[0], "centre"), KINDS[2]], KINDS[1:2]]
)
def test_together_they_answer_as_one_by_one(kinds):
    expert = members(kinds)
    expected = one_by_one(expert, X)
    assert error(expert.logits(X), expected) <= 1e-5
    asked = jax.jit(lambda expert, x: expert.logits(x))
    assert error(asked(expert, X), expected) <= 1e-5
    other = jax.tree.map(lambda leaf: leaf + np.float32(0.1), expert)
    assert error(asked(other, X), one_by_one(other, X)) <= 1e-5
    assert asked._cache_size() == 1


def test_matrices_without_spread():
    x = {layer: np.full_like(matrices, 0.5) for layer, matrices in X.items()}
    expert = members(KINDS[:2])
    assert error(expert.logits(x), one_by_one(expert, x)) <= 1e-5
    x["d"][2, 0, 3] = np.nan
    finite = np.isfinite(expert.logits(x))
    assert finite[[0, 1, 3, 4]].all()
    assert not finite[2].any()


def test_gradients_are_those_of_the_members():
    expert, layers = members(KINDS[:2], "abd"), {layer: X[layer] for layer in "abd"}

    def alone(expert, x):
        return sum(member.logits(x[member.layer]) for member in expert.members)

    def loss(answer):
        return jax.grad(lambda *given: jnp.sum(jnp.sin(answer(*given))), argnums=(0, 1))

    found = loss(lambda expert, x: expert.logits(x))(expert, layers)
    for one, other in zip(*map(jax.tree.leaves, (found, loss(alone)(expert, layers))), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)  # that of a scale is 0


def test_one_program_for_all_of_them():
    """Of large matrices there are few shapes: each has its own program."""
    expert = members(KINDS[:2], "abcdf")
    traced = jax.make_jaxpr(expert.logits)({layer: X[layer] for layer in expert.layers})
    programs = [line for line in traced.eqns if line.primitive.name in ("jit", "pjit")]
    assert len(programs) == 1
    large = [of(*KINDS[1], layer) for layer in "ae"]
    assert not together.is_small(large[1].members[0], X["e"])
    assert together.is_small(large[0].members[0], X["a"])


def test_factors_are_not_multiplied_out():
    x = LowRank(draw(1, 5, 6, 2), draw(2, 5, 2, 5))
    assert not together.is_small(of(*KINDS[1], "a").members[0], x)
    both = committee([of(*KINDS[1], layer) for layer in "ab"])
    dense = both.logits({"a": x.dense(), "b": X["b"]})
    assert error(both.logits({"a": x, "b": X["b"]}), dense) <= 1e-5
