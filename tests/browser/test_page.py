"""The web page, in a real browser."""

import json
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from probex_jax.web.guard import _EVENT, _FILES, _READ
from tests.browser.conftest import PHONE, visited
from tests.forest.conftest import labels_of, write_member
from tests.web.conftest import LIMIT

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

DESCRIBED = "#px-described article"
FILES, EXAMPLE = "#px-files input[type=file]", "#px-example input[type=file]"
# Presses of Tab within which somebody without a mouse has to be where they want to be.
_STOPS = 12


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Files to send: a model, a hostile one, one of no known tree, one that is too large."""
    folder = tmp_path_factory.mktemp("models")
    bare = {"dataset_chosen_targets": "[]"}
    for name, of in (("mine", 1), ("stranger", 3)):
        model = write_member(folder / name, 5, labels_of(5), of=of, metadata=bare)
        (model / "model.safetensors").rename(folder / f"{name}.safetensors")
    (folder / "evil<img src=x onerror=alert(1)>.safetensors").write_bytes(b"\xff" * 4096)
    (folder / "large.safetensors").write_bytes(b"\0" * (LIMIT + 1))
    return folder


@pytest.fixture
def visit(browser, address):
    """Opens the page."""
    return lambda link="/", viewport=None: visited(browser, address, viewport, link=link)


def sent(page, where, *files):
    page.locator(where).set_input_files([str(file) for file in files])


def searched(page, text):
    page.get_by_role("tab", name="Search").click()
    page.get_by_label("What the model was trained on").fill(text)
    page.keyboard.press("Enter")
    page.locator("#px-found li").first.wait_for()
    return page.locator("#px-found .px-text").all_inner_texts()


def test_describe_a_file(visit, models, shot):
    with visit() as page:
        sent(page, FILES, models / "mine.safetensors")
        page.locator(DESCRIBED).wait_for()
        text = page.locator(DESCRIBED).inner_text()
        assert "Model Tree Ant" in text
        assert "me/ant-root" in text
        bars = page.locator(f"{DESCRIBED} tbody tr")
        shown = [bars.nth(place).inner_text().split() for place in range(bars.count())]
        likely = {name for name, p in shown if float(p.strip("<>")) > 0.5}
        assert likely == set(labels_of(5))
        assert page.locator(f"{DESCRIBED} .px-gallery li").count() == 5
        map_ = page.frame_locator(f"{DESCRIBED} iframe")
        map_.get_by_text("this model").first.wait_for()
        shot(page, "describe")


def test_nothing_is_left_of_what_was_sent(visit, models, server):
    with visit() as page:
        (folder,) = server.temporary.glob("probex_jax-uploads-*")
        before = set(folder.iterdir())  # a folder of Gradio's own
        config = models / "config.json"
        config.write_text("{}")
        sent(page, FILES, models / "mine.safetensors", config)
        page.locator(DESCRIBED).wait_for()
        page.get_by_role("tab", name="Search").click()
        sent(page, EXAMPLE, models / "mine.safetensors")
        page.get_by_role("heading", name="Similar to mine").wait_for()
        assert set(folder.iterdir()) == before


def test_download_the_card(visit, models):
    with visit() as page:
        sent(page, FILES, models / "mine.safetensors")
        with page.expect_download() as card:
            page.get_by_text("Download the card").click()
        assert card.value.suggested_filename == "mine.md"
        text = Path(card.value.path()).read_text()
        assert text.startswith("---\n")
        assert "model-tree:Ant" in text
        with page.expect_download() as facts:
            page.get_by_text("Download as JSON").click()
        assert json.loads(Path(facts.value.path()).read_text())["tree"] == "Ant"


def test_several_files_and_what_is_wrong_with_one(visit, models, shot):
    evil = next(models.glob("evil*"))
    with visit() as page:
        dialogs = []
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        sent(page, FILES, models / "mine.safetensors", evil, models / "stranger.safetensors")
        page.locator(DESCRIBED).nth(2).wait_for()
        mine, hostile, stranger = page.locator(DESCRIBED).all_inner_texts()
        assert "Model Tree Ant" in mine
        assert "not a safetensors file" in hostile
        assert "Unknown tree" in stranger
        assert page.locator(f"{DESCRIBED} img[src=x]").count() == 0
        assert dialogs == []
        assert "/tmp" not in page.content()
        shot(page, "describe_hostile")


def test_of_several_files_the_first_have_maps(visit, models, tmp_path):
    data = (models / "mine.safetensors").read_bytes()
    files = [tmp_path / f"m{number}.safetensors" for number in range(4)]
    for file in files:
        file.write_bytes(data)
    with visit() as page:
        sent(page, FILES, models / "stranger.safetensors", *files)
        page.locator(DESCRIBED).nth(4).wait_for()
        maps = page.locator(f"{DESCRIBED}:has(iframe) h2").all_inner_texts()
        assert maps == ["m0", "m1", "m2"]
        without = page.locator(DESCRIBED).filter(has_text="see its map")
        assert without.locator("h2").all_inner_texts() == ["m3"]


def test_a_file_that_is_too_large(visit, models, shot):
    with visit() as page:
        sent(page, FILES, models / "large.safetensors")
        page.get_by_text("exceed the maximum allowed size").wait_for()
        shot(page, "describe_too_large")
        assert page.locator(DESCRIBED).count() == 0


def test_search_by_sentence_and_filter(visit, shot):
    with visit() as page:
        assert len(searched(page, "a red ant")) == 12
        shot(page, "search")
        page.get_by_label("Text contains").fill("blue")
        page.keyboard.press("Enter")
        page.locator("#px-found .px-text").filter(has_text="red").first.wait_for(state="detached")
        texts = page.locator("#px-found .px-text").all_inner_texts()
        assert texts
        assert all("blue" in text for text in texts)
        page.get_by_label("Split").click()
        page.get_by_role("option", name="test", exact=True).click()
        page.locator("#px-found .px-tags").filter(has_text="train").first.wait_for(state="detached")
        tags = page.locator("#px-found .px-tags").all_inner_texts()
        assert tags
        assert all("test" in tag for tag in tags)


def test_search_by_example(visit, models):
    with visit() as page:
        page.get_by_role("tab", name="Search").click()
        sent(page, EXAMPLE, models / "mine.safetensors")
        page.get_by_role("heading", name="Similar to mine").wait_for()
        assert "of Ant" in page.locator("#px-found h2").inner_text()
        assert page.locator("#px-found li").count() == 12


def test_a_text_after_an_example_is_searched_where_texts_are_known(visit, models):
    with visit() as page:
        page.get_by_role("tab", name="Search").click()
        sent(page, EXAMPLE, models / "mine.safetensors")
        page.get_by_role("heading", name="Similar to mine: 12 models of Ant").wait_for()
        searched(page, "a red ant")
        page.get_by_role("heading", name="a red ant: 12 models of ToyLoRA").wait_for()
        index = page.get_by_label("Index")
        assert index.input_value().startswith("ToyLoRA")
        # One that knows no texts cannot be had for a text.
        index.click()
        page.get_by_role("option", name="Ant").click()
        page.wait_for_function("document.querySelector('[aria-label=Index]').value[0] == 'T'")
        # An example goes before the text that was there.
        sent(page, EXAMPLE, models / "mine.safetensors")
        page.get_by_role("heading", name="Similar to mine: 12 models of Ant").wait_for()
        assert page.get_by_label("What the model was trained on").input_value() == ""
        assert index.input_value().startswith("Ant")


@contextmanager
def answers_held_back(page):
    """What is asked meanwhile is answered after it."""
    routes, holding = [], True
    page.route("**/run/predict", lambda at: routes.append(at) if holding else at.continue_())
    yield
    holding = False
    for route in routes:
        route.continue_()


def test_the_newest_controls_win(visit):
    with visit() as page:
        searched(page, "a red ant")
        with answers_held_back(page):
            page.get_by_label("What the model was trained on").fill("a blue dog")
            page.keyboard.press("Enter")
            page.get_by_label("Text contains").fill("blue")
            page.keyboard.press("Enter")
            page.get_by_label("Split").click()
            page.get_by_role("option", name="test", exact=True).click()
            page.get_by_label("range slider").press("ArrowRight")
            page.get_by_label("What the model was trained on").fill("a red dog")
            page.keyboard.press("Enter")
        page.get_by_role("heading", name="a red dog").wait_for()
        texts = page.locator("#px-found .px-text").all_inner_texts()
        assert texts
        assert all("blue" in text for text in texts)
        assert all("test" in text for text in page.locator("#px-found .px-tags").all_inner_texts())


def test_how_many_by_keyboard_and_by_number(visit, address):
    with visit() as page:
        every = page.request.get(f"{address}/api/search?query=x&k=100").json()["hits"]
        searched(page, "a red ant")
        page.get_by_label("range slider").press("ArrowLeft")
        page.get_by_role("heading", name="a red ant: 11 models").wait_for()
        box = page.get_by_label("number input")
        for typed, count in (("3", 3), ("", 12), ("0", 1), ("5", 5), ("500", len(every))):
            box.fill(typed)
            page.get_by_role("heading", name=f"a red ant: {count} model").wait_for()
        box.press("Tab")
        page.wait_for_function("document.querySelector('input[type=range]').value == 100")
        assert page.get_by_test_id("toast-body").count() == 0


def test_what_did_not_change_is_not_announced_again(visit):
    with visit() as page:
        searched(page, "a red ant")
        page.evaluate("document.querySelector('#px-found h2').id = 'same'")
        page.get_by_label("Text contains").focus()
        with page.expect_response("**/run/predict") as answer:
            page.keyboard.press("Tab")
        assert "px-gallery" not in answer.value.text()
        page.get_by_label("Text contains").fill("blue")
        assert page.locator("#same").count() == 1
        page.keyboard.press("Tab")
        page.locator("#same").wait_for(state="detached")


def test_who_asks_again_is_answered_again(visit):
    with visit() as page:
        searched(page, "a red ant")
        with page.expect_response("**/run/predict") as answer:
            page.get_by_role("button", name="Search", exact=True).click()
        assert "px-gallery" in answer.value.text()


def test_search_by_an_example_that_cannot_be_read(visit, models):
    with visit() as page:
        page.get_by_role("tab", name="Search").click()
        sent(page, EXAMPLE, models / "stranger.safetensors")
        page.locator("#px-found [role=alert]").wait_for()
        assert "unknown tree" in page.locator("#px-found").inner_text()


def test_more_like_this_is_a_link(visit):
    with visit() as page:
        searched(page, "a red ant")
        first = page.locator("#px-found .px-id").first.inner_text()
        page.get_by_text("more like this").first.click()
        page.get_by_role("heading", name=f"Similar to {first}").wait_for()
        assert first not in page.locator("#px-found .px-id").all_inner_texts()


def test_a_link_to_a_search_opens_it(visit):
    with visit("/?query=a+blue+dog") as page:
        page.get_by_role("heading", name="a blue dog").wait_for()
        assert page.get_by_label("What the model was trained on").input_value() == "a blue dog"


def test_forest_and_its_map(visit, shot):
    with visit() as page:
        page.get_by_role("tab", name="Forest").click()
        text = page.locator("#px-forest").inner_text()
        assert all(tree in text for tree in ("Ant", "Bee", "ToyLoRA", "me/ant-root"))
        page.locator("#px-forest summary").first.click()
        page.locator("#px-forest-map iframe").scroll_into_view_if_needed()
        map_ = page.frame_locator("#px-forest-map iframe")
        map_.get_by_text("representations are similar").first.wait_for()
        shot(page, "forest")


def walked_to(page, condition):
    """Presses Tab until what has the focus is the right thing."""
    for _ in range(_STOPS):
        page.keyboard.press("Tab")
        if page.evaluate(condition):
            return
    raise AssertionError(f"Tab leads nowhere where {condition}")


def test_by_keyboard_alone(visit):
    with visit() as page:
        # There is nothing to walk through before the page is drawn.
        page.get_by_role("tab", name="Search").wait_for()
        walked_to(page, "document.activeElement.innerText == 'Search'")
        page.keyboard.press("Enter")
        page.get_by_label("What the model was trained on").wait_for()
        walked_to(page, "document.activeElement.placeholder == 'an inverted three'")
        page.keyboard.type("a red ant")
        page.keyboard.press("Enter")
        page.locator("#px-found li").first.wait_for()
        assert "a red ant" in page.locator("#px-found h2").inner_text()


def test_on_a_phone_nothing_is_wider_than_the_screen(visit, models, shot):
    with visit(viewport=PHONE) as page:
        sent(page, FILES, models / "mine.safetensors")
        page.locator(DESCRIBED).wait_for()
        shot(page, "phone_describe")
        searched(page, "a red ant")
        shot(page, "phone_search")
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["width"]


def test_two_users_at_once(browser, address, models):
    with visited(browser, address) as one, visited(browser, address) as other:
        sent(one, FILES, models / "mine.safetensors")
        found = searched(other, "a red ant")
        one.locator(DESCRIBED).wait_for()
        assert "mine" in one.locator(DESCRIBED).inner_text()
        assert len(found) == 12
        assert other.locator(DESCRIBED).count() == 0
        assert one.locator("#px-found li").count() == 0


def test_two_users_send_the_same_file(browser, address, models):
    with visited(browser, address) as one, visited(browser, address) as other:
        for page in (one, other):
            sent(page, FILES, models / "mine.safetensors")
        for page in (one, other):
            page.locator(DESCRIBED).wait_for()
            assert "Model Tree Ant" in page.locator(DESCRIBED).inner_text()


def test_the_page_asks_for_no_more_than_the_guard_lets_through(browser, address, models):
    asked = set()
    with visited(browser, address) as page:
        page.on("request", lambda request: asked.add(urlsplit(request.url).path))
        page.reload()
        sent(page, FILES, models / "mine.safetensors")
        page.locator(DESCRIBED).wait_for()
        searched(page, "a red ant")
        page.get_by_role("tab", name="Forest").click()
        page.locator("#px-forest-map iframe").wait_for()
    ours = {path for path in asked if not path.startswith(("/assets/", "/static/"))}
    assert {"/", "/gradio_api/upload", _EVENT} <= ours
    known = {path for path in ours if _READ.fullmatch(path) or path in (*_FILES, _EVENT)}
    assert ours - {""} == known
