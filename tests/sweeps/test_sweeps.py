"""Sweeps over toy stores: the layer that carries the classes, kills, and what is refused."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.metrics import roc_auc_score

import probex_jax as px
from probex_jax.experts import Predictions, evaluate
from probex_jax.fitting import Adam, ClosedForm, Number, OneClass, SeveralClasses
from probex_jax.integrity import unsealed
from probex_jax.sweeps import sweep
from tests.conftest import CLASSES, write_toy_zoo
from tests.sweeps.of_layers import of_layer

pytestmark = pytest.mark.xdist_group("sweeps")

# The name in the package is that of the function.
MODULE = sys.modules["probex_jax.sweeps.train"]
ENCODER = {"name": "probex", "n_probes": 8, "proj_dim": 8, "rep_dim": 16}
RECIPE = Adam(epochs=60, eval_every=10, batch_size=32, learning_rate=3e-3)
SHORT = Adam(epochs=1, eval_every=1)
CLOSED = {"encoder": {"name": "dense"}, "head": "none", "recipe": ClosedForm((0.1, 1.0))}


def run(store, workdir, **changes):
    settings = {"encoder": ENCODER, "head": "class", "recipe": RECIPE} | changes
    return sweep(store, workdir, **settings)


@pytest.fixture(scope="module")
def swept(toy_store, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sweep")
    return workdir, run(toy_store, workdir)


def test_the_layer_that_carries_the_classes_is_found(swept, toy_store):
    workdir, result = swept
    assert list(result.expert.layers) == ["a.weight"]
    assert result.layers["a.weight"] > 0.9 > result.layers["b.weight"]
    assert result.test.value > 0.9
    assert result.test.low <= result.test.value <= result.test.high
    metrics = unsealed(json.loads((workdir / "metrics.json").read_text()), workdir)
    assert metrics == result.metrics
    assert (metrics["layer"], metrics["task"]) == ("a.weight", "several_classes")
    assert metrics["store_hash"] == toy_store.hash == result.expert.card.store_hash
    assert metrics["test_accuracy"]["value"] == result.test.value
    expert, x = px.Expert.load(workdir), toy_store.matrices("a.weight", "test")
    assert expert.hash == result.expert.hash
    assert evaluate(expert, toy_store)[0] == result.test
    kept = Predictions.read(workdir)
    np.testing.assert_allclose(kept.logits, expert.logits(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(kept.vectors, expert.encode(x), rtol=1e-4, atol=1e-5)


def test_selection_does_not_see_the_test_split(swept, toy_zoo, tmp_path):
    """Other test models: another test accuracy, and nothing else."""
    zoo = tmp_path / "Toy"
    shutil.copytree(toy_zoo, zoo)
    for model in sorted((zoo / "test").iterdir())[:10]:
        shutil.rmtree(model)
    changed = px.pack(px.scan(zoo), tmp_path / "s").store
    result, (_, original) = run(changed, tmp_path / "w"), swept
    assert dict(result.layers) == dict(original.layers)
    assert result.test.n_models == 10
    same(result.expert, original.expert)


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one.variables, other.variables)


def test_running_again_trains_and_asks_nothing(swept, toy_store, monkeypatch):
    workdir, result = swept
    told, files = [], {path: path.read_bytes() for path in workdir.glob("*.*")}
    monkeypatch.setattr(MODULE, "train", None)
    monkeypatch.setattr(px.Expert, "logits", None)
    again = run(toy_store, workdir, on_progress=lambda *progress: told.append(progress))
    assert again.metrics == result.metrics
    assert told == [("a.weight", 60), ("b.weight", 60)]
    assert {path: path.read_bytes() for path in workdir.glob("*.*")} == files


def test_a_frozen_layer_is_left_out_and_the_others_are_trained(tmp_path):
    frozen = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    zoo = write_toy_zoo(tmp_path / "Toy", 40)
    for file in zoo.rglob("*.safetensors"):
        with safe_open(file, "numpy") as model:
            arrays, metadata = {k: model.get_tensor(k) for k in model.keys()}, model.metadata()  # noqa: SIM118
        save_file({**arrays, "frozen.weight": frozen}, file, metadata)
    store = px.pack(px.scan(zoo), tmp_path / "s").store
    result = run(store, tmp_path / "w", **CLOSED, normalise="centre", committee=3)
    assert set(result.layers) == {"a.weight", "b.weight", "c.bias"}
    assert list(result.metrics["left_out"]) == ["frozen.weight"]
    with pytest.raises(px.ProbexError, match=r"frozen\.weight"):
        run(store, tmp_path / "v", **CLOSED, normalise="centre", layers=["frozen.weight"])


@pytest.mark.parametrize("recipe", [SHORT, ClosedForm((0.1,))])
def test_by_gradient_descent_vectors_are_read_if_they_are_asked_for(toy_store, tmp_path, recipe):
    settings = CLOSED | {"recipe": recipe, "normalise": "centre"}
    assert toy_store.vectors == ("c.bias",)
    told = run(toy_store, tmp_path / "told", **settings, layers=["b.weight", "c.bias"])
    assert set(told.layers) == {"b.weight", "c.bias"}
    found = set(run(toy_store, tmp_path / "all", **settings).layers)
    assert found == set(toy_store.layers) - ({"c.bias"} if recipe is SHORT else set())


KILLED = """
import os, signal
from pathlib import Path
import probex_jax as px
from probex_jax import Adam, ClosedForm
calls = []
def progress(layer, epochs):
    calls.append(layer)
    print(layer, epochs, flush=True)
    if len(calls) == {kill}:
        os.kill(os.getpid(), signal.SIGKILL)
