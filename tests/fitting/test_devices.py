"""Several devices give what one gives."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from probex_jax.fitting.sharding import _divided, widths

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("which", "count"), [("quick", 1), pytest.param("slow", 5, marks=pytest.mark.parity)]
)
def test_gradients_on_several_devices_are_those_of_one(which, count):
    program = [sys.executable, "-W", "error", "-m", "tests.fitting.on_devices", which]
    done = subprocess.run(program, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    found = json.loads(done.stdout)
    assert len(found) == count
    for name, differences in found.items():
        assert differences["gradients"] <= 1e-6, name
        assert differences["losses"] <= 1e-6, name
        assert differences["accuracies"] <= 1e-6, name
        assert differences["size"] > 0.1, name


@pytest.mark.parametrize("count", [1, 2, 3, 8, 30])
def test_every_model_of_a_batch_is_taken_once(count):
    rng = np.random.default_rng(count)
    orders = np.stack([rng.permutation(19) for _ in range(5)]).astype(np.int32)
    each, width = -(-19 // count), widths(orders, 7, 19, count)
    for part, most in ((orders[:, :14].reshape(5, 2, 7), width.full), (orders[:, 14:], width.rest)):
        index, weight = _divided(part, count, each, most)
        taken = np.arange(count).reshape(-1, *[1] * part.ndim) * each + index
        for place in np.ndindex(*part.shape[:-1]):
            mine = (slice(None), *place)
            assert sorted(taken[mine][weight[mine] > 0]) == sorted(part[place])
        assert (index[weight == 0] == 0).all()
