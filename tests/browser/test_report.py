"""The report and its maps in a real browser: no error, no request, and maps that can be used."""

import dataclasses
import itertools
import random
import re

import pytest

from probex_jax.reports import LabelledDescription, MapPoint, interactive_map, page
from tests.reports.pages import HOSTILE
from tests.reports.test_card import described
from tests.reports.test_report import answered, training, written

pytestmark = pytest.mark.browser

SIZES = {"desktop": (1280, 900), "phone": (390, 800), "small phone": (360, 740)}


@pytest.fixture
def opened(browser, tmp_path):
    """Opens HTML as a file; says what the console and the network heard of it."""
    contexts = []

    def open_page(text, size="desktop", **options):
        path = tmp_path / "page.html"
        path.write_text(text)
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        shown, heard = context.new_page(), []
        shown.on("console", lambda message: heard.append(message.text))
        shown.on("pageerror", lambda error: heard.append(str(error)))
        shown.on("dialog", lambda dialog: heard.append(dialog.message))
        shown.on("request", lambda request: heard.append(request.url))
        shown.goto(path.as_uri())
        shown.wait_for_timeout(200)
        return shown, heard[1:]  # the first request is the page itself

    yield open_page
    for context in contexts:
        context.close()


def settled(shown):
    """After the next picture is drawn."""
    shown.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def view_box(shown):
    return [float(x) for x in shown.locator(".px-view > svg").get_attribute("viewBox").split()]


def points(n_models, groups=("ant", "bee")):
    return [
        MapPoint(number % 40, number // 40, f"model {number}", groups[number % len(groups)])
        for number in range(n_models)
    ]


@pytest.mark.parametrize("size", SIZES)
def test_the_report_opens_in_silence_and_fits(opened, size):
    said = dataclasses.replace(described(), id=HOSTILE)
    hidden = [LabelledDescription(said, HOSTILE, (HOSTILE,))]
    names = [f"{HOSTILE} {number}" for number in range(30)]
    one = answered(several=False, classes=names, n_models=60)
    other = training(one, tree="Other", n_models={"test": 60})
    text = written(training(answered()), other, hidden=hidden)
    shown, heard = opened(text, size)
    assert heard == []
    assert len(text.encode()) < 3_000_000
    wide = shown.evaluate("document.documentElement.scrollWidth")
    assert wide <= SIZES[size][0]
    assert shown.locator("h2").count() == 8
    for place in range(shown.locator("nav a").count()):
        shown.locator("nav a").nth(place).click()
    assert heard == []


@pytest.mark.parametrize(
    "attempt",
    ["fetch('https://example.com')", "new Image().src = 'https://example.com/x.png'"],
)
def test_nothing_can_be_fetched(opened, attempt):
    _, heard = opened(page("x", f"<script>{attempt}</script>"))
    assert any("Content Security Policy" in said for said in heard)


def test_a_map_is_moved_and_zoomed_by_mouse_and_buttons(opened):
    shown, heard = opened(page("map", interactive_map(points(400), caption="Models.")))
    whole = view_box(shown)
    box = shown.locator(".px-view > svg").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    shown.mouse.move(x, y)
    shown.mouse.wheel(0, -300)
    settled(shown)
    near = view_box(shown)
    assert near[2] < whole[2] * 0.7
    assert near[0] + near[2] / 2 == pytest.approx(whole[2] / 2, abs=1)
    shown.mouse.down()
    shown.mouse.move(x + 90, y + 40)
    shown.mouse.up()
    settled(shown)
    moved = view_box(shown)
    unit = near[2] / box["width"]
    assert moved[:2] == pytest.approx([near[0] - 90 * unit, near[1] - 40 * unit], abs=0.5)
    shown.get_by_label("zoom in").click()
    settled(shown)
    assert view_box(shown)[2] == pytest.approx(moved[2] / 1.6)
    shown.get_by_label("zoom out").click()
    shown.get_by_label("show all").click()
    settled(shown)
    assert view_box(shown) == whole
    assert heard == []


def test_a_map_works_from_the_keyboard(opened):
    shown, _ = opened(page("map", interactive_map(points(80), caption="Models.")))
    whole = view_box(shown)
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.tagName") == "svg"
    shown.keyboard.press("+")
    shown.keyboard.press("ArrowRight")
    settled(shown)
    near = view_box(shown)
    assert near[2] == pytest.approx(whole[2] / 1.6)
    assert near[0] > (whole[2] - near[2]) / 2
    shown.keyboard.press("n")
    first = shown.locator("output").inner_text()
    shown.keyboard.press("n")
    second = shown.locator("output").inner_text()
    shown.keyboard.press("p")
    assert re.fullmatch(r"model \d+", first)
    assert second not in ("", first)
    assert shown.locator("output").inner_text() == first
    shown.keyboard.press("Escape")
    assert not shown.locator("output").is_visible()
    shown.keyboard.press("0")
    settled(shown)
    assert view_box(shown) == whole


def test_titles_of_strangers_are_shown_as_text(opened):
    said = [MapPoint(0, 0, HOSTILE, "ant"), MapPoint(5, 5, "other", "bee")]
    shown, heard = opened(page("map", interactive_map(said, caption="Models.")))
    at = shown.locator(".px-mark").first.bounding_box()
    shown.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
    assert shown.locator("output").inner_text() == HOSTILE.replace("\0", "").strip()
    assert heard == []


def test_a_map_works_by_touch(opened):
    text = page("map", interactive_map(points(9), caption="Models."))
    shown, _ = opened(text, "phone", has_touch=True, is_mobile=True)
    at = shown.locator(".px-mark").nth(4).bounding_box()
    x, y = at["x"] + at["width"] / 2, at["y"] + at["height"] / 2
    shown.touchscreen.tap(x, y)
    assert shown.locator("output").inner_text() == "model 4"
    whole = view_box(shown)
    client = shown.context.new_cdp_session(shown)

    def touch(kind, *places):
        touches = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(places)]
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

    touch("touchStart", (x - 20, y), (x + 20, y))
    for by in (30, 45, 60):
        touch("touchMove", (x - by, y), (x + by, y))
    touch("touchEnd")
    settled(shown)
    assert view_box(shown)[2] == pytest.approx(whole[2] / 3, rel=0.1)


