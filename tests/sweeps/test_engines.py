"""Sweeps in other processes: the same bytes as in threads, whatever dies."""

import os
import pickle
import shutil
import signal
import threading
from dataclasses import dataclass

import pytest

import probex_jax as px
from probex_jax.engine import HERE, Cluster, Died, Size
from probex_jax.experts import Alignment
from probex_jax.fitting import Adam, ClosedForm, Devices
from probex_jax.language import text_encoder
from probex_jax.sweeps import sweep, train
from probex_jax.sweeps.jobs import Room
from tests.engine.nodes import workers_of
from tests.sweeps.deadly import Deadly

ENCODER = {"name": "probex", "n_probes": 4, "proj_dim": 4, "rep_dim": 8}
RECIPE = Adam(epochs=20, eval_every=5, batch_size=32, learning_rate=3e-3)
ADAM = {"encoder": ENCODER, "head": "class", "recipe": RECIPE, "normalise": "centre"}
CLOSED = {"encoder": {"name": "dense"}, "head": "none", "recipe": ClosedForm()}
ALIGNMENT = Alignment(text_encoder("hashing"), spec="hashing", logit_scale=20.0)
CASES = {
    "closed form": CLOSED | {"normalise": "centre", "committee": None},
    "grid": ADAM | {"grid": {"learning_rate": [1e-3, 3e-3], "seed": [0, 1]}, "committee": 2},
    "text": ADAM | {"head": "text", "alignment": ALIGNMENT},
}


def assert_same(one, other):
    """That all experts and figures of two work directories are the same."""
    for name in ("metrics.json", "config.json", "predictions.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    experts = [
        sorted(path.parent.relative_to(w) for path in w.rglob("_CHECKPOINT_METADATA"))
        for w in (one, other)
    ]
    assert experts[0] == experts[1]
    for path in experts[0]:
        assert px.Expert.load(one / path).hash == px.Expert.load(other / path).hash
    assert not (other / "training").exists()


@dataclass
class Elsewhere:
    """An engine that works in this process, but on what was pickled.

    Args:
      deadly: layers that no worker survives.
    """

    deadly: tuple[str, ...] = ()
    is_here = False

    def size(self):
        """Some workers."""
        return Size(3, 1)

    def map(self, make, parts, **given):
        """Does the work; whoever takes a deadly layer dies."""
        made = pickle.dumps(make)
        assert len(made) < 50_000
        for part, results in HERE.map(lambda: pickle.loads(made)(), parts, **given):
            layers = getattr(part[0], "layers", part)
            is_dead = not {*self.deadly}.isdisjoint(layers or ())
            found = [Died("3 processes ended")] if is_dead else results
            yield pickle.loads(pickle.dumps((part, found)))


def kill_a_worker():
    """Ends one of the workers that this process's cluster has."""
    for process in workers_of(os.getpid())[:1]:
        os.kill(process, signal.SIGKILL)
        return True
    return False


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_a_cluster_gives_the_bytes_of_threads(case, cluster, request, tmp_path):
    store = request.getfixturevalue("toy_lora_store" if case == "text" else "toy_store")
    sweep(store, tmp_path / "here", **CASES[case])
    done = []
    sweep(
        store,
        tmp_path / "there",
        **CASES[case],
        engine=cluster,
        on_progress=lambda layer, epochs: done.append(epochs),
    )
    assert_same(tmp_path / "here", tmp_path / "there")
    tried = 4 if case == "grid" else 1
    each = 1 if case == "closed form" else RECIPE.epochs * tried
    assert sum(done) == each * (3 if case == "closed form" else 2)


@pytest.mark.parity
def test_what_a_killed_worker_was_training_another_goes_on_with(cluster, toy_store, tmp_path):
    settings = ADAM | {"recipe": Adam(epochs=60, eval_every=2, batch_size=8), "save_every_s": 0.0}
    sweep(toy_store, tmp_path / "here", **settings)
    killed, over = [], threading.Event()

    def kill():
        while not over.wait(0.05):
            if [*(tmp_path / "there" / "training").glob("*/000000[1-9]*")]:
                killed.append(kill_a_worker())
                return

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        sweep(toy_store, tmp_path / "there", **settings, engine=cluster)
    finally:
        over.set()
        killer.join()
    assert killed == [True]
    assert_same(tmp_path / "here", tmp_path / "there")


