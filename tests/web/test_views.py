"""What the page shows: text of strangers is text."""

import dataclasses
from html.parser import HTMLParser
from pathlib import Path

import pytest

from probex_jax.forest import Answer, Description, Forest, Neighbour, Prediction, Route
from probex_jax.forest.description import ExpertFacts
from probex_jax.forest.stated_facts import StatedFacts
from probex_jax.search import Hit
from probex_jax.web import views
from probex_jax.web.catalogue import Catalogue, Described
from probex_jax.web.models import Model

HOSTILE = "</p><script>alert(1)</script><img src=x onerror='alert(2)'>\" onload=\"alert(3)"


class Tags(HTMLParser):
    """The tags and attributes of a piece of HTML."""

    def __init__(self, text):
        super().__init__()
        self.names, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += [name for name, _ in attrs]


def described(text, chosen="several"):
    said = StatedFacts(
        (text,), text, text, text, "", "", is_lora=False, parameters=9, dtype=text, layers=1
    )
    expert = ExpertFacts(
        "h" * 64,
        (text,),
        text,
        9,
        {"value": 0.5, "low": 0.4, "high": 0.6, "n_models": 3},
        {},
        chosen,
    )
    predictions = (Prediction(text, text, 0.9), Prediction("b", "b", 0.1))
    near = (Neighbour(text, 0.5, text, "/nowhere"),)
    route = Route(text, text, 1.0, 2.0)
    found = Description(text, text, said, route, text, (Answer(predictions, expert, text),), near)
    return Described(text, found)


@pytest.mark.parametrize("chosen", ["one", "several"])
def test_nothing_hostile_becomes_a_tag(chosen):
    hit = Hit(0.5, HOSTILE, "/nowhere", HOSTILE, HOSTILE, (HOSTILE,), HOSTILE)
    for text in (
        views.described(described(HOSTILE, chosen)),
        views.described(Described(HOSTILE, None, HOSTILE)),
        views.results(HOSTILE, [hit], HOSTILE),
        views.error(HOSTILE),
        views.frame(HOSTILE, HOSTILE, x=1, y=2, name=HOSTILE),
    ):
        tags = Tags(text)
        assert "script" not in tags.names
        assert not [name for name in tags.attributes if name.startswith("on")]
        assert "img" not in tags.names


def test_bars_are_as_long_as_probabilities():
    text = views.described(described("a"))
    assert 'width="90.0%"' in text
    assert 'width="10.0%"' in text


def test_neighbours_link_to_their_own_search():
    text = views.described(described("a&b"))
    assert "?like=a%26b&amp;index=a%26b" in text


def test_unknown_trees_say_why():
    found = described("a").description
    stranger = Description("m", "m", found.stated, Route("", reason="too <far> away"))
    text = views.described(Described("m", stranger))
    assert "too &lt;far&gt; away" in text
    assert "Nothing is predicted" in text


def test_forest_view_lists_what_experts_can_say(forest_path):
    text = views.forest(Forest.load(forest_path).trees, {"Ant": 22})
    assert "22 documented models" in text
    assert "any of 6 classes" in text
    assert "one of 13 classes" in text


def test_errors_hold_no_path(forest_path, tmp_path):
    catalogue = Catalogue(Forest.load(forest_path))
    model = Model("mine", tmp_path / "model.safetensors")
    error = f"{model.path}: like {forest_path}/trees/Ant/expert and /etc/x y/z.json, see a/b"
    shown = catalogue.shown(error, model)
    assert shown == "mine: like forest/trees/Ant/expert and x y/z.json, see a/b"


def test_only_whole_paths_are_left_out(forest_path, monkeypatch):
    monkeypatch.setattr(Path, "cwd", lambda: Path("/app"))
    catalogue = Catalogue(Forest.load(forest_path))
    for said, shown in (
        ("org/app-model", "org/app-model"),
        ("/app/m: no such file", "app/m: no such file"),
        ("it is /app.", "it is app."),
        ("/apple is no root", "/apple is no root"),
    ):
        assert catalogue.shown(said) == shown


def test_the_base_that_files_name_and_what_is_not_listed_are_said():
    found = described("a", "one")
    predictions = tuple(Prediction(f"c{n}", f"c{n}", 0.1) for n in range(9))
    stated = dataclasses.replace(found.description.stated, base="me/root")
    answer = dataclasses.replace(found.description.answers[0], predictions=predictions)
    said = dataclasses.replace(found.description, stated=stated, answers=(answer,))
    text = views.described(dataclasses.replace(found, description=said))
    assert "Fine-tuned from me/root." in text
    assert "and 4 less likely" in text


@pytest.mark.parametrize(
    ("chance", "says"), [(0.55, "not above"), (0.45, "not clearly above"), (0.3, ""), (None, "")]
)
def test_how_well_an_expert_was_tested_stands_beside_chance(chance, says):
    found = described("ant")
    accuracy = dict(found.description.expert.accuracy) | ({"chance": chance} if chance else {})
    expert = dataclasses.replace(found.description.expert, accuracy=accuracy)
    answer = dataclasses.replace(found.description.answers[0], expert=expert)
    description = dataclasses.replace(found.description, answers=(answer,))
    text = views.described(dataclasses.replace(found, description=description))
    assert ("most common" in text) == (chance is not None)
    assert not chance or f"{chance:.1%}" in text
    assert says in text
    assert bool(says) == ("above that" in text)
