"""What the page knows: indexes that are empty or damaged, models of one name."""

import shutil
from pathlib import Path

import pytest

from probex_jax.errors import ProbexError
from probex_jax.forest import Forest
from probex_jax.search import Index, find_models
from probex_jax.web import catalogue as module
from probex_jax.web.catalogue import Catalogue
from probex_jax.web.models import Model, of_hub
from tests.forest.conftest import class_expert
from tests.hub import Hub


@pytest.fixture
def index(tmp_path):
    """An index without models."""
    return Index.create_or_open(tmp_path / "index", class_expert("Ant", 1))


def test_an_empty_index_stops_no_description(forest, index, trees):
    catalogue = Catalogue(forest, [index])
    folder = trees[0] / "Ant" / "test" / "m17"
    [found] = catalogue.describe([Model("mine", folder)])
    assert found.description.tree == "Ant"
    assert found.star is None
    assert catalogue.map("Ant") == ""


def test_what_is_wrong_with_one_model_stops_no_other(forest, trees):
    bad, mine = Model("bad", Path(), "twice"), Model("mine", trees[0] / "Ant" / "test" / "m17")
    catalogue = Catalogue(forest)
    for models in ([bad, mine, bad], [bad]):
        for model, found in zip(models, catalogue.describe(models), strict=True):
            assert (found.name, found.error) == (model.name, model.fault)
            assert (found.description is None) == bool(model.fault)
    with pytest.raises(ProbexError, match="twice"):
        catalogue.vector_of(bad)


@pytest.mark.parametrize("kind", ["hang", "to_other_host"])
def test_a_hub_that_misbehaves_is_one_line_soon(forest, tmp_path, monkeypatch, kind):
    hub, model = Hub(tmp_path), of_hub("me/mine", allowed=True)
    monkeypatch.setattr(module, "PATIENCE_S", 0.2)
    with hub.running() as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        hub.misbehave = {"revision/main": kind}
        catalogue = Catalogue(forest)
        [found] = catalogue.describe([model])
        with pytest.raises(ProbexError, match=r"no answer|another server") as caught:
            catalogue.vector_of(model)
    assert found.error == str(caught.value)


def test_a_damaged_expert_is_known_of_at_the_start(forest, index):
    shutil.rmtree(index.path / "expert")
    catalogue = Catalogue(forest, [Index.open(index.path)])
    with pytest.raises(ProbexError, match="expert"):
        catalogue.warm_up()


def test_models_of_one_id_are_not_mixed_up(forest, index, trees, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(trees[0] / "Ant" / "test" / "m17", tmp_path / "zoo" / name / "m17")
        index.add_models(find_models(tmp_path / "zoo" / name))
    with pytest.raises(ProbexError, match="2 models 'm17'"):
        Catalogue(forest, [index]).like_id("Ant", "m17")


def test_a_model_is_found_in_whichever_index_holds_it(forest_path, indexes):
    catalogue = Catalogue(Forest.load(forest_path), indexes)
    tree, hits = catalogue.like_id("", "m17", 3)
    assert (tree, len(hits)) == ("Ant", 3)
    with pytest.raises(ProbexError, match="no model 'nobody'"):
        catalogue.like_id("", "nobody")


def test_without_a_lineage_there_is_no_family_tree(forest):
    catalogue = Catalogue(forest)
    assert catalogue.family_tree == ""
    with pytest.raises(ProbexError, match="--lineage"):
        catalogue.relatives("m1")
