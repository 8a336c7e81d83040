"""The page of a small forest, served on localhost by the command."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from probex_jax.lineage import Copies, Edge, Lineage, Node, save_lineage
from probex_jax.search import Index, find_models
from tests.forest.conftest import class_expert, forest, forest_path, text_expert, trees
from tests.hub import Hub

__all__ = ["forest", "forest_path", "trees"]

LIMIT, START_S = 2**20, 120


def waited_for(condition, timeout_s=60):
    """Whether it holds within that time."""
    deadline = time.monotonic() + timeout_s
    while not (held := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return held


@dataclass(frozen=True)
class Served:
    """A server that runs: its address, its folder for temporary files, its process."""

    address: str
    temporary: Path
    process: subprocess.Popen

    def uploads(self):
        """The files that somebody sent and that are still there."""
        # Of folders that are removed meanwhile `rglob` complains.
        found = (Path(at) / name for at, _, names in os.walk(self.temporary) for name in names)
        return [path for path in found if path.is_file()]


@contextmanager
def served(forest, indexes, temporary, *flags, **environment):
    """The command `serve`, while this lasts; ended as a service is."""
    command = [sys.executable, "-m", "experiments.serve", f"--forest={forest}", "--port=0"]
    given = [f"--index={','.join(map(str, indexes))}", "--max_mb=1", *flags]
    environment = os.environ | {"TMPDIR": str(temporary)} | environment
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            [*command, *given], stdout=subprocess.PIPE, stderr=said, env=environment
        ) as process,
    ):
        hangs = threading.Timer(START_S, process.kill)
        hangs.start()
        try:
            address = process.stdout.readline().decode().partition(" ")[0]
            hangs.cancel()
            assert address.startswith("http"), f"the server did not start: {_read(said)}"
            yield Served(address, temporary, process)
        finally:
            hangs.cancel()
            process.send_signal(signal.SIGTERM)
            process.wait(30)
        assert "Traceback" not in (log := _read(said)), log


def _read(file):
    file.seek(0)
    return file.read().decode()


def served_demo(folder, temporary):
    """As `make page` serves what a demo made."""
    return served(folder / "forest", [folder / "indexes"], temporary)


@pytest.fixture(scope="session")
def indexes(trees, toy_lora_zoo, toy_lora_store, tmp_path_factory):
    """Indexes of toy LoRAs, which texts find, and of the models of Ant, which do not."""
    folder = tmp_path_factory.mktemp("indexes")
    experts = {"ToyLoRA": text_expert(toy_lora_store), "Ant": class_expert("Ant", 1)}
    zoos = {"ToyLoRA": toy_lora_zoo, "Ant": trees[0] / "Ant"}
    made = []
    for name, expert in experts.items():
        index = Index.create_or_open(folder / name, expert)
        index.add_models(find_models(zoos[name]))
        made.append(index)
    return made


@pytest.fixture(scope="session")
def hub_root(tmp_path_factory):
    """Folder of the hub whose models the page reads."""
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="session")
def lineage_path(trees, tmp_path_factory):
    """A lineage of three models of Ant, one of them a copy, and one that was not read."""
    root, child, twin = (f"m{n}" for n in (1, 2, 3))
    path = str(trees[0] / "Ant")
    nodes = (
        Node(root, f"{path}/{root}", "f0", "root"),
        Node(child, f"{path}/{child}", "f0", "derived"),
        Node(twin, f"{path}/{twin}", "f0", "copy", child),
    )
    edges = (Edge(root, child, "fine-tune", 1e-9, 0.97, 0.05),)
    failed = {"broken": f"{path}/broken.safetensors: no safetensors file"}
    made = tmp_path_factory.mktemp("lineage")
    save_lineage(Lineage(nodes, edges, (Copies((child, twin), 0.0),), failed), made)
    return made


@pytest.fixture(scope="session")
def server(forest_path, indexes, hub_root, lineage_path, tmp_path_factory):
    """The page of the forest, its indexes and a lineage; it ends well, and leaves nothing."""
    flags = ("--hub", f"--lineage={lineage_path}")
    paths, temporary = [index.path for index in indexes], tmp_path_factory.mktemp("temporary")
    with (
        Hub(hub_root).running() as hub,
        served(forest_path, paths, temporary, *flags, HF_ENDPOINT=hub) as made,
    ):
        yield made
        assert list(temporary.glob("probex_jax-uploads-*"))
    assert made.process.returncode == 0
    assert not list(temporary.glob("probex_jax-uploads-*"))


@pytest.fixture(scope="session")
def address(server):
    """Address of the page."""
    return server.address
