"""Model cards: facts alone in the front matter, and text of strangers that means nothing."""

import dataclasses
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from probex_jax.forest import (
    Answer,
    Description,
    Neighbour,
    Prediction,
    Quantity,
    RankedTags,
    Relatives,
    Route,
)
from probex_jax.forest.description import ExpertFacts
from probex_jax.forest.stated_facts import StatedFacts
from probex_jax.lineage import Edge
from probex_jax.model_files import Stated
from probex_jax.reports import model_card

EXPERT = ExpertFacts(
    hash="0123456789abcdef" * 4,
    layers=("a.weight", "b.weight"),
    encoder="dense",
    n_train=70,
    accuracy={"value": 0.91, "low": 0.88, "high": 0.94, "n_models": 20},
    calibration_error={"val": 0.012, "test": 0.021},
    chosen="several",
)
SECTIONS = [
    "## What it was trained on: predicted from the weights",
    "## What its own files say",
    "## Nearest documented models",
    "## The expert",
    "## What the weights cannot tell",
]


def said(labels=(), **changes):
    fields = {
        "labels": tuple(labels),
        "source": "config.json, id2label" if labels else "",
        "base": "",
        "architecture": "ViTForImageClassification",
        "library": "transformers",
        "pipeline": "image-classification",
        "is_lora": False,
        "parameters": 1234567,
        "dtype": "F32",
        "layers": 12,
    }
    return StatedFacts(**fields | changes)


def of_accuracy(**accuracy):
    """An expert that was tested so."""
    known = {"value": 0.871, "low": 0.84, "high": 0.9, "n_models": 20}
    return dataclasses.replace(EXPERT, accuracy=known | accuracy)


def described(
    probabilities=None, stated=None, *, expert=EXPERT, tree="Ant", label_set="", **changes
):
    probabilities = (
        {"ant": 0.97, "bee": 0.6, "cat": 0.2} if probabilities is None else probabilities
    )
    predictions = tuple(Prediction(label, label, p) for label, p in probabilities.items())
    route = Route(tree, tree, 1.5, 4.0)
    answers = () if expert is None else (Answer(predictions, expert, label_set),)
    fields = {"root": "me/ant-root", "answers": answers} | changes
    return Description("m1", "m1.safetensors", stated or said(), route, **fields)


def test_the_card_of_an_adapter_that_was_not_read_says_so():
    reason = "part of an adapter ('….lora_a'), which is not read"
    facts = said(layers=0, unread=2, unread_reasons=(reason,))
    card = model_card(described({}, facts, tree=""))
    assert "n adapter that could not be read" in card
    assert "lora\\_a" in card
    assert "whole model" not in card


def split(card):
    """Front matter as YAML reads it, and the lines of the body."""
    first, matter, body = re.split(r"^---$", card, flags=re.MULTILINE)
    assert first == ""
    return yaml.safe_load(matter), body.split("\n")


def headings(lines):
    return [line for line in lines if line.startswith("#")]


def test_front_matter_states_what_files_show_and_the_tree():
    matter, lines = split(model_card(described()))
    assert matter == {
        "base_model": "me/ant-root",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "tags": ["probex_jax", "predicted-from-weights", "model-tree:Ant"],
    }
    assert headings(lines) == ["# `m1`", *SECTIONS[:2], *SECTIONS[3:]]


@pytest.mark.parametrize("names", [(), ("red <b>fox</b>", "snow")])
def test_tags_that_are_shown_are_listed_with_their_promise(names):
    tags = RankedTags(tuple(Prediction(name, name, 0.625) for name in names), 1234, 0.2)
    answers = (dataclasses.replace(described().answers[0], tags=tags),)
    _, lines = split(model_card(described(answers=answers)))
    (line,) = (line for line in lines if line.startswith("Tags"))
    assert all(f"`{name}` 0.625" in line for name in names)
    assert ("none" in line) == (not names)
    assert "1,234" in line
    assert "0.2" in line


