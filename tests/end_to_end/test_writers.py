"""Two processes that write one folder: one at a time, whatever stops them and when."""

import json
import os
import random
import signal
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

import probex_jax as px
from probex_jax.files import WRITER_LOCK, one_writer
from probex_jax.forest import Forest, grow
from probex_jax.search import Index, Snapshot, find_models
from probex_jax.sweeps import sweep
from tests.conftest import write_toy_model, write_toy_zoo
from tests.end_to_end import warm
from tests.forest.conftest import pack_tree
from tests.search.conftest import make_expert, write_model
from tests.writer import SETTINGS


def start(what, *arguments, stops=False):
    return warm.start("tests.writer", what, stops, *arguments)


def is_one_line(done):
    """Whether a command ended with one line."""
    return (done.returncode, done.stderr.count("\n")) == (2, 1)


def is_refused(done, folder, pid=""):
    """Whether a command ended with one line that names the folder and who writes it."""
    return is_one_line(done) and str(folder) in done.stderr and f"pid {pid}" in done.stderr


class Pack:
    """Two that pack one zoo, which grows meanwhile."""

    def __init__(self, folder, packed=12):
        self.zoo, self.folder = write_toy_zoo(folder / "Toy", packed), folder / "store"
        px.pack(px.scan(self.zoo), self.folder)
        self._more(1)
        self.arguments = ("pack", self.zoo, self.folder)

    def _more(self, seed):
        for number in range(3):
            rng = np.random.default_rng([seed, number])
            write_toy_model(self.zoo / "train" / f"new_{seed}_{number}", ["ant"], rng)

    def meanwhile(self):
        self._more(2)

    def check(self):
        store = px.pack(px.scan(self.zoo), self.folder).store
        lines = (self.folder / "models.jsonl").read_text().splitlines()
        assert len(lines) == len({json.loads(line)["id"] for line in lines})
        assert len(lines) == len(store.models) == len(px.scan(self.zoo).models)
        for split in ("train", "val", "test"):
            packed = np.asarray(store.matrices("a.weight", split))
            for model, matrix in zip(store.split(split), packed, strict=True):
                path = self.zoo / split / model.id / "model.safetensors"
                np.testing.assert_array_equal(matrix, load_file(path)["a.weight"])


class Indexing:
    """Two that index one folder of models."""

    def __init__(self, folder):
        self.models, self.folder = folder / "models", folder / "index"
        for seed in range(12):
            write_model(self.models / f"m{seed}.safetensors", seed, ["ant"])
        self.arguments = ("index", self.models, self.folder)

    def meanwhile(self):
        write_model(self.models / "new.safetensors", 99, ["bee"])

    def check(self):
        index = Index.create_or_open(self.folder, make_expert())
        index.add_models(find_models(self.models))
        paths = [model.path for model in Snapshot(index).models]
        assert len(index) == len(paths) == len(set(paths)) == len([*self.models.iterdir()])


class Growing:
    """Two that grow one forest by trees which cannot be told apart."""

    def __init__(self, folder):
        self.folder = folder / "forest"
        self.stores = {name: pack_tree(folder, name, 1) for name in ("Toy", "Twin")}
        self.arguments = ("forest", self.stores["Toy"].path, self.folder)
        self.others = ("forest", self.stores["Twin"].path, self.folder)

    def meanwhile(self):
        """Nothing changes."""

    def check(self):
        (name,) = Forest.load(self.folder).trees
        assert grow(self.folder, self.stores[name])[1] == "unchanged"


class Training:
    """Two that train on one store."""

    def __init__(self, folder):
        write_toy_zoo(folder / "Toy", 30)
        self.store = px.pack(px.scan(folder / "Toy"), folder / "store").store
        self.folder = folder / "trained"
        self.arguments = ("train", self.store.path, self.folder)

    def meanwhile(self):
        """Nothing changes."""

    def check(self):
        folders = (self.folder, self.folder.with_name("alone"))
        made = {path.name: sweep(self.store, path, **SETTINGS).metrics for path in folders}
        assert made["trained"] == made["alone"]


