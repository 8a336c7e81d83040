"""What is trained together, streamed or divided is what is trained alone."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import probex_jax as px
from probex_jax.fitting import Adam, Devices
from probex_jax.fitting.network import build_network
from probex_jax.fitting.recipe import variants
from probex_jax.sweeps import train
from probex_jax.sweeps.jobs import Job, Room, plan
from probex_jax.sweeps.source import Source
from tests.sweeps.of_layers import of_layer

ENCODER = {"name": "probex", "n_probes": 4, "proj_dim": 4, "rep_dim": 8}
RECIPE = Adam(epochs=12, eval_every=5, batch_size=9, learning_rate=3e-3)
KINDS = ("ant", "bee", "cat", "dog")
ALL = [f"{letter}.weight" for letter in "abcdef"]
# Bytes of a layer of 8 x 6 of 25 + 7 models: of that many a device or a machine has room.
LAYER = 4 * 48 * 32
PLENTY = 1e12
SMALL = {"name": "probex", "n_probes": 1, "proj_dim": 1}
# Bytes of its training at 8 x 6: parameters, their best on validation, two moments, gradient, step.
NETWORK = 6 * 4 * (6 + 8 + 4 + 4)
# Of one with 64 probes of 64 projections.
LARGE = SMALL | {"n_probes": 64, "proj_dim": 64}
LARGE_NETWORK = 6 * 4 * (64 * 6 + 64 * 8 + 64 * 64 * 4 + 4)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A store of six layers of two shapes, one of which fine-tuning left alone."""
    rng = np.random.default_rng(0)
    zoo = tmp_path_factory.mktemp("zoos") / "Six"
    directions = {f"{letter}.weight": rng.normal(size=(4, 8, 6)) for letter in "acd"}
    directions |= {f"{letter}.weight": rng.normal(size=(4, 5, 7)) for letter in "be"}
    frozen = rng.normal(size=(8, 6)).astype(np.float32)
    for number in range(40):
        chosen = rng.permutation(4)[:2]
        weights = {
            name: (each[chosen].sum(axis=0) + rng.normal(size=each.shape[1:])).astype(np.float32)
            for name, each in directions.items()
        }
        folder = zoo / ("train", "val", "test")[(number >= 25) + (number >= 32)] / f"m{number:02d}"
        folder.mkdir(parents=True)
        labels = {"dataset_chosen_targets": str([KINDS[n] for n in sorted(chosen)])}
        save_file({**weights, "f.weight": frozen}, folder / "model.safetensors", labels)
    return px.pack(px.scan(zoo), tmp_path_factory.mktemp("stores") / "Six").store


def run(store, workdir, **changes):
    settings = {"encoder": ENCODER, "head": "class", "recipe": RECIPE, "normalise": "centre"}
    return px.sweep(store, workdir, **{**settings, **changes})


