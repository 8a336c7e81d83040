"""The notebooks of experiments/colab: what is in git, and that they run from end to end.

Those that run are marked `notebook` (make notebooks); a kernel sees what a user's would, none of
the flags that make tests quick. How long each took goes to out/notebooks.
"""

import ast
import configparser
import importlib.util
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from safetensors.numpy import load_file, save_file

import probex_jax as px
from tests import model_j
from tests.end_to_end import commands
from tests.hub import tables

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.xdist_group("commands")
FOLDER = ROOT / "experiments" / "colab"
NAMES = ("first_steps", "model_j", "encoders")
# What the notebook for beginners may take, on two cores that others may use, too.
MOST_SECONDS = 360


def read(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text())


def cell(name, id):
    [source] = [cell["source"] for cell in read(name)["cells"] if cell["id"] == id]
    return "".join(source)


def test_there_are_no_others():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_in_git_holds_no_outputs_and_keeps_its_ids(name):
    notebook = read(name)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    cells = notebook["cells"]
    ids = [cell["id"] for cell in cells]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[a-z-]{3,30}", id) for id in ids), "an id that a program made up"
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert {(cell["execution_count"], *cell["outputs"]) for cell in code} == {(None,)}
    assert [cell["id"] for cell in code if cell["metadata"]] == ["parameters"]
    assert code[0]["metadata"] == {"tags": ["parameters"]}
    assert max(len(cell["source"]) for cell in code) <= 35, "a cell that fills a screen"


@pytest.mark.parametrize("name", NAMES)
def test_what_they_name_is_there(name):
    text = "\n".join("".join(cell["source"]) for cell in read(name)["cells"])
    assert not [fault for line in commands.lines_of(text) for fault in commands.faults(line)]
    for path in re.findall(r"configs/\w+\.py", text):
        assert (ROOT / path).exists(), path
    for other in re.findall(r"`(\w+)\.ipynb`", text):
        assert other in NAMES


def imported(name):
    """What the cells of a notebook import, with the names that they take from it."""
    for source in read(name)["cells"]:
        if source["cell_type"] == "code":
            for node in ast.walk(ast.parse("".join(source["source"]))):
                if isinstance(node, ast.Import):
                    yield from ((alias.name, alias.asname) for alias in node.names)
                elif isinstance(node, ast.ImportFrom):
                    yield node.module, None


@pytest.mark.parametrize("name", NAMES)
def test_of_the_project_they_import_the_package_alone(name):
    rooms = {"probex_jax", "experiments", "configs", "tests"}
    ours = {pair for pair in imported(name) if pair[0].partition(".")[0] in rooms}
    assert ours == {("probex_jax", "px")}


@pytest.mark.parametrize("name", NAMES)
def test_what_they_use_of_it_is_public(name):
    for each in read(name)["cells"]:
        if each["cell_type"] == "code":
            for used in re.findall(r"\bpx\.(\w+)", "".join(each["source"])):
                assert used in px.__all__


@pytest.fixture
def installed(monkeypatch):
    """On a machine without the project, what `pip install` is asked for."""
    asked = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    def run(command, check):
        assert check
        assert command[:4] == [sys.executable, "-m", "pip", "install"]
        asked.append(command[-1])

    monkeypatch.setattr(subprocess, "run", run)
    return asked


@pytest.mark.parametrize("name", ["model_j", "encoders"])
@pytest.mark.parametrize("gpu", [None, "/usr/bin/nvidia-smi"])
def test_a_machine_with_a_gpu_gets_cuda(name, gpu, installed, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: gpu)
    exec(cell(name, "install"), {"SOURCE": "git+https://example.org/code.git"})
    [asked] = installed
    assert ("cuda12" in asked) == bool(gpu)


@pytest.mark.parametrize("name", NAMES)
def test_a_machine_without_the_project_gets_it_from_the_source(name, installed):
    with pytest.raises(AssertionError, match="SOURCE"):
        exec(cell(name, "install"), {"SOURCE": ""})
    assert not installed
    exec(cell(name, "install"), {"SOURCE": "git+https://example.org/code.git"})
    [asked] = map(Requirement, installed)
    assert (asked.name, asked.url) == ("probex_jax", "git+https://example.org/code.git")
    assert asked.extras <= extras()


def extras():
    about = configparser.ConfigParser()
    about.read(ROOT / "setup.cfg")
    return set(about["options.extras_require"])


@pytest.mark.parametrize("name", NAMES)
def test_a_machine_with_the_project_installs_nothing(name, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    exec(cell(name, "install"), {"SOURCE": ""})


def fresh_machine(folder, monkeypatch):
    """A kernel in an environment that knows nothing of the project, as Colab's; its command."""
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = str(environment / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "ipykernel"], check=True)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    return [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]


