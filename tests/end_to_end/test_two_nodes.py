"""Commands on a Ray cluster of two nodes: the same bytes as here, whatever is killed and when."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import probex_jax as px
from probex_jax.forest import grow
from probex_jax.search import Index
from tests.conftest import write_toy_zoo
from tests.engine.nodes import PORT, workers_of
from tests.forest.conftest import class_expert, labels_of, write_member, write_tree
from tests.layer_store.test_packing import folder_hash

ROOT = Path(__file__).parents[2]
LONGEST_S = 240

APART = ["unshare", "--user", "--map-root-user", "--net"]

pytestmark = [pytest.mark.parity, pytest.mark.xdist_group("nodes")]


class Nodes:
    """Two nodes in a namespace of their own, and commands there."""

    def __init__(self, process, environment):
        self._process, self._environment = process, environment
        namespaces = ["nsenter", f"--target={process}", "--user", "--net", "--preserve-credentials"]
        self._inside = [*namespaces, sys.executable, "-m"]

    def start(self, command, *arguments):
        engine = [f"--engine=ray:127.0.0.1:{PORT}", "--workers=2"]
        return subprocess.Popen(
            [*self._inside, f"experiments.{command}", *map(str, arguments), *engine],
            env=self._environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def workers(self):
        return workers_of(self._process)

    def kill_a_worker(self, process, once=lambda: True):
        """Kills one once something is true, while a command runs."""
        deadline = time.monotonic() + LONGEST_S
        while process.poll() is None and time.monotonic() < deadline:
            if once() and (workers := self.workers()):
                os.kill(workers[0], signal.SIGKILL)
                return True
            time.sleep(0.01)
        return False

    def until_no_worker_is_left(self):
        deadline = time.monotonic() + 60
        while self.workers():
            assert time.monotonic() < deadline, "workers outlive the command"
            time.sleep(0.1)

    def run(self, command, *arguments):
        process = self.start(command, *arguments)
        out, err = process.communicate(timeout=LONGEST_S)
        return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.fixture(scope="module")
def nodes():
    """The nodes, which end with the module."""
    if not shutil.which(APART[0]) or subprocess.run([*APART, "true"]).returncode:
        pytest.skip("needs namespaces of Linux")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = os.environ | token | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*APART, sys.executable, "-m", "tests.engine.nodes"],
        env=environment,
        cwd="/",  # other than where commands are started
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield Nodes(int(process.stdout.readline()), environment)
        process.stdin.close()
        process.wait(timeout=60)


def here(command, *arguments):
    """A command whose work threads do."""
    line = [sys.executable, "-m", f"experiments.{command}", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST_S)


def is_done(*ended):
    for done in ended:
        assert done.returncode == 0, done.stderr
        assert "\nTraceback" not in done.stderr
    return True


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """More models than three blocks of a store hold."""
    return write_toy_zoo(tmp_path_factory.mktemp("zoo") / "Toy", 200)


@pytest.fixture(scope="module")
def packed(zoo, tmp_path_factory):
    store = tmp_path_factory.mktemp("packed") / "store"
    px.pack(px.scan(zoo), store)
    return store


@pytest.fixture(scope="module")
def forest(tmp_path_factory):
    """A forest, an expert and models of its tree and of none."""
    folder = tmp_path_factory.mktemp("forest")
    tree = write_tree(folder / "Ants", of=1)
    expert = class_expert("Ants", 1)
    expert.save(folder / "expert")
    grow(folder / "forest", px.pack(px.scan(tree), folder / "store").store, expert)
    for number in range(70):
        path = folder / "models" / f"m{number:02d}"
        write_member(path, 500 + number, labels_of(number), of=1 + (number % 9 == 0))
    (folder / "models" / "cut.safetensors").write_bytes(b"cut")
    return folder


@pytest.mark.parametrize("what", ["whole", "a worker dies", "the driver dies"])
def test_a_store_has_the_same_bytes(nodes, zoo, packed, tmp_path, what):
    where = os.path.relpath(tmp_path, ROOT)
    arguments = ("pack", f"--zoo={zoo}", f"--store={where}/store")
    if what != "whole":
        process = nodes.start(*arguments)
        if what == "a worker dies":
            shards = tmp_path / "store" / "layers"
            assert nodes.kill_a_worker(process, lambda: any(shards.rglob("0/0/0")))
            _, err = process.communicate(timeout=LONGEST_S)
            assert process.returncode == 0, err
        else:
            while not (tmp_path / "store" / "models.jsonl").exists():
                time.sleep(0.02)
            process.kill()
            process.communicate()
            nodes.until_no_worker_is_left()
    if what != "a worker dies":
        is_done(nodes.run(*arguments))
    assert folder_hash(tmp_path / "store") == folder_hash(packed)


@pytest.mark.parametrize("dies", [False, True])
def test_an_index_has_the_same_rows(nodes, forest, tmp_path, dies):
    where = (f"--experts={forest / 'expert'}", f"--models={forest / 'models'}")
    ours = here("index", *where, f"--index={tmp_path / 'here'}")
    process = nodes.start("index", *where, f"--index={tmp_path / 'there'}")
    assert nodes.kill_a_worker(process) if dies else True
    out, err = process.communicate(timeout=LONGEST_S)
    assert (process.returncode, out) == (ours.returncode, ours.stdout), err
    of = {name: Index.open(tmp_path / name).everything() for name in ("here", "there")}
    assert of["here"][0] == of["there"][0]
    np.testing.assert_array_equal(of["here"][1], of["there"][1])


def test_cards_have_the_same_bytes(nodes, forest, tmp_path):
    where = (f"--forest={forest / 'forest'}", forest / "models")
    ours = here("describe", *where, f"--out={tmp_path / 'here'}")
    theirs = nodes.run("describe", *where, f"--out={tmp_path / 'there'}")
    assert (theirs.returncode, theirs.stdout) == (ours.returncode, ours.stdout) == (1, ours.stdout)
    assert folder_hash(tmp_path / "here") == folder_hash(tmp_path / "there") != {}


def test_trees_are_the_same(nodes, forest, tmp_path):
    where = f"--models={forest / 'models'}"
    for command in ("discover", "harvest"):
        made = {}
        for name, run in (("here", here), ("there", nodes.run)):
            out = tmp_path / f"{command} {name}"
            done = run(command, where, f"--out={out}")
            assert done.returncode == 1, done.stderr  # one file is cut
            made[name] = out.read_bytes() if out.is_file() else folder_hash(out)
        assert made["here"] == made["there"]


@pytest.mark.parametrize("config", ["default", "probex:mini"])
def test_a_training_gives_the_same_expert(nodes, packed, tmp_path, config):
    name, _, size = config.partition(":")
    place = f"configs/{name}.py" + (f":{size}" if size else "")
    few = [] if name == "default" else ["--config.recipe.epochs=6"]
    where = (f"--config={place}", f"--config.store={packed}", *few)
    is_done(
        here("train", *where, f"--workdir={tmp_path / 'here'}"),
        nodes.run("train", *where, f"--workdir={tmp_path / 'there'}"),
    )
    metrics = [json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("here", "there")]
    assert metrics[0] == metrics[1]
    experts = [px.Expert.load(tmp_path / name / "expert") for name in ("here", "there")]
    assert experts[0].hash == experts[1].hash


def test_a_command_that_is_told_to_end_leaves_no_worker(nodes, zoo, tmp_path):
    process = nodes.start("pack", f"--zoo={zoo}", f"--store={tmp_path / 'store'}")
    while not nodes.workers():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 143
    ours = [line for line in err.splitlines() if "network_util.cc" not in line]  # of no network
    assert len(ours) == 1, err
    nodes.until_no_worker_is_left()
