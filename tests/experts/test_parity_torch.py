"""Our training against PyTorch's Adam, from the same start, on the same batches."""

import jax.numpy as jnp
import numpy as np
import pytest

from probex_jax.experts import Recipe, Split, build_network, training

pytestmark = pytest.mark.parity


def error(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("name", ["probex", "mvprobe"])
def test_logits_and_ten_steps_agree_with_torch(name):
    import torch

    from experiments.benchmarks import pytorch

    encoder = {"name": name, "n_probes": 5, "proj_dim": 6, "rep_dim": 7}
    network = build_network(encoder, "class", 4)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(38, 9, 11)).astype(np.float32)
    y = (rng.random([38, 4]) < 0.5).astype(np.float32)
    # Two epochs of five steps: batches of 8, 8, 8, 8 and 6.
    recipe = Recipe(batch_size=8, epochs=2, eval_every=2, l2=1e-2)
    data = Split(jnp.asarray(x), jnp.asarray(y))
    start = training.initial_state(network, recipe, data)
    theirs = pytorch.parameters(start.params, torch.float64)
    logits = pytorch.logits(theirs, torch.tensor(x, dtype=torch.float64)).detach().numpy()
    assert error(network.apply({"params": start.params}, data.x), logits) <= 1e-5

    ours = pytorch.parameters(training.fit(network, recipe, data, data).params, torch.float64)
    orders = np.asarray(training.epoch_orders(recipe, 38, jnp.int32(0)))
    batches = [batch for order in orders for batch in np.split(order, [8, 16, 24, 32])]
    pytorch.steps(theirs, x, y, batches, recipe.learning_rate, recipe.l2)()
    assert ours.keys() == theirs.keys()
    for parameter, expected in theirs.items():
        actual, expected = (p.detach().numpy() for p in (ours[parameter], expected))
        assert error(actual, expected) <= 1e-5, parameter
        before = pytorch.parameters(start.params, torch.float64)[parameter].detach().numpy()
        assert np.linalg.norm(actual - before) > 1e-3, f"{parameter} was not trained"
