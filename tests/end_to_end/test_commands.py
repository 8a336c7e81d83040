"""The commands as a user runs them: results, exit codes, one line on a mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CLASSES, write_toy_zoo
from tests.end_to_end import warm
from tests.reports.pages import check_harmless

ROOT = Path(__file__).parents[2]
# One worker runs them all, and makes what they share once.
pytestmark = pytest.mark.xdist_group("commands")

SMALL = [
    "--config=configs/probex.py:mini",
    "--config.recipe.epochs=20",
    "--config.recipe.eval_every=10",
    "--config.encoder.n_probes=8",
    "--config.layers=a.weight",
]


def run(command, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{command}", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A toy zoo with one broken model, packed, trained on and evaluated by the commands."""
    folder = tmp_path_factory.mktemp("commands")
    zoo = write_toy_zoo(folder / "Toy", 40)
    (zoo / "train" / "model_0003" / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    outputs = {
        "pack": warm.run("pack", f"--zoo={zoo}", f"--store={folder}/store"),
        "train": run("train", *SMALL, f"--config.store={folder}/store", f"--workdir={folder}/w"),
        "evaluate": warm.run("evaluate", f"--experts={folder}/w", f"--store={folder}/store"),
    }
    return folder, outputs


def test_all_three_succeed(made):
    for name, done in made[1].items():
        assert done.returncode == 0, (name, done.stderr)


def test_without_a_config_train_makes_a_committee_that_evaluate_takes(made):
    folder, _ = made
    store, workdir = f"--config.store={folder}/store", folder / "default"
    trained = warm.run("train", store, f"--workdir={workdir}")
    assert trained.returncode == 0, trained.stderr
    layers, result = trained.stdout.split("\n\n")
    assert {"a.weight", "b.weight"} <= {row.split("|")[1].strip() for row in layers.splitlines()}
    assert "centred dense, ridge" in result
    evaluated = warm.run(
        "evaluate", f"--experts={workdir}", f"--store={folder}/store", "--baselines"
    )
    assert evaluated.returncode == 0, evaluated.stderr
    metrics = json.loads((workdir / "metrics.json").read_text())
    found = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    for name, baseline in found["baselines"]["methods"].items():
        (row,) = (line for line in evaluated.stdout.splitlines() if line.startswith(f"| {name} "))
        assert f" {baseline['accuracy']['value']:.3f} " in row
    assert found["classify"]["accuracy"].items() >= metrics["test_accuracy"].items()
    assert metrics["test_accuracy"]["value"] > 0.8


@pytest.mark.parametrize(
    ("name", "value"),
    [("JAX_PLATFORMS", "cuda"), ("JAX_PLATFORMS", "abacus"), ("JAX_ENABLE_X64", "1")],
)
def test_what_jax_is_told_and_cannot_do_is_one_line(made, monkeypatch, name, value):
    folder, _ = made
    monkeypatch.setenv(name, value)
    done = run("evaluate", f"--experts={folder}/w", f"--store={folder}/store")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {name}")
    assert done.stderr.count("\n") == 1


def test_who_trains_for_a_forest_is_told_before_that_it_cannot_be(made, tmp_path):
    folder, _ = made
    zoo, store, workdir = folder / "Toy", tmp_path / "store", tmp_path / "w"
    packed = warm.run("pack", f"--zoo={zoo}", f"--store={store}", "--layers=c.bias")
    assert packed.returncode == 0, packed.stderr
    forest = f"--forest={tmp_path}/forest"
    done = warm.run("train", f"--config.store={store}", f"--workdir={workdir}", forest)
    assert done.returncode == 2
    assert f"{store}: holds only a classifier head" in done.stderr
    assert not (workdir / "metrics.json").exists()


def test_pack_lists_what_it_skips_and_counts_it(made):
    _, outputs = made
    assert outputs["pack"].stderr.startswith("skipped model_0003: ")
    assert outputs["pack"].stderr.count("\n") == 1
    header, _, row = outputs["pack"].stdout.splitlines()
    counts = dict(zip(header.split("|"), row.split("|"), strict=True))
    counts = {key.strip(): value.strip() for key, value in counts.items()}
    assert counts["added"] == "39"
    assert counts["skipped"] == "1"
    assert counts["train"] == "27"


def test_train_and_evaluate_agree(made):
    folder, outputs = made
    trained = json.loads((folder / "w" / "metrics.json").read_text())
    evaluated = json.loads((folder / "w" / "evaluation" / "metrics.json").read_text())
    assert evaluated["classify"]["accuracy"].items() >= trained["test_accuracy"].items()
    assert set(evaluated["classify"]["accuracy"]["by_class"]) == set(CLASSES)
    assert evaluated["store_hash"] == trained["store_hash"]
    for name in ("train", "evaluate"):
        assert f"{trained['test_accuracy']['value']:.3f}" in outputs[name].stdout
        assert outputs[name].stderr == ""


def test_the_report_has_the_figures_of_the_metrics_and_resuming_writes_it_again(made):
    folder, outputs = made
    path = folder / "w" / "report.html"
    metrics = json.loads((folder / "w" / "metrics.json").read_text())
    assert outputs["train"].stdout.endswith(f"report: {path}\n")
    text = path.read_text()
    check_harmless(text)
    value, low, high = (metrics["test_accuracy"][name] for name in ("value", "low", "high"))
    assert f">{value:.3f}</td><td>{low:.3f} to {high:.3f}<" in text
    for when in ("before", "after"):
        assert f"{metrics['calibration'][when]['test']:.3f} {when}" in text
    for layer, accuracy in metrics["val_accuracy_by_layer"].items():
        assert layer in text
        assert f">{accuracy:.3f}<" in text
    assert f"--workdir={folder}/w</code>" in text
    assert metrics["store_hash"] in text

    cost = json.loads((folder / "w" / "costs.json").read_text())
    assert [step["resumed"] for step in cost["steps"]] == [False]
    path.unlink()
    resumed = warm.run("train", *SMALL, f"--config.store={folder}/store", f"--workdir={folder}/w")
    assert resumed.returncode == 0, resumed.stderr
    assert path.read_text() == text
    assert json.loads((folder / "w" / "costs.json").read_text()) == cost


@pytest.mark.parametrize("metrics", ["metrics.json", "evaluation/metrics.json"])
def test_docs_name_all_that_was_measured(made, metrics):
    told = (ROOT / "docs" / "formats.md").read_text().split("## What was measured")[1]
    for field in json.loads((made[0] / "w" / metrics).read_text()).keys() - {"classify"}:
        assert f"`{field}`" in told, field


def test_a_task_that_cannot_be_measured_does_not_stop_the_others(made):
    folder, _ = made
    done = warm.run(
        "evaluate",
        f"--experts={folder}/w",
        f"--store={folder}/store",
        "--tasks=knn,classify",
        f"--workdir={folder}/e",
    )
    assert done.returncode == 0
    assert done.stderr.startswith("not measured: knn: ")
    assert "not measured: knn" in done.stderr
    metrics = json.loads((folder / "e" / "metrics.json").read_text())
    assert list(metrics["not_measured"]) == ["knn"]
    assert metrics["classify"]["accuracy"]["n_models"] == 8


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("pack", ["--zoo=/nowhere", "--store={0}/s"], "/nowhere: no such folder"),
        ("pack", ["--zoo=/nowhere"], "give --store; --help says what for"),
        ("pack", [], "give --zoo and --store; --help says what for"),
        ("pack", ["--zo=/nowhere"], "no option --zo; did you mean --zoo?"),
        ("pack", ["--zoo={0}", "--store={0}/s"], "give one of the zoos in it, such as 'Toy'"),
        ("pack", ["--zoo={0}/Toy", "--store={0}/s", "--layers=["], "regular expression"),
        ("pack", ["--zoo={0}/Toy", "--store={0}/s", "extra"], "unexpected argument 'extra'"),
        (
            "pack",
            ["--zoo={0}/Toy", "--store={0}/s", "--labels=tags"],
            "'tags' is not one of labels",
        ),
        ("describe", ["--forest={0}/f", "--list=/nowhere/list.txt"], "/nowhere/list.txt: no file"),
        ("harvest", ["--models=/nowhere", "--out={0}/h"], "/nowhere: no such folder"),
        ("harvest", ["--models={0}/Toy", "--out={0}/h", "--labels=labels.csv"], "--labels: labels"),
        ("harvest", ["--models={0}/Toy", "--out={0}/h", "--share=2"], "--share=2: expected a numb"),
        ("train", ["--config=configs/nope.py", "--workdir={0}/x"], "configs/nope.py"),
        ("train", ["--config", "probx", "--workdir={0}/x"], "did you mean configs/probex.py?"),
        ("train", ["--config=configs/default.py:mini", "--workdir={0}/x"], "leave out :mini"),
        ("train", ["--workdir={0}/x", "--config.stor=S"], "no field 'stor'; did you mean 'store'?"),
        ("train", ["--workdir={0}/x", "--config.fit.x=S"], "config.fit is a value, 'ridge'"),
        ("train", ["--workdir={0}/x", "--config.recipe.seed=3"], "recipe has no field 'seed'; it"),
        ("train", ["--config=configs/probex.py:big", "--workdir={0}/x"], "expected paper or mini"),
        (
            "train",
            ["--config=configs/paper.py:probex_imagenet", "--workdir={0}/x"],
            "'probex_imagenet': expected one of probex, mvprobe",
        ),
        ("train", ["--config=tests/hub.py", "--workdir={0}/x"], "it has no get_config(); choose"),
        ("train", ["--config=README.md", "--workdir={0}/x"], "README.md: not Python, in line "),
        (
            "train",
            ["--config=zoo", "--workdir={0}/x"],
            "no such file; choose configs/NAME.py, NAME",
        ),
        (
            "train",
            ["--config=configs/zoo_miniature.py", "--workdir={0}/x"],
            "not a config of this command; its own is configs/default.py",
        ),
        (
            "train",
            ["--config=configs/zoo_planted.py", "--workdir={0}/x"],
            "not a config of this command; its own is configs/default.py",
        ),
        (
            "train",
            ["--workdir={0}/x", "--config.committee=x"],
            "--config.committee=x: expected a whole number\n",
        ),
        ("train", ["--workdir={0}/x", "--config.committee=1.5"], "=1.5: expected a whole number"),
        ("train", ["--workdir={0}/x", "--config.save_every_s=x"], "=x: expected a number\n"),
        (
            "train",
            ["--workdir={0}/x", "--config.encoder.standardise=x"],
            "--config.encoder.standardise=x: expected true or false",
        ),
        ("train", ["--workdir={0}/x", "--config.recipe=3"], "fields, as --config.recipe.FIELD=VAL"),
        ("train", ["--workdir={0}/x", "--store=S"], "no option --store; did you mean --config.sto"),
        (
            "train",
            ["--workdir={0}/x"],
            "give --config.store, a layer store; probex pack makes",
        ),
        ("train", ["--workdir"], "--workdir needs a value: --workdir=VALUE"),
        (
            "serve",
            ["--forest=F", "--port=99999"],
            "=99999: expected a whole number from 0 to 65535",
        ),
        ("search", ["--index=I", "--k=0"], "--k=0: expected a whole number from 1 to "),
        ("benchmark", ["--repeats=0"], "--repeats=0: expected a whole number, 1 or more"),
        ("benchmarks.scaling", ["--only=foo"], "--only: foo not among pack, train"),
        ("benchmarks.scaling", ["--times=x"], "--times: expected whole numbers, such as 1,4,16"),
        ("benchmarks.page", ["--demo={0}"], "no demo was run here"),
        (
            "benchmarks.planted",
            ["--workdir={0}/x", "--layers=768"],
            "--layers: '768' is not written ROWSxCOLUMNS",
        ),
        ("demo", ["--workdir={0}/x", "--size=big"], "--size=big: expected demo or tiny"),
        (
            "benchmarks.accuracy",
            [],
            "give --zoos, --workdir and --results; --help says what for",
        ),
        (
            "train",
            ["--config=configs/probex.py", "--workdir={0}/x", "--config.recipe.epoch=3"],
            "config.recipe has no field 'epoch'; did you mean 'epochs'?",
        ),
        (
            "train",
            [*SMALL, "--config.store={0}/store", "--workdir={0}/w", "--config.recipe.seed=9"],
            "recipe.seed is 0 there, 9 here",
        ),
        (
            "train",
            ["--config=configs/probex.py", "--workdir={0}/x", "--config.store=README.md"],
            "README.md: no layer store here",
        ),
        ("train", [*SMALL, "--config.store={0}/store", "--workdir=README.md"], "README.md"),
        ("evaluate", ["--experts={0}/none", "--store={0}/store"], "no such expert"),
        (
            "evaluate",
            ["--experts={0}/Toy", "--store={0}/store"],
            "Toy: no expert here",
        ),
        ("evaluate", ["--experts={0}/w", "--store={0}/store", "--tasks=cook"], "'cook'"),
        ("evaluate", ["--experts={0}/w", "--store={0}/store", "--tasks="], "--tasks: ''"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(made, command, arguments, message):
    done = warm.run(command, *(argument.format(made[0]) for argument in arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
