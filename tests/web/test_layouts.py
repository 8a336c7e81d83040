"""Layouts of indexes: kept, and made anew where what they are of has changed."""

import numpy as np
import pytest

from probex_jax.reports import map_layout
from probex_jax.search import Index, Snapshot, find_models
from probex_jax.web import layouts
from tests.search.conftest import make_expert, write_model


@pytest.fixture
def index(tmp_path):
    """Eight models."""
    for seed in range(8):
        write_model(tmp_path / "models" / f"m{seed}.safetensors", seed)
    made = Index.create_or_open(tmp_path / "index", make_expert())
    made.add_models(find_models(tmp_path / "models"))
    return made


def test_a_layout_is_kept(index, monkeypatch):
    first = layouts.load_layout(Snapshot(index))
    monkeypatch.setattr(layouts, "layout_2d", None)
    again = layouts.load_layout(Snapshot(index))
    np.testing.assert_array_equal(first.points, again.points)
    assert [hit.id for hit in again.models] == [f"m{seed}" for seed in range(8)]


@pytest.mark.parametrize("change", ["damaged", "one more", "another one"])
def test_it_is_made_anew(index, tmp_path, monkeypatch, change):
    layouts.load_layout(Snapshot(index))
    models = tmp_path / "models"
    if change == "damaged":
        (index.path / "map.safetensors").write_bytes(b"x")
    else:
        write_model(models / "m8.safetensors", 8)
    if change == "another one":
        (models / "m0.safetensors").unlink()
        index.prune()
    index.add_models(find_models(models))
    placed = np.arange(18, dtype=np.float32).reshape(9, 2)
    monkeypatch.setattr(layouts, "layout_2d", lambda vectors_NT: placed[: len(vectors_NT)])
    found = layouts.load_layout(Snapshot(index))
    np.testing.assert_array_equal(found.points, placed[: 9 if change == "one more" else 8])


def test_of_many_models_a_sample(index, monkeypatch):
    monkeypatch.setattr(map_layout, "MAX_POINTS", 5)
    found = layouts.load_layout(Snapshot(index))
    assert len(found.models) == len(found.points) == len(found.vectors) == 5


def test_an_index_without_models_has_an_empty_map(tmp_path):
    snapshot = Snapshot(Index.create_or_open(tmp_path / "index", make_expert()))
    assert layouts.load_layout(snapshot).points.shape == (0, 2)
    assert snapshot.near(np.ones(8)) == []
