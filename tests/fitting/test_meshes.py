"""Experts on batches sharded over models: nothing is gathered, and all is as on one device."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fitting.on_meshes import CASES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("which", ["quick", pytest.param("slow", marks=pytest.mark.parity)])
def test_an_expert_does_not_gather_a_sharded_batch(which):
    program = [sys.executable, "-W", "error", "-m", "tests.fitting.on_meshes", which]
    done = subprocess.run(program, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    found = json.loads(done.stdout)
    assert len(found) == len(CASES[which])
    for case, result in found.items():
        assert isinstance(result, dict), (case, result)
        assert result["forward"] == [], case
        # Gradients of the variables are added up over the devices.
        assert result["backward"] == ["all-reduce"], case
        assert result["sharded"], case
        assert result["error"] <= 1e-5, case
