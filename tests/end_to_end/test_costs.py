"""What steps cost stays as the run that did them measured it."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.costs import Costs
from probex_jax.errors import ProbexError


def test_a_step_is_measured_and_its_cost_stays(tmp_path):
    costs = Costs(tmp_path)
    with costs.step("slow", tmp_path / "made"):
        (tmp_path / "made").touch()
        time.sleep(0.05)
    (cost,) = costs.steps
    assert 0.05 <= cost.seconds < 5
    assert 10 * 2**20 < cost.peak_bytes < 2**40
    assert not cost.resumed
    again = Costs(tmp_path)
    with again.step("slow", tmp_path / "made"):
        pass
    assert again.steps == [cost]
    assert again.about == costs.about
    assert costs.about["command"].startswith("probex ")


def test_memory_is_that_of_the_step(tmp_path):
    costs, peaks = Costs(tmp_path), Path("/proc/self/clear_refs")
    if not (peaks.exists() and os.access(peaks, os.W_OK)):
        pytest.skip("this system cannot forget a peak")
    with costs.step("much"):
        block = np.ones(300 * 2**17)
        del block
    with costs.step("little"):
        pass
    much, little = (cost.peak_bytes for cost in costs.steps)
    assert much - little > 200 * 2**20


def test_a_step_that_fails_is_not_kept_and_one_gone_on_with_says_so(tmp_path):
    costs = Costs(tmp_path)
    made = tmp_path / "made"

    def fail():
        made.touch()
        with costs.step("half", made):
            raise ProbexError("no")

    with pytest.raises(ProbexError, match="no"):
        fail()
    assert costs.steps == []
    with costs.step("half", made):
        pass
    assert [cost.resumed for cost in costs.steps] == [True]


def test_who_does_not_write_writes_nothing(tmp_path):
    with Costs(tmp_path, writes=False).step("all"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_record_is_one_line(tmp_path):
    for text in ("{", "[]", json.dumps({"steps": [{"step": 1}], "about": {}})):
        (tmp_path / "costs.json").write_text(text)
        with pytest.raises(ProbexError, match=r"costs\.json"):
            _ = Costs(tmp_path).steps
