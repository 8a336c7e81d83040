"""Predicted attributes on the page: on a model's description, and to filter and sort by."""

import pytest

from tests.browser.conftest import PHONE, visited
from tests.told import NUMBER, told_forest, told_index
from tests.web.conftest import served

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return told_index(told_forest(tmp_path_factory.mktemp("told")))


@pytest.mark.parametrize("viewport", [None, PHONE], ids=["wide", "narrow"])
def test_attributes_are_shown_filtered_and_sorted(browser, index, tmp_path, shot, viewport):
    folder = index.path.parent
    model = next(folder.glob("Ant/*/m03/model.safetensors"))
    name = "narrow" if viewport else "wide"
    with (
        served(folder / "forest", [index.path], tmp_path) as made,
        visited(browser, made.address, viewport) as page,
    ):
        page.locator("#files").set_input_files(str(model))
        row = page.locator("#dropped .px-attributes tbody tr").filter(has_text=NUMBER)
        row.wait_for()
        assert " to " in row.inner_text()
        shot(page, f"attributes_{name}")
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(wide) <= 0
        page.get_by_role("link", name="Search").click()
        page.get_by_label("Predicted attributes").fill(f'"{NUMBER}" > 5.6')
        page.keyboard.press("Enter")
        page.locator("#found li").first.wait_for()
        page.get_by_label("Sorted by").select_option(f"{NUMBER}, largest first")
        best = index.search(sort=f"-{NUMBER}", k=1)[0]
        page.locator("#found li").first.filter(has_text=best.id).wait_for()
        tags = page.locator("#found .px-tags").all_inner_texts()
        values = [float(tag.split(f"{NUMBER}: ")[1].split()[0]) for tag in tags]
        assert values == sorted(values, reverse=True)
        assert min(values) > 5.5
        shot(page, f"sorted_{name}")
        page.get_by_label("Predicted attributes").fill("nope > 3")
        page.keyboard.press("Enter")
        page.locator("#found .px-error").filter(has_text="nope").wait_for()
