"""Work on a Ray cluster that is started here: what dies is done again, and nothing is left."""

import dataclasses
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import probex_jax as px
from probex_jax.engine import HERE, Died, flattened, in_parts
from probex_jax.search import Index, find_models
from tests.conftest import CLASSES, write_toy_zoo
from tests.engine.nodes import workers_of
from tests.engine.work import PoisonToIndex, PoisonToPack, Squares, fails
from tests.forest.conftest import class_expert
from tests.layer_store.test_packing import folder_hash
from tests.search.conftest import make_expert, write_model

pytestmark = [pytest.mark.parity, pytest.mark.xdist_group("cluster")]


def workers_left(folder):
    """The processes that made work and are still there."""
    return [path.name for path in folder.iterdir() if Path("/proc", path.name).exists()]


def none_left(folder):
    deadline = time.monotonic() + 20
    while workers_left(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_results_are_those_of_threads_and_no_worker_is_left(cluster, tmp_path):
    parts = list(in_parts(range(50), 4))
    done = list(cluster.map(Squares(tmp_path), iter(parts), readers=3))
    assert done == [(part, [n**2 for n in part]) for part in parts]
    assert 1 <= len(list(tmp_path.iterdir())) <= cluster.workers
    assert none_left(tmp_path)


def test_parts_are_taken_as_workers_become_free(cluster, tmp_path):
    taken = []

    def parts():
        for number in range(500):
            taken.append(number)
            yield (number,)

    done = cluster.map(Squares(tmp_path), parts())
    for _ in range(10):
        next(done)
    assert len(taken) < 60
    done.close()
    assert none_left(tmp_path)


def test_a_worker_that_dies_is_replaced(cluster, tmp_path):
    work = Squares(tmp_path, frozenset([13]), once=True)
    done = list(flattened(cluster.map(work, in_parts(range(40), 4))))
    assert done == [(n, n**2) for n in range(40)]
    assert (tmp_path / "ended").exists()


def test_what_ends_its_worker_three_times_is_known_by_name_and_the_rest_goes_on(cluster, tmp_path):
    work = Squares(tmp_path, frozenset([13, 30]))
    done = dict(flattened(cluster.map(work, in_parts(range(40), 4))))
    dead = {number for number, found in done.items() if isinstance(found, Died)}
    assert dead == {13, 30}
    assert all(done[n] == n**2 for n in range(40) if n not in dead)
    assert none_left(tmp_path)


def test_what_raises_in_a_worker_is_raised_here(cluster):
    with pytest.raises(ValueError, match=r"^cannot be made$"):
        list(cluster.map(fails, [(1,)]))


def toy_zoo(folder, n_models=30):
    zoo = px.scan(write_toy_zoo(folder / "Toy", n_models))
    return dataclasses.replace(zoo, classes=CLASSES)


def test_a_model_that_ends_whoever_packs_it_is_skipped_alone(cluster, tmp_path):
    zoo = toy_zoo(tmp_path)
    bad = zoo.models[5]
    poison = PoisonToPack(**vars(bad))
    broken = dataclasses.replace(
        zoo, models=tuple(poison if model is bad else model for model in zoo.models)
    )
    found = px.pack(broken, tmp_path / "s", engine=cluster)
    assert list(found.skipped) == [bad.id]
    assert str(bad.path) in found.skipped[bad.id]
    assert found.added == len(zoo.models) - 1


def test_a_model_that_ends_whoever_embeds_it_fails_alone(cluster, tmp_path):
    for seed in range(40):
        write_model(tmp_path / "models" / f"{seed:02d}.safetensors", seed, ["ant"])
    models = list(find_models(tmp_path / "models"))
    models[7] = PoisonToIndex(**vars(models[7]))
    index = Index.create_or_open(tmp_path / "index", make_expert())
    told = []
    done = index.add_models(models, engine=cluster, on_model=told.append)
    assert list(done.failed) == ["07"]
    assert (done.added, len(index), len(told)) == (39, 39, 40)
    others = [model for model in models if model.id != "07"]
    alone = Index.create_or_open(tmp_path / "alone", make_expert())
    alone.add_models(others, engine=HERE)
    for ours, theirs in zip(index.everything(), alone.everything(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("what", ["pack", "index"])
def test_a_killed_worker_changes_no_byte(cluster, tmp_path, what):
    """Of workers that are killed as soon as they are seen, some parts are done again."""
    killed = []

    def kill_one(_):
        if len(killed) < 2:
            alive = set(workers_of(os.getpid()))
            for process in list(alive - {*killed})[:1]:
                killed.append(process)
                os.kill(process, signal.SIGKILL)

    zoo = toy_zoo(tmp_path, 200)  # several blocks of a store
    for name, engine, seen in (("here", HERE, lambda _: None), ("there", cluster, kill_one)):
        if what == "pack":
            px.pack(zoo, tmp_path / name, engine=engine, on_model=seen)
        else:
            models = find_models(tmp_path / "Toy")
            index = Index.create_or_open(tmp_path / name, class_expert("Toy", 1, layer="a.weight"))
            index.add_models(models, engine=engine, on_model=seen)
    assert len(killed) == 2
    if what == "pack":
        assert folder_hash(tmp_path / "here") == folder_hash(tmp_path / "there")
    else:
        both = [Index.open(tmp_path / name).everything() for name in ("here", "there")]
        assert both[0][0] == both[1][0]
        np.testing.assert_array_equal(both[0][1], both[1][1])
