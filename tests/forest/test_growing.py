"""A forest grown tree by tree, kept, cut short and damaged."""

import copy
import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from probex_jax import Expert, Forest, ProbexError, open_model, pack, scan
from probex_jax.experts import Calibration, calibrated, committee
from probex_jax.forest import grow as grow_tree
from probex_jax.forest import growing
from probex_jax.integrity import sealed
from tests.conftest import CLASSES
from tests.forest.conftest import (
    CONV,
    LAYER,
    class_expert,
    one_line,
    pack_tree,
    probabilities,
    write_member,
)

# One worker makes the toy trees and the forest.
pytestmark = pytest.mark.xdist_group("forest")


@pytest.fixture
def copied(forest_path, tmp_path):
    """A copy of the forest to be damaged."""
    return Path(shutil.copytree(forest_path, tmp_path / "copied"))


def contents(folder):
    """Bytes and time of every file."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_what_was_grown_is_there_when_it_is_loaded(forest, forest_path):
    assert list(forest.trees) == ["Ant", "Bee", "ToyLoRA"]
    assert forest.trees["Ant"].router.root == "me/ant-root"
    assert forest.trees["Ant"].expert.layers == {LAYER: (12, 16)}
    assert forest.trees["Bee"].expert.layers == {LAYER: (12, 16), CONV: (6, 18)}
    assert sorted(path.name for path in forest_path.iterdir()) == ["forest.json", "trees"]


def test_experts_are_calibrated_on_the_store_they_are_grown_with(forest, trees):
    expected = calibrated(class_expert("Ant", 1), trees[1]["Ant"])
    assert forest.trees["Ant"].expert.hash == expected.hash
    assert forest.trees["Ant"].expert.card.temperature != 1


def test_an_expert_may_read_vectors(tmp_path, trees):
    folder, stores = trees
    about = {"layer": "body.bias", "shape": (6, 1)}
    expert = committee([class_expert("Ant", 1), class_expert("Ant", 1, **about)])
    grow_tree(tmp_path / "f", stores["Ant"], expert)
    forest = Forest.load(tmp_path / "f")
    described = forest.describe(next((folder / "Ant" / "test").iterdir()))
    assert described.tree == "Ant"
    assert described.expert.layers == (LAYER, "body.bias")
    odd = write_member(tmp_path / "odd", 1, CLASSES[:1], of=1, **{"body.bias": np.ones((2, 3))})
    with (
        open_model(odd) as model,
        pytest.raises(ProbexError, match=r"body\.bias is \(2, 3\).* reads \(6, 1\)"),
    ):
        expert.read(model)


def test_a_calibration_that_an_expert_has_is_kept(tmp_path, trees):
    given = class_expert("Ant", 1, calibration={"temperature": 3.0})
    grow_tree(tmp_path / "f", trees[1]["Ant"], given)
    loaded = Forest.load(tmp_path / "f")
    assert loaded.trees["Ant"].expert.card.calibration == Calibration(3.0)
    path = trees[0] / "Ant" / "test" / "m17"
    found = loaded.describe(path)
    with open_model(path) as model:
        x = model.matrix(LAYER)[None]
    np.testing.assert_allclose(
        [probabilities(found)[c] for c in CLASSES],
        1 / (1 + np.exp(-np.asarray(given.logits(x))[0] / 3)),
        rtol=1e-4,
    )
    assert found.expert.calibration_error == {}


def test_growing_by_another_tree_leaves_the_first_as_it_was(tmp_path, trees):
    stores = trees[1]
    tree, done = grow_tree(tmp_path / "f", stores["Ant"], class_expert("Ant", 1), "me/root")
    assert (tree.path, done) == (tmp_path / "f" / "trees" / "Ant", "added")
    before = contents(tmp_path / "f")
    assert grow_tree(tmp_path / "f", stores["Bee"])[1] == "added"
    after = contents(tmp_path / "f")
    assert after.items() >= before.items()
    assert len(after) > len(before)
    again = grow_tree(tmp_path / "f", stores["Ant"], class_expert("Ant", 1), "me/root")
    assert (again[0].router.tree, again[1]) == ("Ant", "unchanged")
    assert contents(tmp_path / "f") == after


@pytest.mark.parametrize("what", ["root", "expert", "store"])
def test_a_tree_that_is_grown_otherwise_is_replaced(tmp_path, trees, what):
    store = trees[1]["Bee"]
    grow_tree(tmp_path / "f", store)
    others = {
        "root": (store, None, "me/b"),
        "expert": (store, class_expert("Bee", 2)),
        "store": (store.limited(5),),
    }
    tree, done = grow_tree(tmp_path / "f", *others[what])
    assert done == "replaced"
    loaded = Forest.load(tmp_path / "f")
    assert list(loaded.trees) == ["Bee"]
    assert loaded.trees["Bee"].about == tree.about
    assert tree.router.root == ("me/b" if what == "root" else "")
    assert (tree.expert is not None) == (what == "expert")
    assert tree.router.n_models == (5 if what == "store" else 12)
    assert sorted(path.name for path in (tmp_path / "f" / "trees").iterdir()) == ["Bee"]


@pytest.mark.parametrize("where", ["save", "calibrated", "write_json", "_embedded"])
def test_growing_that_is_cut_short_leaves_what_was_there(
    tmp_path, toy_lora_store, trees, monkeypatch, where, forest_path
):
    if where == "_embedded":
        store, given = (
            toy_lora_store,
            Expert.load(forest_path / "trees" / "ToyLoRA" / "expert"),
        )
    else:
        store, given = trees[1]["Ant"], class_expert("Ant", 1)
    grow_tree(tmp_path / "f", trees[1]["Bee"])
    before = contents(tmp_path / "f" / "trees" / "Bee")

    def cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(growing, where, cut)
        with pytest.raises(KeyboardInterrupt):
            grow_tree(tmp_path / "f", store, given)
    assert list(Forest.load(tmp_path / "f").trees) == ["Bee"]
    assert grow_tree(tmp_path / "f", store, given)[1] == "added"
    assert sorted(Forest.load(tmp_path / "f").trees) == sorted(["Bee", store.tree])
    assert contents(tmp_path / "f" / "trees" / "Bee") == before
    assert not list((tmp_path / "f" / "trees").glob(".*"))


@pytest.mark.parametrize("where", ["rmtree", "replace"])
def test_replacing_that_is_cut_short_leaves_a_forest_that_can_be_grown(
    tmp_path, trees, monkeypatch, where
):
    """In the middle of removing what was there, its tree.json being the last that is left."""
    store = trees[1]["Ant"]
    folder = grow_tree(tmp_path / "f", store, root="me/old")[0].path
    grow_tree(tmp_path / "f", trees[1]["Bee"])
    real = {"rmtree": shutil.rmtree, "replace": os.replace}[where]

    def cut(path, *rest, **settings):
        if where == "rmtree" and path.exists():
            (path / "arrays.safetensors").unlink()
            raise KeyboardInterrupt
        if where == "replace" and folder in rest:
            raise KeyboardInterrupt
        return real(path, *rest, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(shutil if where == "rmtree" else os, where, cut)
        with pytest.raises(KeyboardInterrupt):
            grow_tree(tmp_path / "f", store, root="me/new")
    assert "Bee" in Forest.load(tmp_path / "f").trees
    grow_tree(tmp_path / "f", store, root="me/new")
    assert Forest.load(tmp_path / "f").trees["Ant"].router.root == "me/new"
    grow_tree(tmp_path / "f", store, root="me/newest")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["Ant", "Bee"]


def test_a_damaged_tree_is_grown_again_and_no_other(copied, trees):
    (copied / "trees" / "Ant" / "arrays.safetensors").write_bytes(b"")
    with pytest.raises(ProbexError, match=r"Ant/arrays\.safetensors: damaged"):
        grow_tree(copied, trees[1]["Bee"])
    assert grow_tree(copied, trees[1]["Ant"])[1] == "replaced"
    assert sorted(Forest.load(copied).trees) == ["Ant", "Bee", "ToyLoRA"]


def test_a_tree_whose_expert_is_gone_is_grown_again(copied, trees):
    shutil.rmtree(copied / "trees" / "Ant" / "expert")
    tree, done = grow_tree(copied, trees[1]["Ant"], class_expert("Ant", 1), "me/ant-root")
    assert (done, tree.expert.card.tree) == ("replaced", "Ant")
    assert (
        grow_tree(copied, trees[1]["Ant"], class_expert("Ant", 1), "me/ant-root")[1] == "unchanged"
    )


def test_between_two_renames_the_old_tree_is_there(copied, trees):
    """A kill there leaves the one that was to be replaced under another name."""
    (copied / "trees" / "Ant").rename(copied / "trees" / ".Ant.old")
    loaded = Forest.load(copied)
    assert sorted(loaded.trees) == ["Ant", "Bee", "ToyLoRA"]
    assert loaded.describe(trees[0] / "Ant" / "test" / "m17").tree == "Ant"
    assert grow_tree(copied, trees[1]["Ant"])[1] == "added"
    assert not (copied / "trees" / ".Ant.old").exists()


def test_what_models_say_of_their_ancestor_is_part_of_what_a_tree_is_grown_from(tmp_path, trees):
    store = trees[1]["Bee"]
    grow_tree(tmp_path / "f", store)
    named = store.limited(12)
    named.models = tuple(dataclasses.replace(model, base="me/b") for model in store.models)
    assert named.hash == store.hash
    tree, done = grow_tree(tmp_path / "f", named)
    assert (done, tree.router.bases) == ("replaced", ("me/b",))


def test_an_expert_is_not_calibrated_on_what_it_may_have_been_trained_on(tmp_path, trees):
    store = trees[1]["Ant"]
    with pytest.raises(ProbexError, match="was trained on another store"):
        grow_tree(tmp_path / "f", store, class_expert("Ant", 1, store_hash="0123"))
    given = class_expert("Ant", 1, store_hash="0123", calibration={"temperature": 2.0})
    assert grow_tree(tmp_path / "f", store, given)[1] == "added"


def test_a_folder_of_other_things_is_left_alone(tmp_path, trees):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ProbexError, match=r"thesis\.tex"):
        grow_tree(tmp_path, trees[1]["Ant"])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", [".hidden", "..", ""])
def test_a_tree_whose_folder_would_not_be_seen_is_refused(tmp_path, trees, name):
    store = copy.copy(trees[1]["Ant"])
    store.tree = name
    with pytest.raises(ProbexError, match="dot"):
        grow_tree(tmp_path / "f", store)
    assert not (tmp_path / "f").exists()


def test_a_tree_s_name_leads_nowhere(tmp_path, trees):
    store = copy.copy(trees[1]["Ant"])
    store.tree = "a/../../out"
    grow_tree(tmp_path / "f", store)
    assert list(Forest.load(tmp_path / "f").trees) == ["a/../../out"]
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_an_expert_of_another_tree_or_other_classes_is_refused(tmp_path, trees):
    other = class_expert("Ant", 1)
    fewer = other.with_card(tree="Bee", classes=("ant",))
    for given, message in ((other, "of tree Ant, the models are of Bee"), (fewer, "1 classes")):
        with pytest.raises(ProbexError, match=message):
            grow_tree(tmp_path / "f", trees[1]["Bee"], given)
    assert Forest.load(tmp_path / "f").trees == {}


def test_a_second_store_of_one_tree_is_refused(tmp_path, forest_path, trees, copied):
    store = pack_tree(tmp_path, "Ant2", 1)
    before = contents(copied)
    with pytest.raises(ProbexError, match=r"Ant2: .* Ant;"):
        grow_tree(copied, store)
    assert contents(copied) == before


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("forest.json", b"{"),
        ("forest.json", b"[]"),
        ("forest.json", b"null"),
        ("forest.json", b"[" * 100_000),
        ("forest.json", b"\xff\xfe"),
        ("forest.json", b'{"format": "probex_jax forest", "version": 2}'),
        ("forest.json", b'{"format": "other", "version": 3}'),
        ("trees/Ant/tree.json", b""),
        ("trees/Ant/tree.json", b"\xff"),
        ("trees/Ant/tree.json", b"[]"),
        ("trees/Ant/tree.json", b"3"),
        ("trees/Ant/tree.json", b"[" * 100_000),
        ("trees/Ant/tree.json", b"{}"),
        ("trees/Ant/tree.json", b'{"version": 1}'),
        ("trees/Ant/arrays.safetensors", b""),
        ("trees/Ant/arrays.safetensors", None),
    ],
    ids=range(16),
)
def test_damaged_files_are_one_line(copied, file, content):
    if content is None:
        (copied / file).unlink()
    else:
        (copied / file).write_bytes(content)
    with pytest.raises(ProbexError, match=re.escape(str(copied))) as error:
        Forest.load(copied)
    assert one_line(error)


@pytest.mark.parametrize("wrong", [None, 3, "x", [], [3], {}, {"x": 1}], ids=repr)
@pytest.mark.parametrize("field", ["router", "arrays_sha256", "experts", "sources"])
def test_a_tree_with_a_wrong_field_is_one_line(copied, field, wrong):
    path = copied / "trees" / "Ant" / "tree.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(sealed(about | {field: wrong})))
    if field in ("experts", "sources") and wrong in ([], {}, ""):
        assert (Forest.load(copied).trees["Ant"].expert is None) == (field == "experts")
        return
    with pytest.raises(ProbexError, match="trees/Ant") as error:
        Forest.load(copied)
    assert one_line(error)


@pytest.mark.parametrize(
    "field",
    [
        "tree",
        "fingerprints",
        "bases",
        "sketch",
        "heads",
        "radii",
        "layer_limits",
        "scales",
        "length",
        "usual_lengths",
        "lengths",
    ],
)
@pytest.mark.parametrize("wrong", [None, 3, [None], [{}]], ids=repr)
def test_a_router_with_a_wrong_field_is_one_line(copied, field, wrong):
    path = copied / "trees" / "Ant" / "tree.json"
    about = json.loads(path.read_text())
    if (field, wrong) == ("scales", [None]):
        pytest.skip("of few models it is not known")
    about["router"][field] = wrong
    path.write_text(json.dumps(sealed(about)))
    with pytest.raises(ProbexError, match="trees/Ant") as error:
        Forest.load(copied)
    assert one_line(error)


def test_no_forest_is_one_line(tmp_path):
    for path in (tmp_path, tmp_path / "nope"):
        with pytest.raises(ProbexError, match="no forest"):
            Forest.load(path)


def test_a_damaged_expert_fails_models_of_its_tree_alone(copied, trees):
    for path in (copied / "trees" / "Ant" / "expert").rglob("*"):
        if path.is_file() and path.name != "_CHECKPOINT_METADATA":
            path.write_bytes(b"x")
    paths = [trees[0] / name / "test" / "m17" for name in ("Ant", "Bee")]
    ant, bee = Forest.load(copied).describe_all(paths)
    assert isinstance(ant, ProbexError)
    assert str(ant).startswith(f"{copied}/trees/Ant/expert: ")
    assert "\n" not in str(ant)
    assert bee.tree == "Bee"


def test_another_expert_in_a_trees_folder_is_refused(copied, trees):
    class_expert("Ant", 1, gain=9.0).save(copied / "trees" / "Ant" / "expert")
    with pytest.raises(ProbexError, match="expert"):
        Forest.load(copied).describe(trees[0] / "Ant" / "test" / "m17")


def test_a_store_without_a_layer_that_the_expert_reads_is_refused(tmp_path, trees):
    store = pack(scan(trees[0] / "Ant"), tmp_path / "s", [CONV]).store
    with pytest.raises(ProbexError, match=LAYER):
        grow_tree(tmp_path / "f", store, class_expert("Ant", 1, calibration={"temperature": 1.0}))
