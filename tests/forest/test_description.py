"""What a description says: what is predicted, what files state, and how the two compare."""

import dataclasses
import json
import math

import numpy as np
import pytest
from safetensors.numpy import save_file

from probex_jax import open_model
from probex_jax.forest import Answer, Description, Prediction, Quantity, Route
from probex_jax.forest.description import ExpertFacts
from probex_jax.forest.stated_facts import StatedFacts, read_stated_facts
from probex_jax.model_files import Stated

FACTS = StatedFacts((), "", "", "", "", "", is_lora=False, parameters=9, dtype="F32", layers=1)
WORDS = {"n1": "house wren"}


def description(probabilities, labels=(), chosen="several"):
    said = StatedFacts(tuple(labels), "config.json, id2label", *[""] * 4, False, 9, "F32", 1)
    expert = ExpertFacts("0" * 64, ("a",), "dense", 5, None, {}, chosen)
    predictions = tuple(
        Prediction(label, WORDS.get(label, label), p)
        for label, p in sorted(probabilities.items(), key=lambda one: -one[1])
    )
    return Description("m", "m", said, Route("T"), "", (Answer(predictions, expert),))


def labels(predictions):
    return [p.label for p in predictions]


def test_predicted_is_what_is_likelier_than_not():
    found = description({"a": 0.9, "b": 0.5, "c": 0.499})
    assert labels(found.predicted) == ["a", "b"]
    assert labels(description({"a": 0.4, "b": 0.1}).predicted) == []


def test_of_candidates_the_likeliest_is_predicted():
    assert labels(description({"a": 0.2, "b": 0.3, "c": 0.1}, chosen="one").predicted) == ["b"]


def test_predicted_is_compared_with_stated_class_by_class():
    found = description({"a": 0.9, "b": 0.8, "c": 0.3, "d": 0.1}, ["a", "c", "zebra"]).comparison
    assert (found.n_right, found.n_classes, found.n_known) == (2, 4, 2)
    assert (labels(found.missed), labels(found.extra), found.unknown) == (["c"], ["b"], ("zebra",))
    losses = [-math.log(p) for p in (0.9, 1 - 0.8, 0.3, 1 - 0.1)]
    assert found.surprise == pytest.approx(sum(losses))


def test_of_candidates_the_stated_one_counts():
    found = description({"a": 0.7, "b": 0.2, "c": 0.1}, ["b"], "one").comparison
    assert (found.n_right, labels(found.missed), labels(found.extra)) == (1, ["b"], ["a"])
    assert found.surprise == pytest.approx(-math.log(0.2))
    none = description({"a": 1.0, "b": 0.0}, ["b"], "one").comparison
    assert 0 < none.surprise < 100


def test_certainty_that_is_wrong_is_a_finite_surprise():
    found = description({"a": 1.0, "b": 0.0}, ["b"]).comparison
    assert (found.n_right, found.n_known) == (0, 1)
    assert 10 < found.surprise < 100


@pytest.mark.parametrize("label", ["n1", "N1", "House_Wren", "house  wren", "HOUSE WREN"])
def test_names_and_words_are_compared_without_what_nobody_means(label):
    found = description({"n1": 0.9, "b": 0.1}, [label]).comparison
    assert (found.n_right, found.n_known, found.unknown) == (2, 1, ())


def test_with_nothing_stated_or_predicted_there_is_nothing_to_compare():
    assert description({"a": 0.9}).comparison is None
    assert Description("m", "m", FACTS, Route("")).comparison is None
    assert description({"a": 0.9}).compared_with(["a"]).n_right == 1
    unknown = description({"a": 0.9}, ["x", "y"]).comparison
    assert (unknown.n_known, unknown.unknown) == (0, ("x", "y"))


def test_a_description_is_json():
    found = description({"a": 0.9, "b": 0.2}, ["b"])
    value = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert (value["tree"], value["predicted"]) == ("T", ["a"])
    assert value["predictions"][0] == {"label": "a", "text": "a", "probability": 0.9}
    assert value["comparison"]["missed"][0]["label"] == "b"
    assert value["stated"]["labels"] == ["b"]
    assert Description("m", "m", FACTS, Route("")).as_json()["comparison"] is None


def said_of(folder, config=None, metadata=None, tensors=None):
    tensors = tensors or {"w": np.ones((4, 3), "f4"), "b": np.ones(4, "f2")}
    save_file(tensors, folder / "model.safetensors", metadata)
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "config.json").write_text(text)
    with open_model(folder) as model:
        return read_stated_facts(model)


def test_what_a_file_says_is_quoted_with_its_source(tmp_path):
    config = {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "_name_or_path": "google/vit",
        "id2label": {"0": "wren", "1": "owl", "2": "wren"},
    }
    found = said_of(tmp_path, config)
    assert found == StatedFacts(
        labels=("wren", "owl"),
        source="config.json, id2label",
        base="google/vit",
        architecture="ViTForImageClassification",
        library="transformers",
        pipeline="image-classification",
        is_lora=False,
        parameters=16,
        dtype="F32",
        layers=1,
        said=found.said,
    )
    found = said_of(tmp_path, config, {"dataset_chosen_targets": "['ant']"})
    assert (found.labels, found.source) == (("ant",), "metadata, dataset_chosen_targets")


