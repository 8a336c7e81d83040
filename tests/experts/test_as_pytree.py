"""An expert in other people's JAX code: an argument of jit and grad, exported for any platform."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import probex_jax as px
from tests.fitting.on_meshes import H, W, expert_of
from tests.numeric import draw, error

X = draw(0, 5, H, W)


@pytest.mark.parametrize("normalise", ["none", "centre"])
def test_jit_takes_an_expert_and_compiles_once_for_its_card(normalise):
    expert = expert_of("probex", normalise)
    answer = jax.jit(lambda expert, x: expert.probabilities(x))
    np.testing.assert_allclose(answer(expert, X), expert.probabilities(X), rtol=1e-6)
    other = jax.tree.map(lambda leaf: np.float32(1.1) * leaf, expert)
    again = jax.tree.map(np.copy, expert_of("probex", normalise))  # another card, an equal one
    assert (answer(other, X) != answer(again, X)).any()
    assert answer._cache_size() == 1
    answer(expert.with_card(tree="Maxi"), X)
    assert answer._cache_size() == 2
    leaves, structure = jax.tree.flatten(expert)
    rebuilt = jax.tree.unflatten(structure, leaves)
    assert rebuilt.card is expert.card
    np.testing.assert_array_equal(rebuilt.logits(X), expert.logits(X))


def test_gradients_are_experts_and_vmap_maps_over_several():
    expert = expert_of("mvprobe", "centre")
    gradient = jax.grad(lambda expert: jnp.sum(expert.logits(X) ** 2))(expert)
    by_variables = jax.grad(lambda v: jnp.sum(expert.apply(v, X) ** 2))(expert.variables)
    assert gradient.card == expert.card
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(by_variables), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    both = jax.tree.map(lambda leaf: np.stack([leaf, 2 * leaf]), expert)
    found = jax.vmap(lambda expert: expert.logits(X))(both)
    assert error(found[0], expert.logits(X)) <= 1e-5


@pytest.mark.parametrize("encoder", ["probex", "mvprobe", "dense"])
def test_logits_are_exported_for_any_platform_and_number_of_models(encoder):
    expert = expert_of(encoder, "centre")
    (n,) = jax.export.symbolic_shape("n")
    shape = jax.ShapeDtypeStruct((n, H, W), jnp.float32)
    platforms = ["cpu", "cuda", "tpu"]
    exported = jax.export.export(jax.jit(expert.logits), platforms=platforms)(shape)
    assert exported.platforms == tuple(platforms)
    for size in (1, 5):
        assert error(exported.call(X[:size]), expert.logits(X[:size])) <= 1e-6


def test_tasks_that_answer_otherwise_are_no_program_of_one_another():
    """Cards name tasks alone; two of one name must not share what `jit` has compiled."""

    def task(factor):
        class Scaled(px.SeveralClasses):
            def predictions(self, logits, temperature=1.0):
                return super().predictions(factor * logits, temperature)

        return Scaled()

    x = np.random.default_rng(0).normal(size=(60, 3, 2)).astype(np.float32)
    found = px.fit(px.Dense(2), x, x[:, :2, 0] > 0)
    assert np.abs(found.logits(x)).mean() > 1
    expert = px.Expert.of(found, tree="t", layer="a", classes=["one", "two"])
    asked = jax.jit(px.Expert.probabilities)
    for factor in (0.5, 2.0):
        expected = jax.nn.sigmoid(factor * found.logits(x) / found.temperature)
        scaled = expert.with_card(task=task(factor))
        np.testing.assert_allclose(asked(scaled, x), expected, rtol=1e-5)
