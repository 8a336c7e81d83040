"""The loop: against Adam written out, to the bit when it goes on, one program for all layers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import probex_jax as px
from probex_jax.fitting import Adam, SeveralClasses, inference, loop
from probex_jax.fitting.group import expanded
from tests.fitting.toys import (
    ALIGNED,
    NETWORK,
    TEXTS,
    aligned,
    assert_close,
    assert_same_bits,
    group_of,
    split,
    start,
    trained,
)

DATA = {"train": split(12), "val": split(5, 1)}


@jax.jit
def reference_loss(params, x, y):
    """The loss, and its gradient."""

    def loss(params):
        logits = NETWORK.apply({"params": params}, x)
        per_class = jnp.maximum(logits, 0) - logits * y + jnp.log1p(jnp.exp(-jnp.abs(logits)))
        return per_class.mean()

    return jax.value_and_grad(loss)(params)


def reference_step(params, opt, x, y, recipe):
    """One step of Adam with the L2 term in the gradient, written out in float64."""
    value, gradient = reference_loss(params, x, y)
    step = opt["step"] + 1

    def update(p, g, m, v):
        p, g, m, v = (np.asarray(item, np.float64) for item in (p, g, m, v))
        g = g + recipe.l2 * p
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        corrected = np.sqrt(v / (1 - 0.999**step)) + 1e-8
        return p - recipe.learning_rate * m / (1 - 0.9**step) / corrected, m, v

    new = jax.tree.map(update, params, gradient, opt["m"], opt["v"])

    def pick(i):
        return jax.tree.map(lambda t: t[i], new, is_leaf=lambda t: isinstance(t, tuple))

    return pick(0), {"step": step, "m": pick(1), "v": pick(2)}, float(value)


@pytest.mark.parametrize("micro_batch_bytes", [1e9, 500])
def test_training_follows_the_recipe_step_by_step(monkeypatch, micro_batch_bytes):
    """Every batch, the short last one too, against Adam written out; in micro-batches as well."""
    monkeypatch.setattr(inference, "MICRO_BATCH_BYTES", micro_batch_bytes)
    monkeypatch.setattr(loop, "advance", jax.jit(loop.advance.__wrapped__, static_argnums=0))
    monkeypatch.setattr("probex_jax.fitting.group.advance", loop.advance)
    recipe = Adam(batch_size=7, epochs=3, eval_every=3, l2=0.1, learning_rate=0.01)
    splits = {"train": split(17), "val": split(9, seed=1)}
    train, val = splits.values()
    state = trained(recipe, splits)
    params, losses = start(recipe, splits).params, []
    zeros = jax.tree.map(np.zeros_like, params)
    opt = {"step": 0, "m": zeros, "v": zeros}
    (orders,) = group_of(recipe, splits).orders(0, recipe.epochs)
    for order in orders:
        assert sorted(order) == list(range(17))
        for batch in (order[:7], order[7:14], order[14:]):
            as_float32 = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
            batch_xy = train.x[batch], train.y[batch]
            params, opt, loss = reference_step(as_float32, opt, *batch_xy, recipe)
            losses.append(loss * len(batch))
    assert_close(state.params, params, atol=1e-6)
    np.testing.assert_allclose(state.loss_E[1], sum(losses) / (3 * 17), rtol=1e-5)
    logits = NETWORK.apply({"params": state.params}, val.x)
    expected = np.mean((logits > 0) == (val.y > 0.5))
    np.testing.assert_allclose(state.best["val"].accuracy_E[1], expected, rtol=1e-6)


@pytest.mark.parametrize("learning_rate", [0.05, 0.0])
def test_the_first_best_evaluation_is_kept(learning_rate):
    recipe = Adam(epochs=37, eval_every=2, learning_rate=learning_rate)
    seen = []

    def listen(state):
        accuracy = float(state.best["val"].accuracy_E[state.evaluation - 1])
        seen.append((accuracy, int(state.epoch), jax.tree.map(np.array, state.params)))

    best = trained(recipe, DATA, on_evaluation=listen).best["val"]
    accuracies, epochs, params = zip(*seen, strict=True)
    assert epochs == (*range(0, 37, 2), 37)
    assert len(seen) == recipe.n_evaluations
    place = accuracies.index(max(accuracies))
    assert (place > 0) == (learning_rate > 0), "nothing to choose from: the test shows nothing"
    assert (int(best.epoch), float(best.accuracy)) == (epochs[place], max(accuracies))
    assert_same_bits(best.params, params[place])


def test_going_on_from_any_evaluation_gives_the_same_bits():
    """Also from a state on the device, whose memory stays the caller's until it is given."""
    recipe = Adam(epochs=11, eval_every=3, batch_size=8)
    splits, states = {"train": split(20), "val": split(6, 1)}, []
    whole = trained(recipe, splits, on_evaluation=states.append)
    assert [int(state.epoch) for state in states] == [0, 3, 6, 9, 11]
    for kept in states[:-1]:
        before = jax.tree.map(np.array, kept)
        assert_same_bits(trained(recipe, splits, state=expanded(kept)), whole)
        assert_same_bits(kept, before)


