"""Several experts of one tree, each of another label set."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import probex_jax as px
from probex_jax import Forest, ProbexError
from probex_jax.forest import grow as grow_tree
from probex_jax.integrity import sealed
from probex_jax.reports import model_card
from tests.forest.conftest import (
    CONV,
    class_expert,
    labels_of,
    pack_tree,
    probabilities,
    write_member,
)

# One worker makes the toy trees and the forest.
pytestmark = pytest.mark.xdist_group("forest")

COLOURS = ("blue", "green", "red")


def colour(seed):
    return COLOURS[seed % 3]


def colour_expert(tree, **card):
    """An expert of CONV that always says blue, with .5, green with .3 and red with .2."""
    encoder = {
        "weight": np.zeros([6, 18, 3], "f4"),
        "bias": np.log([0.5, 0.3, 0.2]).astype("f4"),
    }
    whole = {
        "encoder": {"name": "dense"},
        "head": "none",
        "layer": CONV,
        "shape": [6, 18],
        "tree": tree,
        "classes": list(COLOURS),
        "task": {"name": "one_class"},
        "calibration": {"temperature": 1.0},
    }
    return px.Expert({"params": {"encoder": encoder}}, whole | card)


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """A store of other models of Ant, which have colours."""
    folder = tmp_path_factory.mktemp("coloured")
    for number in range(9):
        seed, split = 700 + number, "train" if number < 6 else "test"
        metadata = {"dataset_chosen_targets": str([colour(seed)])}
        write_member(folder / "Hue" / split / f"m{number}", seed, of=1, metadata=metadata)
    return px.pack(px.scan(folder / "Hue"), folder / "store").store


@pytest.fixture
def path(tmp_path, trees, coloured):
    """A forest of Ant with two experts, and of Bee."""
    grow_tree(tmp_path / "f", trees[1]["Ant"], class_expert("Ant", 1), "me/ant-root")
    grow_tree(tmp_path / "f", trees[1]["Bee"], class_expert("Bee", 2))
    tree, done = grow_tree(tmp_path / "f", coloured, colour_expert("Hue"))
    assert (tree.router.tree, done) == ("Ant", "added")
    return tmp_path / "f"


def test_another_label_set_of_a_tree_joins_it(path, trees):
    forest = Forest.load(path)
    assert list(forest.trees) == ["Ant", "Bee"]
    ant = forest.trees["Ant"]
    assert list(ant.experts) == ["", "Hue"]
    # What recognises the tree is that of the store with more models.
    assert (ant.router.n_models, ant.router.root) == (12, "me/ant-root")
    found = forest.describe(trees[0] / "Ant" / "test" / "m17")
    classes, colours = found.answers
    alone = Path(path.parent / "alone")
    grow_tree(alone, trees[1]["Ant"], class_expert("Ant", 1), "me/ant-root")
    expected = Forest.load(alone).describe(trees[0] / "Ant" / "test" / "m17")
    assert classes.predictions == expected.predictions
    assert (colours.label_set, colours.title, classes.title) == ("Hue", "Hue", classes.title)
    assert [p.label for p in colours.predictions] == list(COLOURS)
    assert [p.probability for p in colours.predictions] == pytest.approx([0.5, 0.3, 0.2])
    assert [p.label for p in colours.predicted] == ["blue"]
    assert {p.label for p in found.predicted} == {"blue", *labels_of(117)}
    assert forest.describe(trees[0] / "Bee" / "test" / "m17").answers[1:] == ()
    # By whichever name its models are known.
    with px.open_model(trees[0] / "Ant" / "test" / "m17") as model:
        forest.check_tree(model, "Hue")
        with pytest.raises(ProbexError, match="Bee"):
            forest.check_tree(model, "Bee")


def test_the_card_has_a_table_for_each_label_set(path, trees):
    found = Forest.load(path).describe(trees[0] / "Ant" / "test" / "m17")
    card = model_card(found)
    assert card.index("### `ant") < card.index("### `Hue`") < card.index("| `blue`")
    assert "add up to one" in card
    assert "What the weights cannot tell" in card
    value = json.loads(json.dumps(found.as_json()))
    assert [answer["title"] for answer in value["answers"]][1] == "Hue"
    assert value["answers"][1]["predicted"] == ["blue"]


def test_the_same_again_changes_nothing_and_another_expert_replaces_its_like(path, trees, coloured):
    assert grow_tree(path, coloured, colour_expert("Hue"))[1] == "unchanged"
    ant = class_expert("Ant", 1)
    assert grow_tree(path, trees[1]["Ant"], ant, "me/ant-root")[1] == "unchanged"
    warmer = colour_expert("Hue", calibration={"temperature": 2.0})
    tree, done = grow_tree(path, coloured, warmer)
    assert (done, list(tree.experts)) == ("replaced", ["", "Hue"])
    assert tree.experts["Hue"].card.temperature == 2.0
    other = class_expert("Ant", 1, gain=9.0)
    tree, done = grow_tree(path, trees[1]["Ant"], other, "me/ant-root")
    assert (done, list(tree.experts)) == ("replaced", ["", "Hue"])
    kept = dict(tree.experts)
    assert kept["Hue"].hash == warmer.hash
    assert kept[""].card.calibration is not None
    assert tree.router.n_models == 12


def test_classes_that_a_tree_has_an_expert_for_are_refused_under_another_name(path, tmp_path):
    store = pack_tree(tmp_path, "Ant2", 1)
    with pytest.raises(ProbexError, match=r"Ant2: .* Ant;"):
        grow_tree(path, store, class_expert("Ant2", 1))
    tree, done = grow_tree(path, store, class_expert("Ant2", 1), label_set="again")
    assert (tree.router.tree, done, list(tree.experts)) == ("Ant", "added", ["", "Hue", "again"])


def test_label_sets_of_one_store_are_told_by_their_names_or_classes(tmp_path, trees, coloured):
    store = trees[1]["Ant"]
    grow_tree(tmp_path / "f", store, class_expert("Ant", 1), label_set="kind")
    tree, done = grow_tree(tmp_path / "f", store, class_expert("Ant", 1, gain=9.0), label_set="two")
    assert (done, list(tree.experts)) == ("added", ["kind", "two"])
    said = class_expert("Ant", 1, label_set="three")
    assert list(grow_tree(tmp_path / "f", store, said)[0].experts) == ["kind", "two", "three"]
    # Nobody names them: other classes are another label set.
    coloured.tree, before = "Ant", coloured.tree
    try:
        tree, done = grow_tree(tmp_path / "f", coloured, colour_expert("Ant"))
    finally:
        coloured.tree = before
    assert (done, list(tree.experts)[-1]) == ("added", "blue, green, red")


def test_models_of_another_tree_bring_no_expert(path, tmp_path):
    store = pack_tree(tmp_path, "Cow", 3)
    tree, done = grow_tree(path, store, class_expert("Cow", 3))
    assert (tree.router.tree, done, list(tree.experts)) == ("Cow", "added", [""])


def test_an_expert_that_is_gone_is_one_line_and_is_grown_again(path, trees, coloured):
    shutil.rmtree(path / "trees" / "Ant" / "expert-1")
    with pytest.raises(ProbexError, match="expert-1"):
        Forest.load(path).describe(trees[0] / "Ant" / "test" / "m17")
    tree, done = grow_tree(path, coloured, colour_expert("Hue"))
    assert (done, set(tree.experts)) == ("replaced", {"", "Hue"})
    found = Forest.load(path).describe(trees[0] / "Ant" / "test" / "m17")
    assert len(found.answers) == 2
    assert probabilities(found).keys() >= {"ant"}


@pytest.mark.parametrize("wrong", ["../1", ".1", ""])
def test_no_expert_is_read_from_elsewhere(path, wrong):
    about = path / "trees" / "Ant" / "tree.json"
    value = json.loads(about.read_text())
    value["experts"][1]["folder"] = wrong
    about.write_text(json.dumps(sealed(value)))
    with pytest.raises(ProbexError, match="damaged"):
        Forest.load(path)
