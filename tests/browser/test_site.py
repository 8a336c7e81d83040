"""The site of `make docs`, opened from disk."""

import subprocess
import sys

import pytest

from tests.browser.conftest import visited
from tests.docs.markdown import ROOT

pytestmark = pytest.mark.browser


def test_search_works_from_disk_without_a_network(browser, shot):
    subprocess.run([sys.executable, "docs/site/build.py"], cwd=ROOT, check=True)
    site = (ROOT / "out" / "docs").as_uri()
    with visited(browser, site, link="/docs/models.html") as page:
        page.get_by_role("button", name="Search").click()
        asked = page.get_by_placeholder("Search")
        asked.press_sequentially("sweep_attributes")
        links = page.locator("a").filter(has_text="Public names")
        found = links.filter(has_text="sweep_attributes").first
        found.wait_for()
        shot(page, "site-search")
        assert asked.input_value() == "sweep_attributes"
        found.click()
        page.wait_for_url("**/api/public.html**")
