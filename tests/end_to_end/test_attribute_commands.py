"""From a stranger's table beside models to cards with all that it says, by three commands."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.end_to_end.warm import run

pytestmark = pytest.mark.xdist_group("attributes")

ROOT = np.random.default_rng(1).normal(size=(4, 12, 8))


def write_models(folder, n_models=100):
    """Models of one tree, and a table as a German spreadsheet writes it, with gaps."""
    rng, rows = np.random.default_rng(0), ["Modell;Lernrate;Größe;Optimierer;erfolgreich;Quote"]
    folder.mkdir()
    for number in range(n_models):
        rate, size = float(np.exp(rng.uniform(-6, -2))), float(rng.uniform(1, 9))
        kind, good = ("Adam", "SGD")[rng.integers(2)], bool(rng.integers(2))
        body = ROOT[0] + 20 * rate * (ROOT[1 + (kind == "SGD")] + 0.4 * rng.normal(size=(12, 8)))
        head = ROOT[3] * (size + 0.1 * rng.normal()) + 2 * good
        name = f"netz_{number:03}"
        tensors = {"body.weight": body.astype("f4"), "head.weight": head.astype("f4")}
        save_file(tensors, folder / f"{name}.safetensors")
        cells = [
            f"{rate:.6f}".replace(".", ","),
            f"{size:.2f}".replace(".", ",") if number % 7 else "",
            kind if number % 5 else "n/a",
            "TRUE" if good else "FALSE",
            f"{10 * size:.1f} %".replace(".", ","),
        ]
        rows.append(";".join([name, *cells]))
    (folder / "labels.csv").write_bytes("\r\n".join(rows).encode("cp1252"))


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    write_models(folder / "netze")
    extra = folder / "undocumented.safetensors"
    extra.write_bytes((folder / "netze" / "netz_042.safetensors").read_bytes())
    results = [
        run("pack", f"--zoo={folder}/netze", f"--store={folder}/store"),
        run(
            "train",
            f"--workdir={folder}/w",
            f"--forest={folder}/forest",
            f"--config.store={folder}/store",
            "--config.task=all",
        ),
        run("describe", f"--forest={folder}/forest", str(extra), f"--out={folder}/cards", "--json"),
    ]
    return folder, results


def test_three_commands_lead_to_a_card_with_all_columns(told):
    folder, results = told
    assert [result.returncode for result in results] == [0, 0, 0], [r.stderr for r in results]
    [card] = (folder / "cards").glob("*.md")
    table = [line for line in card.read_text().splitlines() if line.startswith("| `")]
    names = {line.split("`")[1] for line in table}
    assert names == {"Lernrate", "Größe", "Optimierer", "erfolgreich", "Quote"}


def test_intervals_and_sets_are_in_the_json(told):
    _, (*_, described) = told
    found = json.loads(described.stdout)
    answers = {answer["label_set"]: answer for answer in found["answers"]}
    rate = answers["Lernrate"]["quantity"]
    assert rate["low"] < rate["value"] < rate["high"]
    assert rate["coverage"] == 0.9
    assert set(answers["Optimierer"]["likely"]) <= {"Adam", "SGD"}


def test_who_gives_no_split_is_told_of_the_one_that_is_made(told):
    _, (_, trained, _) = told
    assert "59 train, 15 val, 26 test" in trained.stderr


def test_comparisons_in_json_are_lines_of_json(told):
    folder, _ = told
    found = run(
        "describe", f"--forest={folder}/forest", str(folder / "netze"), "--compare", "--json"
    )
    described = [json.loads(line) for line in found.stdout.splitlines()]
    assert len(described) == 100
    assert {each["attribute"] for each in described[1]["attribute_comparisons"]} >= {"Lernrate"}


def test_experts_of_attributes_are_evaluated_or_refused_in_a_line(told):
    """One of a number has its R²; a joint one has its figures from its training."""
    folder, _ = told
    store = f"--config.store={folder}/store"
    trained = run("train", f"--workdir={folder}/one", store, "--config.task=Größe")
    assert trained.returncode == 0
    assert "test R²" in trained.stdout
    assert "accuracy" not in trained.stdout
    found = run("evaluate", f"--experts={folder}/one")
    assert found.returncode == 0, found.stderr
    assert "R²" in found.stdout
    joint = run("evaluate", f"--experts={folder}/w")
    assert joint.returncode == 2
    [line] = joint.stderr.strip().splitlines()
    assert "metrics.json" in line


def test_of_several_models_each_attribute_is_named_with_what_is_possible(told):
    folder, _ = told
    models = [str(folder / "netze" / f"netz_00{number}.safetensors") for number in range(3)]
    found = run("describe", f"--forest={folder}/forest", *models)
    assert found.returncode == 0, found.stderr
    for number in range(3):
        [row] = [line for line in found.stdout.splitlines() if f"netz_00{number}" in line]
        assert re.search(r"Lernrate [\d.]+ \([\d.]+ to [\d.]+\)", row), row
        assert re.search(r"Optimierer (Adam|SGD) [\d.]+", row), row


def test_who_has_splits_is_asked_for_one_in_a_line(tmp_path):
    write_models(tmp_path / "netze", 40)
    zoo, store = f"--zoo={tmp_path}/netze", f"{tmp_path}/store"
    for command in (["split", zoo, "--by=erfolgreich"], ["pack", zoo, f"--store={store}"]):
        assert run(*command).returncode == 0
    train = [f"--workdir={tmp_path}/w", f"--config.store={store}", "--config.task=all"]
    refused = run("train", *train)
    assert refused.returncode == 2
    [line] = refused.stderr.strip().splitlines()
    assert "config.split: erfolgreich-0" in line
    assert "Lernrate" not in line
    assert run("train", *train, "--config.split=erfolgreich-0").returncode == 0


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [("0,0", "0.0.0", ("labels.csv", "line", "Lernrate", "0.0.0"))],
)
def test_a_malformed_cell_is_one_line(tmp_path, old, new, where):
    write_models(tmp_path / "netze", 40)
    path = tmp_path / "netze" / "labels.csv"
    text = path.read_bytes().decode("cp1252")
    path.write_bytes(text.replace(old, new, 1).encode("cp1252"))
    result = run("pack", f"--zoo={tmp_path}/netze", f"--store={tmp_path}/store")
    assert result.returncode == 2
    [line] = result.stderr.strip().splitlines()
    assert all(part in line for part in where), line
