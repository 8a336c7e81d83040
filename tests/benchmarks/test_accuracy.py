"""The accuracy experiment: what it plans, what a killed or later run does, and how it reports."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from configs import default, probex
from experiments.benchmarks.accuracy import plan, report, train
from probex_jax.errors import ProbexError
from probex_jax.fitting import Adam, ClosedForm, build_network

BUILT = ("0", "1")


@pytest.fixture
def zoos(tmp_path):
    """Three zoos with all trees; the last is still being built."""
    folders = [tmp_path / name for name in (*BUILT, "2")]
    for folder in folders:
        for tree in plan.TREES:
            (folder / tree).mkdir(parents=True)
            (folder / tree / "zoo.json").touch()
    for folder in folders[:-1]:
        (folder / "metrics.json").touch()
    return folders


def test_every_run_has_a_folder_of_its_own_and_comes_after_what_it_needs(zoos):
    runs = list(plan.plan(zoos))
    places = {run.folder: number for number, run in enumerate(runs)}
    assert len(places) == len(runs)
    for number, run in enumerate(runs):
        if run.method.screen is not None:
            needed = plan.Run(run.zoo, run.tree, run.method.screen)
            assert places[needed.folder] < number, run.folder


def test_the_first_stage_is_ours_alone(zoos):
    assert {run.method.name for run in plan.plan(zoos, stages=1)} == {plan.OURS}


def test_only_what_is_built_is_planned(zoos):
    shutil.rmtree(zoos[0] / plan.LORAS)
    found = {(run.zoo.name, run.tree) for run in plan.plan([*zoos, Path("none")])}
    assert found == {(zoo, tree) for zoo in BUILT for tree in plan.TREES} - {("0", plan.LORAS)}


def test_every_config_is_one_that_train_takes(zoos):
    for run in plan.plan(zoos):
        config = run.method.settings
        if config["encoder"]["name"] == "statnn":
            continue
        network = build_network(
            config["encoder"], config["head"], 20, normalise=config["normalise"]
        )
        assert type(network.encoder).__name__.lower() == config["encoder"]["name"]
        {"adam": Adam, "ridge": ClosedForm}[config["fit"]](**config["recipe"])


def test_the_peers_have_their_published_sizes(zoos):
    sizes = {
        run.method.name: tuple(
            run.method.config["encoder"][name] for name in ("n_probes", "proj_dim", "rep_dim")
        )
        for run in plan.plan(zoos)
        if run.method.shown
        and run.method.name != plan.OURS
        and run.method.config["encoder"]["name"] in ("probex", "mvprobe")
    }
    for name, size in sizes.items():
        assert "/".join(map(str, size)) in name


@pytest.fixture
def toys(tmp_path, toy_zoo, monkeypatch):
    """A zoo of one toy tree, and methods that take a second."""
    zoo = tmp_path / "0"
    shutil.copytree(toy_zoo, zoo / "Toy")
    (zoo / "Toy" / "zoo.json").write_text("{}")
    (zoo / "metrics.json").touch()
    mini = probex.get_config("mini").to_dict()
    mini["encoder"] |= {"n_probes": 2, "proj_dim": 2, "rep_dim": 2}
    screen = plan.Method("by layer", mini, {"epochs": 2, "eval_every": 1}, shown=False)
    ours = plan.Method(plan.OURS, default.get_config().to_dict())
    best = plan.Method(plan.PUBLISHED, mini, {"epochs": 3, "eval_every": 1}, screen)
    monkeypatch.setattr(plan, "TREES", ("Toy",))
    monkeypatch.setattr(plan, "STAGES", {"Toy": ((ours,), (screen, best))})
    return [zoo], tmp_path / "work"


@pytest.mark.parity
def test_runs_leave_records_alone_and_what_is_recorded_is_not_trained_again(toys):
    zoos, workdir = toys
    train.train_missing(zoos, workdir)
    paths = {path.stem: path for path in (workdir / "0" / "Toy").glob("*.json")}
    assert set(paths) == {run.folder.split("/")[-1] for run in plan.plan(zoos)}
    assert {path.name for path in (workdir / "0" / "Toy").iterdir() if path.is_dir()} == {"store"}

    by_layer, best = (
        json.loads(paths[plan.file_name(name)].read_text()) for name in ("by layer", plan.PUBLISHED)
    )
    accuracies = by_layer["val_accuracy_by_layer"]
    assert len(accuracies) > 1
    (layer,) = best["val_accuracy_by_layer"]
    assert accuracies[layer] == max(accuracies.values())
    assert len(best["val_accuracies"]) == 4  # before the first epoch and after each
    assert 0.4 < best["chance"]["test"] < 0.7

    kept = {path: path.stat().st_mtime_ns for path in paths.values()}
    ours = paths[plan.OURS]
    before = json.loads(ours.read_text())
    ours.unlink()
    train.train_missing(zoos, workdir)
    assert json.loads(ours.read_text())["accuracy"] == before["accuracy"]
    changed = {path for path, time in kept.items() if path.stat().st_mtime_ns != time}
    assert changed == {ours}

    # Of other settings than its method has now it is none.
    other = {**before, "settings": {**before["settings"], "normalise": "none"}}
    ours.write_text(json.dumps(other))
    assert plan.OURS not in {run.method.name for run, _ in train.records(zoos, workdir)}
    train.train_missing(zoos, workdir)
    assert json.loads(ours.read_text())["settings"] == before["settings"]


def test_a_run_that_failed_has_no_record(toys):
    zoos, workdir = toys
    for model in (zoos[0] / "Toy" / "test").iterdir():
        shutil.rmtree(model)
    with pytest.raises(ProbexError, match="test"):
        train.train_missing(zoos, workdir)
    assert not train.records(zoos, workdir)


def test_the_report_compares_zoo_by_zoo(zoos, tmp_path):
    """MVProbe was not run on the second zoo of MiniResNet, nor at all on MiniLoRA."""
    accuracies = {plan.OURS: (0.99, 0.97), plan.PUBLISHED: (0.96, 0.94)}
    lacking = {("1", "MiniResNet"), ("0", plan.LORAS), ("1", plan.LORAS)}
    found = []
    for run in plan.plan(zoos):
        name, zoo = run.method.name, run.zoo.name
        if name == plan.PUBLISHED and (zoo, run.tree) in lacking:
            continue
        value = accuracies.get(name, (0.6, 0.6))[int(zoo)]
        kinds = ("test", "held_out", "all") if run.tree == plan.LORAS else ("test",)
        figures = {"accuracy": dict.fromkeys(kinds, value), "chance": dict.fromkeys(kinds, 0.5)}
        found.append((run, {"seconds": 1.0, "versions": {"jax": "1"}, **figures}))
    rows = _tables(report.write(found, tmp_path / "results"))

    ours = rows["MiniMAE, test"][plan.OURS]
    assert (ours["0"], ours["1"], ours["zoos"]) == ("0.990", "0.970", "2")
    assert float(ours["mean"]) == pytest.approx(0.98)
    assert float(ours["std"]) == pytest.approx(np.std([0.99, 0.97], ddof=1), abs=5e-4)
    # Errors of .01 and .03 against .04 and .06.
    assert _ratio(ours) == pytest.approx((0.4, np.std([0.25, 0.5], ddof=1)), abs=0.005)
    for without in (plan.PUBLISHED, report.CHANCE):
        assert not rows["MiniMAE, test"][without][f"error / {plan.PUBLISHED}'s"]
    assert not any("choose" in method for method in rows["MiniMAE, test"])
    assert rows["MiniMAE, test"][report.CHANCE]["mean"] == "0.500"

    # Only the first zoo has both.
    assert _ratio(rows["MiniResNet, test"][plan.OURS]) == (0.25,)
    assert rows["MiniResNet, test"][plan.PUBLISHED]["1"] == ""
    for what in ("test", "zero-shot among held-out", "zero-shot among all"):
        assert _ratio(rows[f"{plan.LORAS}, {what}"][plan.OURS]) == ()

    kept = json.loads((tmp_path / "results" / "accuracy.json").read_text())
    assert set(kept["runs"]) == {run.folder for run, _ in found}
    figures = kept["figures"]["MiniMAE"]["test"][plan.OURS]
    assert figures["accuracy"]["mean"] == pytest.approx(0.98)
    assert figures["error_ratio"]["n"] == 2


def _tables(text):
    """Heading to method to column to cell."""
    found = {}
    for section in text.split("\n## ")[1:]:
        heading, _, body = section.partition("\n")
        lines = [line for line in body.splitlines() if line.startswith("|")]
        header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
        found[heading] = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    return found


def _ratio(row):
    (cell,) = (value for column, value in row.items() if column.startswith("error"))
    return tuple(map(float, cell.split(" ± "))) if cell else ()