def test_pressing_the_legend_fades_the_others(opened):
    shown, _ = opened(page("map", interactive_map(points(10), caption="Models.")))
    shown.get_by_role("button", name="bee").click()
    assert shown.locator(".px-mark.px-faded").count() == 5
    shown.get_by_role("button", name="bee").click()
    assert shown.locator(".px-mark.px-faded").count() == 0


def test_two_maps_in_one_page_do_not_meddle(opened):
    maps = [interactive_map(points(count), caption="Models.") for count in (5, 7)]
    shown, heard = opened(page("maps", "".join(maps)))
    shown.get_by_label("zoom in").nth(1).click()
    settled(shown)
    boxes = [
        shown.locator(".px-view > svg").nth(place).get_attribute("viewBox").split()
        for place in (0, 1)
    ]
    assert float(boxes[0][2]) > float(boxes[1][2])
    assert heard == []


def test_many_turns_of_the_wheel_draw_once_a_frame(opened):
    shown, heard = opened(page("map", interactive_map(points(2000), caption="Models.")))
    drawn = shown.evaluate(
        """async () => {
          const svg = document.querySelector(".px-view > svg");
          let drawn = 0;
          new MutationObserver(all => { drawn += all.length; })
            .observe(svg, {attributeFilter: ["viewBox"]});
          for (let turn = 0; turn < 20; turn++) svg.dispatchEvent(new WheelEvent("wheel",
            {deltaY: -60, clientX: 300, clientY: 300, cancelable: true}));
          await new Promise(requestAnimationFrame);
          await new Promise(requestAnimationFrame);
          return drawn;
        }"""
    )
    assert drawn == 1
    assert view_box(shown)[2] < 100
    assert heard == []


def test_pressing_two_groups_of_many_fades_all_others(opened):
    of = [MapPoint(n % 12, n // 12, f"m{n}", f"n{n % 12}") for n in range(36)]
    shown, _ = opened(page("map", interactive_map(of, caption="Models.")))
    for name in ("n0", "n11"):
        shown.get_by_role("button", name=name, exact=True).click()
    faded = shown.locator(".px-mark:not(.px-name).px-faded").count()
    assert faded == 30


def boxes(shown, selector):
    """Where those that are shown stand: left, top, right, bottom."""
    return shown.evaluate(
        """selector => [...document.querySelectorAll(selector)]
          .filter(node => node.checkVisibility({visibilityProperty: true}))
          .map(node => node.getBoundingClientRect())
          .map(box => [box.left, box.top, box.right, box.bottom])""",
        selector,
    )


def overlap(one, other):
    return all(one[n] < other[n + 2] and other[n] < one[n + 2] for n in (0, 1))


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_names_cover_neither_points_nor_each_other(opened, size):
    draws = random.Random(0)
    middles = [(draws.gauss(0, 5), draws.gauss(0, 5)) for _ in range(25)]
    of = [
        MapPoint(x + draws.gauss(0, 1), y + draws.gauss(0, 1), f"{g}.{n}", f"group {g}", ring)
        for g, (x, y) in enumerate(middles)
        for n, ring in enumerate(("ring", *[""] * 9))
    ]
    of.append(MapPoint(0, 0, "mine", "this model", "star"))
    shown, heard = opened(page("map", interactive_map(of, caption="Models.")), size)
    counts = []
    for _ in range(4):
        settled(shown)
        names = boxes(shown, ".px-name text")
        marks = boxes(shown, ".px-mark:not(.px-name)")
        assert len(marks) == len(of)
        assert not any(overlap(name, mark) for name in names for mark in marks)
        assert not any(overlap(*two) for two in itertools.combinations(names, 2))
        counts.append(len(names))
        shown.get_by_label("zoom in").click()
    assert counts[0] > 0
    assert counts[-1] > counts[0]
    assert heard == []
