"""Cards: read as earlier versions wrote them, and refused where they lie."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest

import probex_jax as px
from probex_jax.experts import Card, checkpoints, committee, from_torch
from probex_jax.experts.card_parts import Attribute, Calibration, MemberCard
from probex_jax.experts.member import Member
from probex_jax.fitting import ENCODERS, Number, OneClass, SeveralClasses, Texts
from probex_jax.fitting.conformal import Conformal
from tests.experts.toys import PROBEX, TEXT, card, make_expert, one_line, random_variables

HERE = Path(__file__).parent
# Written by the version before cards were objects: of sweeps, committees and state dicts.
OLD = json.loads((HERE / "old_cards.json").read_text())


def variables_of(found):
    """Random variables of the networks on a card."""
    made = []
    for member in found.members:
        network = Member({}, found, member, ENCODERS).network
        shape = member.shape[::-1] if member.layout == "reference" else member.shape
        dim = found.text.dim if found.text else 0
        made.append(random_variables(network, shape, head=found.head, text_dim=dim))
    return made[0] if len(made) == 1 else {str(number): each for number, each in enumerate(made)}


@pytest.mark.parametrize("name", OLD)
def test_a_card_of_an_earlier_version_stays_the_same(name, tmp_path):
    found = Card.from_json(OLD[name])
    assert found.to_json() == OLD[name]
    variables = variables_of(found)
    checkpoints.save(tmp_path / "e", variables, OLD[name])
    expert = px.Expert.load(tmp_path / "e")
    assert expert.card == found
    assert expert.hash == checkpoints.content_hash(variables, OLD[name])


def test_an_expert_that_an_earlier_version_wrote_has_its_hash():
    """`from_torch` compares it with the one in the file."""
    expert = from_torch(HERE / "old_expert.safetensors")
    assert expert.hash.startswith("2dc38bddfb2c5fd1")


@pytest.mark.parametrize(
    "task", [SeveralClasses(), OneClass(), OneClass(3), Texts(logit_scale=2.0), Number(1.5, 0.25)]
)
def test_a_card_keeps_its_task(task):
    found = replace(Card.from_json(card(head=task.head)), task=task)
    again = Card.from_json(json.loads(json.dumps(found.to_json())))
    assert (again, again.task, hash(again)) == (found, task, hash(found))
    assert ("task" in found.to_json()) == (task != SeveralClasses())


def test_what_a_card_does_not_know_is_kept():
    said = card(note={"by": "me"})
    assert Card.from_json(said).to_json() == said
    assert Card.from_json(said) != Card.from_json(card())


LONE = card(calibration={"temperature": 2.0})
ALIGNED = card(head="text")
COMMITTEE = committee([make_expert("a"), make_expert("b", (4, 7))]).card.to_json()
REQUIRED = [
    *[(LONE, field) for field in ("encoder", "head", "layer", "shape", "tree", "classes")],
    *[(ALIGNED, f"text.{field}") for field in TEXT],
    *[(COMMITTEE, f"members.1.{field}") for field in ("encoder", "layer", "shape", "weight")],
    (ALIGNED, "text"),
    (LONE, "calibration.temperature"),
]
ABSENT = "<absent>"


def changed(said, where, value):
    """A copy of JSON with one field changed or taken out."""
    said = copy.deepcopy(said)
    *path, field = where.split(".")
    inner = said
    for step in path:
        inner = inner[int(step) if step.isdigit() else step]
    inner[field] = value
    if value is ABSENT:
        del inner[field]
    return said


@pytest.mark.parametrize("value", [ABSENT, None, 3 + 4j, [()], "\ud800", ["\ud800"]], ids=repr)
@pytest.mark.parametrize(("said", "field"), REQUIRED, ids=[field for _, field in REQUIRED])
def test_a_field_that_is_missing_or_of_another_type_is_named(said, field, value):
    Card.from_json(said)
    with pytest.raises(px.ProbexError, match=rf"^some/file: .*{field.split('.')[-1]}") as told:
        Card.from_json(changed(said, field, value), "some/file")
    one_line(told)
    if value is ABSENT and "." in field:
        assert field in str(told.value)


NO_NUMBERS = (0.0, -1.0, float("nan"), float("inf"), "1.0", True)


@pytest.mark.parametrize(
    ("said", "field", "value", "named"),
    [
        *[(LONE, "calibration.temperature", value, "temperature") for value in NO_NUMBERS],
        *[(COMMITTEE, "members.1.weight", value, r"members\.1\.weight") for value in NO_NUMBERS],
        (LONE, "calibration", [2.0], "calibration"),
        (LONE, "head", "none of ours", "none of ours"),
        (LONE, "classes", ["ant", 5], "classes"),
        (LONE, "shape", ["a", "b"], "shape"),
        (LONE, "shape", [6, True], "shape"),
        (LONE, "shape", [6], "shape"),
        (LONE, "layout", "upside down", "upside down"),
        (LONE, "metrics", 3, "metrics"),
        (LONE, "n_train", "all", "n_train"),
        (LONE, "centre_rank", "five", "centre_rank"),
        (LONE, "task", "one_class", "task"),
        *[
            (LONE, "task", value, "task")
            for value in (
                {},
                {"name": "guess"},
                {"name": ["one_class"]},
                {"name": "one_class", "other": 1},
                {"name": "one_class", "n_classes": "3"},
                {"name": "number", "std": float("nan")},
                {"name": "texts"},
            )
        ],
        (ALIGNED, "task", {"name": "one_class"}, "task"),
        (COMMITTEE, "members.1.layer", "a", "same layer"),
        *[(COMMITTEE, "members", value, "members") for value in ([], "all", [3], {"0": {}}, None)],
    ],
)
def test_a_card_that_lies_is_refused(said, field, value, named):
    with pytest.raises(px.ProbexError, match=f"^some/file: .*{named}") as told:
        Card.from_json(changed(said, field, value), "some/file")
    one_line(told)


@pytest.mark.parametrize("value", [None, [], "card", 3])
def test_what_is_no_card_is_refused(value):
    with pytest.raises(px.ProbexError, match="no expert"):
        Card.from_json(value)


FITS = "parameters do not fit"


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("encoder", {"name": ["probex"]}, r"encoder\.name"),
        ("encoder", {"name": "nothing"}, r"encoder\.name"),
        ("encoder", {**PROBEX, "parent": 3}, r"encoder\.parent"),
        ("encoder", {**PROBEX, "n_probes": 4}, FITS),
        ("shape", [6, 4], FITS),
        ("classes", ["ant"], FITS),
        ("normalise", "none", FITS),
        ("normalise", "scale", FITS),
        ("normalise", "both", "normalise: 'both'"),
        ("centre_rank", 0, FITS),
        ("centre_rank", -1, "centre_rank: -1"),
        ("layout", "reference", FITS),
    ],
)
@pytest.mark.parametrize("number", [None, 1])
def test_a_card_of_other_variables_is_refused(tmp_path, number, field, value, named):
    """On one layer, and as a member of a committee."""
    expert, where = make_expert("b", normalise="centre", centre_rank=2), field
    if number is not None and field != "classes":
        expert, where = committee([make_expert("a"), expert]), f"members.{number}.{field}"
    said = changed(expert.card.to_json(), where, value)
    checkpoints.save(tmp_path / "e", expert.variables, said)
    with pytest.raises(px.ProbexError, match=f"{tmp_path}/e: .*{named}") as told:
        px.Expert.load(tmp_path / "e")
    one_line(told)


def test_a_missing_member_is_one_line(tmp_path):
    both = committee([make_expert("a"), make_expert("b"), make_expert("c")])
    parts = both.variables
    for variables, named in (
        ({"0": parts["0"], "2": parts["2"]}, "member 1"),
        ({**parts, "1": make_expert("b", (4, 7)).variables}, FITS),
    ):
        checkpoints.save(tmp_path / "e", variables, both.card.to_json())
        with pytest.raises(px.ProbexError, match=named) as told:
            px.Expert.load(tmp_path / "e")
        one_line(told)


def joint_card():
    """The card of an expert of a number and a class."""
    attributes = [
        Attribute(
            "rate", ("rate",), Number(1.5, 0.25, log=True), Calibration(0.5, "val"),
            Conformal(0.9, 0.7, 40), n_train=50, metrics={"test_accuracy": {"value": 0.8}},
        ),
        Attribute("kind", ("a", "b"), OneClass(), told=False,
                  conformal=Conformal(0.9, 0.4, 40, {"1": 0.6})),
    ]  # fmt: skip
    member = MemberCard({"name": "dense"}, "fc.weight", (6, 5))
    return Card("Mini", ("rate", "a", "b"), (member,), "none", attributes=tuple(attributes))


def test_a_card_keeps_its_attributes():
    card = joint_card()
    again = Card.from_json(json.loads(json.dumps(card.to_json())))
    assert again == card
    assert again.attributes == card.attributes
    assert (card.outputs("rate"), card.outputs("kind")) == (slice(0, 1), slice(1, 3))
    kind = again.part("kind")
    assert (kind.classes, kind.task, kind.told) == (("a", "b"), OneClass(), False)
    assert kind.conformal == card.attributes[1].conformal
    assert kind.more["label_set"] == "kind"
    assert Card.from_json(kind.to_json()) == kind


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda card: card["attributes"].pop(), "attributes"),
        (lambda card: card["attributes"][0].pop("name"), r"attributes\.0\.name"),
        (lambda card: card["attributes"][0]["task"].update(log=3), "task"),
        (lambda card: card["attributes"][1]["conformal"].update(score=float("nan")), "conformal"),
        (lambda card: card["attributes"][1]["conformal"]["by_class"].update(x="y"), "conformal"),
        (lambda card: card["attributes"][1]["conformal"].update(coverage=2.0), "conformal"),
    ],
)
def test_damaged_attributes_are_named(change, named):
    card = joint_card().to_json()
    change(card)
    with pytest.raises(px.ProbexError, match=named):
        Card.from_json(card)