def test_the_hub_s_own_reader_reads_a_card():
    card = ModelCard(model_card(described(stated=said(["ant", "zebra"], is_lora=True))))
    assert card.data.base_model == "me/ant-root"
    assert card.data.base_model_relation == "adapter"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.license is None
    assert card.data.datasets is None
    assert card.data.eval_results is None


@pytest.mark.parametrize(
    "root",
    [
        "",
        "vit",
        "/disk/models/vit",
        "a/b/c",
        "../../x",
        "a b/c",
        "a/b\n",
        "me/x: y",
        "-a/b",
        "a" * 200,
    ],
)
def test_a_root_that_is_no_hub_id_is_no_base_model(root):
    matter, lines = split(model_card(described(root=root)))
    assert "base_model" not in matter
    assert "base_model_relation" not in matter
    assert ("- Its root: unknown" in lines) == (not root)


def test_nothing_predicted_or_stated_by_strangers_is_a_fact():
    hostile = said(["ant"], base="evil/base", library="", pipeline="")
    matter, _ = split(model_card(described(stated=hostile)))
    assert matter.keys() == {"base_model", "base_model_relation", "tags"}
    assert matter["base_model"] == "me/ant-root"


def test_predictions_stand_with_their_probabilities():
    card = model_card(described({"ant": 0.97, "bee": 0.6, "cat": 0.2, "dog": 0.004}))
    assert "| `ant` | 0.970       |" in card
    assert "| `bee` | 0.600       |" in card
    assert "`cat` 0.200" in card
    assert "`0123456789abcdef` of tree `Ant` (`dense`), trained on 70 of its models" in card
    assert "`a.weight`, `b.weight`." in card
    assert "0.910 of their classes (95 % interval 0.880 to 0.940)" in card
    assert "calibration error 0.021, test" in card
    assert "centre of `Ant`: 1.5 (radius of the tree: 4)" in card
    assert "1,234,567 parameters in 12 layers, F32" in card


def test_certainty_is_never_written_as_one_or_nothing():
    card = model_card(described({"ant": 1.0, "bee": 0.99951, "cat": 0.9994, "dog": 0.5}))
    assert card.count("> 0.999") == 2
    assert "0.999 " in card
    assert "1.000" not in card
    compared = model_card(described({"ant": 1.0, "bee": 1e-9}, said(["bee"])))
    assert "not predicted: `bee` (< 0.001)" in compared


def test_no_class_may_be_likely():
    card = model_card(described({"ant": 0.3, "bee": 0.1}))
    assert "`ant` 0.300, `bee` 0.100." in card
    assert "| `ant`" not in card


def test_of_candidates_the_five_likeliest_are_shown():
    probabilities = {f"c{n}": 0.4 / (n + 1) for n in range(9)}
    one = ExpertFacts(**vars(EXPERT) | {"chosen": "one"})
    card = model_card(described(probabilities, expert=one))
    assert card.count("| `c") == 5
    assert "One of the 9 classes" in card
    assert "`c5` 0" not in card
    assert "0.910 of them" in card


def test_an_unknown_tree_is_said_with_its_reason_and_nothing_is_predicted():
    route = Route("", "Ant", 8.0, 4.0, "3 % farther from Ant than its models can be")
    matter, lines = split(model_card(Description("m", "m", said(["ant"]), route)))
    assert matter["tags"] == ["probex_jax", "predicted-from-weights"]
    assert "base_model" not in matter
    text = "\n".join(lines)
    assert "Model Tree: **unknown**: 3 % farther from Ant than its models can be" in text
    assert "Distance from the centre of `Ant`: 8" in text
    assert "Nothing is predicted" in text
    assert "config.json, id2label: `ant`." in text
    assert headings(lines) == ["# `m`", *SECTIONS[:2]]


def test_without_an_expert_nothing_is_predicted():
    card = model_card(described({}, expert=None))
    assert "Nothing is predicted" in card
    assert SECTIONS[3] not in card


