"""What is on disk when a training is killed."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probex_jax.experts.saving import Saver
from probex_jax.experts.training import fit, initial_state

from probex_jax.errors import ProbexError
from probex_jax.experts import Recipe, Split, build_network, checkpoints

RECIPE = Recipe(learning_rate=0.1, batch_size=4, epochs=9, eval_every=2)


def toy():
    x = jnp.linspace(-1.0, 1.0, 8).reshape(8, 1, 1) * jnp.ones([8, 3, 2])
    data = Split(x, (x[:, 0, :1] > 0).astype(jnp.float32))
    return build_network({"name": "dense"}, head="none", n_classes=1), data


def states():
    network, data = toy()
    found = []
    fit(
        network, RECIPE, data, data, on_evaluation=lambda s: found.append(jax.tree.map(np.array, s))
    )
    return found


def saved(folder):
    return sorted(path.name for path in folder.glob("*") if path.name.isdigit())


def test_zero_seconds_save_at_each_evaluation(tmp_path):
    saver = Saver(tmp_path / "t", 0.0, lambda epochs: None)
    for state in states():
        saver(state)
        assert saved(tmp_path / "t") == [f"{int(state.epoch):08d}"]


def test_what_takes_long_is_saved_in_a_thread_and_the_newest_goes_last(tmp_path, monkeypatch):
    """The evaluations in between are not waited for."""
    may_go, began = threading.Event(), []
    save = checkpoints.save

    def slow(path, arrays, card):
        began.append(path.name)
        if len(began) == 2:
            may_go.wait(20)
        time.sleep(0.02)
        save(path, arrays, card)

    monkeypatch.setattr("probex_jax.experts.checkpoints.save", slow)
    saver = Saver(tmp_path / "t", 1e-9, lambda epochs: None)
    first, second, third, fourth = states()[1:5]
    saver(first)  # nothing is known of how long it takes: it is waited for
    assert began == ["00000002"]
    saver(second)
    saver(third)  # while the second is being saved
    assert saved(tmp_path / "t") == ["00000002"]
    may_go.set()
    saver.wait()
    assert began == ["00000002", "00000004"]
    saver(fourth)
    saver.wait()
    assert saved(tmp_path / "t") == [f"{int(fourth.epoch):08d}"]
    network, data = toy()
    restored = Saver(tmp_path / "t", 1.0, lambda epochs: None).restore(
        initial_state(network, RECIPE, data)
    )
    jax.tree.map(np.testing.assert_array_equal, restored, fourth)


def test_a_full_disk_in_the_thread_is_heard_of(tmp_path, monkeypatch):
    def full(path, arrays, card):
        time.sleep(0.02)
        if path.name != "00000002":
            raise ProbexError("no space left on the disk")

    monkeypatch.setattr("probex_jax.experts.checkpoints.save", full)
    saver = Saver(tmp_path / "t", 1e-9, lambda epochs: None)
    first, second = states()[1:3]
    saver(first)
    saver(second)
    with pytest.raises(ProbexError, match="no space left"):
        saver.wait()


def test_whoever_does_not_write_saves_nothing(tmp_path):
    counted = []
    saver = Saver(tmp_path / "t", 0.0, counted.append, writes=False)
    for state in states():
        saver(state)
    saver.save()
    assert sum(counted) == RECIPE.epochs
    assert not (tmp_path / "t").exists()
