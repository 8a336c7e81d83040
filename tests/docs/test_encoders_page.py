"""The code of docs/encoders.md: taken from the page, put where it says, and run."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.docs import markdown

PAGE = (markdown.ROOT / "docs" / "encoders.md").read_text()

# What the page's reader does at a terminal, in one process: the tests, and then the training.
PROGRAM = """if True:
    import runpy, sys, pytest
    assert pytest.main(["-q", "-p", "no:cacheprovider", sys.argv[1]]) == 0
    sys.argv[:] = sys.argv[1:]
    runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def repository(tmp_path):
    """A copy of the repository in which the page's steps were taken."""
    for name in ("probex_jax", "experiments", "configs"):
        shutil.copytree(markdown.ROOT / name, tmp_path / name)
    for name in ("setup.cfg", "tests/__init__.py", "tests/conftest.py", "tests/numeric.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy2(markdown.ROOT / name, tmp_path / name)
    for name, code in markdown.files(PAGE).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code)
    (diff,) = [code for language, code in markdown.blocks(PAGE) if language == "diff"]
    apply = ["git", "apply", "-"]
    subprocess.run(apply, input=diff, cwd=tmp_path, text=True, check=True)
    return tmp_path


def test_the_encoder_of_the_page_passes_its_tests_and_is_trained(repository, toy_store):
    (test,) = [name for name in markdown.files(PAGE) if name.startswith("tests/")]
    config = re.search(r"experiments\.train (--config=\S+)", PAGE)[1]
    settings = ["--workdir=w", "--config.layers=a.weight", "--config.recipe.epochs=50"]
    done = subprocess.run(
        [
            *(sys.executable, "-c", PROGRAM, test, config, *settings),
            f"--config.store={toy_store.path}",
        ],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    found = re.search(r"\| gated +\| a\.weight \| (0\.\d+)", done.stdout)
    assert float(found[1]) > 0.7


def test_the_encoder_that_stays_in_one_s_own_code_learns(tmp_path, toy_store, monkeypatch):
    (tmp_path / "out" / "stores").mkdir(parents=True)
    (tmp_path / "out" / "stores" / "MiniMAE").symlink_to(toy_store.path)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(markdown.files(PAGE)["mine.py"], names)
    assert names["losses"][-1] < 0.5 * names["losses"][0]
