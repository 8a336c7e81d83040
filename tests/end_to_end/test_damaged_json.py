"""JSON files of ours that are damaged: one line that names the file, wherever it is read."""

import json
import shutil

import pytest

import probex_jax as px
from experiments.costs import Costs
from experiments.report_steps import training
from probex_jax.forest import Forest, grow
from probex_jax.search import Index
from probex_jax.sweeps import run_statnn, sweep
from tests.conftest import write_toy_zoo
from tests.forest.conftest import pack_tree
from tests.search.conftest import make_expert
from tests.writer import SETTINGS

# One worker makes the folders.
pytestmark = pytest.mark.xdist_group("damaged json")
DAMAGES = {
    "deep": b'{"version": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "rather deep": b'{"version": ' + b"[" * 500 + b"]" * 500 + b"}",
    "no UTF-8": b'{"version": "\xff"}',
    "no Unicode": b'{"version": "\\ud800"}',
    "no JSON": b'{"version": ',
}
READERS = {
    "store/store.json": lambda folder: px.LayerStore.open(folder / "store"),
    "store/models.jsonl": lambda folder: px.LayerStore.open(folder / "store"),
    "index/index.json": lambda folder: Index.open(folder / "index"),
    "index/models.sums.json": lambda folder: Index.open(folder / "index"),
    "forest/forest.json": lambda folder: Forest.load(folder / "forest"),
    "forest/trees/Toy/tree.json": lambda folder: Forest.load(folder / "forest"),
    "trained/metrics.json": lambda folder: trained(folder),
    "trained/config.json": lambda folder: trained(folder),
    "trained/config.json of a report": lambda folder: training(folder / "trained", {}),
    "trained/expert/_CHECKPOINT_METADATA": lambda folder: px.Expert.load(folder / "trained"),
    "trained/expert/state/_METADATA": lambda folder: px.Expert.load(folder / "trained"),
    "statnn/metrics.json": lambda folder: statnn(folder),
    "trained/costs.json": lambda folder: Costs(folder / "trained").steps,
}


def trained(folder):
    return sweep(px.LayerStore.open(folder / "store"), folder / "trained", **SETTINGS)


def statnn(folder):
    return run_statnn(px.LayerStore.open(folder / "store"), folder / "statnn", n_trees=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store, an index, a forest and trainings."""
    folder = tmp_path_factory.mktemp("made")
    px.pack(px.scan(write_toy_zoo(folder / "Toy", 20)), folder / "store")
    Index.create_or_open(folder / "index", make_expert())
    grow(folder / "forest", pack_tree(folder / "related", "Toy", 1))
    trained(folder)
    statnn(folder)
    (folder / "trained" / "costs.json").write_text(json.dumps({"about": {}, "steps": []}))
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_one_line_that_names_it(name, damage, made):
    path = made / name.split()[0]
    kept = shutil.copy(path, made / "kept")
    try:
        path.write_bytes(DAMAGES[damage] + b"\n")
        with pytest.raises(px.ProbexError) as error:
            READERS[name](made)
    finally:
        shutil.move(kept, path)
    assert any(str(place) in str(error.value) for place in (path, *path.parents[:2]))
    assert str(error.value).isprintable()
    assert str(error.value).encode()
    assert len(str(error.value)) < 1000
