"""The web page, in a real browser."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.browser.conftest import PHONE, visited
from tests.forest.conftest import labels_of, write_member
from tests.web.conftest import LIMIT

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

DESCRIBED, FOUND = "#dropped article", "#found li"
FILES, EXAMPLE = "#files", "#example"
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


def heading(page, text):
    page.get_by_role("heading", name=text).wait_for()


def texts(page):
    return page.locator("#found .px-text").all_inner_texts()


def query(page):
    return page.get_by_label("What the model was trained on")


def searched(page, text):
    page.get_by_role("link", name="Search", exact=True).click()
    query(page).fill(text)
    page.keyboard.press("Enter")
    heading(page, f"{text}: ")
    return texts(page)


def test_describe_a_file(visit, models, shot):
    with visit() as page:
        sent(page, FILES, models / "mine.safetensors")
        page.locator(DESCRIBED).wait_for()
        text = page.locator(DESCRIBED).inner_text()
        assert "Model Tree Ant" in text
        assert "me/ant-root" in text
        assert page.locator("#said").inner_text() == "mine"
        bars = page.locator(f"{DESCRIBED} tbody tr")
        shown = [bars.nth(place).inner_text().split() for place in range(bars.count())]
        likely = {name for name, p in shown if float(p.strip("<>")) > 0.5}
        assert likely == set(labels_of(5))
        assert page.locator(f"{DESCRIBED} .px-gallery li").count() == 5
        page.locator(f"{DESCRIBED} iframe").scroll_into_view_if_needed()
        page.frame_locator(f"{DESCRIBED} iframe").get_by_text("this model").first.wait_for()
        shot(page, "describe")


def test_nothing_is_left_of_what_was_sent(visit, models, server):
    with visit() as page:
        (folder,) = server.temporary.glob("probex_jax-uploads-*")
        config = models / "config.json"
        config.write_text("{}")
        sent(page, FILES, models / "mine.safetensors", config)
        page.locator(DESCRIBED).wait_for()
        page.get_by_role("link", name="Search", exact=True).click()
        sent(page, EXAMPLE, models / "mine.safetensors")
        heading(page, "Similar to mine")
        assert list(folder.iterdir()) == []


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


def test_two_drops_at_once_are_both_answered(visit, models):
    with visit() as page:
        with held_back(page, "describe"):
            sent(page, FILES, models / "mine.safetensors")
            sent(page, FILES, models / "stranger.safetensors")
            page.get_by_role("progressbar").nth(1).wait_for()
        page.locator(DESCRIBED).nth(1).wait_for()
        # The newest stands first.
        assert page.locator(f"{DESCRIBED} h2").all_inner_texts() == ["stranger", "mine"]


def test_a_file_that_is_too_large(visit, models, shot):
    with visit() as page:
        sent(page, FILES, models / "large.safetensors")
        page.locator("#dropped .px-error").filter(has_text="larger than the limit").wait_for()
        shot(page, "describe_too_large")


def test_examples_are_one_click_away(visit):
    with visit() as page:
        for link, shown in (
            ("Describe a model", "#described article"),
            ("Models like", FOUND),
            ("Search for", FOUND),
        ):
            page.get_by_role("link", name=link).click()
            page.locator(shown).first.wait_for()
            page.go_back()
            page.locator(".px-examples").wait_for()


def test_search_by_sentence_and_filter(visit, shot):
    with visit() as page:
        assert len(searched(page, "a red ant")) == 12
        shot(page, "search")
        page.get_by_label("Text contains").fill("blue")
        page.keyboard.press("Enter")
        page.locator("#found .px-text").filter(has_text="red").first.wait_for(state="detached")
        assert texts(page)
        assert all("blue" in text for text in texts(page))
        page.get_by_label("Split").select_option("test")
        page.locator("#found .px-tags").filter(has_text="train").first.wait_for(state="detached")
        tags = page.locator("#found .px-tags").all_inner_texts()
        assert tags
        assert all("test" in tag for tag in tags)


def test_reload_and_back_keep_search_filters_and_tree(visit):
    with visit() as page:
        searched(page, "a red ant")
        page.get_by_label("Split").select_option("test")
        page.locator("#found .px-tags").filter(has_text="train").first.wait_for(state="detached")
        shown = texts(page)
        page.reload()
        heading(page, "a red ant: ")
        assert texts(page) == shown
        assert query(page).input_value() == "a red ant"
        assert page.get_by_label("Split").input_value() == "test"
        page.get_by_role("link", name="Forest").click()
        page.get_by_label("Map of the models of").select_option("ToyLoRA")
        drawn = page.frame_locator("#map iframe").get_by_text("models of ToyLoRA")
        drawn.first.wait_for()
        page.reload()
        drawn.first.wait_for()
        assert page.get_by_label("Map of the models of").input_value() == "ToyLoRA"
        for _ in range(2):
            page.go_back()
        heading(page, "a red ant: ")
        assert texts(page) == shown
        page.go_back()
        page.wait_for_function("document.querySelector('[name=split]').value === ''")
        page.locator("#found .px-tags").filter(has_text="train").first.wait_for()
        page.go_forward()
        page.locator("#found .px-tags").filter(has_text="train").first.wait_for(state="detached")


def test_search_by_example_and_by_text_after_it(visit, models):
    with visit() as page:
        page.get_by_role("link", name="Search", exact=True).click()
        sent(page, EXAMPLE, models / "mine.safetensors")
        heading(page, "Similar to mine: 12 models of Ant")
        page.get_by_label("How many").fill("3")
        page.keyboard.press("Enter")
        heading(page, "Similar to mine: 3 models of Ant")
        searched(page, "a red ant")
        heading(page, "a red ant: 3 models of ToyLoRA")
        # An example goes before the text that was there.
        sent(page, EXAMPLE, models / "mine.safetensors")
        heading(page, "Similar to mine: 3 models of Ant")
        assert query(page).input_value() == ""
        page.reload()
        page.locator("#found .px-error").filter(has_text="mine.safetensors").wait_for()


def test_a_text_where_no_texts_are_known(visit):
    with visit() as page:
        searched(page, "a red ant")
        page.get_by_label("Index").select_option("Ant")
        page.locator("#found .px-error").filter(has_text="index of Ant has no texts").wait_for()
        assert "no texts" in page.locator("#said").inner_text()


@contextmanager
def held_back(page, what="search"):
    """What is asked meanwhile is answered after it."""
    routes, holding = [], True
    page.route(f"**/api/{what}*", lambda at: routes.append(at) if holding else at.continue_())
    yield
    holding = False
    for route in routes:
        route.continue_()


def test_the_newest_controls_win(visit):
    with visit() as page:
        searched(page, "a red ant")
        with held_back(page):
            query(page).fill("a blue dog")
            page.keyboard.press("Enter")
            page.get_by_label("Text contains").fill("blue")
            page.keyboard.press("Enter")
            page.get_by_label("Split").select_option("test")
            page.get_by_label("How many").press("ArrowUp")
            query(page).fill("a red dog")
            page.keyboard.press("Enter")
            page.wait_for_url("**query=a+red+dog**")
        heading(page, "a red dog")
        assert texts(page)
        assert all("blue" in text for text in texts(page))
        assert all("test" in text for text in page.locator("#found .px-tags").all_inner_texts())


def test_how_many_by_keyboard_and_by_number(visit, address):
    with visit() as page:
        every = page.request.get(f"{address}/api/search?query=x&k=100").json()["hits"]
        searched(page, "a red ant")
        box = page.get_by_label("How many")
        box.press("ArrowDown")
        box.press("Tab")
        heading(page, "a red ant: 11 models")
        for typed, count in (("3", 3), ("", 12), ("100", len(every))):
            box.fill(typed)
            box.press("Enter")
            heading(page, f"a red ant: {count} model")


def test_what_did_not_change_is_not_announced_again(visit):
    with visit() as page:
        asked = []
        searched(page, "a red ant")
        assert page.locator("#said").inner_text() == "a red ant: 12 models of ToyLoRA"
        page.on("request", lambda request: asked.append(request.url))
        page.get_by_label("Text contains").focus()
        page.keyboard.press("Tab")
        page.get_by_role("link", name="Forest").click()
        page.get_by_role("link", name="Search", exact=True).click()
        page.get_by_label("Text contains").fill("blue")
        assert [url for url in asked if "/api/" in url] == []
        with page.expect_request("**/api/search*"):
            page.keyboard.press("Tab")
        # Who asks again is answered again.
        with page.expect_response("**/api/search*") as answer:
            page.get_by_role("button", name="Search").click()
        assert "px-gallery" in answer.value.text()


def test_search_by_an_example_that_cannot_be_read(visit, models):
    with visit("/?view=search") as page:
        sent(page, EXAMPLE, models / "stranger.safetensors")
        page.locator("#found .px-error").filter(has_text="unknown tree").wait_for()


def test_more_like_this_is_a_link(visit):
    with visit() as page:
        searched(page, "a red ant")
        first = page.locator("#found .px-id").first.inner_text()
        page.get_by_text("more like this").first.click()
        heading(page, f"Similar to {first}")
        assert first not in page.locator("#found .px-id").all_inner_texts()


@pytest.mark.parametrize(
    ("link", "title"),
    [
        ("/?query=a+blue+dog", "a blue dog: 12"),
        ("/?like=m17&index=Ant&k=3", "Similar to m17: 3 models of Ant"),
    ],
)
def test_a_link_to_a_search_opens_it(visit, link, title):
    with visit(link) as page:
        heading(page, title)


@pytest.mark.parametrize("link", ["/?view=forest&index=Zebra", "/?query=x&tree=Zebra&index=%00"])
def test_a_link_to_what_is_not_there_is_told(visit, link):
    with visit(link) as page:
        page.locator("#found .px-error, #map iframe").first.wait_for()


def test_forest_and_its_map(visit, shot):
    with visit() as page:
        page.get_by_role("link", name="Forest").click()
        text = page.locator("#forest").inner_text()
        assert all(tree in text for tree in ("Ant", "Bee", "ToyLoRA", "me/ant-root"))
        page.locator("#forest summary").first.click()
        page.locator("#map iframe").scroll_into_view_if_needed()
        map_ = page.frame_locator("#map iframe")
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
        walked_to(page, "document.activeElement.id === 'files'")
        page.reload()
        walked_to(page, "document.activeElement.innerText === 'Search'")
        page.keyboard.press("Enter")
        walked_to(page, "document.activeElement.name === 'query'")
        page.keyboard.type("a red ant")
        page.keyboard.press("Enter")
        heading(page, "a red ant")


def test_on_a_phone_nothing_is_wider_than_the_screen(visit, models, shot):
    with visit(viewport=PHONE) as page:
        sent(page, FILES, models / "mine.safetensors")
        page.locator(DESCRIBED).wait_for()
        shot(page, "phone_describe")
        searched(page, "a red ant")
        shot(page, "phone_search")
        page.get_by_role("link", name="Forest").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_axe_finds_no_fault(browser, address, models, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    size, axe = {"width": width, "height": 800}, Axe()
    with visited(browser, address, size, color_scheme=scheme) as page:

        def check():
            found = axe.run(page)
            assert found.violations_count == 0, found.generate_report()
            assert page.evaluate("document.documentElement.scrollWidth") <= width

        evil = next(models.glob("evil*"))
        sent(page, FILES, models / "mine.safetensors", evil)
        page.locator(DESCRIBED).nth(1).wait_for()
        check()
        searched(page, "a red ant")
        check()
        page.get_by_label("Index").select_option("Ant")
        page.locator("#found .px-error").wait_for()
        check()
        for view in ("Forest", "Family tree"):
            page.get_by_role("link", name=view).click()
            check()
        for document in ("/map?index=Ant&x=0&y=0&name=mine", "/lineage"):
            page.goto(address + document)
            check()


def test_two_users_send_the_same_file(browser, address, models):
    with visited(browser, address) as one, visited(browser, address) as other:
        for page in (one, other):
            sent(page, FILES, models / "mine.safetensors")
        assert len(searched(other, "a red ant")) == 12
        for page in (one, other):
            page.locator(DESCRIBED).wait_for(state="attached")
            assert page.locator(DESCRIBED).count() == 1
        assert one.locator(FOUND).count() == 0