def test_an_expert_that_was_never_tested_claims_nothing():
    bare = ExpertFacts(**vars(EXPERT) | {"accuracy": None, "calibration_error": {}})
    card = model_card(described(expert=bare))
    assert SECTIONS[3] in card
    assert "interval" not in card
    assert "calibrated" not in card


def test_what_files_say_is_compared():
    card = model_card(described(stated=said(["ant", "cat", "zebra"])))
    assert "config.json, id2label: `ant`, `cat`, `zebra`." in card
    assert "1 of 3 classes" in card
    assert "not predicted: `cat` (0.200)." in card
    assert "not stated: `bee` (0.600)." in card
    assert "unknown to the expert: `zebra`." in card
    assert "of 3 classes." not in model_card(described(stated=said(["zebra"])))


def test_what_else_files_say_is_quoted_with_where_it_stands():
    own = Stated(
        title="Cats",
        tags={"cat": 1200, "sofa": 5} | {f"tag {n}": 1 for n in range(30)},
        folders={"cats": 20, "x": 0},
        learning_rate=1e-4,
        steps=12000,
        sources={"tags": "metadata, ss_tag_frequency", "title": "metadata, modelspec.title"},
    )
    card = model_card(described(stated=said(said=own)))
    assert "They do not say what it was trained on." in card
    assert "- Title: `Cats` (metadata, modelspec.title)\n" in card
    assert "`cat` 1,200, `sofa` 5, `tag 0` 1" in card
    assert "and 12 more (metadata, ss_tag_frequency)\n" in card
    assert "`cats` 20, `x`\n" in card
    assert ": 0.0001\n" in card
    assert ": 12,000\n" in card
    matter, _ = split(card)
    assert "Cats" not in str(matter)


def test_neighbours_are_a_table():
    near = (Neighbour("you/m2", 0.987, "ant, bee", "/m2"), Neighbour("m|3", 0.5, "", "/m3"))
    card = model_card(described(neighbours=near))
    assert re.search(r"\| `you/m2` +\| 0\.987 +\| `ant, bee` +\|", card)
    assert re.search(r"\| `m\\\|3` +\| 0\.500 +\| `\?` +\|", card)
    assert SECTIONS[2] in model_card(described(neighbours=()))
    assert SECTIONS[2] not in model_card(described())


HOSTILE = [
    "a\n---\nlicense: mit\n---\n# Owned",
    "---",
    "\r\n## Owned\r\n",
    "`x` <script>alert(1)</script>",
    "``` \n# Owned\n```",
    "[click](https://evil.example) ![x](y)",
    "a | b \\| c | d",
    "- x\n* y\n1. z",
    "\x1b[31mred\x07\x00",
    "\u202etxt.exe\u2066\u200b\ufeff",
    "\u2028# Owned\u2029---\x85# Owned",
    "license: mit",
    "{'a': !!python/object:os.system x}",
    "x" * 10**5,
    "#" * 10**5,
    "\\`",
    " ",
    "\ud800",
    "<!-- ",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("known", [True, False])
def test_text_of_strangers_cannot_break_out(text, known):
    """Wherever it stands: id, tree, root, labels, words, layers, ancestor, reason, neighbours."""
    expert = ExpertFacts(**vars(EXPERT) | {"layers": (text,)})
    predictions = (Prediction(text, text, 0.9), Prediction("b", text, 0.2))
    route = Route(text, text, 1.0, 2.0) if known else Route("", text, 1.0, 2.0, text)
    own = Stated(
        tags={text: 3, "b": 10**9}, folders={text: 0}, triggers=(text,) * 60, title=text,
        description=text, licence=text, sources={"tags": "metadata, ss_tag_frequency"},
    )  # fmt: skip
    stated = said([text, text + "2"], base=text, architecture=text, said=own)
    near = (Neighbour(text, 0.9, text, text),)
    found = Description(
        text, text, stated, route, text,
        (Answer(predictions, expert, text),) if known else (), near if known else None,
    )  # fmt: skip
    card = model_card(found)
    card.encode()
    matter, lines = split(card)
    assert matter.keys() == {"library_name", "pipeline_tag", "tags"}
    tags = matter["tags"]
    assert all(isinstance(tag, str) and len(tag) < 120 for tag in tags)
    assert len(tags) == 2 + known
    others = [line for line in headings(lines)[1:] if line not in SECTIONS]
    assert len(others) == known  # the label set, a code span
    assert all(re.fullmatch(r"### `[^`]+`", line) for line in others)
    assert len(headings(lines)) == (7 if known else 3)
    assert headings(lines)[0].startswith("# `")
    assert not any(re.match(r"\s*(---|===|\* |\d+\. |>|```|~~~)", line) for line in lines)
    assert all(c.isprintable() for line in lines for c in line)
    assert len(card) < 8000
    for line in lines:
        # Outside of code spans nothing of it is left that Markdown or HTML would read.
        outside = re.sub(r"`[^`]*`|\\.", "", line)
        assert not re.search(r"[`<>\[\]]", outside), line
        assert "``" not in line
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line)
            assert len(cells) in (4, 5), line