WRITERS = (Pack, Indexing, Growing, Training)
# The others take longer.
KILLED = [Pack, Indexing, *(pytest.param(w, marks=pytest.mark.parity) for w in (Growing, Training))]


@pytest.mark.parametrize("writer", WRITERS)
def test_the_second_writer_is_refused_and_the_first_goes_on(writer, tmp_path):
    case = writer(tmp_path)
    first = start(*case.arguments, stops=True)
    assert first.wait() is None, "it stops itself"
    case.meanwhile()
    second = start(*getattr(case, "others", case.arguments)).wait()
    first.send(signal.SIGCONT)
    done = first.wait()
    assert done.returncode == 0, done.stderr
    case.check()
    assert is_refused(second, case.folder, first.pid)


@pytest.mark.parametrize("writer", KILLED)
def test_a_killed_writer_keeps_nobody_out(writer, tmp_path):
    case = writer(tmp_path)
    first = start(*case.arguments, stops=True)
    assert first.wait() is None
    first.send(signal.SIGKILL)
    assert first.wait().returncode == -signal.SIGKILL
    again = start(*getattr(case, "others", case.arguments)).wait()
    assert again.returncode == 0, again.stderr
    case.check()
    assert not (case.folder / WRITER_LOCK).exists()


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("writer", WRITERS)
def test_two_writers_stopped_at_random(writer, seed, tmp_path):
    rng = random.Random(f"{writer.__name__} {seed}")
    case = writer(tmp_path)
    both = [start(*case.arguments)]
    time.sleep(rng.expovariate(3))
    both.append(start(*getattr(case, "others", case.arguments)))
    for _ in range(8):
        process = rng.choice(both)
        process.send(signal.SIGSTOP)
        time.sleep(rng.expovariate(10))
        process.send(signal.SIGCONT)
        time.sleep(rng.expovariate(10))
    case.meanwhile()
    codes = []
    for process in both:
        while (done := process.wait()) is None:
            process.send(signal.SIGCONT)
        codes.append(done.returncode)
        assert done.returncode == 0 or is_one_line(done)
    assert 0 in codes
    case.check()
    verified = warm.run("verify", tmp_path)
    assert verified.returncode == 0, verified.stdout + verified.stderr


COMMANDS = {
    "pack": "--zoo={zoo} --store={held}",
    "train": "--config.store={store} --workdir={held}",
    "train statnn": "--config=configs/statnn.py --config.store={store} --workdir={held}",
    "evaluate": "--experts={expert} --store={store} --workdir={held}",
    "index": "--experts={expert} --models={zoo} --index={held}",
    "grow_forest": "--stores={store} --forest={held}",
    "build_zoo": "--config=configs/zoo_miniature.py:tiny --out={held}",
    "demo": "--size=tiny --workdir={held}",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A zoo, a store and an expert."""
    folder = tmp_path_factory.mktemp("made")
    zoo = write_toy_zoo(folder / "Toy", 12)
    make_expert().save(folder / "expert")
    store = px.pack(px.scan(zoo), folder / "store").store.path
    return {"zoo": zoo, "store": store, "expert": folder / "expert"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_writes_a_folder_refuses_one_that_is_being_written(
    command, made, tmp_path
):
    held = tmp_path / "held"
    arguments = COMMANDS[command].format(**made, held=held).split()
    with one_writer(held):
        before = sorted(held.iterdir())
        done = warm.run(command.split()[0], *arguments)
        assert is_refused(done, held, os.getpid())
        assert sorted(held.iterdir()) == before
    assert not held.exists(), "nothing was written"


@pytest.mark.parametrize("name", ["theirs.safetensors", "theirs"])
def test_convert_refuses_a_file_that_is_being_written(name, made, tmp_path):
    way = "--to_torch" if name.endswith("safetensors") else "--from_torch=no.safetensors --to"
    ours = f"--from_expert={made['expert']}" if way == "--to_torch" else "--layer=a"
    with one_writer(tmp_path / name, beside=True):
        done = warm.run("convert", *f"{way}={tmp_path / name} {ours}".split())
    assert is_refused(done, tmp_path / name, os.getpid())
    assert not [*tmp_path.iterdir()]
