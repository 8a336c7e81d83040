"""What `make demo` and `make page` show, at the size of a tiny zoo."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.browser.conftest import visited
from tests.web.conftest import served_demo

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder of a demo that was run."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    command = [sys.executable, "-m", "experiments.demo", f"--workdir={folder}", "--size=tiny"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[2])
    return folder


def test_its_report_opens_in_silence_and_is_small(browser, demo, shot):
    report = demo / "report.html"
    assert report.stat().st_size < 3_000_000
    with visited(browser, report.as_uri(), link="") as page:
        page.get_by_role("heading", level=1).wait_for()
        headings = page.get_by_role("heading", level=2).all_inner_texts()
        assert len(headings) == 8
        assert "hidden_08" in page.locator("body").inner_text()
        shot(page, "report")


def test_its_page_describes_hidden_models_and_shows_pictures(browser, demo, tmp_path, shot):
    with served_demo(demo, tmp_path) as server, visited(browser, server.address) as page:
        hidden = [str(path) for path in sorted((demo / "hidden").iterdir())]
        page.locator("#files").set_input_files(hidden)
        page.locator("#dropped article").nth(len(hidden) - 1).wait_for()
        said = page.locator("#dropped article").all_inner_texts()
        trees = ("MiniSupViT", "MiniMAE", "MiniLoRA")
        assert all(any(f"Model Tree {tree}" in text for text in said) for tree in trees)
        assert sum("Unknown tree" in text for text in said) == 1
        assert page.locator("#dropped img[src^='data:image']").count() >= 5
        page.get_by_role("link", name="Forest").click()
        page.get_by_text("Accuracy by layer").first.click()
        page.locator("#forest .px-bar").first.wait_for()
        shot(page, "demo_forest")


def test_none_of_fifty_searches_and_twenty_descriptions_fails(demo, tmp_path):
    """How long they take is for quiet machines: `python -m experiments.benchmarks.page`.

    That two are read at a time, so that memory is bounded, `tests/web/test_limits.py` shows.
    """
    command = [sys.executable, "-m", "experiments.benchmarks.page", f"--demo={demo}", "--rounds=2"]
    done = subprocess.run(
        [*command, f"--out={tmp_path / 'page.json'}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "page.json").read_text())["figures"]
    assert len(rows) == 8
    assert all(row["held, MiB"] > 0 for row in rows)
