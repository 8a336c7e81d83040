"""The family tree in a real browser: by mouse, touch and keyboard, in silence, on a phone."""

import re

import pytest

from probex_jax.lineage import Edge, Lineage, Node
from probex_jax.reports import family_tree_html
from tests.browser.conftest import visited
from tests.browser.test_report import opened, settled
from tests.reports.pages import HOSTILE
from tests.reports.test_family_tree import lineage, many

__all__ = ["opened"]

pytestmark = pytest.mark.browser

PICTURE, PANEL = ".ft-view > svg", ".ft-panel"


def view_box(shown):
    return [float(x) for x in shown.locator(PICTURE).get_attribute("viewBox").split()]


def names(shown):
    settled(shown)
    return shown.locator(".ft-names text").all_text_contents()


def pressed(shown, *keys):
    for key in keys:
        shown.keyboard.press(key)
    settled(shown)


def chosen(shown):
    return shown.locator(".ft-said").text_content().partition(";")[0]


def test_it_opens_in_silence_with_names_kinds_and_copies(opened):
    shown, heard = opened(family_tree_html(lineage(), "Mine"))
    assert heard == []
    assert shown.get_by_role("heading", name="Mine").is_visible()
    said = names(shown)
    assert {"root", "one", "two", "both", "odd", "+1 copy", "fine-tune"} <= set(said)
    assert shown.get_by_text("no header").is_visible()


def test_text_of_strangers_is_text(opened):
    hostile = HOSTILE.replace("\0", "")
    nodes = (Node(hostile, hostile, "f", "root"), Node("b", "b", "f", "derived"))
    edges = (Edge(hostile, "b", "LoRA", 0.0, 0.5, 0.1, layers=(hostile,)),)
    shown, heard = opened(family_tree_html(Lineage(nodes, edges), hostile))
    shown.locator(PICTURE).focus()
    pressed(shown, "Home", "Enter", "ArrowRight")
    assert hostile.strip() in shown.locator(PANEL).inner_text().replace("\n", "")
    assert shown.locator("img").count() == 0
    assert heard == []


def test_the_keyboard_goes_along_the_lines_and_tells(opened):
    shown, heard = opened(family_tree_html(lineage(), ""))
    shown.get_by_label("Find a model").focus()
    pressed(shown, "Tab", "Tab", "Tab")
    assert shown.evaluate("document.activeElement.tagName") == "svg"
    walked = []
    for key in ("ArrowDown", "ArrowRight", "ArrowDown", "ArrowRight", "ArrowLeft", "ArrowLeft"):
        pressed(shown, key)
        walked.append(chosen(shown))
    assert walked == ["root", "one", "two", "both", "two", "root"]
    assert shown.locator(PANEL).is_hidden()
    pressed(shown, "ArrowRight", "ArrowRight", "Enter")
    told = shown.locator(PANEL).inner_text()
    for said in (
        "both",
        "merge 0.62",
        "two",
        "merge 0.38",
        "one",
        "confidence",
        "p-value",
        "1.0e-9",
    ):
        assert said in told
    # The panel's buttons are the next stops; they lead to kin.
    for _ in range(8):
        pressed(shown, "Tab")
        if shown.evaluate("document.activeElement.textContent") == "two":
            break
    pressed(shown, "Enter")
    assert chosen(shown) == "two"
    pressed(shown, "Escape")
    assert shown.locator(PANEL).is_hidden()
    assert shown.evaluate("document.activeElement.tagName") == "svg"
    whole = view_box(shown)
    pressed(shown, "+")
    assert view_box(shown)[2] == pytest.approx(whole[2] / 1.6)
    pressed(shown, "-", "0")
    assert view_box(shown)[2] >= whole[2] * 0.99
    assert heard == []


def test_mouse_and_buttons_zoom_pan_and_choose(opened):
    shown, heard = opened(family_tree_html(lineage(), ""))
    box = shown.locator(PICTURE).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    whole = view_box(shown)
    shown.mouse.move(x, y)
    shown.mouse.wheel(0, -300)
    settled(shown)
    near = view_box(shown)
    assert near[2] < whole[2]
    shown.mouse.down()
    shown.mouse.move(x + 80, y + 30, steps=4)
    shown.mouse.up()
    settled(shown)
    assert view_box(shown)[0] < near[0]
    shown.get_by_label("show all").click()
    settled(shown)
    place = shown.locator(".ft-names text", has_text="two").bounding_box()
    shown.mouse.click(place["x"] + 3, place["y"] + place["height"] / 2)
    assert chosen(shown) == "two"
    assert "0.7" in shown.locator(PANEL).inner_text()
    shown.get_by_label("close").click()
    assert shown.locator(PANEL).is_hidden()
    assert heard == []


def test_search_finds_models_copies_and_those_alone(opened):
    shown, _ = opened(family_tree_html(lineage(), ""))
    box, found = shown.get_by_label("Find a model"), shown.locator(".ft-found")
    box.fill("TWIN")
    assert found.inner_text() == "1 found"
    box.press("Enter")
    assert "twin" in found.inner_text()
    assert chosen(shown) == "one"
    box.fill("alone")
    box.press("Enter")
    assert "alone" in found.inner_text()
    box.fill("o")
    shown.get_by_label("next found").click()
    first = found.inner_text()
    shown.get_by_label("next found").click()
    assert found.inner_text() != first
    box.fill("nobody")
    assert found.inner_text() == "0 found"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen(opened, shot, scheme):
    shown, heard = opened(
        family_tree_html(many(60), "x" * 80), "small phone", has_touch=True, color_scheme=scheme
    )
    assert shown.evaluate("document.documentElement.scrollWidth") <= 360
    shown.locator(PICTURE).focus()
    pressed(shown, "Home", "ArrowRight", "Enter")
    assert shown.evaluate("document.documentElement.scrollWidth") <= 360
    panel = shown.locator(PANEL).bounding_box()
    dot = shown.locator(".ft-chosen").bounding_box()
    assert dot["y"] < panel["y"]  # the chosen model is not behind the panel
    colours = shown.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours]
    assert (light[0] > light[1]) == (scheme == "light")
    shot(shown, f"family_tree_phone_{scheme}")
    assert heard == []


def test_ten_thousand_models_open_and_can_be_walked(opened, shot):
    shown, heard = opened(family_tree_html(many(10_000), ""))
    far = names(shown)
    assert 0 < len(far) < 500
    shot(shown, "family_tree_10000")
    shown.get_by_label("Find a model").fill("m9876")
    shown.keyboard.press("Enter")
    settled(shown)
    assert chosen(shown) == "m9876"
    assert "m9876" in names(shown)
    assert heard == []


def test_it_works_within_the_page(browser, address, shot):
    with visited(browser, address) as page:
        page.get_by_role("link", name="Family tree").click()
        tree = page.frame_locator("#lineage iframe")
        tree.get_by_text("inferred from the weights").wait_for()
        tree.get_by_label("Find a model").fill("m2")
        tree.get_by_label("Find a model").press("Enter")
        tree.get_by_role("heading", name="Family tree").wait_for()
        shot(page, "family_tree_in_page")
    with visited(browser, address, link="/lineage") as page:
        page.get_by_role("heading", name="Family tree").wait_for()
