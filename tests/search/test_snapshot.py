"""An index in memory: the same answers as the index's own."""

import shutil

import numpy as np
import pytest

from probex_jax.errors import ProbexError
from probex_jax.search import Filter, Index, Snapshot, find_models, snapshot
from tests.search.conftest import make_expert, write_model

FILTERS = [
    Filter(),
    Filter(text="BEE"),
    Filter(text="it's"),
    Filter(split="test"),
    Filter(tree="Mini", split="train", text="ant"),
    Filter(tree="No"),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """40 models of a zoo, in two splits."""
    folder = tmp_path_factory.mktemp("snapshot")
    labels = (["ant"], ["bee"], ["ant", "bee"], ["it's"])
    for seed in range(40):
        split = ("train", "test")[seed % 3 == 0]
        write_model(folder / "Mini" / split / f"m{seed}.safetensors", seed, labels[seed % 4])
    made = Index.create_or_open(folder / "index", make_expert(head="text"))
    made.add_models(find_models(folder / "Mini"))
    return made


@pytest.mark.parametrize("where", FILTERS)
@pytest.mark.parametrize("k", [1, 7, 100])
def test_finds_what_the_index_finds(index, where, k):
    vector_T = index.place("an ant")
    ours = Snapshot(index).near(vector_T, k, where)
    theirs = index.near(vector_T, k, where.sql())
    assert [hit.id for hit in ours] == [hit.id for hit in theirs]
    np.testing.assert_allclose(
        [hit.similarity for hit in ours], [hit.similarity for hit in theirs], atol=1e-6
    )
    assert [(hit.text, hit.labels, hit.path) for hit in ours] == [
        (hit.text, hit.labels, hit.path) for hit in theirs
    ]


def test_asks_the_index_where_it_has_an_approximate_structure(index, monkeypatch):
    snap, vector_T = Snapshot(index), index.place("an ant")
    expected = [hit.id for hit in snap.near(vector_T, 5, Filter(text="bee"))]
    monkeypatch.setattr(snapshot, "ANN_MODELS", 40)
    monkeypatch.setattr(snap, "vectors_NT", None)
    assert [hit.id for hit in snap.near(vector_T, 5, Filter(text="bee"))] == expected


def test_answers_though_a_writer_removed_the_version_that_was_opened(index, tmp_path, monkeypatch):
    folder = shutil.copytree(index.path, tmp_path / "index")
    snap, vector_T = Snapshot(Index.open(folder)), index.place("an ant")
    expected = snap.near(vector_T, 5, Filter(text="bee"))
    shutil.rmtree(folder / "models.lance")
    monkeypatch.setattr(snapshot, "ANN_MODELS", 40)
    assert snap.near(vector_T, 5, Filter(text="bee")) == expected


def test_leaves_one_out(index):
    snap = Snapshot(index)
    place = snap.place_of("m7")
    hits = snap.near(snap.vectors_NT[place], 5, but=snap.models[place].path)
    assert len(hits) == 5
    assert "m7" not in {hit.id for hit in hits}
    assert snap.near(snap.vectors_NT[place], 1)[0].id == "m7"


def test_values_and_what_is_not_there(index):
    snap = Snapshot(index)
    assert snap.values("split") == ["test", "train"]
    assert snap.knows_texts
    with pytest.raises(ProbexError, match="no model 'zebra'"):
        snap.place_of("zebra")
