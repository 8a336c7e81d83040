import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import probex_jax as px
from probex_jax.experts import Recipe, Ridge, accuracy, evaluate, run_statnn, statnn, sweep
from tests.conftest import write_toy_zoo

pytestmark = pytest.mark.xdist_group("sweeps")

ENCODER = {"name": "probex", "n_probes": 8, "proj_dim": 8, "rep_dim": 16}
RECIPE = Recipe(epochs=60, eval_every=10, batch_size=32, learning_rate=3e-3)


def run(store, workdir, **changes):
    settings = {"encoder": ENCODER, "head": "class", "recipe": RECIPE} | changes
    return sweep(store, workdir, **settings)


@pytest.fixture(scope="module")
def swept(toy_store, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sweep")
    return workdir, run(toy_store, workdir)


def test_the_layer_that_carries_the_classes_is_found(swept, toy_store):
    workdir, result = swept
    assert result.expert.card["layer"] == "a.weight"
    assert result.layers["a.weight"] > 0.9 > result.layers["b.weight"]
    assert result.test.value > 0.9
    assert result.test.low <= result.test.value <= result.test.high
    metrics = json.loads((workdir / "metrics.json").read_text())
    assert metrics["layer"] == "a.weight"
    assert metrics["store_hash"] == toy_store.hash
    assert metrics["test_accuracy"]["value"] == result.test.value


def test_a_loaded_expert_answers_the_same(swept, toy_store):
    workdir, result = swept
    expert = px.Expert.load(workdir)
    x = toy_store.matrices("a.weight", "test")
    np.testing.assert_array_equal(expert.logits(x), result.expert.logits(x))
    assert expert.encode(x).shape == (20, 16)
    right = (np.asarray(expert.logits(x)) > 0) == (toy_store.targets("test") > 0.5)
    assert evaluate(expert, toy_store)[0].value == pytest.approx(right.mean())


def test_selection_does_not_see_the_test_split(swept, toy_zoo, tmp_path):
    """Other test models: another test accuracy, and nothing else."""
    zoo = tmp_path / "Toy"
    shutil.copytree(toy_zoo, zoo)
    models = sorted((zoo / "test").iterdir())
    for model in models[:10]:
        shutil.rmtree(model)
    changed = px.pack(px.scan(zoo), tmp_path / "s").store
    result = run(changed, tmp_path / "w")
    _, original = swept
    assert dict(result.layers) == dict(original.layers)
    x = changed.matrices("a.weight", "val")
    np.testing.assert_array_equal(result.expert.logits(x), original.expert.logits(x))
    assert result.test.n_models == 10


def test_running_again_trains_nothing(swept, toy_store, monkeypatch):
    workdir, result = swept
    monkeypatch.setattr("probex_jax.experts.sweeps.train", None)
    assert run(toy_store, workdir).metrics == result.metrics


def test_a_frozen_layer_is_left_out_and_the_others_are_trained(tmp_path):
    rng = np.random.default_rng(0)
    zoo = write_toy_zoo(tmp_path / "Toy", 40)
    frozen = rng.normal(size=(5, 4)).astype(np.float32)
    for file in zoo.rglob("*.safetensors"):
        with safe_open(file, "numpy") as model:
            arrays, metadata = {k: model.get_tensor(k) for k in model.keys()}, model.metadata()  # noqa: SIM118
        save_file({**arrays, "frozen.weight": frozen}, file, metadata)
    store = px.pack(px.scan(zoo), tmp_path / "s").store
    ridge = {"encoder": {"name": "dense", "standardise": True}, "head": "none", "recipe": Ridge()}
    result = run(store, tmp_path / "w", **ridge, normalise="centre", committee=3)
    assert set(result.layers) == {"a.weight", "b.weight"}
    assert list(result.metrics["left_out"]) == ["frozen.weight"]
    with pytest.raises(px.ProbexError, match=r"no layer to train on; the first: .*frozen\.weight"):
        run(store, tmp_path / "v", **ridge, normalise="centre", layers=["frozen.weight"])


KILLED = """
import os, signal
from pathlib import Path
import probex_jax as px
from probex_jax.experts import Recipe, sweep
calls = []
def progress(layer, epochs):
    calls.append(layer)
    print(layer, epochs, flush=True)
    if len(calls) == {kill}:
        os.kill(os.getpid(), signal.SIGKILL)
sweep(px.LayerStore.open({store!r}), Path({workdir!r}), encoder={encoder!r}, head="class",
      recipe={recipe!r}, save_every_s=0.0, on_progress=progress)
"""


def test_a_killed_sweep_goes_on_to_the_same_bits(swept, toy_store, tmp_path):
    """Killed in the middle of the first layer, and again in the middle of the second."""
    original, result = swept
    first_progress = []
    for kill in (4, 6):
        names = {"store": str(toy_store.path), "workdir": str(tmp_path / "w")}
        script = KILLED.format(kill=kill, encoder=ENCODER, recipe=RECIPE, **names)
        done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert done.returncode == -9
        first_progress.append(done.stdout.splitlines()[0])
    progress = []
    run(
        toy_store,
        tmp_path / "w",
        save_every_s=0.0,
        on_progress=lambda layer, epochs: progress.append(f"{layer} {epochs}"),
    )
    first_progress.append(progress[0])
    # Begun; gone on from the state saved last; the first layer found finished.
    assert first_progress == ["a.weight 0", "a.weight 20", "a.weight 60"]
    for name in ("metrics.json", "config.json"):
        assert (tmp_path / "w" / name).read_text() == (original / name).read_text()
    resumed = px.Expert.load(tmp_path / "w")
    assert resumed.card == px.Expert.load(original).card
    x = toy_store.matrices("a.weight", "test")
    np.testing.assert_array_equal(resumed.logits(x), result.expert.logits(x))
    assert not list((tmp_path / "w").rglob("training"))


def test_a_work_directory_of_another_config_says_which_fields(swept, toy_store):
    workdir, _ = swept
    with pytest.raises(px.ProbexError) as error:
        run(toy_store, workdir, recipe=Recipe(epochs=60, eval_every=10, learning_rate=0.5))
    message = str(error.value)
    assert "recipe.batch_size is 32 there, 128 here" in message
    assert "recipe.learning_rate is 0.003 there, 0.5 here" in message
    assert "epochs" not in message


def test_a_damaged_expert_is_not_used(swept, toy_store, tmp_path):
    workdir, _ = swept
    shutil.copytree(workdir, tmp_path / "w")
    data = [
        p for p in (tmp_path / "w" / "expert").rglob("*") if p.is_file() and p.parent.name == "d"
    ]
    largest = max(data, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(px.ProbexError, match="expert"):
        px.Expert.load(tmp_path / "w")


def test_no_expert_is_one_line(tmp_path):
    with pytest.raises(px.ProbexError, match="no such expert"):
        px.Expert.load(tmp_path / "nothing")


def test_matrices_of_another_shape_are_refused(swept):
    _, result = swept
    with pytest.raises(px.ProbexError, match=r"reads matrices of 12x16, got shape \(3, 4, 4\)"):
        result.expert.encode(np.zeros([3, 4, 4], np.float32))


def test_another_class_list_is_refused(swept):
    _, result = swept
    with pytest.raises(px.ProbexError, match="they differ in 'fox'"):
        result.expert.check_fits("Toy", result.expert.card["classes"][:-1])


def test_an_expert_of_another_tree_is_refused(swept, toy_zoo, tmp_path):
    shutil.copytree(toy_zoo, tmp_path / "Other")
    other = px.pack(px.scan(tmp_path / "Other"), tmp_path / "s").store
    with pytest.raises(px.ProbexError, match="of tree Toy, the models are of Other"):
        evaluate(swept[1].expert, other)


def test_an_expert_reads_factors(swept):
    expert = swept[1].expert
    rng = np.random.default_rng(0)
    up, down = rng.normal(size=(3, 12, 2)), rng.normal(size=(3, 2, 16))
    factors = px.LowRank(up.astype(np.float32), down.astype(np.float32))
    dense = expert.logits(factors.dense())
    np.testing.assert_allclose(expert.logits(factors), dense, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("encoder", [1], r"card has no encoder \(dict\)"),
        ("encoder", {"name": ["probex"]}, "encoder.name"),
        ("encoder", {"name": "probex", "parent": 3}, "encoder.parent"),
        ("classes", 5, r"card has no classes \(list\)"),
        ("shape", ["a", "b"], "shape on the card"),
        ("shape", [12, 15], "parameters do not fit"),
    ],
)
def test_a_card_that_lies_is_refused(swept, tmp_path, field, value, message):
    expert = swept[1].expert
    px.Expert(expert.variables, {**expert.card, field: value}).save(tmp_path / "e")
    with pytest.raises(px.ProbexError, match=message):
        px.Expert.load(tmp_path / "e")


def test_saving_over_an_expert_replaces_it(swept, tmp_path):
    expert = swept[1].expert
    expert.save(tmp_path / "e")
    px.Expert(expert.variables, {**expert.card, "note": "new"}).save(tmp_path / "e")
    assert px.Expert.load(tmp_path / "e").card["note"] == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": []}, "layers: none given"),
        ({"save_every_s": "x"}, "save_every_s: 'x'"),
        ({"encoder": {**ENCODER, "rep_dim": 5}, "head": "none"}, "without a head"),
    ],
)
def test_wrong_settings_leave_no_work_directory(toy_store, tmp_path, changes, message):
    with pytest.raises(px.ProbexError, match=message):
        run(toy_store, tmp_path / "w", **changes)
    assert not (tmp_path / "w").exists()


