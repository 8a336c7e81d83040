"""Strangers' folders by the commands: labels beside files, splits, repeats, discovered zoos."""

import csv
import json
import os
import statistics
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

import probex_jax as px
from experiments.label_steps import write_zoo
from probex_jax.zoo.tables import Tables
from tests.conftest import CLASSES, write_toy_model
from tests.end_to_end import warm

# One worker runs them all, and makes what they share once.
pytestmark = pytest.mark.xdist_group("commands")

N = 40


def rows():
    return [
        {
            "model": f"m{n:02d}.safetensors",
            "kind": "" if n == 7 else CLASSES[n % 2],
            "device": f"d{n // 4}",
            "all": "x",
            "rate": "" if n == 3 else f"{0.5 + n}",
            "serial": n // 2,
        }
        for n in range(N)
    ]


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def ok(command, *arguments):
    done = warm.run(command, *arguments)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of files with a table, split, packed, trained on over two repeats."""
    folder = tmp_path_factory.mktemp("labels")
    zoo, rng = folder / "zoo", np.random.default_rng(0)
    for n in range(N):
        write_toy_model(zoo / "models" / f"m{n:02d}", [CLASSES[n % 2]], rng, signal=0.3)
        file = zoo / "models" / f"m{n:02d}" / "model.safetensors"
        file.rename(zoo / "models" / f"m{n:02d}.safetensors")
        file.parent.rmdir()
    write_csv(zoo / "labels.csv", rows())
    outputs = {
        "split": ok("split", f"--zoo={zoo}", "--by=kind", "--repeats=2"),
        "grouped": ok(
            "split",
            f"--zoo={zoo}",
            "--by=kind",
            "--repeats=1",
            "--group=device",
            "--name=by-device",
        ),
        "one": ok("split", f"--zoo={zoo}", "--by=all", "--repeats=1"),
        "numbers": ok("split", f"--zoo={zoo}", "--by=rate", "--repeats=1", "--group=serial"),
        "pack": ok("pack", f"--zoo={zoo}", f"--store={folder}/store"),
    }
    train = [f"--workdir={folder}/out", f"--config.store={folder}/store", "--config.labels=kind"]
    outputs["train"] = ok("train", *train, "--config.split=kind")
    outputs["evaluate"] = ok("evaluate", f"--experts={folder}/out")
    return folder, outputs


def test_splits_are_written_beside_the_models_and_said(made):
    folder, outputs = made
    splits = json.loads((folder / "zoo" / "splits.json").read_text())
    assert list(splits) == ["all-0", "by-device-0", "kind-0", "kind-1", "rate-0"]
    assert sorted(model for models in splits["kind-0"].values() for model in models) == [
        f"m{n:02d}" for n in range(N) if n != 7
    ]
    assert "| kind-1 | 39     | 1               | 2       |" in outputs["split"].stdout
    device = {f"m{n:02d}": n // 4 for n in range(N)}
    parts = [{device[model] for model in models} for models in splits["by-device-0"].values()]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    assert "splits: all-0, by-device-0, kind-0, kind-1, rate-0" in outputs["pack"].stdout
    assert "labels kind: 2 classes, 39 models: ant, bee" in outputs["pack"].stdout


def test_a_split_by_numbers_has_the_whole_range_in_every_part(made):
    folder, outputs = made
    split = json.loads((folder / "zoo" / "splits.json").read_text())["rate-0"]
    assert sum(map(len, split.values())) == 39
    for models in split.values():
        numbers = [int(model[1:]) for model in models]
        assert min(numbers) < 12
        assert max(numbers) > 27
    parts = [{int(model[1:]) // 2 for model in models} for models in split.values()]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    assert "| ranges |" in outputs["numbers"].stdout
    assert "numbers rate: 39 models: 0.5 to 39.5" in outputs["pack"].stdout


def test_a_zoo_that_is_written_has_columns_of_the_same_kinds(tmp_path):
    write_toy_model(tmp_path / "a", ["ant"], np.random.default_rng(0))
    tables = Tables(
        {"no": {"a": ("0.5",)}, "several": {"a": ("-", "7")}, "is": {"a": ("yes",)}},
        {"few": {"a": 3.0}, "rate": {"a": 1e-5}},
    )
    write_zoo(tmp_path / "zoo", {"a": tmp_path / "a"}, tables)
    assert px.scan(tmp_path / "zoo").tables == tables


def test_an_existing_split_is_refused_unless_it_is_the_same(made):
    zoo = made[0] / "zoo"
    before = (zoo / "splits.json").read_bytes()
    ok("split", f"--zoo={zoo}", "--by=kind", "--repeats=2")
    other = [f"--zoo={zoo}", "--by=kind", "--repeats=2", "--seed=9"]
    refused = warm.run("split", *other)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "'kind-0'" in refused.stderr
    assert (zoo / "splits.json").read_bytes() == before
    ok("split", *other, "--overwrite")
    assert (zoo / "splits.json").read_bytes() != before
    (zoo / "splits.json").write_bytes(before)


def test_repeats_are_trained_each_in_its_folder_with_mean_and_spread(made):
    folder, outputs = made
    summary = json.loads((folder / "out" / "metrics.json").read_text())
    assert (summary["labels"], summary["split"], summary["repeats"]) == (
        "kind",
        "kind",
        ["kind-0", "kind-1"],
    )
    values = {}
    for name in summary["repeats"]:
        metrics = json.loads((folder / "out" / name / "metrics.json").read_text())
        values[name] = metrics["test_accuracy"]["value"]
        assert (folder / "out" / name / "report.html").exists()
    found = summary["figures"]["test_accuracy"]
    assert found["values"] == values
    assert found["mean"] == pytest.approx(statistics.fmean(values.values()))
    assert found["standard_deviation"] == pytest.approx(statistics.stdev(values.values()))
    assert f"{found['mean']:.3f}" in outputs["train"].stdout
    evaluated = json.loads((folder / "out" / "evaluation" / "metrics.json").read_text())
    assert evaluated["figures"]["classify.accuracy"]["values"] == values
    assert f"| classify: accuracy | {found['mean']:.3f}" in outputs["evaluate"].stdout


def test_training_again_goes_on_and_a_single_split_is_the_same(made):
    folder, outputs = made
    train = [f"--config.store={folder}/store", "--config.labels=kind"]
    again = ok("train", f"--workdir={folder}/out", *train, "--config.split=kind")
    assert again.stdout == outputs["train"].stdout
    # A file that lies elsewhere needs no packing, and evaluate finds it again.
    given = f"--config.labels={folder}/zoo/labels.csv:kind"
    split = f"--config.split={folder}/zoo/splits.json:kind-1"
    ok("train", f"--workdir={folder}/single", train[0], given, split)
    evaluated = ok("evaluate", f"--experts={folder}/single")
    figures = [
        json.loads((folder / path / "metrics.json").read_text())["test_accuracy"]
        for path in ("single", "out/kind-1")
    ]
    assert figures[0] == figures[1]
    assert f"{figures[0]['value']:.3f}" in evaluated.stdout
    card = json.loads((folder / "single" / "view.json").read_text())
    assert card["labels"] == f"{folder}/zoo/labels.csv:kind"


def test_figures_of_models_that_were_fitted_to_say_so(made):
    folder, outputs = made
    assert "fitted" not in outputs["evaluate"].stderr
    workdir = f"--workdir={folder}/fitted"
    for split in ("train", "val"):
        done = ok("evaluate", f"--experts={folder}/out/kind-0", f"--split={split}", workdir)
        assert done.stderr.startswith(f"{split}: ")


@pytest.mark.parity
def test_commands_keep_what_they_compile(made, tmp_path):
    """The next one compiles nothing: no program is added."""
    folder, _ = made
    env = {name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name}
    evaluate = f"--experts={folder}/out/kind-0 --workdir={tmp_path}/w".split()
    kept = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "experiments.evaluate", *evaluate],
            cwd=warm.ROOT,
            env=env | {"XDG_CACHE_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        kept.append({path.name for path in (tmp_path / "probex_jax" / "compiled").rglob("*-cache")})
    assert kept[0]
    assert kept[0] == kept[1]


def test_classes_that_are_hard_to_learn_are_named_before_training(made):
    folder, _ = made
    table = [{"id": f"m{n:02d}", "x": CLASSES[n % 2] if n else "odd"} for n in range(N)]
    write_csv(folder / "odd.csv", [*table, {"id": "stranger", "x": "a"}])
    labels = f"--config.labels={folder}/odd.csv"
    done = ok(
        "train",
        f"--workdir={folder}/odd",
        f"--config.store={folder}/store",
        labels,
        "--config.split=kind-0",
    )
    assert "class 'odd'" in done.stderr
    assert "'stranger'" in done.stderr


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("train", ["--config.labels=kind"], "give one of its splits: all-0"),
        ("train", ["--config.labels=knid", "--config.split=kind-0"], "no column 'knid'"),
        ("train", ["--config.labels=kind", "--config.split=knid"], "no split 'knid'"),
        ("train", ["--config.labels=all", "--config.split=all-0"], "column 'all': all 24 training"),
        ("train", ["--config.labels={0}/no.csv:kind", "--config.split=kind"], "no.csv: "),
        (
            "train",
            ["--config.labels={0}/zoo/labels.csv", "--config.split=kind-0"],
            "labels.csv:kind",
        ),
        ("split", ["--zoo={0}/zoo", "--by=size"], "no column 'size'"),
        (
            "split",
            ["--zoo={0}/zoo", "--by=kind", "--fractions=a,b"],
            "--fractions: expected numbers",
        ),
        ("split", ["--zoo={0}/zoo", "--by=kind", "--fractions=.5,.5"], "fractions 0.5, 0.5"),
        ("split", ["--zoo={0}/zoo", "--by=kind", "--name=a/b"], "--name"),
        ("split", ["--zoo={0}/zoo", "--by=kind", "--group=maker"], "no column 'maker'"),
        ("discover", ["--models={0}/zoo", "--labels=x.csv"], "--write_zoos"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(made, command, arguments, message):
    folder, _ = made
    given = [argument.format(folder) for argument in arguments]
    if command == "train":
        given += [f"--workdir={folder}/no", f"--config.store={folder}/store"]
    done = warm.run(command, *given)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr.splitlines()[-1]
    assert done.stderr.startswith("error: ")
    assert done.stdout == ""


@pytest.mark.parity
def test_what_is_discovered_can_be_split_and_packed_where_it_lies(tmp_path):
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(2, 8, 8))
    for n in range(24):
        path = tmp_path / "downloads" / f"of-{n % 2}" / f"{n}" / "model.safetensors"
        path.parent.mkdir(parents=True)
        weights = {"fc1.weight": (roots[n % 2] + 0.1 * rng.normal(size=(8, 8))).astype("f4")}
        save_file(weights, path, {"dataset_chosen_targets": f"['{CLASSES[n // 2 % 2]}']"})
    write_csv(tmp_path / "l.csv", [{"id": n, "parity": "ab"[n // 4 % 2]} for n in range(24)])
    arguments = [f"--models={tmp_path}/downloads", f"--write_zoos={tmp_path}/zoos"]
    ok("discover", *arguments, f"--labels={tmp_path}/l.csv")
    assert sorted(path.name for path in (tmp_path / "zoos").glob("*")) == ["tree-1", "tree-2"]
    zoo = f"--zoo={tmp_path}/zoos/tree-2"
    assert "| parity-0 | 12 " in ok("split", zoo, "--by=parity", "--repeats=1").stdout
    assert "| split-0 | 12 " in ok("split", zoo, "--repeats=1").stdout
    packed = ok("pack", zoo, f"--store={tmp_path}/store")
    assert "labels parity: 2 classes, 12 models" in packed.stdout
    assert "labels in headers: 2 classes, 12 models" in packed.stdout
    assert not list((tmp_path / "zoos").rglob("*.safetensors"))
    trained = ok(
        "train",
        f"--workdir={tmp_path}/out",
        f"--config.store={tmp_path}/store",
        "--config.labels=parity",
        "--config.split=parity-0",
    )
    assert "tree-2" in trained.stdout
    # The forest takes the labels and the split that the expert was trained on.
    stores, experts = f"--stores={tmp_path}/store", f"--experts={tmp_path}/out"
    grown = ok("grow_forest", stores, experts, f"--forest={tmp_path}/forest")
    assert "| not known | 8 " in grown.stdout
    refused = warm.run("discover", f"--models={tmp_path}/downloads/of-0", arguments[1])
    assert refused.returncode == 2
    assert "tree-1: a zoo of other models" in refused.stderr
