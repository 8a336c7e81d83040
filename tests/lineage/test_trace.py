"""Family trees of planted models, whose edges are known."""

import numpy as np
import pytest

from tests.lineage import copying
from tests.lineage.planting import (
    child,
    edges,
    fresh,
    increments,
    kept,
    mixed,
    origins,
    permuted,
    plus,
    traced,
)


def planted(count, seed):
    """A random tree: increments at right angles, of sizes that differ thirtyfold; its edges."""
    rng = np.random.default_rng(seed)
    models, parents = [fresh(seed)], {}
    for number, increment in enumerate(increments(models[0], count - 1, seed), 1):
        parent = int(rng.integers(number))
        models.append(plus(models[parent], increment, 0.2 * 30 ** -rng.uniform()))
        parents[f"m{number}"] = {f"m{parent}"}
    return {f"m{number}": model for number, model in enumerate(models)}, parents


@pytest.mark.parametrize("seed", [1, 2])
def test_a_random_tree_is_recovered_with_its_directions(tmp_path, seed):
    models, parents = planted(40, seed)
    found = traced(kept(models, tmp_path))
    assert edges(found) == parents
    assert origins(found)["m0"] == "root"
    assert {*origins(found).values()} == {"root", "derived"}
    assert max(edge.p_value for edge in found.edges) < 1e-3
    assert all(0 < edge.confidence <= 1 for edge in found.edges)
    assert not found.copies
    assert not found.failed
    for edge in found.edges:
        a, b = (
            np.concatenate([x.ravel() for x in models[id].values()])
            for id in (edge.parent, edge.child)
        )
        length = np.linalg.norm(a)
        assert edge.distance == pytest.approx(np.linalg.norm(a - b) / length, rel=0.01)


def test_the_order_of_paths_does_not_matter(tmp_path):
    models, _ = planted(16, 3)
    models["merge"] = mixed([models["m1"], models["m2"]], [0.4, 0.6])
    models["copy"] = models["m3"]
    paths = kept(models, tmp_path)
    paths["copy"] = copying.saved(
        copying.cast(models["copy"], copying.BF16), tmp_path / "copy.safetensors"
    )
    first = traced(paths)
    order = np.random.default_rng(0).permutation([*paths])
    again = traced({id: paths[id] for id in order})
    assert edges(again) == edges(first)
    assert origins(again) == origins(first)
    assert {frozenset(group.models) for group in again.copies} == {frozenset({"m3", "copy"})}
    figures = [
        {(e.parent, e.child): (e.kind, e.p_value, e.distance, e.confidence) for e in found.edges}
        for found in (first, again)
    ]
    for arc, (kind, *values) in figures[0].items():
        other, *others = figures[1][arc]
        assert kind == other
        assert values == pytest.approx(others, rel=0.05, abs=1e-3)


def test_a_hub_of_many_children(tmp_path):
    root = fresh(0)
    models = {"root": root} | {f"c{k}": child(root, 0.1, k) for k in range(60)}
    found = traced(kept(models, tmp_path))
    assert edges(found) == {f"c{k}": {"root"} for k in range(60)}
    assert origins(found)["root"] == "root"


def brood(count=4, share=0.15):
    root = fresh(0)
    return {"root": root} | {f"c{k}": child(root, share, k) for k in range(count)}


@pytest.mark.parametrize("dtype", ["f4", copying.BF16])
def test_merges_have_their_parents_and_are_none_of_them(tmp_path, dtype):
    models = brood(6)
    models["linear"] = mixed([models["c0"], models["c1"]], [0.3, 0.7])
    models["of three"] = mixed([models["c2"], models["c3"], models["c4"]], [0.5, 0.3, 0.2])
    models["arithmetic"] = mixed([models["root"], models["c1"], models["c5"]], [-0.6, 0.8, 0.8])
    models["even"] = mixed([models["c2"], models["c3"], models["c5"]], [1 / 3] * 3)
    models["tuned"] = child(models["linear"], 0.05, 77)
    models["evenly tuned"] = child(models["even"], 0.05, 78)
    found = traced(kept(models, tmp_path, dtype))
    assert edges(found) == {f"c{k}": {"root"} for k in range(6)} | {
        "linear": {"c0", "c1"},
        "of three": {"c2", "c3", "c4"},
        "arithmetic": {"root", "c1", "c5"},
        "even": {"c2", "c3", "c5"},
        "tuned": {"linear"},
        "evenly tuned": {"even"},
    }
    merges = [edge for edge in found.edges if edge.kind == "merge"]
    assert {edge.child for edge in merges} == {"linear", "of three", "even", "arithmetic"}
    shares = {(edge.parent, edge.child): edge.coefficient for edge in merges}
    assert shares["c0", "linear"] == pytest.approx(0.3, abs=0.02)
    assert shares["c4", "of three"] == pytest.approx(0.2, abs=0.02)
    assert shares["root", "arithmetic"] == pytest.approx(-0.6, abs=0.02)
    assert all(edge.error is not None and edge.error < 0.1 for edge in merges)
    assert all(edge.coefficient is None for edge in found.edges if edge.kind != "merge")