def test_very_many_labels_are_counted():
    labels = [f"label {n}" for n in range(9000)]
    many = described(dict.fromkeys(labels, 0.2), said(labels))
    card = model_card(many)
    assert "and 8950 more" in card
    assert len(card) < 10_000


@pytest.mark.parametrize(
    ("chance", "says"), [(0.875, "not above"), (0.86, "not clearly above"), (0.5, "")]
)
def test_chance_stands_beside_the_accuracy(chance, says):
    card = model_card(described(expert=of_accuracy(chance=chance)))
    assert f"{chance:.3f}" in card
    assert says in card
    assert ("not" in says) == ("above" in card)


@pytest.mark.parametrize(("low", "says"), [(0.6, ""), (0.45, "not clearly above")])
def test_an_auc_stands_beside_the_accuracy(low, says):
    area = {"value": 0.731, "low": low, "high": 0.85, "n_models": 20, "chance": 0.5}
    card = model_card(described(expert=ExpertFacts(**vars(EXPERT) | {"auc": area})))
    assert "0.731" in card
    assert says in card
    assert bool(says) == ("above guessing" in card)
    assert "AUC" not in model_card(described(expert=EXPERT))


def test_of_an_expert_without_chance_nothing_is_said_of_it():
    assert model_card(described(expert=of_accuracy())).count("0.8") == 2


def test_what_a_lineage_says_is_marked_as_inferred_and_no_fact():
    merge = Edge("me/`x`", "m1", "merge", 1e-9, 0.973, 0.1, coefficient=0.62)
    found = described(relatives=Relatives((merge,), ("you/twin",)))
    matter, lines = split(model_card(found))
    (parent,) = (line for line in lines if "Parent" in line)
    assert "inferred" in parent
    assert all(said in parent for said in ("`me/'x'`", "merge", "0.62", "0.97"))
    (same,) = (line for line in lines if "same weights" in line)
    assert "inferred" in same
    assert "`you/twin`" in same
    assert matter == split(model_card(described()))[0]
    said = found.as_json()["relatives"]
    assert said["parents"][0]["parent"] == "me/`x`"
    assert list(said["same_weights"]) == ["you/twin"]


def number(name="steps", low=601.0, high=1103.0, **facts):
    expert = dataclasses.replace(EXPERT, chosen="number", **facts)
    return Answer((), expert, name, Quantity(812.3, low, high, 0.9))


def chosen(likely, name="optimiser", **facts):
    expert = dataclasses.replace(EXPERT, chosen="one", **facts)
    predictions = (Prediction("adamw", "adamw", 0.98), Prediction("sgd", "sgd", 0.02))
    return Answer(predictions, expert, name, likely=likely, coverage=0.9)