@pytest.mark.parity
def test_a_layer_that_ends_its_workers_is_left_out(cluster, toy_store, tmp_path):
    settings = ADAM | {"encoders": {"deadly": Deadly}}
    encoder = ENCODER | {"name": "deadly", "survivor": os.getpid()}
    given = settings | {"encoder": encoder | {"rows": 6}}
    found = sweep(toy_store, tmp_path / "w", **given, engine=cluster)
    assert list(found.layers) == ["a.weight"]
    assert "b.weight" in found.metrics["left_out"]["b.weight"]
    here = sweep(toy_store, tmp_path / "here", **given, layers=["a.weight"])
    assert found.expert.hash == here.expert.hash


@pytest.mark.parity
def test_what_is_wrong_with_a_store_is_said_as_here(cluster, toy_store, tmp_path):

    shutil.copytree(toy_store.path, tmp_path / "s")
    store = px.LayerStore.open(tmp_path / "s")
    shutil.rmtree(next((tmp_path / "s").rglob("b.weight*")))
    for settings in (ADAM, CLOSED):
        errors = []
        for engine in ({}, {"engine": cluster}):
            with pytest.raises(px.ProbexError) as error:
                sweep(store, tmp_path / f"w{len(errors)}", **settings, **engine)
            errors.append(str(error.value))
            shutil.rmtree(tmp_path / f"w{len(errors) - 1}")
        assert errors[0] == errors[1]


@pytest.mark.parametrize(
    "settings",
    [pytest.param(ADAM, marks=pytest.mark.parity), CLOSED],
    ids=["adam", "closed form"],
)
def test_deadly_layers_are_left_out_if_others_remain(settings, toy_store, tmp_path):
    settings = settings | {"layers": ["a.weight", "b.weight"]}
    found = sweep(toy_store, tmp_path / "w", **settings, engine=Elsewhere(("b.weight",)))
    assert list(found.layers) == ["a.weight"]
    assert "b.weight: 3 processes" in found.metrics["left_out"]["b.weight"]
    # Else nothing is said of them, and the next run tries them again.
    with pytest.raises(px.ProbexError, match="a.weight: 3 processes"):  # noqa: RUF043
        sweep(toy_store, tmp_path / "v", **settings, engine=Elsewhere(("a.weight", "b.weight")))
    sweep(toy_store, tmp_path / "here", **settings)
    sweep(toy_store, tmp_path / "v", **settings, engine=Elsewhere())
    assert_same(tmp_path / "here", tmp_path / "v")


def test_a_plan_that_needs_too_much_elsewhere_is_made_again(toy_store, tmp_path, monkeypatch):
    monkeypatch.setattr(Room, "here", lambda devices: Room(1e12, 1e12))
    needed, tried = train.compiled, []

    def compiled(group, *given):
        tried.append(len(group.recipes))
        if tried[-1] > 1:
            raise train.TooLarge
        return needed(group, *given)

    monkeypatch.setattr(train, "compiled", compiled)
    settings = ADAM | {"grid": {"seed": [0, 1]}, "layers": ["a.weight"]}
    found = sweep(toy_store, tmp_path / "w", **settings, engine=Elsewhere())
    assert tried[0] == 2
    assert len(found.metrics["variants"]["a.weight"]) == 2


def test_processes_that_train_together_are_no_cluster(toy_store, tmp_path):
    several = type("Several", (Devices,), {"processes": 2, "writes": True})()
    with pytest.raises(px.ProbexError, match="engine"):
        sweep(toy_store, tmp_path / "w", **ADAM, devices=several, engine=Cluster("auto"))
    assert not (tmp_path / "w").exists()