px.sweep(px.LayerStore.open({store!r}), Path({workdir!r}), save_every_s=0.0, on_progress=progress,
         **{settings!r})
"""


def killed(store, workdir, kill, **settings):
    """What a sweep that is killed at its so many-th progress said of it."""
    script = KILLED.format(
        kill=kill, store=str(store.path), workdir=str(workdir), settings=settings
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert done.returncode == -9
    return done.stdout.splitlines()


def check_same_files(one, other):
    """That two work directories say the same."""
    for name in ("metrics.json", "config.json", "predictions.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert px.Expert.load(one).hash == px.Expert.load(other).hash
    assert not list(one.rglob("training"))


def test_a_killed_sweep_goes_on_to_the_same_bits(swept, toy_store, tmp_path):
    """Killed in the middle of the first layer, and again in the middle of the second."""
    settings = {"encoder": ENCODER, "head": "class", "recipe": RECIPE}
    first = [killed(toy_store, tmp_path / "w", kill, **settings)[0] for kill in (4, 6)]
    progress = []
    run(
        toy_store,
        tmp_path / "w",
        save_every_s=0.0,
        on_progress=lambda layer, epochs: progress.append(f"{layer} {epochs}"),
    )
    # Begun; gone on from the state saved last; the first layer found finished.
    assert [*first, progress[0]] == ["a.weight 0", "a.weight 20", "a.weight 60"]
    check_same_files(tmp_path / "w", swept[0])


def test_a_damaged_state_says_what_to_do(toy_store, tmp_path):
    settings = {"encoder": ENCODER, "head": "class", "recipe": RECIPE, "layers": ["a.weight"]}
    killed(toy_store, tmp_path / "w", 4, **settings)
    [state] = (tmp_path / "w" / "training").glob("*/0*")
    (state / "_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(px.ProbexError, match=rf"remove {state.parent}"):
        run(toy_store, tmp_path / "w", **settings)


def test_damaged_metrics_say_what_to_do(swept, toy_store, tmp_path):
    shutil.copytree(swept[0], tmp_path / "w")
    for damage in ("{}", "[]", '{"val_accuracy_by_layer": {}, "test_accuracy": 3}'):
        (tmp_path / "w" / "metrics.json").write_text(damage)
        with pytest.raises(px.ProbexError, match=r"metrics\.json"):
            run(toy_store, tmp_path / "w")


def test_a_work_directory_of_another_config_says_which_fields(swept, toy_store):
    for changes, fields in (
        ({"recipe": Adam(epochs=60, eval_every=10, batch_size=32)}, [r"recipe\.learning_rate"]),
        ({"recipe": SHORT}, [r"recipe\.batch_size is 32 there, 128 here", r"recipe\.epochs"]),
        ({"committee": 2}, ["committee is 1 there, 2 here"]),
        ({"normalise": "scale"}, ["normalise"]),
    ):
        with pytest.raises(px.ProbexError) as told:
            run(toy_store, swept[0], **changes)
        for field in fields:
            assert told.match(field)
        assert "encoder" not in str(told.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": []}, "layers"),
        ({"layers": ["z.weight"]}, r"z\.weight"),
        ({"save_every_s": "x"}, "save_every_s: 'x'"),
        ({"encoder": {**ENCODER, "rep_dim": 5}, "head": "none"}, "rep_dim"),
        ({"encoder": {"name": "unheard of"}}, r"encoder\.name"),
        ({"normalise": "both"}, "normalise: 'both'"),
        ({"task": Number()}, "task: 'number'"),
        ({"task": px.Texts()}, "text"),
        *[({"committee": wrong}, "committee") for wrong in (0, True, 2.0, "all")],
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

    monkeypatch.setattr("orbax.checkpoint.v1.save", full)
    with pytest.raises(px.ProbexError, match="no space left on the disk"):
        run(toy_store, tmp_path / "w", recipe=SHORT)


def test_metrics_come_last(toy_store, tmp_path, monkeypatch):
    def full(*args):
        raise px.ProbexError("no space left")

    monkeypatch.setattr(Predictions, "write", full)
    with pytest.raises(px.ProbexError, match="no space left"):
        run(toy_store, tmp_path / "w", **CLOSED)
    assert not (tmp_path / "w" / "metrics.json").exists()
    monkeypatch.undo()
    assert run(toy_store, tmp_path / "w", **CLOSED).metrics["test_accuracy"]
    assert Predictions.read(tmp_path / "w") is not None


# One class each.
@pytest.fixture(scope="module")
def singles(tmp_path_factory):
    """A store whose models have one class each, one of them more often; shown by a direction."""
    folder, rng = tmp_path_factory.mktemp("singles"), np.random.default_rng(0)
    directions = rng.normal(size=(3, 6, 5))
    for index in range(90):
        split, kind = (
            ("train", "val", "test")[(index >= 50) + (index >= 70)],
            (0, 1, 2, 0)[index % 4],
        )
        path = folder / "Singles" / split / f"m{index:02d}"
        path.mkdir(parents=True)
        weights = {"a": (directions[kind] + 0.5 * rng.normal(size=(6, 5))).astype(np.float32)}
        labels = {"dataset_chosen_targets": str([CLASSES[kind]])}
        save_file(weights, path / "model.safetensors", labels)
    return px.pack(px.scan(folder / "Singles"), folder / "s").store


@pytest.mark.parametrize(
    "settings",
    [CLOSED, {"recipe": Adam(epochs=40, eval_every=10, batch_size=16, learning_rate=1e-2)}],
    ids=["closed form", "adam"],
)
def test_one_class_of_several_is_told(singles, tmp_path, settings):
    """Accuracy, chance and answers are of one class each; probabilities add up to one."""
    workdir = tmp_path / "w"
    result = run(singles, workdir, **settings)
    x, y = singles.matrices("a", "test"), singles.targets("test").argmax(axis=1)
    expert = px.Expert.load(workdir)
    assert (expert.card.task, result.metrics["task"]) == (OneClass(), "one_class")
    p_NY = np.asarray(expert.probabilities(x))
    np.testing.assert_allclose(p_NY.sum(axis=1), 1, rtol=1e-5)
    assert result.test.value == np.mean(p_NY.argmax(axis=1) == y) > 0.9
    assert result.test.chance == pytest.approx(np.mean(y == 0))
    y_val = singles.targets("val").argmax(axis=1)
    chose = y_val if "head" not in settings else singles.targets("train").argmax(axis=1)
    chose = np.concatenate([chose, y_val]) if "head" in settings else chose
    assert result.metrics["val_chance"] == pytest.approx(np.mean(chose == 0))
    kept = Predictions.read(workdir)
    assert (kept.task, kept.chance) == (OneClass(), result.test.chance)
    shares = singles.targets("train").mean(axis=0)
    np.testing.assert_allclose(kept.chance_by_class, shares, rtol=1e-6)
    areas = roc_auc_score(singles.targets("test"), np.log(p_NY), average="macro")
    assert result.metrics["test_auc"]["value"] == pytest.approx(areas, abs=1e-6)
    np.testing.assert_array_equal(kept.y, y)
    if "head" not in settings:
        best = OneClass().best_temperature(expert.logits(singles.matrices("a", "val")), y_val)
        assert expert.card.temperature == pytest.approx(best, rel=1e-3)
    assert evaluate(expert, singles)[0] == result.test
    # The same settings with another task are another training.
    with pytest.raises(px.ProbexError, match="task"):
        run(singles, workdir, task=SeveralClasses(), **settings)


def test_one_class_alone_is_refused_before_anything_is_trained(tmp_path):
    zoo = tmp_path / "Same"
    for split in ("train", "val", "test"):
        for number in range(3):
            path = zoo / split / f"{split}{number}"
            path.mkdir(parents=True)
            x = np.random.default_rng(number).normal(size=(4, 3)).astype(np.float32)
            labels = {"dataset_chosen_targets": "['ant']"}
            save_file({"a": x}, path / "model.safetensors", labels)
    store = px.pack(px.scan(zoo), tmp_path / "s").store
    with pytest.raises(px.ProbexError, match="ant"):
        run(store, tmp_path / "w", **CLOSED)
    assert not (tmp_path / "w").exists()


def test_models_of_several_classes_are_not_told_as_of_one(toy_store, tmp_path):
    with pytest.raises(px.ProbexError, match="class"):
        run(toy_store, tmp_path / "w", task=OneClass(), **CLOSED)


class Twice(SeveralClasses):
    """Trains for something else."""

    def loss(self, logits, y):
        return 2 * super().loss(logits, y)


class Narrow(px.ProbeX):
    """An encoder of one's own."""


def test_an_encoder_and_a_loss_of_one_s_own(toy_store, tmp_path):
    """They are trained, chosen, kept and found again."""
    encoder = {**ENCODER, "name": "narrow"}
    grid = {"seed": [0, 1]}
    settings = {"encoder": encoder, "encoders": {"narrow": Narrow}, "recipe": SHORT, "grid": grid}
    first = run(toy_store, tmp_path / "w", task=Twice(), **settings)
    assert isinstance(first.expert.members[0].network.encoder, Narrow)
    again = run(toy_store, tmp_path / "w", task=Twice(), **settings)
    assert again.expert.hash == first.expert.hash
    plain = run(toy_store, tmp_path / "v", **settings)
    losses = [
        of_layer(folder, "a.weight", "seed=0", {"narrow": Narrow}).card.figures["losses"][-1]
        for folder in (tmp_path / "w", tmp_path / "v")
    ]
    assert losses[0] == pytest.approx(2 * losses[1], rel=1e-3)
    assert plain.expert.card.task == SeveralClasses()
