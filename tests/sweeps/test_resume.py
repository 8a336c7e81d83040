"""What is on disk when a training is killed or told to end, and how it goes on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probex_jax.errors import ProbexError
from probex_jax.experts import checkpoints
from probex_jax.fitting import Adam, SeveralClasses, Split, build_network
from probex_jax.fitting.group import Group
from probex_jax.fitting.sharding import ONE, Devices
from probex_jax.prefetch import prefetch
from probex_jax.sweeps import Stop, resume
from probex_jax.sweeps.resume import Saver

ROOT = Path(__file__).parents[2]
RECIPE = Adam(learning_rate=0.1, batch_size=4, epochs=9, eval_every=2)
NEVER_S = 1e9

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


class Toy:
    """A network on eight models."""

    def __init__(self):
        x = jnp.linspace(-1.0, 1.0, 8).reshape(1, 8, 1, 1) * jnp.ones([1, 8, 3, 2])
        data = Split(x, (x[0, :, 0, :1] > 0).astype(jnp.float32))
        network, counts = build_network({"name": "dense"}, "none", 1), {"train": 8, "val": 8}
        self.group = Group(network, SeveralClasses(), (RECIPE,), 1, counts, ONE)
        self.splits = {"train": self.group.prepared(data), "val": data}

    def train(self, state=None, on_evaluation=lambda state: None):
        state = state or self.group.initial(self.splits["train"])
        return self.group.train(state, self.splits, on_evaluation=on_evaluation)

    def restored(self, folder):
        saver = Saver(folder, NEVER_S, ONE, lambda epochs: None)
        return saver.restored(self.group.template(self.splits["train"]))


@pytest.fixture(scope="module")
def toy():
    return Toy()


@pytest.fixture(scope="module")
def states(toy):
    found = []
    toy.train(on_evaluation=lambda state: found.append(jax.tree.map(np.array, state)))
    return found


def saved(folder):
    return sorted(path.name for path in folder.glob("*") if path.name.isdigit())


def test_zero_seconds_save_at_each_evaluation(tmp_path, states, toy):
    counted = []
    saver = Saver(tmp_path / "t", 0.0, ONE, counted.append)
    for state in states:
        saver(state)
        assert saved(tmp_path / "t") == [f"{int(state.epoch):08d}"]
    assert sum(counted) == RECIPE.epochs
    jax.tree.map(np.testing.assert_array_equal, toy.restored(tmp_path / "t"), states[-1])


def test_saving_takes_a_tenth_of_the_time(tmp_path, states, monkeypatch):
    """By a clock that tells what it is told: of saves of 3 s the next comes 30 s later."""
    clock, began = [0.0], []

    def slow(path, arrays, card):
        began.append((clock[0], path.name))
        clock[0] += 3.0

    monkeypatch.setattr(checkpoints, "save", slow)
    monkeypatch.setattr(resume.time, "monotonic", lambda: clock[0])
    saver = Saver(tmp_path / "t", 1.0, ONE, lambda epochs: None)
    for now, state in zip([0.5, 2.0, 20.0, 34.9, 35.1], states, strict=False):
        clock[0] = max(clock[0], now)
        saver(state)
    names = [f"{int(state.epoch):08d}" for state in states]
    assert began == [(2.0, names[1]), (35.1, names[4])]


def test_whoever_does_not_write_saves_nothing(tmp_path, states):
    class Reader(Devices):
        writes = False

    counted = []
    saver = Saver(tmp_path / "t", 0.0, Reader(), counted.append)
    for state in states:
        saver(state)
    saver.save()
    assert sum(counted) == RECIPE.epochs
    assert not (tmp_path / "t").exists()


def test_what_was_evaluated_last_is_saved_and_gone_on_with(tmp_path, toy, states):
    class Enough(Exception):
        pass

    stop, saver = Stop(), Saver(tmp_path / "t", NEVER_S, ONE, lambda epochs: None)

    def twice(state):
        saver(state)
        if int(state.evaluation) == 3:
            stop.save()  # as another thread would
            raise Enough

    with stop.saves(saver.save), pytest.raises(Enough):
        toy.train(on_evaluation=twice)
    state = toy.restored(tmp_path / "t")
    assert int(state.epoch) == 4
    jax.tree.map(np.testing.assert_array_equal, toy.train(state), states[-1])
    [kept] = (tmp_path / "t").glob("*")
    (kept / "_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(ProbexError, match=f"remove {tmp_path / 't'}"):
        toy.restored(tmp_path / "t")


def test_nothing_is_saved_twice_or_after_the_end(tmp_path, states, monkeypatch):
    saver, saved = Saver(tmp_path / "t", NEVER_S, ONE, lambda epochs: None), []
    monkeypatch.setattr(checkpoints, "save", lambda path, arrays, card: saved.append(path.name))
    saver(states[0])
    stop = Stop()
    with stop.saves(saver.save):
        stop.save()
        stop.save()
    saver(states[0])
    stop.save()
    assert saved == ["00000000"]


def test_a_busy_process_saves_and_ends_with_143(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY, str(tmp_path / "saved")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "busy\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said.count("\n")) == (143, 1)
    assert (tmp_path / "saved").read_text() == "saved"


def test_two_threads_may_save_at_once(tmp_path):
    """The one that hears of a signal, and the main one."""
    arrays = [{"a": np.full((50, 50), n, "f4"), "b": {"c": np.arange(n + 1.0)}} for n in range(12)]

    def kept(number):
        checkpoints.save(tmp_path / str(number), arrays[number], {"number": number})
        return checkpoints.load(tmp_path / str(number))

    for number, (found, card) in prefetch(kept, range(12), 4):
        assert card["number"] == number
        jax.tree.map(np.testing.assert_array_equal, found, arrays[number])
