"""What two models have to do with each other, as a user asks."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.end_to_end.warm import run
from tests.hub import Hub, write_repo

pytestmark = pytest.mark.xdist_group("compare_command")


def weights(rng, base=None, change=0.1):
    """An MLP of three blocks, of its own or derived from another."""
    shapes = {
        f"layers.{n}.{name}.weight": shape
        for n in range(3)
        for name, shape in (("mlp.up", (64, 48)), ("mlp.down", (48, 64)))
    }
    made = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    if base is None:
        return made
    # Of low effective rank, as training's changes are.
    fine = {n: x @ np.diag(np.geomspace(1, 1e-3, x.shape[1])) for n, x in made.items()}
    return {
        n: base[n] + change * np.linalg.norm(base[n]) * x / np.linalg.norm(x)
        for n, x in fine.items()
    }


def saved(path, tensors, dtype="f4"):
    save_file({n: np.ascontiguousarray(x.astype(dtype)) for n, x in tensors.items()}, path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("compared"), np.random.default_rng(0)
    parent = weights(rng)
    child, sibling = weights(rng, parent), weights(rng, parent)
    order = rng.permutation(64)
    permuted = {n: x[order] if "up" in n else x[:, order] for n, x in parent.items()}
    tensors = {
        "parent": parent,
        "child": child,
        "sibling": sibling,
        "permuted": permuted,
        "stranger": weights(rng),
        "other": {"conv.weight": rng.normal(size=(8, 4, 3, 3))},
    }
    paths = {n: saved(folder / f"{n}.safetensors", x) for n, x in tensors.items()}
    renamed = {f"module.{name}": x for name, x in child.items()}
    return paths | {"twin": saved(folder / "twin.safetensors", renamed, "f2")}


def told(*arguments):
    done = run("compare", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("one", "other", "relation", "parent", "is_kin"),
    [
        ("parent", "child", "derived", "one", True),
        ("child", "parent", "derived", "other", True),
        ("child", "sibling", "kin", "", True),
        ("parent", "permuted", "kin", "", True),
        ("parent", "stranger", "independent", "", False),
    ],
)
def test_the_verdict_and_its_p_value(models, one, other, relation, parent, is_kin):
    found = told(models[one], models[other])
    assert (found["relation"], found["parent"]) == (relation, parent)
    assert (found["p_value"] < 1e-3) == is_kin
    assert (found["kind"] == "permuted") == (other == "permuted")


def test_the_same_weights_in_another_dtype_and_naming(models):
    found = told(models["child"], models["twin"])
    assert found["relation"] == "same weights"
    assert 0 < found["largest_difference"] < 0.01


def test_at_most_ten_lines_are_printed_the_verdict_first(models):
    done = run("compare", models["parent"], models["child"])
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert "derived" in lines[0]
    assert len(lines) <= 10


def test_a_model_of_a_hub(models, tmp_path):
    files = {"model.safetensors": models["child"].read_bytes()}
    write_repo(tmp_path, "models", "org/child", files)
    with Hub(tmp_path).running() as url:
        done = run(
            "compare", "--json", models["parent"], "hf://org/child", env={"HF_ENDPOINT": url}
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["relation"] == "derived"


@pytest.mark.parametrize(
    ("names", "said"),
    [(["parent"], "one model"), (["parent", "other"], "not comparable"), ([], "two")],
)
def test_what_cannot_be_compared_is_one_line(models, names, said):
    done = run("compare", *(models[name] for name in names))
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
