"""Stores in other processes: pickled as a path and a view."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

import probex_jax as px
from probex_jax.zoo.tables import Tables
from tests import s3
from tests.conftest import write_toy_zoo

READ = """
import pickle, sys
store = pickle.load(sys.stdin.buffer)
print(store.hash, store.path, len(store.models), store.label_set, store.split_set)
print(float(store.matrices("a.weight", "train").sum()))
"""


@pytest.fixture
def store(toy_store):
    """A view by tables that are not on the disk."""
    ids = [model.id for model in toy_store.packed]
    labels = {"gain": {id: (("much", "little")[n % 2],) for n, id in enumerate(ids[:60])}}
    parts = {"train": tuple(ids[:40]), "val": tuple(ids[40:50]), "test": tuple(ids[50:])}
    given = toy_store.with_tables(Tables(labels, splits={"mine": parts}))
    return given.view("gain", "mine").limited(30)


def test_a_view_is_the_same_in_another_process_and_folder(store, tmp_path, monkeypatch):
    monkeypatch.chdir(store.path.parent)
    there = px.LayerStore.open(store.path.name).with_tables(store.tables)
    there = there.view("gain", "mine").limited(30)
    _ = there.matrices("b.weight")  # its files are open
    sent = pickle.dumps(there)
    done = subprocess.run(
        [sys.executable, "-c", READ],
        input=sent,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])},
        stdout=subprocess.PIPE,
    )
    said = done.stdout.decode().split()
    assert said[:5] == [store.hash, store.path.name, "50", "gain", "mine"]
    assert float(said[5]) == float(np.asarray(store.matrices("a.weight", "train")).sum())


def test_what_is_sent_does_not_grow_with_the_models(toy_store):
    assert len(pickle.dumps(toy_store.view())) < 1000


def test_a_store_that_changed_meanwhile_is_refused(tmp_path):
    zoo = write_toy_zoo(tmp_path / "Toy", 12)
    sent = pickle.dumps(px.pack(px.scan(zoo), tmp_path / "s").store)
    (zoo / "train" / "model_0000").rename(zoo / "train" / "new")
    px.pack(px.scan(zoo), tmp_path / "s")
    with pytest.raises(px.ProbexError, match=str(tmp_path / "s")):
        pickle.loads(sent)


def test_a_store_in_a_bucket_is_sent_as_well(at, toy_zoo):
    store = px.pack(px.scan(toy_zoo), at).store
    again = pickle.loads(pickle.dumps(store))
    assert (str(again.path), again.hash) == (at, store.hash)
    np.testing.assert_array_equal(again.matrices("c.bias"), store.matrices("c.bias"))
    assert s3.BUCKET in str(again.path)
