"""What `px.fit` tells of a training while it goes on."""

import numpy as np

import probex_jax as px


def test_states_are_of_the_one_network_and_may_be_kept():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 6, 5)).astype(np.float32)
    y = (x[:, :1, 0] > 0).astype(np.float32)
    states = []
    recipe = px.Adam(epochs=5, eval_every=2)
    found = px.fit(
        px.ProbeX(4, 4, 8), x[:20], y[:20], val=(x[20:], y[20:]), recipe=recipe,
        on_evaluation=states.append,
    )  # fmt: skip
    assert [int(state.epoch) for state in states] == [0, 2, 4, 5]
    best = states[-1].best["val"]
    assert best.accuracy_E.shape == states[-1].loss_E.shape == (4,)
    assert float(best.accuracy) == float(best.accuracy_E.max())
    assert int(best.epoch) == found.figures["best_epoch"]
    [first, *_, last] = [np.asarray(s.params["encoder"]["probes"]) for s in states]
    assert not np.array_equal(first, last)
