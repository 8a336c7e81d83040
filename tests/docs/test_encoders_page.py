"""The code of docs/encoders.md: taken from the page, and run."""

import re

import pytest

from tests.docs import markdown

PAGE = (markdown.ROOT / "docs" / "encoders.md").read_text()
FILES = markdown.files(PAGE)


@pytest.fixture
def at_the_store(tmp_path, toy_store, monkeypatch):
    """A folder with the store that the page opens."""
    (tmp_path / "out" / "stores").mkdir(parents=True)
    (tmp_path / "out" / "stores" / "MiniMAE").symlink_to(toy_store.path)
    monkeypatch.chdir(tmp_path)


def test_an_encoder_of_one_s_own_is_fitted_kept_and_swept(at_the_store):
    names = {}
    exec(FILES["arrays.py"], names)
    exec(FILES["own_encoder.py"], names)
    figures = names["found"].figures
    assert figures["accuracy"] > figures["chance"]
    exec(FILES["keep.py"], names)
    assert names["probabilities"].shape == names["y_val"].shape
    sweep = re.sub(r"epochs=100", "epochs=20", FILES["sweep.py"])
    exec(sweep, names)
    assert names["swept"].expert.card.common("encoder")["temperature"] == 0.5


def test_it_takes_less_than_fifteen_lines():
    assert len([line for line in FILES["own_encoder.py"].splitlines() if line.strip()]) < 15


def test_the_encoder_in_one_s_own_step_learns(at_the_store):
    names = {}
    exec(FILES["mine.py"], names)
    assert names["losses"][-1] < 0.5 * names["losses"][0]
