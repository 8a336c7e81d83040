"""Our training against PyTorch's Adam, from the same start, on the same batches."""

import jax.numpy as jnp
import numpy as np
import pytest

from probex_jax.fitting import Adam, Split, build_network
from tests.fitting.toys import group_of, start, trained
from tests.numeric import error

pytestmark = pytest.mark.parity


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
    recipe = Adam(batch_size=8, epochs=2, eval_every=2, l2=1e-2)
    data = Split(jnp.asarray(x), jnp.asarray(y))
    splits = {"train": data, "val": data}
    begun = start(recipe, splits, network)
    theirs = pytorch.parameters(begun.params, torch.float64)
    logits = pytorch.logits(theirs, torch.tensor(x, dtype=torch.float64)).detach().numpy()
    assert error(network.apply({"params": begun.params}, data.x), logits) <= 1e-5

    ours = pytorch.parameters(trained(recipe, splits, network).params, torch.float64)
    (orders,) = group_of(recipe, splits, network).orders(0, recipe.epochs)
    batches = [batch for order in orders for batch in np.split(order, [8, 16, 24, 32])]
    pytorch.steps(theirs, x, y, batches, recipe.learning_rate, recipe.l2)()
    assert ours.keys() == theirs.keys()
    for parameter, expected in theirs.items():
        actual, expected = (p.detach().numpy() for p in (ours[parameter], expected))
        assert error(actual, expected) <= 1e-5, parameter
        before = pytorch.parameters(begun.params, torch.float64)[parameter].detach().numpy()
        assert np.linalg.norm(actual - before) > 1e-3, f"{parameter} was not trained"
