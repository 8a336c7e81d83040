"""Descriptions by a joint expert: each attribute that the weights tell, with what is possible."""

import numpy as np
import pytest

import probex_jax as px
from probex_jax.fitting import ClosedForm
from probex_jax.forest import grow
from probex_jax.sweeps import attribute_views, sweep, sweep_attributes
from probex_jax.sweeps.joint import joint_store
from tests.sweeps.test_joint import SETTINGS, write_zoo

pytestmark = pytest.mark.xdist_group("attributes")


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attributes")
    store = write_zoo(folder)
    stores, _ = attribute_views(store)
    found = sweep_attributes(stores, folder / "w", recipe=ClosedForm(), **SETTINGS)
    grow(folder / "forest", joint_store(stores), found.expert)
    return folder, store, found.expert


def described(folder, model="test3"):
    forest = px.Forest.load(folder / "forest")
    return forest.describe(folder / "Mini" / "test" / model)


def test_each_attribute_has_an_answer_by_its_part(grown):
    folder, store, expert = grown
    answers = {answer.label_set: answer for answer in described(folder).answers}
    assert answers.keys() == {"rate", "kind"}
    view = store.view("rate")
    place = [model.id for model in view.split("test")].index("test3")
    x = {layer: view.matrices(layer, "test", [place]) for layer in expert.layers}
    rate, kind = expert.part("rate"), expert.part("kind")
    low, high = rate.card.task.region(rate.logits(x), 1.0, rate.card.conformal)[0]
    quantity = answers["rate"].quantity
    expected = float(rate.probabilities(x)[0, 0]), low, high
    found = quantity.value, quantity.low, quantity.high
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert answers["rate"].predictions == ()
    assert quantity.coverage == 0.9
    said = {p.label: p.probability for p in answers["kind"].predictions}
    np.testing.assert_allclose([said["a"], said["b"]], kind.probabilities(x)[0], atol=1e-4)
    assert answers["kind"].coverage == 0.9
    assert answers["kind"].expert.coverage == kind.card.figures["test_coverage"]


def test_what_the_weights_do_not_tell_is_named_and_not_answered(grown):
    assert described(grown[0]).untold == ("noise",)


def test_an_expert_of_one_attribute_answers_instead_of_the_joint_one(grown, tmp_path):
    """And one that the weights do not tell has no answer."""
    folder, store, expert = grown
    for name in ("kind", "noise"):
        alone = sweep(
            store.view(name), tmp_path / name, head="none", recipe=ClosedForm(), committee=None,
            **SETTINGS,
        ).expert  # fmt: skip
        grow(folder / "forest", store.view(name), alone)
    found = described(folder)
    assert sorted(answer.label_set for answer in found.answers) == ["kind", "rate"]
    assert found.untold == ("noise",)
    whose = {answer.label_set: answer.expert.hash for answer in found.answers}
    assert whose["rate"] == expert.hash != whose["kind"]


def test_an_expert_that_tells_nothing_has_no_answer(tmp_path):
    store = write_zoo(tmp_path)
    settings = {**SETTINGS, "head": "none", "recipe": ClosedForm(), "committee": None}
    noise = sweep(store.view("noise"), tmp_path / "w", **settings).expert
    assert not noise.card.told
    grow(tmp_path / "forest", store.view("noise"), noise)
    found = described(tmp_path)
    assert (found.answers, found.untold) == ((), ("noise",))


def test_growing_again_changes_nothing(grown):
    folder, store, expert = grown
    stores, _ = attribute_views(store)
    assert grow(folder / "forest", joint_store(stores), expert)[1] == "unchanged"


def test_joint_experts_of_other_attributes_answer_side_by_side(tmp_path):
    """The later one where both know an attribute; it takes the place of one that knows no more."""
    store = write_zoo(tmp_path)
    stores, _ = attribute_views(store)
    grown = tmp_path / "forest"
    for names in (["rate"], ["rate", "noise"], ["kind"], ["rate", "kind"]):
        own = {name: stores[name] for name in names}
        found = sweep_attributes(own, tmp_path / "-".join(names), recipe=ClosedForm(), **SETTINGS)
        grow(grown, joint_store(own), found.expert)
    tree = px.Forest.load(grown).trees["Mini"]
    assert [*tree.entries] == ["rate, noise", "rate, kind"]
    answers = described(tmp_path).answers
    assert [answer.label_set for answer in answers] == ["rate", "kind"]
    assert {answer.expert.hash for answer in answers} == {found.expert.hash}
    assert described(tmp_path).untold == ("noise",)
