from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probex_jax as px
from probex_jax.experts import Recipe, Split, advancing, build_network, objective, training

NETWORK = build_network({"name": "probex", "n_probes": 4, "proj_dim": 4, "rep_dim": 8}, "class", 3)


def split(n_models, seed=0, shape=(6, 5)):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n_models, *shape)).astype(np.float32)
    y = (rng.random([n_models, 3]) < 0.5).astype(np.float32)
    return Split(jnp.asarray(x), jnp.asarray(y))


def assert_same_bits(a, b):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(left, right)


@partial(jax.jit, static_argnames="network")
def reference_loss(network, params, x, y):
    """The loss, and its gradient."""

    def loss(params):
        logits = network.apply({"params": params}, x)
        per_class = jnp.maximum(logits, 0) - logits * y + jnp.log1p(jnp.exp(-jnp.abs(logits)))
        return per_class.mean()

    return jax.value_and_grad(loss)(params)


def reference_step(params, opt, x, y, recipe, network=NETWORK):
    """One step of Adam with the L2 term in the gradient, written out in float64."""
    value, gradient = reference_loss(network, params, x, y)
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
    monkeypatch.setattr(objective, "MICRO_BATCH_BYTES", micro_batch_bytes)
    recipe = Recipe(
        batch_size=7,
        epochs=3,
        eval_every=3,
        l2=0.1,
        learning_rate=0.01,
        seed=int(micro_batch_bytes),
    )
    train, val = split(17), split(9, seed=1)
    state = training.fit(NETWORK, recipe, train, val)
    start = training.initial_state(NETWORK, recipe, train)
    params = start.params
    zeros = jax.tree.map(np.zeros_like, params)
    opt = {"step": 0, "m": zeros, "v": zeros}
    losses = []
    for order in np.asarray(advancing.epoch_orders(recipe.seed, 17, 0, recipe.epochs)):
        assert sorted(order) == list(range(17))
        for batch in (order[:7], order[7:14], order[14:]):
            as_float32 = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
            params, opt, loss = reference_step(
                as_float32, opt, train.x[batch], train.y[batch], recipe
            )
            losses.append(loss * len(batch))
    for actual, expected in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.loss_E[1], sum(losses) / (3 * 17), rtol=1e-5)
    logits = NETWORK.apply({"params": state.params}, val.x)
    np.testing.assert_allclose(
        state.best["val"].accuracy_E[1], np.mean((logits > 0) == (val.y > 0.5)), rtol=1e-6
    )


def test_evaluations_are_where_the_recipe_says():
    recipe = Recipe(epochs=10, eval_every=4)
    epochs = []
    training.fit(
        NETWORK, recipe, split(8), split(4, 1), on_evaluation=lambda s: epochs.append(int(s.epoch))
    )
    assert epochs == [0, 4, 8, 10]
    assert recipe.n_evaluations == 4


def test_the_best_evaluation_is_kept():
    recipe = Recipe(epochs=40, eval_every=2, learning_rate=0.05)
    seen = []
    state = training.fit(
        NETWORK,
        recipe,
        split(30),
        split(10, 1),
        on_evaluation=lambda s: seen.append(
            (float(s.best["val"].accuracy_E[s.evaluation - 1]), jax.tree.map(np.array, s.params))
        ),
    )
    accuracies = [accuracy for accuracy, _ in seen]
    assert len(set(accuracies)) > 1, "nothing to choose from: the test shows nothing"
    best = accuracies.index(max(accuracies))
    assert int(state.best["val"].epoch) == 2 * best
    assert float(state.best["val"].accuracy) == max(accuracies)
    assert_same_bits(state.best["val"].params, seen[best][1])


def test_states_that_are_kept_stay_what_they_were():
    """The next step takes the memory of its own state, not of what was given or handed out."""
    recipe, train, val = Recipe(epochs=4, eval_every=2), split(12), split(5, 1)
    seen = []
    training.fit(NETWORK, recipe, train, val, on_evaluation=seen.append)
    assert [int(state.epoch) for state in seen] == [0, 2, 4]
    before = jax.tree.map(np.array, seen[0])
    training.fit(NETWORK, recipe, train, val, state=seen[0])
    assert_same_bits(seen[0], before)


def test_of_equally_good_evaluations_the_first_is_kept():
    standstill = Recipe(epochs=6, eval_every=2, learning_rate=0.0)
    state = training.fit(NETWORK, standstill, split(12), split(5, 1))
    assert len(set(np.asarray(state.best["val"].accuracy_E).tolist())) == 1
    assert int(state.best["val"].epoch) == 0


def test_going_on_from_any_evaluation_gives_the_same_bits():
    recipe = Recipe(epochs=11, eval_every=3, batch_size=8)
    train, val = split(20), split(6, 1)
    states = []
    whole = training.fit(
        NETWORK,
        recipe,
        train,
        val,
        on_evaluation=lambda s: states.append(jax.tree.map(np.array, s)),
    )
    for kept in states[:-1]:
        resumed = training.fit(NETWORK, recipe, train, val, state=jax.device_put(kept))
        assert_same_bits(resumed, whole)


def test_layers_of_one_shape_share_one_compilation():
    recipe = Recipe(epochs=9, eval_every=2, seed=123)
    before = advancing.advance._cache_size()
    for layer in range(3):
        training.fit(NETWORK, recipe, split(12, layer), split(5, layer + 9))
    assert advancing.advance._cache_size() == before + 1
    training.fit(NETWORK, recipe, split(12, shape=(4, 4)), split(5, shape=(4, 4)))
    assert advancing.advance._cache_size() == before + 2