def row_of(card, name):
    (line,) = (line for line in card.split("\n") if line.startswith(f"| `{name}`"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_attributes_stand_in_one_table_with_intervals_sets_and_tests():
    covered = {"value": 0.93, "low": 0.9, "high": 0.96, "n_models": 60}
    answers = (number(coverage=covered), chosen(("adamw",)), chosen((), "augmented"))
    card = model_card(described(answers=answers))
    assert "90 % interval or set" in card
    assert row_of(card, "steps")[1:3] == ["810", "600 to 1,100"]
    assert "R² 0.91 (0.88 to 0.94)" in row_of(card, "steps")[3]
    assert row_of(card, "steps")[4] == "0.93 (0.90 to 0.96)"
    assert row_of(card, "optimiser")[1:3] == ["`adamw` 0.980", "`adamw`"]
    assert "empty" in row_of(card, "augmented")[2]
    assert card.count("\n| ---") == 1
    assert split(card)[0] == split(model_card(described()))[0]


def test_classes_of_which_several_may_hold_keep_a_table_and_name_the_undecided():
    probabilities = {"ant": 0.97, "bee": 0.6, "cat": 0.2, "dog": 0.001}
    predictions = tuple(Prediction(label, label, p) for label, p in probabilities.items())
    of_classes = Answer(predictions, EXPERT, "insects", None, ("ant", "bee", "cat"), 0.9)
    card = model_card(described(answers=(of_classes, number())))
    assert "### `insects`" in card
    assert "### `steps`" not in card
    (line,) = (line for line in card.split("\n") if line.startswith("Undecided at 90 %"))
    assert "`cat`" in line
    assert "`bee`" not in line


def test_a_single_choice_shows_its_probabilities_and_its_set():
    card = model_card(described(answers=(chosen(("adamw", "sgd")),)))
    assert row_of(card, "sgd")[1] == "0.020"
    assert "90 % set: `adamw`, `sgd`" in card


def test_what_the_weights_do_not_tell_is_named():
    card = model_card(described(answers=(number("accuracy"),), untold=("seed", "batch|size")))
    untold = card.partition(SECTIONS[4])[2]
    assert "`seed`, `batch|size`" in untold
    assert "how good" not in untold
    assert "how good" in model_card(described()).partition(SECTIONS[4])[2]
    nothing = model_card(described({}, expert=None, untold=("seed",)))
    assert "no expert" not in nothing
    assert "`seed`" in nothing.partition(SECTIONS[4])[2]


def test_an_expert_of_many_attributes_is_named_once():
    answers = tuple(number(f"n{k}") for k in range(30))
    card = model_card(described(answers=answers))
    assert card.count(EXPERT.hash[:16]) == 1
    assert len(card.split("\n")) < 80


def test_stated_attributes_stand_beside_what_was_predicted():
    stated = said(attributes={"steps": 2000.0, "optimiser": ("adamw",)})
    card = model_card(described(stated=stated, answers=(number(), chosen(("adamw",)))))
    lines = card.partition(SECTIONS[1])[2]
    assert row_of(lines, "steps") == ["`steps`", "2,000", "no"]
    assert row_of(lines, "optimiser") == ["`optimiser`", "`adamw`", "yes"]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_names_of_attributes_cannot_break_out(text):
    predictions = (Prediction(text, text, 0.9), Prediction("b", text, 0.2))
    one = Answer(predictions, dataclasses.replace(EXPERT, chosen="one"), text, None, (text,), 0.9)
    stated = said(attributes={text: (text,)})
    card = model_card(described(stated=stated, answers=(number(text), one), untold=(text,)))
    assert set(headings(split(card)[1])[1:]) == set(SECTIONS) - {SECTIONS[2], SECTIONS[3]} | {
        "## The experts"
    }
    for line in card.partition("\n# ")[2].split("\n"):
        assert not re.search(r"[`<>\[\]]", re.sub(r"`[^`]*`|\\.", "", line)), line
