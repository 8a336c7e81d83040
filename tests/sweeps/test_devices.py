"""A sweep on several devices is that on one."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parity
def test_a_sweep_on_three_devices_is_that_on_one(toy_store, tmp_path):
    program = [sys.executable, "-W", "error", "-m", "tests.sweeps.sweep_on_devices"]
    done = subprocess.run(
        [*program, str(toy_store.path), str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    found = json.loads(done.stdout)
    for compute, tolerance in (("float32", 1e-4), ("bfloat16", 2e-2)):
        one = found[f"one, {compute}"]["losses"]
        assert len(one) == 6
        for name in ("three", "three, streamed"):
            other = found[f"{name}, {compute}"]["losses"]
            for expert, losses in one.items():
                np.testing.assert_allclose(losses, other[expert], rtol=tolerance, err_msg=name)
    exact, rounded = (found[f"one, {compute}"]["losses"] for compute in ("float32", "bfloat16"))
    assert exact != rounded, "the setting does nothing"
    for expert, losses in exact.items():
        np.testing.assert_allclose(losses, rounded[expert], rtol=5e-2)
