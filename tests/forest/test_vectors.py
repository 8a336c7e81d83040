"""Vectors that an expert reads are checked for their size, but may vanish."""

import numpy as np
import pytest

import probex_jax as px
from probex_jax import Forest
from probex_jax.experts import committee
from probex_jax.forest import grow as grow_tree
from tests.forest.conftest import class_expert, write_member, write_tree

BIAS = "body.bias"


@pytest.mark.parametrize(("factor", "tree"), [(1.0, "Ant"), (0.0, "Ant"), (1e20, "")])
def test_a_vector_that_the_expert_reads_may_vanish_but_not_be_huge(tmp_path, factor, tree):
    store = px.pack(px.scan(write_tree(tmp_path / "Ant", 1)), tmp_path / "store").store
    experts = [class_expert("Ant", 1), class_expert("Ant", 1, layer=BIAS, shape=(6, 1))]
    grow_tree(tmp_path / "forest", store, committee(experts))
    bias = factor * np.random.default_rng(0).normal(size=6)
    write_member(tmp_path / "m", 0, of=1, **{BIAS: bias})
    found = Forest.load(tmp_path / "forest").describe(tmp_path / "m")
    assert found.tree == tree
    assert tree or BIAS in found.route.reason
