"""The suites of `benchmark` at tiny sizes: what they record, and what they count."""

import json
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments.benchmarks import (
    describe,
    encoder,
    figures,
    gpu,
    pack,
    products,
    programs,
    report,
    search,
    sweep,
    timing,
    train,
)
from experiments.benchmarks.figures import Figure
from experiments.benchmarks.inputs import Case, epoch_of
from probex_jax.fitting import Adam
from tests.end_to_end import warm

DENSE = [
    Case("probex", dim=8, rank=0, models=4, rep_dim=5, units=3),
    Case("mvprobe", dim=8, rank=0, models=4, rep_dim=5, units=3),
]
FACTORS = [
    Case("probex", dim=8, rank=2, models=4, rep_dim=5, units=3),
    Case("mvprobe", dim=8, rank=2, models=4, rep_dim=5, units=3),
]
GPU = [sys.executable, "-m", "experiments.benchmarks.gpu"]
SMALL_SWEEP = sweep.Sizes(models=20, blocks=1, width=4, epochs=2, alone=1)
SMALL_SEARCH = search.Sizes(models=600, dim=8, centres=20, queries=10, per_run=2)
SUITES = {
    "encoder": lambda: encoder.measure([*DENSE, *FACTORS], 2, product_size=32),
    "train": lambda: train.measure([DENSE[0], FACTORS[1]], 2, product_size=32),
    "sweep": lambda: sweep.measure(SMALL_SWEEP, 1, product_size=32),
    "describe": lambda: describe.measure(describe.Sizes(models=3, size=8, layers=2), 1),
    "search": lambda: search.measure(SMALL_SEARCH, 2),
}


@pytest.fixture
def forked(monkeypatch):
    """Programs that need not import the libraries; "-c" is not asked for what it does."""

    def run(option, module, *arguments):
        if option == "-m":
            ended = warm.run(module.removeprefix("experiments."), *arguments)
            assert ended.returncode == 0, ended.stderr

    monkeypatch.setattr(programs, "run", run)


@pytest.mark.parity  # programs are compiled and started
@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_records_rates_against_a_limit(suite, forked, monkeypatch, tmp_path):
    monkeypatch.setattr(figures, "pytorch", lambda: None)
    for module in (encoder, train, sweep, describe, search, products):
        monkeypatch.setattr(module, "pytorch", lambda: None)
    found = figures.record(suite, SUITES[suite](), quick=False)
    assert found["suite"] == suite
    assert found["figures"]
    assert found["command"].startswith("python -m ")
    assert {"cpu", "cores", "backend", "device", "load"} <= found["machine"].keys()
    assert {"python", "jax", "jaxlib", "flax", "numpy"} <= found["versions"].keys()
    for figure in found["figures"]:
        assert figure["name"]
        assert figure["unit"].endswith("/s")
        assert figure["limit_is"]
        assert figure["value"] > 0
        assert figure["limit"] > 0
        assert figure["fraction"] == pytest.approx(figure["value"] / figure["limit"])
        assert figure["torch"] is None
        assert figure["torch_ratio"] is None
        assert all(len(runs) == figure["repeats"] for runs in figure["seconds"].values())
    report.keep(found, tmp_path / "speed")
    assert json.loads((tmp_path / "speed" / f"cpu-{suite}.json").read_text()) == [found]
    page = (tmp_path / "speed.md").read_text()
    assert all(figure["name"] in page for figure in found["figures"])


def test_a_figure_is_the_median_against_limit_torch_and_others():
    seconds = {"ours": [1.0, 9.0, 2.0], "limit": [1.0] * 3, "PyTorch": [4.0] * 3, "slow": [6.0] * 3}
    work = {"ours": 10.0, "limit": 20.0, "PyTorch": 10.0, "slow": 15.0}
    figure = Figure("it", "models/s", work, seconds, "limit", "a limit", {"recall": 1.0}).as_json()
    assert (figure["value"], figure["limit"], figure["fraction"]) == (5.0, 20.0, 0.25)
    assert (figure["torch"], figure["torch_ratio"]) == (2.5, 2.0)
    assert (figure["others"], figure["other_ratios"]) == ({"slow": 2.5}, {"slow": 2.0})
    assert "2x slow; recall 1" in figures.summary([figure])


def test_candidates_take_turns_and_the_first_turn_is_not_timed():
    turns = []
    candidates = {name: partial(turns.append, name) for name in ("a", "b")}
    found = timing.times(candidates, 2)
    assert turns == ["a", "b"] * 3
    assert [len(runs) for runs in found.values()] == [2, 2]
    assert len(timing.times(candidates, 2, warm_up=False)["a"]) == 2
    assert turns == ["a", "b"] * 5