def test_an_empty_split_is_refused(toy_zoo, tmp_path):
    shutil.copytree(toy_zoo, tmp_path / "Toy", ignore=shutil.ignore_patterns("val"))
    store = px.pack(px.scan(tmp_path / "Toy"), tmp_path / "s").store
    with pytest.raises(px.ProbexError, match="no model in split 'val'"):
        run(store, tmp_path / "w")


def test_a_full_disk_is_one_line(toy_store, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("probex_jax.experts.checkpoints.ocp.save", full)
    with pytest.raises(px.ProbexError, match="no space left on the disk"):
        run(toy_store, tmp_path / "w", recipe=Recipe(epochs=1, eval_every=1))


def test_statnn_sees_the_scale_of_weights_but_not_their_directions(toy_store, tmp_path):
    score = statnn(toy_store, n_trees=50)
    assert 0.3 < score.value < 0.7, "the toy's classes are directions: statistics cannot tell"

    rng = np.random.default_rng(0)
    for index in range(60):
        split = "train" if index < 40 else "test"
        folder = tmp_path / "Scale" / split / f"m{index}"
        folder.mkdir(parents=True)
        weights = (1 + index % 2) * rng.normal(size=(8, 8)).astype(np.float32)
        labels = "['small']" if index % 2 == 0 else "['large']"
        save_file({"w": weights}, folder / "model.safetensors", {"dataset_chosen_targets": labels})
    scales = px.pack(px.scan(tmp_path / "Scale"), tmp_path / "s").store
    assert statnn(scales, n_trees=50).value > 0.9
    metrics = run_statnn(toy_store, tmp_path / "w", n_trees=50)
    assert metrics["test_accuracy"]["value"] == score.value
    with pytest.raises(px.ProbexError, match=r"encoder\.n_trees is 50 there, 60 here"):
        run_statnn(toy_store, tmp_path / "w", n_trees=60)


def test_accuracy_counts_entries_and_its_interval_models():
    rng = np.random.default_rng(0)
    targets = rng.random([400, 10]) < 0.5
    wrong = rng.random([400, 10]) < 0.2
    score = accuracy(np.where(targets ^ wrong, 1.0, -1.0), targets)
    assert score.value == pytest.approx(1 - wrong.mean())
    assert score.n_models == 400
    # The standard error of the mean over models, by the formula.
    width = 2 * 1.96 * (wrong.mean(1).std() / 20)
    assert score.high - score.low == pytest.approx(width, rel=0.15)
