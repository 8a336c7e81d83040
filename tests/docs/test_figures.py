"""The figures in pages are those of the files of results/."""

import json
import re

import pytest

from experiments.benchmarks.results import bound, pages
from experiments.benchmarks.results.bound import ROOT, Bound
from tests.docs import markdown

# Decimal fractions, seconds and factors: what is measured, mostly.
_TIMES = "\N{MULTIPLICATION SIGN}"
_UNIT = rf"(?: ms| s| min| MB| GB| MiB|{_TIMES}(?!\d))(?!\w)"
_MEASURED = rf"(?<![\w.])\d*\.\d+\b(?!\.)|\b\d[\d,]*{_UNIT}"
# What nobody measured here.
_GIVEN = {"3.11"}


@pytest.mark.parametrize("page", dict.fromkeys(one.page for one in pages.BOUND))
def test_a_page_has_the_figures_that_were_measured(page):
    text = (ROOT / page).read_text()
    faults = [fault for one in pages.BOUND if one.page == page for fault in one.faults(text)]
    assert not faults


def test_every_file_says_when_how_and_of_which_commit():
    for path in sorted((ROOT / "results").rglob("*.json")):
        found = json.loads(path.read_text())
        found = found[0] if isinstance(found, list) else found
        assert {"date", "command", "commit", "versions"} <= found.keys(), path.name


def test_no_measured_figure_stands_in_the_readme_unbound():
    text = (ROOT / "README.md").read_text()
    assert not unbound(text, [one for one in pages.BOUND if one.page == "README.md"])


def unbound(text, known):
    """What looks measured and is in no text that is bound."""
    for one in known:
        for place in reversed(one.places(text)):
            text = text[: place.start()] + "\n" + text[place.end() :]
    rest = re.sub(r"\]\([^)]*\)|arXiv [\d.]+", "]", markdown.prose(text))
    return [found for found in re.findall(_MEASURED, rest) if found not in _GIVEN]


@pytest.fixture
def results(tmp_path):
    """A folder with one file."""
    (tmp_path / "zoo.json").write_text(json.dumps({"share": 0.9686, "sd": 0.004}))
    return tmp_path


def _of_zoo(found):
    return bound.dot(found["share"]), f"± {bound.dot(found['sd'])}"


ZOO = Bound("README.md", "It was right on {} {} of the models", "zoo", _of_zoo)


def test_another_digit_in_a_page_is_noticed(results):
    assert not list(ZOO.faults("It was right\non .969 ± .004 of the models.", results))
    for page in (
        "It was right on .968 ± .004 of the models.",
        "It was right on .969 ± .003 of the models.",
        "It was right on 0.969 ± .004 of the models.",
        "It was wrong on .969 ± .004 of the models.",
        2 * "It was right on .969 ± .004 of the models.",
    ):
        assert len(list(ZOO.faults(page, results))) == 1, page


def test_new_figures_are_written_where_the_old_ones_stood(results):
    page = "Measured. It was right\non .9 ± .1 of the models, 3 of 4."
    written = ZOO.written(page, results)
    assert written == "Measured. It was right\non .969 ± .004 of the models, 3 of 4."


def test_without_a_file_nothing_is_compared_or_written(tmp_path):
    page = "It was right on .1 ± .2 of the models."
    assert not list(ZOO.faults(page, tmp_path))
    assert ZOO.written(page, tmp_path) == page


def test_a_figure_that_is_not_bound_is_noticed():
    page = "It was right on .9 ± .1 of the models, and took 3 s.\n\n`--share=.5`, Python 3.11"
    assert unbound(page, [ZOO]) == ["3 s"]
    assert unbound(page, []) == [".9", ".1", "3 s"]