def test_layers_of_one_shape_share_one_compilation():
    recipe = Adam(epochs=9, eval_every=2, seed=123)
    before = loop.advance._cache_size()
    for layer in range(3):
        trained(recipe, {"train": split(12, layer), "val": split(5, layer + 9)})
    assert loop.advance._cache_size() == before + 1
    trained(recipe, {name: split(n, shape=(4, 4)) for name, n in (("train", 12), ("val", 5))})
    assert loop.advance._cache_size() == before + 2


def test_the_seed_or_the_key_decides_everything():
    recipes = [Adam(epochs=4, eval_every=2, seed=seed) for seed in (1, 1, 2)]
    results = [trained(recipe, DATA).params for recipe in recipes]
    results.append(trained(recipes[2], DATA, keys=[jax.random.key(1)]).params)
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[3])
    with pytest.raises(AssertionError):
        assert_same_bits(results[0], results[2])


@pytest.mark.parametrize("kind", ["dense", pytest.param("factors", marks=pytest.mark.parity)])
def test_the_alignment_loss_is_a_softmax_over_cosines(kind):
    data = aligned(7, kind=kind)
    params = jax.jit(ALIGNED.init)(jax.random.key(0), data.x, data.texts)["params"]
    head = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64), params["head"]["linear"]["dense"]
    )
    e = np.asarray(ALIGNED.apply({"params": params}, data.x, method="encode"), np.float64)
    t = np.asarray(data.texts, np.float64) @ head["kernel"] + head["bias"]
    lengths = np.linalg.norm(e, axis=1)[:, None] * np.linalg.norm(t, axis=1)
    logits = 5.0 * e @ t.T / lengths
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(7), data.y]
    loss, _ = loop.loss_and_gradient(loop.Program(ALIGNED, TEXTS), params, data, jnp.arange(7))
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-5)
    found = inference.logits(ALIGNED, {"params": params}, data.x, data.texts)
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)
    assert np.abs(expected - np.log(3)).max() > 0.1, "nothing to tell: the test shows nothing"


def test_alignment_keeps_the_best_on_seen_and_on_held_out_classes():
    recipe = Adam(epochs=60, eval_every=2, learning_rate=0.02, l2=0.0)
    splits = {"train": aligned(12), "val": aligned(15, 1)}
    both, seen = {**splits, "val_holdout": aligned(15, 2)}, []
    state = trained(recipe, both, ALIGNED, TEXTS, on_evaluation=lambda s: seen.append(s.params))
    assert state.best["val"].epoch != state.best["val_holdout"].epoch, "the test shows nothing"
    answer = jax.jit(ALIGNED.apply)
    for name, best in state.best.items():
        x, y, texts, _ = both[name]
        accuracies = [np.mean(answer({"params": p}, x, texts).argmax(1) == y) for p in seen]
        place = accuracies.index(max(accuracies))
        np.testing.assert_allclose(best.accuracy_E, accuracies, rtol=1e-6)
        assert int(best.epoch) == 2 * place
        assert_same_bits(best.params, seen[place])
    assert_same_bits(trained(recipe, splits, ALIGNED, TEXTS).params, state.params)


def test_zeros_that_fill_up_the_rank_change_nothing():
    """Not only the values: gradients and a whole training are the same but for rounding."""
    data = aligned(9, kind="factors")
    up = jnp.pad(data.x.up, [(0, 0), (0, 0), (0, 3)])
    filled = data._replace(x=px.LowRank(up, jnp.pad(data.x.down, [(0, 0), (0, 3), (0, 0)])))
    recipe = Adam(epochs=6, eval_every=3, batch_size=4, learning_rate=0.01, l2=0.0)
    one, other = (
        trained(recipe, {"train": each, "val": each}, ALIGNED, TEXTS) for each in (data, filled)
    )
    assert_close(one.params, other.params, rtol=1e-3)


def test_logits_of_many_models_come_in_order(monkeypatch):
    x = split(11, shape=(6, 7)).x
    params = NETWORK.init(jax.random.key(0), x)["params"]
    whole = NETWORK.apply({"params": params}, x)
    monkeypatch.setattr(inference, "MICRO_BATCH_BYTES", 4 * 42 * 4)
    text = inference.logits.lower(NETWORK, {"params": params}, x).as_text()
    assert "while" in text
    found = inference.logits(NETWORK, {"params": params}, x)
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 2.5),
        ("eval_every", True),
        ("learning_rate", float("nan")),
        ("l2", -1.0),
        ("learning_rate", "fast"),
        ("learning_rate", True),
        ("seed", 2**70),
        ("compute", "float16"),
        ("storage", 32),
    ],
)
def test_impossible_recipes_are_refused(field, value):
    with pytest.raises(px.ProbexError, match=rf"recipe\.{field}: "):
        Adam(**{field: value})


def test_a_loss_or_an_optimiser_of_one_s_own_is_a_program_of_its_own():
    recipe = Adam(epochs=3, eval_every=3)
    results = [
        trained(recipe, DATA, loss=loss, optimiser=optimiser)
        for loss in (None, lambda logits, y: 2 * SeveralClasses().loss(logits, y))
        for optimiser in (None, optax.sgd(0.0))
    ]
    losses = [float(state.loss_E[-1]) for state in results]
    assert losses[3] == pytest.approx(2 * losses[1], rel=1e-6)
    assert losses[0] < losses[1]
    assert_same_bits(results[1].params, start(recipe, DATA).params)
