"""What is saved when a process is told to end."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probex_jax.experts.objective import Split
from probex_jax.experts.recipe import Recipe
from probex_jax.experts.saving import Saver
from probex_jax.experts.stopping import Stop
from probex_jax.experts.training import fit, initial_state

from probex_jax.experts import build_network, checkpoints
from probex_jax.prefetch import prefetch

ROOT = Path(__file__).parents[2]
RECIPE = Recipe(learning_rate=0.1, batch_size=4, epochs=9, eval_every=2)

# The main thread is in a compiled program that takes minutes, or for ever.
BUSY = """
import sys
import jax, jax.numpy as jnp
from experiments import cli

def main():
    with cli.STOP.saves(lambda: open(sys.argv[1], "w").write("saved")):
        endless = jax.jit(lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 2, lambda x: x @ x, x))
        running = endless.lower(jnp.eye(64)).compile()
        print("busy", flush=True)
        running(jnp.eye(64)).block_until_ready()

cli.run_with_arguments(lambda rest: main() or 0)
"""


def toy():
    x = jnp.linspace(-1.0, 1.0, 8).reshape(8, 1, 1) * jnp.ones([8, 3, 2])
    data = Split(x, (x[:, 0, :1] > 0).astype(jnp.float32))
    return build_network({"name": "dense"}, head="none", n_classes=1), data


def test_what_was_evaluated_last_is_saved_and_gone_on_with(tmp_path):
    network, data = toy()
    stop, saver = Stop(), Saver(tmp_path / "training", 1e9, lambda epochs: None)

    class Enough(Exception):
        pass

    def twice(state):
        saver(state)
        if int(state.evaluation) == 3:
            stop.save()  # as another thread would
            raise Enough

    with stop.saves(saver.save), pytest.raises(Enough):
        fit(network, RECIPE, data, data, on_evaluation=twice)
    new = initial_state(network, RECIPE, data)
    state = Saver(tmp_path / "training", 1e9, lambda epochs: None).restore(new)
    assert int(state.epoch) == 4
    resumed = fit(network, RECIPE, data, data, state=state)
    whole = fit(network, RECIPE, data, data)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_nothing_is_saved_twice_or_after_the_end(tmp_path, monkeypatch):
    network, data = toy()
    saver, saved = Saver(tmp_path / "training", 1e9, lambda epochs: None), []
    monkeypatch.setattr(
        "probex_jax.experts.checkpoints.save", lambda path, arrays, card: saved.append(path.name)
    )
    saver(initial_state(network, RECIPE, data))
    stop = Stop()
    with stop.saves(saver.save):
        stop.save()
        stop.save()
    saver(initial_state(network, RECIPE, data))
    stop.save()
    assert saved == ["00000000"]


def test_a_busy_process_saves_and_ends_with_143(tmp_path):
    saved = tmp_path / "saved"
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY, str(saved)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "busy\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 143
    assert saved.read_text() == "saved"
    assert said == "stopped; run the same command again to go on\n"


def test_two_threads_may_save_at_once(tmp_path):
    """The one that hears of a signal, and the main one."""
    arrays = [{"a": np.full((50, 50), n, "f4"), "b": {"c": np.arange(n + 1.0)}} for n in range(12)]

    def kept(number):
        checkpoints.save(tmp_path / str(number), arrays[number], {"number": number})
        return checkpoints.load(tmp_path / str(number))

    for number, (found, card) in prefetch(kept, range(12), 4):
        assert card["number"] == number
        jax.tree.map(np.testing.assert_array_equal, found, arrays[number])
