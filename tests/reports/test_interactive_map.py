import re

import pytest

from probex_jax.errors import ProbexError
from probex_jax.reports import MapPoint, interactive_map, page
from tests.reports.pages import HOSTILE, check_harmless


def points(groups, **more):
    return [MapPoint(n, n % 3, f"m{n}", group, **more) for n, group in enumerate(groups)]


def styles(text):
    """Title to what is drawn of it."""
    found = re.findall(r'(<path d="[^"]*" fill="[^"]*"/>)<title>([^<]*)', text)
    return {title: drawn for drawn, title in found}


def test_text_of_strangers_is_shown_and_does_nothing():
    said = [MapPoint(0, 0, HOSTILE, HOSTILE, "ring"), MapPoint(1, 1, HOSTILE, HOSTILE, "star")]
    text = interactive_map(said, caption=HOSTILE, emphasised={"ring": HOSTILE, "star": HOSTILE})
    tags = check_harmless(page(HOSTILE, text))
    assert [tag for tag, _ in tags.starts].count("script") == 1
    assert text.count("&lt;/script&gt;") >= 6


def test_few_groups_have_a_colour_and_a_shape_each():
    drawn = styles(interactive_map(points("abcabc"), caption="x"))
    assert len(set(drawn.values())) == 3
    assert drawn["m0"] == drawn["m3"]


def test_words_of_many_groups_make_colour_and_shape():
    groups = [f"{a} {b}" for a in ("", "bold", "faint") for b in "abcdef"]
    text = interactive_map(points(groups), caption="x")
    drawn = styles(text)
    assert len(set(drawn.values())) == 18
    fills = [re.search(r'fill="([^"]*)"', drawn[f"m{n}"])[1] for n in (0, 6, 1)]
    assert fills[0] == fills[1] != fills[2]
    assert text.count('aria-pressed="false"') == 6 + 3
    assert text.count('class="px-mark px-name"') == 18


@pytest.mark.parametrize(
    "groups", [[f"n{n:08}" for n in range(100)], [f"a b{n}" for n in range(60)]]
)
def test_many_groups_of_one_word_have_a_colour_and_a_shape_each(groups):
    text = interactive_map(points(groups), caption="x")
    drawn = styles(text)
    assert len(set(drawn.values())) == len(groups)
    assert len({re.search(r'd="([^"]*)"', one)[1] for one in drawn.values()}) >= len(groups) / 10
    assert text.count('class="px-mark px-name"') == len(groups)
    assert text.count('aria-pressed="false"') == len(groups)


def test_a_legend_of_very_many_groups_ends():
    text = interactive_map(points([f"n{n}" for n in range(130)]), caption="x")
    assert text.count('aria-pressed="false"') == 120
    assert "and 10 more" in text
    assert 'class="px-mark px-name"' not in text


def test_all_models_lie_in_the_picture_and_y_points_up():
    said = [MapPoint(-7, 1e4, "top", ""), MapPoint(3, -1e4, "bottom", "")]
    text = interactive_map(said, caption="x")
    width, height = map(float, re.search(r'viewBox="0 0 (\S+) (\S+)"', text).groups())
    places = [tuple(map(float, at)) for at in re.findall(r"translate\(([-\d.]+) ([-\d.]+)\)", text)]
    assert all(0 < x < width and 0 < y < height for x, y in places)
    assert places[0][1] < places[1][1]


def test_the_model_in_question_lies_above_all():
    text = interactive_map(
        [MapPoint(0, 0, "this", "", "star"), *points("abcdefghi")],
        caption="x",
        emphasised={"star": "it"},
    )
    this = text.index("<title>this")
    assert text.index("<title>m1") < this
    assert 0 < text.rindex("px-name") < this


@pytest.mark.parametrize("n_points", [0, 1])
def test_maps_of_next_to_nothing(n_points):
    assert f"{n_points} models." in interactive_map(points("a" * n_points), caption="x")


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ProbexError, match="'m0'"):
        interactive_map([MapPoint(float("nan"), 0, "m0", "")], caption="x")
    with pytest.raises(ProbexError, match="'bold'"):
        interactive_map(points("a", emphasis="bold"), caption="x")