@pytest.fixture(scope="module")
def swept(tree, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sweep") / "w"
    return workdir, run(tree, workdir)


def assert_close(one, other, rtol=1e-4, atol=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
        one.variables["params"],
        other.variables["params"],
    )


def planned(
    tree,
    names,
    recipes,
    *,
    device=PLENTY,
    host=PLENTY,
    most=None,
    alone=0.0,
    processes=1,
    encoder=SMALL,
    platform="gpu",
    **given,
):
    """Jobs of layers; on a device that is no CPU, so that its cache bounds nothing."""
    devices = type("Some", (Devices,), {"platform": property(lambda self: platform)})()
    network = build_network(encoder, "none", 4)
    source = Source(tree, px.SeveralClasses(), None, "none", network, devices)
    return plan(source, names, recipes, Room(device, host, most, alone), processes, **given)


def test_jobs_are_of_one_size_and_fit(tree):
    names, five = [f"{letter}.weight" for letter in "acdf"], variants(RECIPE, {"seed": [*range(5)]})
    one = variants(RECIPE, {})

    def layers(found):
        return ["".join(layer[0] for layer in job.layers) for job in found]

    [job] = planned(tree, names, five)
    assert (job.layers, job.recipes) == (tuple(names), five)
    assert not job.one_order, "each seed has its own"
    # As many layers as there is room for, all jobs of one size, the last one filled up.
    found = planned(tree, names[:3], five, device=2.5 * (LAYER + 5 * NETWORK))
    assert layers(found) == ["ac", "dd"]
    # What several jobs in the memory of the machine leave room for.
    assert layers(planned(tree, names, one, host=1.5 * LAYER)) == ["a", "c", "d", "f"]
    # Half as many networks as were too large: two times three variants, one of them twice.
    found = planned(tree, names[:1], five, most=3)
    assert [len(job.recipes) for job in found] == [3, 3]
    assert {recipe for job in found for recipe in job.recipes} == set(five)
    # Among processes no job is so large that one of them has nothing to do.
    assert layers(planned(tree, names, one, processes=3)) == ["ac", "df"]
    # Neighbours are of different shapes.
    assert layers(planned(tree, ALL, one, processes=2)) == ["ac", "b", "df", "e"]
    # What does not fit at all is streamed, or what shall be.
    streamed = [Job((name,), one, streamed=True) for name in names]
    for given in ({"device": 0.9 * LAYER}, {"host": 0.9 * LAYER}, {"most": 0}, {"stream": True}):
        assert planned(tree, names, one, **given) == streamed
    assert len({job.key for job in [*streamed, *planned(tree, ALL, one)]}) == 6


def test_what_training_keeps_of_parameters_must_fit_as_well(tree):
    names = [f"{letter}.weight" for letter in "acd"]
    one, five = variants(RECIPE, {}), variants(RECIPE, {"seed": [*range(5)]})

    def sizes(recipes, **given):
        jobs = planned(tree, names, recipes, encoder=LARGE, **given)
        return [(len(job.layers), len(job.recipes)) for job in jobs]

    assert sizes(five) == [(3, 5)]
    assert sizes(one, device=2.5 * (LAYER + LARGE_NETWORK)) == [(2, 1)] * 2
    assert sizes(five, device=LAYER + 3.5 * LARGE_NETWORK) == [(1, 3)] * 6
    assert sizes(one, device=0.9 * LARGE_NETWORK, alone=LAYER + LARGE_NETWORK) == [(1, 1)] * 3
    # A CPU has copies of what is saved, too; and parameters that fill its cache are alone there.
    assert sizes(one, host=2.5 * (LAYER + 12 / 6 * LARGE_NETWORK)) == [(2, 1)] * 2
    assert sizes(one, platform="cpu") == [(3, 1)]
    more = 12 / 6 * LARGE_NETWORK
    room = {"device": 2.5 * (LAYER + LARGE_NETWORK + more), "platform": "cpu"}
    assert sizes(one, **room) == [(2, 1)] * 2
    huge = LARGE | {"n_probes": 2048, "proj_dim": 2048}
    jobs = planned(tree, names, five, encoder=huge, platform="cpu")
    assert {(len(job.layers), len(job.recipes)) for job in jobs} == {(1, 1)}


def test_a_layer_that_fits_alone_is_trained_alone(tree):
    """Not streamed; what its parameters alone do not fit is refused."""
    names, one = ["a.weight", "c.weight"], variants(RECIPE, {})
    alone = [Job((name,), one, alone=True) for name in names]
    for given in ({"device": 0.9 * LAYER}, {"host": 0.9 * LAYER}):
        assert planned(tree, names, one, alone=LAYER + NETWORK, **given) == alone
    room = {"device": 0.9 * LARGE_NETWORK, "encoder": LARGE}
    with pytest.raises(px.ProbexError, match=r"a\.weight"):
        planned(tree, names, one, **room)
    streamed = [Job((name,), one, streamed=True) for name in names]
    assert planned(tree, names, one, alone=LARGE_NETWORK, **room) == streamed


@pytest.mark.parity
def test_layers_one_by_one_are_as_side_by_side(tree, tmp_path, monkeypatch, swept):
    """Where so little is free that none is read ahead."""
    monkeypatch.setattr(Room, "here", lambda devices: Room(1.0, 1.0, alone=PLENTY))
    layers = ["a.weight", "d.weight"]
    result = run(tree, tmp_path / "w", layers=layers)
    for layer in layers:
        assert_close(of_layer(tmp_path / "w", layer), of_layer(swept[0], layer))
        assert result.layers[layer] == pytest.approx(swept[1].layers[layer], abs=1e-6)


def test_half_as_many_networks_are_tried_until_one_is_streamed():
    recipes, room = variants(RECIPE, {"seed": [0, 1]}), Room(PLENTY, PLENTY)
    largest = [Job(("a", "b", "c"), recipes), Job(("d",), recipes[:1], streamed=True)]
    assert room.less(largest) == Room(PLENTY, PLENTY, 3)
    assert room.less([Job(("a",), recipes[:1])]).most == 0


@pytest.mark.parametrize("layer", ["d.weight", "e.weight"])
def test_a_layer_among_others_is_trained_as_alone(swept, tree, tmp_path, layer):
    """A frozen one is left out of its job."""
    workdir, result = swept
    assert set(result.layers) == set(ALL) - {"f.weight"}
    assert list(result.metrics["left_out"]) == ["f.weight"]
    assert not (workdir / "training").exists()
    alone = run(tree, tmp_path / "w", layers=[layer])
    assert_close(of_layer(workdir, layer), of_layer(tmp_path / "w", layer))
    assert result.layers[layer] == pytest.approx(alone.layers[layer], abs=1e-6)


def test_programs_are_as_many_as_shapes(tree, tmp_path, monkeypatch):
    """Though so little memory is there that three of the layers of one shape do not fit at once."""
    made, lower = [], train.advance.lower
    counted = type("Counted", (), {"lower": lambda *args: made.append(1) or lower(*args)})
    monkeypatch.setattr(train, "advance", counted)
    monkeypatch.setattr(Room, "here", lambda devices: Room(PLENTY, 2.5 * LAYER))
    run(tree, tmp_path / "w")
    assert len(made) == 2


@pytest.mark.parametrize("enough", [2, 0], ids=["smaller", "streamed"])
def test_too_large_a_program_is_made_smaller(tree, tmp_path, monkeypatch, swept, enough):
    """The compiler says what a program needs; here, that of more than so many layers too much."""
    tried, needed, group_of = [], train._needed, train._group

    def group(source, job):
        tried.append((len(job.layers), job.streamed))
        return group_of(source, job)

    monkeypatch.setattr(train, "_group", group)
    monkeypatch.setattr(
        train, "_needed", lambda p: needed(p) + (PLENTY if tried[-1][0] > enough else 0)
    )
    result = run(tree, tmp_path / "w", layers=["a.weight", "c.weight", "d.weight"])
    assert tried[0] == (3, False)
    assert tried[-1] == ((1, False) if enough else (1, True))
    for layer, accuracy in result.layers.items():
        assert accuracy == pytest.approx(swept[1].layers[layer], abs=1e-6)
        assert_close(
            of_layer(tmp_path / "w", layer), of_layer(swept[0], layer), rtol=1e-2, atol=1e-3
        )


def test_a_grid_keeps_the_best_variant_of_each_layer(tree, tmp_path, monkeypatch):
    """Also where there is room for three of four variants: the second job has one twice."""
    grid = {"learning_rate": [1e-5, 1e-2], "seed": [0, 3]}
    layers, values = ["a.weight", "b.weight"], [*itertools.product(*grid.values())]
    result = run(tree, tmp_path / "w", grid=grid, layers=layers)
    monkeypatch.setattr(Room, "here", lambda devices: Room(PLENTY, PLENTY, most=3))
    divided = run(tree, tmp_path / "divided", grid=grid, layers=layers)
    for layer in layers:
        tried = result.metrics["variants"][layer]
        assert [(t["learning_rate"], t["seed"]) for t in tried] == values
        found = [t["val_accuracy"] for t in tried]
        assert len(set(found)) > 1, "nothing to choose from: the test shows nothing"
        assert result.layers[layer] == max(found)
        again = [t["val_accuracy"] for t in divided.metrics["variants"][layer]]
        assert again == pytest.approx(found, abs=1e-6)
    fourth = run(tree, tmp_path / "alone", recipe=variants(RECIPE, grid)[3], layers=["a.weight"])
    found = result.metrics["variants"]["a.weight"][3]["val_accuracy"]
    assert fourth.layers["a.weight"] == pytest.approx(found, abs=1e-6)
    card = result.expert.card
    assert card.members[0].recipe["learning_rate"] == 1e-2
    assert card.figures["val_accuracy"] == max(result.layers.values())


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"epochs": [1, 2]}, r"grid\.epochs"),
        ({"seed": []}, r"grid\.seed"),
        ({"seed": [1, 1]}, r"grid\.seed.*twice"),
        ({"l2": [-1.0]}, r"recipe\.l2: -1\.0"),
    ],
)
def test_impossible_grids_are_refused(tree, tmp_path, grid, message):
    for settings in ({}, {"recipe": px.ClosedForm(), "encoder": {"name": "dense"}, "head": "none"}):
        message = r"grid|recipe" if settings else message
        with pytest.raises(px.ProbexError, match=message):
            run(tree, tmp_path / "w", grid=grid, **settings)
    assert not (tmp_path / "w").exists()


