"""Which tree a model is of, and when the answer is that nobody knows."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import probex_jax as px
from probex_jax import ProbexError, open_model
from probex_jax.forest import TreeRouter, route
from probex_jax.forest.reach import length_range, radius_of, resized
from probex_jax.forest.router import check_apart
from tests.forest.conftest import (
    CONV,
    LAYER,
    NOISE,
    labels_of,
    pack_tree,
    root,
    write_member,
    write_tree,
)

# One worker makes the toy trees and the forest.
pytestmark = pytest.mark.xdist_group("forest")


@pytest.fixture(scope="module")
def routers(trees):
    return [TreeRouter.fit(store, f"me/{name}") for name, store in trees[1].items()]


def routed(path, routers):
    with open_model(path) as model:
        return route(model, routers)


def test_every_test_model_is_known_and_none_of_an_unseen_root(trees, routers):
    folder, _ = trees
    for name, known in (("Ant", "Ant"), ("Bee", "Bee"), ("Cow", "")):
        for path in sorted(folder.glob(f"{name}/test/*")):
            found = routed(path, routers)
            assert found.tree == known, path
            assert (found.distance < found.radius) == bool(known)
            assert bool(found.reason) == (not known)
    assert found.nearest in ("Ant", "Bee")
    assert found.nearest in found.reason


def test_a_router_knows_what_the_store_says(trees, routers):
    ant, bee = routers
    assert (ant.tree, ant.root, ant.n_models, ant.is_lora) == ("Ant", "me/Ant", 12, False)
    assert ant.fingerprints == bee.fingerprints == (trees[1]["Ant"].models[0].fingerprint,)
    assert len(ant.radii) == len(ant.centres_CD) == 1
    sketches_ND, _ = ant.sketch.of_store(trees[1]["Ant"], "train")
    np.testing.assert_allclose(ant.centres_CD[0], sketches_ND.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_distance_and_radius_are_those_of_the_nearest_centre(trees, routers):
    path = trees[0] / "Ant" / "test" / "m17"
    with open_model(path) as model:
        sketch_D, _ = routers[0].sketch.of_model(model)
    distance = np.linalg.norm(sketch_D - routers[0].centres_CD[0])
    found = routed(path, routers)
    assert (found.nearest, found.radius) == ("Ant", routers[0].radii[0])
    assert found.distance == pytest.approx(distance)
    assert routed(path, routers[::-1]) == found


def test_distances_are_measured_in_radii(trees, routers):
    path, ant = trees[0] / "Ant" / "test" / "m17", routers[0]
    ant = dataclasses.replace(ant, scales=(None,))
    narrow = dataclasses.replace(ant, tree="Narrow", radii=(0.01,))
    wide = dataclasses.replace(ant, tree="Wide", centres_CD=0 * ant.centres_CD, radii=(1e3,))
    assert routed(path, [narrow, wide]).tree == "Wide"
    both = np.concatenate([narrow.centres_CD, wide.centres_CD])
    limits = 2 * ((None,) * len(ant.sketch.layers),)
    several = {"centres_CD": both, "radii": (0.01, 1e3), "scales": (None, None)}
    router = dataclasses.replace(ant, **several, layer_limits=limits)
    assert routed(path, [router]).radius == 1e3


def test_the_root_itself_and_another_head_are_of_the_tree(tmp_path, routers):
    write_member(tmp_path / "root", 0, of=2, noise=0.0)
    write_member(tmp_path / "many", 0, of=2, n_head=50)
    assert routed(tmp_path / "root", routers).tree == "Bee"
    assert routed(tmp_path / "many", routers).tree == "Bee"


def test_a_model_far_from_its_root_is_unknown(tmp_path, routers):
    write_member(tmp_path / "m", 0, of=1, noise=20 * NOISE)
    found = routed(tmp_path / "m", routers)
    assert (found.tree, found.nearest) == ("", "Ant")


@pytest.mark.parametrize("change", [{"body.2.weight": np.ones((3, 3))}, {"body.bias": np.ones(7)}])
def test_another_architecture_is_unknown(tmp_path, routers, change):
    write_member(tmp_path / "m", 0, of=1, **change)
    found = routed(tmp_path / "m", routers)
    assert dataclasses.asdict(found) == {
        "tree": "",
        "nearest": "",
        "distance": None,
        "radius": None,
        "reason": "no known tree has its architecture",
    }
    assert routed(tmp_path / "m", []) == found


def write_lora(path, seed, base):
    rng = np.random.default_rng(seed)
    shapes = {"q.lora.up.weight": (6, 2), "q.lora.down.weight": (2, 5)}
    tensors = {name: rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    path.mkdir(parents=True)
    metadata = {"concept": "cat"} | ({"base_model": base} if base else {})
    save_file(tensors, path / "pytorch_lora_weights.safetensors", metadata)
    return path


def lora_router(folder, name, bases):
    for number, base in enumerate(bases):
        write_lora(folder / name / "train" / f"m{number}", number, base)
    return TreeRouter.fit(px.pack(px.scan(folder / name), folder / f"{name}-s").store)


def test_loras_are_told_by_the_ancestor_that_they_name(tmp_path):
    named = lora_router(tmp_path, "Named", ["me/sd-1"] * 5)
    assert (named.stated_root, named.bases, named.is_lora) == ("me/sd-1", ("me/sd-1",), True)
    other = lora_router(tmp_path, "Other", ["me/sd-2"] * 5)
    check_apart(named, other)
    trees = [named, other]
    for number, (base, tree) in enumerate(
        [("me/sd-1", "Named"), ("you/SD-1", "Named"), ("/disk/sd-2/", "Other"), ("me/xl", "")]
    ):
        found = routed(write_lora(tmp_path / f"{number}", 50 + number, base), trees)
        assert found.tree == tree, base
    assert "name another base model" in found.reason
    # Which of two it is of, its weights cannot tell; of one it may be.
    silent = write_lora(tmp_path / "silent", 60, "")
    assert "do not name the base model" in routed(silent, trees).reason
    assert routed(silent, [other]).tree == "Other"


def test_loras_of_several_ancestors_have_no_root(tmp_path):
    router = lora_router(tmp_path, "Two", ["me/a", "me/b", "me/b", ""])
    assert (router.stated_root, router.bases, len(router.radii)) == ("", ("me/a", "me/b"), 1)
    for base in ("x/a", "x/b"):
        assert routed(write_lora(tmp_path / base, 9, base), [router]).tree == "Two"


def test_loras_that_change_the_same_layers_of_one_model_cannot_be_told_apart(tmp_path):
    known = lora_router(tmp_path, "Known", ["me/sd-1"] * 3)
    for name, bases in (("Same", ["you/sd-1"] * 3), ("Silent", [""] * 3)):
        with pytest.raises(ProbexError, match=f"tree {name}: .* those of Kno"):
            check_apart(lora_router(tmp_path, name, bases), known)


def test_the_only_base_that_models_agree_on_is_the_stated_root(tmp_path):
    store = pack_tree(tmp_path, "Told", 1, splits=["train"] * 2, metadata={"base_model": "me/b"})
    given = TreeRouter.fit(store, "me/given")
    assert (given.root, given.stated_root) == ("me/given", "me/b")
    assert TreeRouter.fit(store).root == ""
    # Of whole models the weights decide, whatever they name.
    write_member(tmp_path / "m", 5, labels_of(5), of=1, metadata={"base_model": "you/other"})
    assert routed(tmp_path / "m", [TreeRouter.fit(store)]).tree == "Told"


@pytest.mark.parametrize("copies", [1, 3])
def test_one_model_or_equal_ones_reach_as_far_as_unrelated_models_come(tmp_path, copies):
    for number in range(copies):
        write_member(tmp_path / "One" / "train" / f"m{number}", 0, ["ant"], of=1)
    router = TreeRouter.fit(px.pack(px.scan(tmp_path / "One"), tmp_path / "s").store)
    length = np.linalg.norm(router.centres_CD[0])
    assert length < router.radii[0] < 0.95 * 2**0.5 * length
    for seed, of, tree in ((1, 1, "One"), (2, 1, "One"), (3, 2, "")):
        write_member(tmp_path / f"{seed}", seed, labels_of(seed), of=of)
        assert routed(tmp_path / f"{seed}", [router]).tree == tree


def test_a_store_of_two_trees_has_two_centres(tmp_path):
    for of in (1, 2):
        for number in range(6):
            path = tmp_path / "Both" / "train" / f"m{of}{number}"
            write_member(path, 100 * of + number, labels_of(number), of=of)
    router = TreeRouter.fit(px.pack(px.scan(tmp_path / "Both"), tmp_path / "s").store)
    assert len(router.radii) == 2
    for of, tree in ((1, "Both"), (2, "Both"), (3, "")):
        write_member(tmp_path / f"{of}", 0, of=of)
        assert routed(tmp_path / f"{of}", [router]).tree == tree


def test_the_radius_reaches_over_the_farthest_and_over_what_is_usual():
    def radius(distances, limit=np.inf, *, is_lora=False):
        centre = np.full(100, 10.0)  # length 100
        return radius_of(np.asarray(distances), centre, limit, is_lora=is_lora)

    many = np.ones(100)
    # A spread of nothing counts as one of a tenth, 6 of which count.
    assert radius(2 * many) == pytest.approx(2 * np.exp(0.6))
    # Half precision moves weights, too: a fiftieth of their length is no distance.
    assert radius(many) == pytest.approx(2.0)
    assert radius(many, is_lora=True) == pytest.approx(np.exp(0.6))
    assert radius(np.append(many[1:], 9)) == pytest.approx(13.5)
    wide = np.exp(np.array([-1.0, 1.0, -1.0, 1.0]))
    assert radius(wide) == pytest.approx(np.exp(6))
    assert radius(wide, 110) == pytest.approx(110)
    assert radius(wide, is_lora=True) == pytest.approx(np.exp(6))
    assert radius([90.0, 90.0]) == pytest.approx(90 * np.exp(3 / 2**0.5))
    assert radius([90.0, 90.0], 110) == pytest.approx(110)
    assert radius(np.zeros(3)) == pytest.approx(100)
    assert radius(np.zeros(3), 110) == pytest.approx(110)
    assert radius_of(np.zeros(1), np.zeros(100), np.inf) == 1
    # Of few models the spread is a guess: four may differ by a quarter more than they do.
    assert radius(np.full(4, 9.0)) == pytest.approx(9 * np.exp(6 * 0.25))


@pytest.mark.parametrize("count", [2, 3, 6])
def test_few_training_models_make_no_false_unknowns(tmp_path, count):
    write_tree(tmp_path / "Few", 1, ("train",) * count)
    router = TreeRouter.fit(px.pack(px.scan(tmp_path / "Few"), tmp_path / "s").store)
    for seed in range(20):
        path = write_member(tmp_path / f"m{seed}", 500 + seed, labels_of(seed), of=1 + seed % 2)
        assert routed(path, [router]).tree == ("" if seed % 2 else "Few")


def test_half_precision_alone_makes_no_model_unknown(tmp_path):
    """Of a tree that was hardly fine-tuned at all."""
    for number in range(12):
        write_member(tmp_path / "Near" / "train" / f"m{number}", number, of=1, noise=1e-4)
    zoo = tmp_path / "Near"
    (zoo / "labels.json").write_text(json.dumps({f"m{n}": ["ant"] for n in range(12)}))
    router = TreeRouter.fit(px.pack(px.scan(zoo), tmp_path / "s").store)
    with open_model(write_member(tmp_path / "m", 99, of=1, noise=1e-4)) as model:
        weights = {name: model.tensor(name).astype(ml_dtypes.bfloat16) for name in model.tensors}
    save_file(weights, tmp_path / "half.safetensors")
    assert routed(tmp_path / "half.safetensors", [router]).tree == "Near"


def test_a_store_of_heads_alone_tells_no_tree(tmp_path, trees):
    zoo = px.scan(trees[0] / "Ant")
    store = px.pack(zoo, tmp_path / "s", ["classifier.weight"]).store
    with pytest.raises(ProbexError, match="classifier head"):
        TreeRouter.fit(store)


def test_two_stores_of_one_tree_cannot_be_told_apart(tmp_path, trees, routers):
    write_tree(tmp_path / "Ant2", 1, ("train",) * 3)
    again = TreeRouter.fit(px.pack(px.scan(tmp_path / "Ant2"), tmp_path / "s").store)
    with pytest.raises(ProbexError, match=r"tree Ant2: .* those of Ant"):
        check_apart(again, routers[0])
    check_apart(again, routers[1])
    check_apart(*routers)


def test_stores_of_some_layers_are_told_apart_by_those_that_both_have(tmp_path, trees, routers):
    def packed(tree, of, layers):
        zoo = px.scan(write_tree(tmp_path / tree, of, ("train",) * 3))
        return TreeRouter.fit(px.pack(zoo, tmp_path / f"{tree}-s", layers).store)

    again, other = packed("Ant2", 1, [LAYER]), packed("Other", 5, [LAYER])
    for pair in ((again, routers[0]), (routers[0], again)):
        with pytest.raises(ProbexError, match="those of"):
            check_apart(*pair)
    check_apart(again, routers[1])
    check_apart(other, again)
    # Nothing to tell by: nothing is said.
    check_apart(again, packed("Ant3", 1, [CONV]))


def test_a_router_comes_back_from_json(routers):
    for router in routers:
        value = json.loads(json.dumps(router.as_json()))
        again = TreeRouter.from_json(value, router.centres_CD)
        assert dataclasses.replace(again, centres_CD=None) == dataclasses.replace(
            router, centres_CD=None
        )
        with pytest.raises(ValueError, match="centres of shape"):
            TreeRouter.from_json(value, router.centres_CD[:, :-1])


def test_unrelated_roots_are_as_far_as_their_lengths_say():
    """What the toys of these tests rest on."""
    one, other = (root(seed)["body.0.weight"] for seed in (1, 2))
    assert np.sum((one - other) ** 2) == pytest.approx(np.sum(one**2) + np.sum(other**2), rel=0.2)


def test_a_layer_that_all_training_models_have_as_zeros_may_be_nothing_else():
    bounds = length_range(np.zeros(5), is_lora=False)
    assert resized(0.0, bounds) == ""
    assert "zeros" in resized(1.0, bounds)
