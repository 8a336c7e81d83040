"""Several processes at one training, real ones: together, or those of a cluster; killed, too."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end import warm
from tests.sweeps.of_layers import of_layer

ROOT = Path(__file__).parents[2]
SMALL = (
    "--config=configs/probex.py:mini",
    "--config.encoder.n_probes=4",
    "--config.encoder.proj_dim=4",
    "--config.recipe.batch_size=16",
    "--config.recipe.eval_every=5",
    "--config.normalise=centre",
    "--config.save_every_s=0",
)


def start(store, workdir, *arguments):
    """A process that trains."""
    command = [sys.executable, "-m", "experiments.train", f"--workdir={workdir}", *SMALL]
    return subprocess.Popen(
        [*command, f"--config.store={store.path}", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def together(store, workdir, *arguments):
    """Two processes that train every expert together."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = (f"--coordinator=localhost:{port}", "--processes=2", *arguments)
    return [start(store, workdir, *common, f"--process={place}") for place in (0, 1)]


def finished(processes):
    """Waits for processes; what they printed."""
    said = [process.communicate(timeout=300) for process in processes]
    for process, (_, errors) in zip(processes, said, strict=True):
        assert process.returncode == 0, errors
    return [output for output, _ in said]


def metrics(workdir):
    return json.loads((workdir / "metrics.json").read_text())


def wait_for(condition, processes=()):
    """Until a condition holds."""
    for _ in range(3000):
        if condition():
            return
        assert all(process.poll() is None for process in processes), "it ended too early"
        time.sleep(0.02)
    raise AssertionError("it never came")


@pytest.mark.parity
def test_two_processes_train_as_one_and_go_on_when_killed(toy_store, tmp_path):
    epochs = "--config.recipe.epochs=100"
    finished([start(toy_store, tmp_path / "one", epochs)])
    (said, silent) = finished(together(toy_store, tmp_path / "two", epochs))
    assert "test accuracy" in said
    assert "accuracy" not in silent, "one of them prints"
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert one["layers"] == two["layers"]
    for layer, accuracy in one["val_accuracy_by_layer"].items():
        assert two["val_accuracy_by_layer"][layer] == pytest.approx(accuracy, abs=0.04)
    assert one["test_accuracy"]["value"] == pytest.approx(two["test_accuracy"]["value"], abs=0.04)
    for layer in one["val_accuracy_by_layer"]:
        trees = [of_layer(tmp_path / name, layer).variables["tree"] for name in ("one", "two")]
        np.testing.assert_allclose(*(tree["centre"] for tree in trees), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(*(tree["scale"] for tree in trees), rtol=1e-6)

    training = tmp_path / "killed" / "training"
    killed = together(toy_store, tmp_path / "killed", epochs)
    wait_for(lambda: len([*training.glob("*/000000[1-9]*")]) > 0, killed)
    for process in reversed(killed):
        process.terminate()
    for process in killed:
        process.communicate(timeout=20)
    assert killed[0].returncode == 143
    assert len([*training.glob("*/000000[1-9]*")]) == 1

    killed = together(toy_store, tmp_path / "killed", epochs)
    wait_for(lambda: len([*training.glob("*/000000[4-9]*")]) > 0, killed)
    killed[1].kill()
    time.sleep(0.2)
    killed[0].kill()
    for process in killed:
        process.communicate()
    assert not (tmp_path / "killed" / "metrics.json").exists()
    finished(together(toy_store, tmp_path / "killed", epochs))
    assert (tmp_path / "killed" / "metrics.json").read_text() == (
        tmp_path / "two" / "metrics.json"
    ).read_text()


@pytest.mark.parity
def test_a_cluster_divides_the_layers_also_if_its_driver_is_killed(toy_store, tmp_path):
    engine, epochs = ("--engine=ray:local", "--workers=2"), "--config.recipe.epochs=150"
    workdir = tmp_path / "w"
    first = start(toy_store, workdir, epochs, *engine)
    wait_for(lambda: len([*(workdir / "training").glob("*/0*")]) > 0, [first])
    first.kill()
    first.communicate()
    assert not (workdir / "metrics.json").exists()
    (said,) = finished([start(toy_store, workdir, epochs, *engine)])
    assert "test accuracy" in said
    assert {path.name for path in (workdir / "layers").iterdir()} == {"a.weight", "b.weight"}
    finished([start(toy_store, tmp_path / "alone", epochs)])
    assert (tmp_path / "alone" / "metrics.json").read_text() == (
        workdir / "metrics.json"
    ).read_text()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--process=0", "--processes=2"), "--engine"),
        (("--process=1",), "--engine"),
        (("--coordinator=localhost:1", "--process=2", "--processes=2"), "--process"),
        (("--coordinator=localhost:1",), "--processes"),
        (("--cluster", "--processes=2"), "--cluster"),
        (("--cluster", "--engine=ray:local"), "--engine"),
        (("--workers=2",), "engine"),
        (("--config=configs/statnn.py", "--engine=ray:local"), "--engine"),
    ],
)
def test_processes_that_cannot_be_are_one_line(toy_store, tmp_path, arguments, named):
    workdir, store = tmp_path / "w", f"--config.store={toy_store.path}"
    done = warm.run("train", *arguments, f"--workdir={workdir}", store)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert named in done.stderr
    assert not workdir.exists()
