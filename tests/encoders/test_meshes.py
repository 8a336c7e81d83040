"""Encoders on batches sharded over models: nothing is gathered, and all is as on one device."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.encoders.on_meshes import CASES

# One worker runs the program.
pytestmark = pytest.mark.xdist_group("meshes")
ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5


def results(which):
    program = [sys.executable, "-W", "error", "-m", "tests.encoders.on_meshes", which]
    done = subprocess.run(program, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def quick():
    return results("quick")


def check(found):
    assert isinstance(found, dict), found
    assert found["forward"] == []
    # Gradients of the parameters are added up over the devices.
    assert found["backward"] in ([], ["all-reduce"])
    assert found["sharded"]
    assert found["error"] <= TOLERANCE


@pytest.mark.parametrize("case", ["; ".join(case) for case in CASES["quick"]])
def test_a_sharded_batch_is_not_gathered(case, quick):
    check(quick[case])


def check_others(found):
    assert isinstance(found, list), found
    assert len(found) == 6
    for name, collectives, error in found:
        assert collectives == [], name
        assert error <= TOLERANCE, name


def test_what_else_reads_a_sharded_batch_does_not_gather_it(quick):
    check_others(quick["others; Explicit"])


@pytest.mark.parity
def test_no_encoder_gathers_any_kind_of_matrices():
    found = results("slow")
    assert len(found) == len(CASES["slow"]) + 2
    for name, result in found.items():
        (check_others if name.startswith("others") else check)(result)