def test_streaming_takes_the_same_batches(tree, tmp_path):
    """To the rounding of one step: with a rate so small, Adam cannot blow it up."""
    recipe, layers = dataclasses.replace(RECIPE, learning_rate=1e-3, epochs=5), ALL[:2]
    resident = run(tree, tmp_path / "r", recipe=recipe, layers=layers)
    streamed = run(tree, tmp_path / "s", recipe=recipe, layers=layers, stream=True)
    for layer in layers:
        one, other = (of_layer(tmp_path / which, layer) for which in "rs")
        assert_close(one, other)
        cards = one.card.figures, other.card.figures
        np.testing.assert_allclose(*(card["losses"] for card in cards), rtol=1e-5)
        np.testing.assert_allclose(*(card["val_accuracies"] for card in cards), rtol=1e-6)
        assert any(card["val_best_epoch"] > 0 for card in cards), "only what it began with"
    assert resident.test == streamed.test


def test_a_stream_that_was_interrupted_goes_on_to_the_same_bits(tree, tmp_path):
    class Enough(Exception):
        pass

    def interrupt(layer, epochs):
        calls.append(epochs)
        if len(calls) == 3:
            raise Enough

    calls, settings = [], {"layers": ["a.weight"], "stream": True, "save_every_s": 0.0}
    with pytest.raises(Enough):
        run(tree, tmp_path / "w", on_progress=interrupt, **settings)
    done = []
    run(tree, tmp_path / "w", on_progress=lambda layer, epochs: done.append(epochs), **settings)
    assert sum(done) == RECIPE.epochs
    assert done[0] == 5, "it went on from the evaluation that was saved"
    run(tree, tmp_path / "whole", **settings)
    one, other = (of_layer(tmp_path / which, "a.weight").variables for which in ("w", "whole"))
    jax.tree.map(np.testing.assert_array_equal, one, other)