@pytest.mark.parametrize(("name", "branches"), [("probex", 1), ("mvprobe", 4)])
def test_flops_of_an_epoch_are_those_of_the_equations(name, branches):
    case = Case(name, dim=16, rank=0, models=8, rep_dim=5, units=3)
    data = case.split(with_text=False)
    epoch, arguments = epoch_of(case.network(), Adam(batch_size=4), data)
    flops = products.flops(epoch, *arguments)
    n, d, u, t, y = 8, 16, 3, 5, 100
    # A product, and its gradient for the probes; two gradients of what is projected and encoded.
    expected = n * branches * (4 * d * d * u + 6 * u * d * u + 6 * u * u * t) + n * 6 * t * y
    assert flops == pytest.approx(expected)


def test_flops_of_loops_are_counted_as_often_as_they_run():
    def function(x):
        return jax.lax.scan(lambda carry, _: (carry @ x, None), x, length=7)[0]

    assert products.flops(function, jnp.ones([3, 3])) == 7 * 2 * 3**3


def test_pack_waits_for_its_module(monkeypatch):
    monkeypatch.setattr(pack, "_MODULE", "experiments.benchmarks.no_such_module")
    assert pack.measure(pack.QUICK, 1) == []


def test_pack_reads_the_rows_of_its_module(monkeypatch, tmp_path):
    rate = {
        "what": "rate",
        "models": "large",
        "MB": 500.0,
        "pack, GB/s": 0.6,
        "copyfile, GB/s": 0.8,
    }
    rate |= {"read and write, GB/s": 0.5, "pack / copyfile, by CPU time": 0.7}
    memory = {"what": "memory", "models": 200, "GB": 0.1, "models/s": 50.0}
    memory |= {"imports, MiB": 100.0, "peak, MiB": 120.0}
    (tmp_path / "rows_of_packing.py").write_text(
        f"def measure(repeats):\n    return [{rate}, {memory}][:repeats]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(pack, "_MODULE", "rows_of_packing")
    speed, weight = (figure.as_json() for figure in pack.measure(pack.DEFAULT, 2))
    assert speed["value"] == pytest.approx(0.6)
    assert speed["fraction"] == pytest.approx(0.75)
    assert speed["other_ratios"]["read and write"] == pytest.approx(1.2)
    assert weight["value"] == pytest.approx(50.0)
    assert weight["fraction"] is None
    assert weight["notes"]["peak, MiB"] == 120.0
    assert "0.75" in figures.summary([speed, weight])


@pytest.mark.parity
@pytest.mark.parametrize("case", [*DENSE, *FACTORS])
def test_torch_does_the_same_work(case):
    from experiments.benchmarks import pytorch

    recipe, data = Adam(batch_size=2, epochs=1, l2=1e-2), case.split(with_text=True)
    epoch, (rates, given, carry, of_epoch) = epoch_of(case.network("text"), recipe, data)
    theirs = pytorch.parameters(carry[0], "float64")
    batches = [*of_epoch.index, *([] if of_epoch.rest_index is None else [of_epoch.rest_index])]
    (ours, _), _ = epoch(rates, given, carry, of_epoch)
    pytorch.steps(theirs, data.x, data.y, batches, recipe.learning_rate, recipe.l2, data.texts)()
    for name, expected in pytorch.parameters(ours, "float64").items():
        np.testing.assert_allclose(theirs[name].detach(), expected.detach(), atol=2e-5)


@pytest.mark.parity  # programs are compiled and started
def test_the_script_for_a_gpu_keeps_what_every_part_measured(tmp_path):
    done = subprocess.run(
        [*GPU, "--quick", "--repeats=1", f"--results={tmp_path / 'speed'}"],
        cwd=warm.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for part in gpu.PARTS:
        [record] = json.loads((tmp_path / "speed" / f"cpu-{part}.json").read_text())
        assert record["figures"]
        assert all(figure["value"] > 0 for figure in record["figures"])


def test_what_a_part_measured_before_it_fails_is_kept(tmp_path, monkeypatch):
    def measure(repeats):
        yield Figure("first", "models/s", {"ours": 3.0}, {"ours": [1.0]})
        raise RuntimeError("no memory")

    monkeypatch.setitem(gpu.PARTS, "train", gpu.PARTS["train"]._replace(measure=measure))
    given = ["gpu", "--part=train", f"--results={tmp_path / 'speed'}"]
    with flagsaver.flagsaver():
        flags.FLAGS(given)
        with pytest.raises(RuntimeError, match="no memory"):
            gpu.main()
    [record] = json.loads((tmp_path / "speed" / "cpu-train.json").read_text())
    assert record["figures"][0]["value"] == 3
