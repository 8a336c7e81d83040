"""Debian's Chromium, and what it complains of."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.web.conftest import (
    address,
    forest_path,
    hub_root,
    indexes,
    lineage_path,
    server,
    trees,
)

__all__ = ["address", "forest_path", "hub_root", "indexes", "lineage_path", "server", "trees"]

SCREENSHOTS = Path(__file__).parents[2] / "out" / "screenshots"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="session")
def browser():
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    assert path, "no chromium: apt-get install chromium, or name one in $CHROMIUM"
    with sync_playwright() as playwright:
        # As root, as CI is, Chromium has no sandbox.
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@contextmanager
def visited(browser, address, viewport=None, link="/", **options):
    """A page of the browser; an error in its console or a request to elsewhere is a failure."""
    context = browser.new_context(viewport=viewport or DESKTOP, **options)
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(f"error: {error}"))
    page.on(
        "console",
        # An answer that says what is wrong with a question is no fault.
        lambda said: (
            faults.append(f"console: {said.text}")
            if said.type == "error" and "status of 4" not in said.text
            else None
        ),
    )
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((address, "data:", "blob:", "about:"))
            else faults.append(f"asked {request.url}")
        ),
    )
    page.set_default_timeout(60_000)
    page.goto(address + link)
    try:
        yield page
        assert faults == []
    finally:
        context.close()


@pytest.fixture
def shot():
    """Takes a screenshot, into a folder that git ignores."""

    def take(page, name):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{name}.png")

    return take