def executed(name, folder, monkeypatch, *, kernel=None, **parameters):
    """The printed lines of each cell of a notebook that was run with these parameters."""
    import nbclient
    import nbformat
    from jupyter_client import AsyncKernelManager

    for variable in ("XLA_FLAGS", *(key for key in os.environ if key.startswith("JAX_"))):
        monkeypatch.delenv(variable, raising=False)
    manager = AsyncKernelManager()
    if kernel is None:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
    else:
        manager.kernel_spec.argv = kernel
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    set_parameters(notebook, parameters)
    took = {}

    def begun(cell, cell_index):
        took[cell.id] = -time.monotonic()

    def ended(cell, cell_index, execute_reply):
        took[cell.id] += time.monotonic()

    client = nbclient.NotebookClient(
        notebook,
        km=manager,
        timeout=2 * MOST_SECONDS,
        resources={"metadata": {"path": str(folder)}},
        on_cell_execute=begun,
        on_cell_executed=ended,
    )
    client.owns_km = True  # who ends the kernel with the notebook
    start, cpu = time.monotonic(), cpu_of_children()
    client.execute()
    note(name, time.monotonic() - start, cpu_of_children() - cpu, took)
    return {cell.id: printed(cell) for cell in notebook.cells if cell.cell_type == "code"}


def set_parameters(notebook, parameters):
    """Replaces the cell of parameters; all that it declares are given, and no others."""
    [declaring] = [cell for cell in notebook.cells if cell.metadata.get("tags") == ["parameters"]]
    statements = ast.parse(declaring.source).body
    assert {statement.targets[0].id for statement in statements} == parameters.keys()
    declaring.source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())


def printed(cell):
    """What a cell printed; it must warn of nothing, but where the hub client misses ipywidgets."""
    text = {"stdout": "", "stderr": ""}
    for output in cell.outputs:
        if output.output_type == "stream":
            text[output.name] += output.text
    assert not re.search("(?<!Tqdm)Warning", text["stderr"]), text["stderr"]
    return text["stdout"]


def cpu_of_children():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def note(name, seconds, cpu_seconds, took):
    path = ROOT / "out" / "notebooks" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    took = {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "cells": {id: round(value, 1) for id, value in took.items()},
    }
    path.write_text(json.dumps(took, indent=2) + "\n")
    print(f"{name}: {seconds:.0f} s, {cpu_seconds:.0f} s of processors")


@pytest.mark.notebook
def test_first_steps(tmp_path, monkeypatch):
    """From installation on, of what git has."""
    sizes = {"MODELS": 120, "OTHERS": 30}
    for name, value in sizes.items():
        assert f"{name} = {value}" in cell("first_steps", "parameters")
    kernel = fresh_machine(tmp_path, monkeypatch)
    # With a host: pip 23 takes no address without.
    where = {"SOURCE": f"git+file://localhost{ROOT}", "WORK": str(tmp_path / "work")}
    found = executed("first_steps", tmp_path, monkeypatch, kernel=kernel, **where, **sizes)
    assert float(found["train"].split()[0]) > 0.95
    assert "itself: {}" in found["hide"]
    right = re.search(r"(\d+) of 20 classes right", found["truth"])
    assert int(right[1]) >= 18
    other, unknown = found["others"].splitlines()
    assert other == "MiniMAE"
    assert unknown.startswith("unknown: ")
    seconds = json.loads((ROOT / "out" / "notebooks" / "first_steps.json").read_text())["seconds"]
    assert seconds < MOST_SECONDS


@pytest.mark.notebook
def test_encoders(tmp_path, monkeypatch):
    found = executed("encoders", tmp_path, monkeypatch, SOURCE="", WORK=str(tmp_path), EPOCHS=100)
    assert float(re.search(r"test accuracy (\S+)", found["fit"])[1]) > 0.9
    strong, weak, none = (
        np.mean([float(x) for x in line.split()[-3:]]) for line in found["vmap"].splitlines()
    )
    assert strong > weak > none + 0.1
    assert none == pytest.approx(0.5, abs=0.1)
    for id in ("low-rank", "compared"):
        assert float(found[id].split()[-1]) < 1e-5
    for line in found["load"].splitlines():
        assert (float(line.split()[1]) > 0.5) == ("trained on it" in line)


@pytest.mark.notebook
def test_model_j(tmp_path, monkeypatch):
    write_hub(tmp_path / "hub", n_models=40)
    with model_j.served(tmp_path / "hub") as hub:
        found = executed(
            "model_j",
            tmp_path,
            monkeypatch,
            SOURCE="",
            SUBSET="SupViT",
            LAYER="a.weight",
            EPOCHS=60,
            WORK=str(tmp_path / "work"),
        )
        assert hub.bytes_sent(".safetensors") < 0.1 * 40 * 2**21
    assert found["table"].splitlines()[0] == "{'train': 20, 'val': 10, 'test': 10}"
    assert found["whole"] == "40 whole models: about 0.08 GB\n"
    assert found["moved"].startswith("a.weight: 12 x 16, of 40 models\n")
    share = float(re.search(r"(\S+)% of whole models", found["moved"])[1])
    assert 0 < share < 10
    assert float(found["test"].split()[2]) > 0.7


def write_hub(root, n_models):
    """Model-J's table and classifiers of 2 MB, most of them zeros that nobody asks for."""
    for number in range(n_models):
        path = model_j.write_classifier(root, number) / "model.safetensors"
        weights = load_file(path) | {"filler.weight": np.zeros((2**9, 2**10), np.float32)}
        save_file(weights, path, {"dataset_chosen_targets": str(model_j.labels_of(number))})
    tables(root, "ProbeX/Model-J", {"SupViT": model_j.classifier_rows(n_models)})