def test_what_a_lora_says(tmp_path):
    factors = {"q.lora.up.weight": np.ones((6, 2)), "q.lora.down.weight": np.ones((2, 5))}
    found = said_of(tmp_path, metadata={"concept": "red ant"}, tensors=factors)
    assert (found.labels, found.library, found.is_lora) == (("red ant",), "diffusers", True)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert said_of(tmp_path, tensors=factors).library == "peft"


def test_an_adapter_that_is_not_read_is_said_to_be_one(tmp_path):
    adapter = {"q.oft_R": np.ones((8, 2)), "q.oft_S": np.ones((2, 8))}
    found = said_of(tmp_path, tensors=adapter)
    assert (found.layers, found.unread, found.is_lora) == (0, 2, False)
    assert "adapter" in found.kind
    assert any("oft_R" in reason for reason in found.unread_reasons)
    whole = {f"fc{number}.weight": np.ones((8, 8)) for number in range(3)}
    found = said_of(tmp_path, tensors=adapter | whole)
    assert (found.layers, found.unread, "adapter" in found.kind) == (3, 2, False)


@pytest.mark.parametrize(
    "names",
    [
        {"0": "LABEL_0", "1": "LABEL_1"},
        {"0": "0", "1": "1"},
        {"0": "ant", "1": 3},
        {"0": "ant", "1": ["bee"]},
        {"0": "ant", "1": ""},
        {"0": "a" * 201},
        {"0": "a\nb"},
        {"0": "\u202eant"},
        {str(n): f"class {n}" for n in range(10_001)},
        ["ant"],
        "ant",
        None,
        {},
    ],
    ids=range(13),
)
def test_names_that_say_nothing_or_are_hostile_are_silence(tmp_path, names):
    found = said_of(tmp_path, {"id2label": names, "architectures": [{}], "model_type": 3})
    assert (found.labels, found.source, found.architecture, found.library) == ((), "", "", "")


@pytest.mark.parametrize("config", ["{", "[]", "[" * 100_000, '{"architectures": "ViT"}', "\x00"])
def test_a_damaged_config_is_silence(tmp_path, config):
    found = said_of(tmp_path, config, {"dataset_chosen_targets": "__import__('os')"})
    assert (found.labels, found.architecture, found.parameters) == ((), "", 16)


def attribute(chosen="number", quantity=None, probabilities=None, likely=None, name="steps"):
    expert = ExpertFacts("0" * 64, ("a",), "dense", 5, None, {}, chosen)
    likeliest = (probabilities or {}).items()
    predictions = tuple(Prediction(label, WORDS.get(label, label), p) for label, p in likeliest)
    return Answer(predictions, expert, name, quantity, likely, 0.9)


@pytest.mark.parametrize(
    ("stated", "within", "off"), [(500.0, True, 300), (("1e3",), True, -200), (400.0, False, 400)]
)
def test_a_stated_number_lies_in_the_interval_or_not(stated, within, off):
    found = attribute(quantity=Quantity(800.0, 500.0, 1100.0, 0.9)).beside(stated)
    assert (found.attribute, found.within, found.right) == ("steps", within, None)
    assert found.off == pytest.approx(off)


@pytest.mark.parametrize("stated", [("many",), ()])
def test_classes_are_no_number(stated):
    assert attribute(quantity=Quantity(8.0, 5.0, 11.0, 0.9)).beside(stated) is None


@pytest.mark.parametrize(
    ("stated", "likely", "within", "right"),
    [
        (("House  Wren",), ("n1", "b"), True, True),
        (("b",), ("n1", "b"), True, False),
        (("b",), ("n1",), False, False),
        (("n1",), (), False, True),
        (("zebra",), ("n1",), False, False),
        (("n1",), None, None, True),
    ],
)
def test_a_stated_class_is_in_the_set_or_not(stated, likely, within, right):
    found = attribute("one", probabilities={"n1": 0.9, "b": 0.1}, likely=likely).beside(stated)
    assert (found.within, found.right, found.off) == (within, right, None)


def test_of_several_classes_all_stated_ones_count():
    answer = attribute("several", probabilities={"a": 0.9, "b": 0.6}, likely=("a", "b", "c"))
    assert answer.beside(("b", "a")).right
    assert answer.beside(("a",)).within
    assert not answer.beside(("a",)).right
    assert answer.beside(3.0) is None


def test_attributes_are_compared_with_tables_and_then_with_files():
    of_steps = attribute(quantity=Quantity(800.0, 500.0, 1100.0, 0.9))
    of_rate = attribute(quantity=Quantity(0.2, 0.1, 0.3, 0.9), name="learning_rate")
    own = Stated(steps=9, learning_rate=0.25)
    said = dataclasses.replace(FACTS, said=own, attributes={"steps": 700.0, "other": 1.0})
    found = Description("m", "m", said, Route("T"), "", (of_steps, of_rate, attribute(name="x")))
    assert [(one.attribute, one.stated) for one in found.attribute_comparisons] == [
        ("steps", 700.0),
        ("learning_rate", 0.25),
    ]
    shown = found.as_json()
    assert [one["within"] for one in shown["attribute_comparisons"]] == [True, True]
    assert shown["answers"][0]["quantity"]["low"] == 500.0


def test_an_interval_without_an_end_is_valid_json():
    whole = attribute(quantity=Quantity(8.0, -math.inf, math.inf, 0.9))
    found = Description("m", "m", FACTS, Route("T"), "", (whole,), untold=("seed",)).as_json()
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again["answers"][0]["quantity"] == {
        "value": 8.0,
        "low": None,
        "high": None,
        "coverage": 0.9,
    }
    assert again["untold"] == ["seed"]
