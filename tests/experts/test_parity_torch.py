"""Ten steps of our training against PyTorch's Adam, from the same start, on the same batches."""

import jax.numpy as jnp
import numpy as np
import pytest

from probex_jax.experts import Recipe, Split, build_network, training

pytestmark = pytest.mark.parity


def forward(torch, p, x):
    """The reference implementation's forward pass; x [N, H, W]."""
    response = torch.einsum("nhw,wu->nuh", x, p["probes"]) @ p["projection"]
    e = torch.relu(response).flatten(1) @ p["kernel"] + p["bias"]
    return e @ p["head_kernel"] + p["head_bias"]


def torch_parameters(torch, params):
    encoder, head = params["encoder"], params["head"]["linear"]["dense"]
    named = {
        "probes": encoder["probes"],
        "projection": encoder["projection"],
        "kernel": encoder["encoder"]["dense"]["kernel"],
        "bias": encoder["encoder"]["dense"]["bias"],
        "head_kernel": head["kernel"],
        "head_bias": head["bias"],
    }
    return {
        name: torch.tensor(np.array(value, np.float64), requires_grad=True)
        for name, value in named.items()
    }


def test_ten_steps_agree_with_torch_adam():
    import torch

    encoder = {"name": "probex", "n_probes": 5, "proj_dim": 6, "rep_dim": 7}
    network = build_network(encoder, "class", 4)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(38, 9, 11)).astype(np.float32)
    y = (rng.random([38, 4]) < 0.5).astype(np.float32)
    # Two epochs of five steps: batches of 8, 8, 8, 8 and 6.
    recipe = Recipe(batch_size=8, epochs=2, eval_every=2, l2=1e-2)
    data = Split(jnp.asarray(x), jnp.asarray(y))
    start = training.initial_state(network, recipe, data)
    ours = training.fit(network, recipe, data, data).params

    theirs = torch_parameters(torch, start.params)
    adam = torch.optim.Adam(theirs.values(), lr=recipe.learning_rate, weight_decay=recipe.l2)
    for order in np.asarray(training.epoch_orders(recipe, 38, jnp.int32(0))):
        for batch in np.split(order, [8, 16, 24, 32]):
            adam.zero_grad()
            logits = forward(torch, theirs, torch.tensor(x[batch], dtype=torch.float64))
            target = torch.tensor(y[batch], dtype=torch.float64)
            torch.nn.functional.binary_cross_entropy_with_logits(logits, target).backward()
            adam.step()
    for name, expected in theirs.items():
        expected = expected.detach().numpy()
        actual = np.asarray(torch_parameters(torch, ours)[name].detach())
        error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
        assert error <= 1e-5, (name, error)
    moved = np.linalg.norm(
        np.asarray(ours["encoder"]["probes"] - start.params["encoder"]["probes"])
    )
    assert moved > 1e-2, "nothing was trained: the comparison shows nothing"
