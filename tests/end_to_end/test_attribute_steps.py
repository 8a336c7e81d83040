"""`describe --compare` of attributes: what differs from tables, and figures over many models."""

import json
import math

import pytest

from experiments import view_steps
from experiments.attribute_steps import Beside
from experiments.models import Models
from probex_jax import ProbexError
from probex_jax.forest import Answer, Description, Prediction, Quantity, Route
from probex_jax.forest.description import ExpertFacts
from probex_jax.forest.stated_facts import StatedFacts
from tests.search.conftest import write_model


def described(name, steps, optimiser, predicted=800.0):
    """A model of stated steps and optimiser, predicted to have 800 +- 100 steps and adamw."""
    told = {"steps": steps, "optimiser": (optimiser,)}
    said = StatedFacts((), *[""] * 5, False, 9, "F32", 1, attributes=told)
    of_number = ExpertFacts("", (), "", 9, None, {}, "number")
    of_class = ExpertFacts("", (), "", 9, None, {}, "one")
    classes = (Prediction("adamw", "adamw", 0.9), Prediction("sgd", "sgd", 0.1))
    quantity = Quantity(predicted, predicted - 100, predicted + 100, 0.9)
    answers = (
        Answer((), of_number, "steps", quantity),
        Answer(classes, of_class, "optimiser", None, ("adamw",), 0.9),
    )
    return Description(name, name, said, Route("T"), "", answers)


def test_what_lies_outside_comes_first_and_every_attribute_has_figures():
    beside = Beside(most=2)
    steps = {"near": 790.0, "far": 3000.0, "farther": 9000.0, "out": 950.0}
    assert all(beside.add(described(name, number, "adamw")) for name, number in steps.items())
    assert beside.add(described("odd", 800.0, "sgd", predicted=810.0))
    assert not beside.add(ProbexError("cannot be read"))
    outside, figures = beside.tables()
    assert [(row["model"], row["stated"]) for row in outside] == [
        ("farther", "9,000"),
        ("far", "3,000"),
    ]
    of = {row["attribute"]: row for row in figures}
    assert of["steps"]["models"] == of["optimiser"]["models"] == 5
    assert of["steps"]["within"].startswith("0.400")
    assert of["steps"]["median error"] == "150"
    assert float(of["steps"]["R²"]) < 0
    assert of["optimiser"]["right"].startswith("0.800")


def test_predictions_that_are_right_explain_the_variance():
    beside = Beside(most=2)
    for name, number in {"a": 100.0, "b": 800.0, "c": 3000.0}.items():
        beside.add(described(name, number, "adamw", predicted=number))
    outside, figures = beside.tables()
    assert outside == []
    assert math.isclose(float(figures[1]["R²"]), 1)


def test_tables_beside_models_in_a_plain_folder_tell_their_attributes(tmp_path):
    folder = tmp_path / "models"
    for number in range(2):
        write_model(folder / f"m{number}.safetensors", number)
    (folder / "labels.json").write_text(json.dumps({"m0": {"kind": "cat", "tags": ["a", "b"]}}))
    told = {model.id: model.attributes for model in Models([str(folder)], tables=True)}
    assert told == {"m0": {"kind": ("cat",), "tags": ("a", "b")}, "m1": {}}
    assert not any(model.attributes for model in Models([str(folder)]))
    (folder / "labels.json").write_text("[")
    with pytest.raises(ProbexError, match=r"labels\.json"):
        list(Models([str(folder)], tables=True))


def test_a_column_whose_name_has_a_comma_stands_in_quotes():
    assert view_steps.attributes_of({"task": '"a, b",c'}) == ("a, b", "c")
    assert view_steps.attributes_of({"task": '"a,b"'}) == ("a,b",)
