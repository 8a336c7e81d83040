import numpy as np
import pytest

from probex_jax.errors import ProbexError
from probex_jax.reports import map_of_models, maps


def test_a_map_is_drawn_with_odd_labels(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(12, 5))
    labels = ["red cat", "red cat", "blue dog", "$\\nothing$ cat", "one", " "] * 2
    map_of_models(vectors, labels, tmp_path / "map.png", ringed={"blue dog"})
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_too_few_models(tmp_path):
    with pytest.raises(ProbexError, match="a map of 3 models: expected four or more"):
        map_of_models(np.ones([3, 2]), ["a"] * 3, tmp_path / "map.png")


def test_names_do_not_lie_on_one_another(tmp_path, monkeypatch):
    drawn = []

    def spread_out(names):
        maps_thin_out(names)
        drawn.extend(names)

    maps_thin_out = maps._thin_out
    monkeypatch.setattr(maps, "_thin_out", spread_out)
    vectors = np.random.default_rng(0).normal(size=(60, 5))
    map_of_models(vectors, [f"label number {n}" for n in range(60)], tmp_path / "map.png")
    boxes = [name.get_window_extent() for name in drawn if name.get_visible()]
    assert 5 < len(boxes) < len(drawn) == 60
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])