def test_a_weak_change_is_turned_by_the_models_around(tmp_path):
    """The child is a little shorter than its parent, against the rule; others tell them apart."""
    models = brood(5)
    parent = models["c0"]
    weak = {}
    for name, change in increments(parent, 1, 5)[0].items():
        value = parent[name]
        length = 0.02 * np.linalg.norm(value)
        weak[name] = value + length * change - 0.65 * length**2 / np.sum(value**2) * value
    models["weak"] = parent | weak
    models["below"] = child(parent, 0.1, 50)
    found = traced(kept(models, tmp_path))
    expected = {f"c{k}": {"root"} for k in range(5)} | {"weak": {"c0"}, "below": {"c0"}}
    assert edges(found) == expected


def test_a_permuted_copy_hangs_on_its_original(tmp_path):
    models = brood(4)
    models["permuted"] = permuted(models["c2"])
    models["stranger"] = fresh(9)
    found = traced(kept(models, tmp_path))
    assert edges(found) == {f"c{k}": {"root"} for k in range(4)} | {"permuted": {"c2"}}
    (edge,) = found.parents("permuted")
    assert edge.kind == "permuted"
    assert edge.p_value < 1e-3
    assert edge.distance < 0.01
    assert origins(found)["stranger"] == "alone"


def test_kin_whose_parent_is_not_there(tmp_path):
    models = brood(6)
    del models["root"]
    found = traced(kept(models, tmp_path))
    assert found.edges == ()
    assert {*origins(found).values()} == {"unknown parent"}


def test_children_of_one_that_is_there_and_of_one_that_is_not(tmp_path):
    models = brood(5)
    absent = child(models["root"], 0.15, 60)
    models |= {f"g{k}": child(absent, 0.15, 70 + k) for k in range(4)}
    found = edges(traced(kept(models, tmp_path)))
    for k in range(5):
        assert found[f"c{k}"] == {"root"}
    # Nearest of those that are there is the root, an ancestor.
    for k in range(4):
        assert found.get(f"g{k}", {"root"}) == {"root"}


def test_two_families_and_strangers_of_one_architecture(tmp_path):
    models = {}
    for seed, name in enumerate("ab"):
        root = fresh(seed)
        models[name] = root
        models |= {f"{name}{k}": child(root, 0.1, 10 * seed + k) for k in range(3)}
    models |= {f"alone{k}": fresh(20 + k) for k in range(2)}
    found = traced(kept(models, tmp_path))
    assert edges(found) == {f"{name}{k}": {name} for name in "ab" for k in range(3)}
    assert origins(found)["alone0"] == origins(found)["alone1"] == "alone"


def test_pruned_and_rounded_children(tmp_path):
    models = brood(3)
    models["pruned"] = {
        n: np.where(np.abs(x) < np.median(np.abs(x)), 0, x) if x.ndim > 1 else x
        for n, x in models["c1"].items()
    }
    models["rounded"] = copying.in_int8(models["c2"])
    models["coarse"] = {
        n: np.round(x / (s := np.abs(x).max(-1, keepdims=True) / 7)) * s if x.ndim > 1 else x
        for n, x in models["root"].items()
    }
    found = traced(kept(models, tmp_path))
    kinds = {(edge.parent, edge.child): edge.kind for edge in found.edges}
    assert edges(found) == {f"c{k}": {"root"} for k in range(3)} | {
        "pruned": {"c1"},
        "rounded": {"c2"},
        "coarse": {"root"},
    }
    assert kinds["c1", "pruned"] == "pruned"
    assert kinds["c2", "rounded"] == kinds["root", "coarse"] == "quantised"


def test_a_root_is_no_child_of_a_merge_near_it(tmp_path):
    """A merge of three is nearer to the root than any of its parents is."""
    models = brood(5)
    models["merge"] = mixed([models["c0"], models["c1"], models["c2"]], [1 / 3] * 3)
    found = traced(kept(models, tmp_path))
    expected = {f"c{k}": {"root"} for k in range(5)} | {"merge": {"c0", "c1", "c2"}}
    assert edges(found) == expected
    assert origins(found)["root"] == "root"