def test_the_seed_decides_everything():
    train, val = split(12), split(5, 1)
    results = [
        training.fit(NETWORK, Recipe(epochs=4, eval_every=2, seed=seed), train, val).params
        for seed in (1, 1, 2)
    ]
    assert_same_bits(results[0], results[1])
    with pytest.raises(AssertionError):
        assert_same_bits(results[0], results[2])


def aligned(n_models, seed=0, low_rank=False):
    """Models of one of three texts each; the texts differ with the seed, their size does not."""
    rng = np.random.default_rng(seed)
    if low_rank:
        x = px.LowRank(
            jnp.asarray(rng.normal(size=(n_models, 6, 2)), jnp.float32),
            jnp.asarray(rng.normal(size=(n_models, 2, 5)), jnp.float32),
        )
    else:
        x = jnp.asarray(rng.normal(size=(n_models, 6, 5)), jnp.float32)
    texts = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    return Split(x, jnp.asarray(rng.integers(3, size=n_models), jnp.int32), texts)


ENCODER = {"name": "probex", "n_probes": 4, "proj_dim": 4, "rep_dim": 8}
ALIGNED = build_network(ENCODER, "text", 3, logit_scale=5.0)


@pytest.mark.parametrize("low_rank", [False, True])
def test_the_alignment_loss_is_a_softmax_over_cosines(low_rank):
    data = aligned(7, low_rank=low_rank)
    params = jax.jit(ALIGNED.init)(jax.random.key(0), data.x, data.texts)["params"]
    head = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64), params["head"]["linear"]["dense"]
    )
    e = np.asarray(ALIGNED.apply({"params": params}, data.x, method="encode"), np.float64)
    t = np.asarray(data.texts, np.float64) @ head["kernel"] + head["bias"]
    lengths = np.linalg.norm(e, axis=1)[:, None] * np.linalg.norm(t, axis=1)
    logits = 5.0 * e @ t.T / lengths
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(7), data.y]
    loss, _ = objective.loss_and_gradient(ALIGNED, params, data, jnp.arange(7))
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-5)
    found = objective.logits(ALIGNED, {"params": params}, data.x, data.texts)
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)
    assert np.abs(expected - np.log(3)).max() > 0.1, "nothing to tell: the test shows nothing"


def test_alignment_keeps_the_best_on_seen_and_on_held_out_classes():
    recipe = Recipe(epochs=60, eval_every=2, learning_rate=0.02, l2=0.0)
    val, held_out = aligned(15, 1), aligned(15, 2)
    seen = []
    state = training.fit(
        ALIGNED,
        recipe,
        aligned(12),
        val,
        val_holdout=held_out,
        on_evaluation=lambda s: seen.append(jax.tree.map(np.array, s.params)),
    )
    assert state.best["val"].epoch != state.best["val_holdout"].epoch, "the test shows nothing"
    answer = jax.jit(ALIGNED.apply)
    for name, split in (("val", val), ("val_holdout", held_out)):
        accuracies = [
            float(jnp.mean(answer({"params": p}, split.x, split.texts).argmax(1) == split.y))
            for p in seen
        ]
        best = accuracies.index(max(accuracies))
        np.testing.assert_allclose(state.best[name].accuracy_E, accuracies, rtol=1e-6)
        assert int(state.best[name].epoch) == 2 * best
        assert_same_bits(state.best[name].params, seen[best])
    plain = training.fit(ALIGNED, recipe, aligned(12), val)
    assert_same_bits(plain.params, state.params)


def test_zeros_that_fill_up_the_rank_change_nothing():
    """Not only the values: gradients and a whole training are the same but for rounding."""
    data = aligned(9, low_rank=True)
    filled = data._replace(
        x=px.LowRank(
            jnp.pad(data.x.up, [(0, 0), (0, 0), (0, 3)]),
            jnp.pad(data.x.down, [(0, 0), (0, 3), (0, 0)]),
        )
    )
    recipe = Recipe(epochs=6, eval_every=3, batch_size=4, learning_rate=0.01, l2=0.0)
    results = [training.fit(ALIGNED, recipe, split, split) for split in (data, filled)]
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(results[0].params),
        jax.tree.leaves(results[1].params),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5, err_msg=str(path))


def test_logits_of_many_models_come_in_order(monkeypatch):
    data = split(11)
    params = NETWORK.init(jax.random.key(0), data.x)["params"]
    whole = NETWORK.apply({"params": params}, data.x)
    monkeypatch.setattr(objective, "MICRO_BATCH_BYTES", 4 * 30 * 4)
    np.testing.assert_allclose(
        objective.logits(NETWORK, {"params": params}, data.x), whole, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "recipe.epochs: 0 is not a whole number >= 1"),
        ({"batch_size": 2.5}, "recipe.batch_size: 2.5"),
        ({"eval_every": True}, "recipe.eval_every: True"),
        ({"learning_rate": float("nan")}, "recipe.learning_rate: nan"),
        ({"l2": -1.0}, "recipe.l2: -1.0"),
        ({"learning_rate": "fast"}, "recipe.learning_rate: 'fast'"),
        ({"learning_rate": True}, "recipe.learning_rate: True"),
        ({"seed": 2**70}, "recipe.seed: "),
    ],
)
def test_impossible_recipes_are_refused(fields, message):
    with pytest.raises(px.ProbexError, match=message):
        Recipe(**fields)
