"""The accuracy experiment: what it plans, and how it reports what was found."""

import json

import numpy as np
import pytest

from experiments.benchmarks.accuracy import plan, report
from probex_jax.fitting import Adam, ClosedForm, build_network

RUNS = list(plan.plan())


def test_every_run_has_a_folder_of_its_own_and_comes_after_what_it_needs():
    folders = [run.folder for run in RUNS]
    assert len(set(folders)) == len(folders)
    first = {(r.tree, r.method): n for n, r in enumerate(RUNS) if r.seed == 0}
    for number, run in enumerate(RUNS):
        needed = first[run.tree, run.finalists] if run.finalists else -1
        assert number > needed, run.folder


def test_every_config_is_one_that_train_takes():
    for run in RUNS:
        config = run.config
        if config["encoder"]["name"] == "statnn":
            continue
        network = build_network(
            config["encoder"], config["head"], 20, normalise=config["normalise"]
        )
        assert type(network.encoder).__name__.lower() == config["encoder"]["name"]
        recipe = {"adam": Adam, "ridge": ClosedForm}[config["fit"]](**config["recipe"])
        assert getattr(recipe, "seed", run.seed) == run.seed, run.folder


def test_methods_differ_from_the_published_one_in_nothing_but_what_they_say():
    """The same seeds, and on LoRAs the same texts and scale."""
    of_loras = [run for run in RUNS if run.tree == plan.LORAS]
    assert all(run.config["text"] == of_loras[0].config["text"] for run in of_loras)
    for tree in plan.TREES:
        seeds = {r.seed for r in RUNS if r.tree == tree and r.method == plan.PUBLISHED}
        assert seeds == set(plan.SEEDS)


@pytest.fixture
def written(tmp_path):
    """A report of made-up answers: MVProbe tells 80 % of all, ours 95 %, the others 60 %."""
    rates = {plan.PUBLISHED: 0.8, plan.OURS: 0.95}
    found = []
    for run in RUNS:
        rng = np.random.default_rng(run.seed)
        draws = (rng.random(200) < rates.get(run.method, 0.6)).astype(float).tolist()
        kinds = ("test", "held_out", "all") if run.tree == plan.LORAS else ("test",)
        answers = {
            "seconds": 1.0,
            "layers": {"expert": ["a", "b"], "expert_val_holdout": ["a"]},
            "val_accuracy_by_layer": {"a": 0.9, "b": 0.8},
            "versions": {"jax": "1"},
            "store_hash": "0" * 64,
            "parameters": 1234,
            "right": dict.fromkeys(kinds, draws),
        }
        found.append((run, answers))
    return report.write(found, tmp_path), found, tmp_path


def test_the_report_compares_model_by_model(written):
    text, found, folder = written
    section = text.split("## MiniMAE, test")[1].split("##")[0]
    rows = {
        cells[0].strip(): [cell.strip() for cell in cells[1:]]
        for cells in (line.strip("| ").split("|") for line in section.splitlines() if "|" in line)
    }
    ours, published = (
        np.mean([a["right"]["test"] for r, a in found if (r.tree, r.method) == ("MiniMAE", m)], 0)
        for m in (plan.OURS, plan.PUBLISHED)
    )
    assert float(rows["ours"][1]) == pytest.approx(ours.mean(), abs=1e-3)
    ratio = (1 - ours.mean()) / (1 - published.mean())
    assert float(rows["ours"][3]) == pytest.approx(ratio, abs=1e-3)
    assert rows["ours"][4].startswith(f"{(ours - published).mean():+.4f} [+")
    assert rows["MVProbe"][4] == "+0.0000 [+0.0000, +0.0000]"
    assert (
        json.loads((folder / "accuracy.json").read_text())["MiniMAE/ours/0"]["parameters"] == 1234
    )
    assert (folder / "accuracy_by_layer.png").read_bytes().startswith(b"\x89PNG")
