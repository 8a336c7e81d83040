import numpy as np
import pytest

from probex_jax.errors import ProbexError
from probex_jax.reports import map_of_models


def test_a_map_is_drawn_with_odd_labels(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(12, 5))
    labels = ["red cat", "red cat", "blue dog", "$\\nothing$ cat", "one", " "] * 2
    map_of_models(vectors, labels, tmp_path / "map.png", ringed={"blue dog"})
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_too_few_models(tmp_path):
    with pytest.raises(ProbexError, match="a map of 3 models: expected four or more"):
        map_of_models(np.ones([3, 2]), ["a"] * 3, tmp_path / "map.png")
