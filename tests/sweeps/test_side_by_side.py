"""What is trained together, streamed or divided is what is trained alone."""

import dataclasses

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import probex_jax as px
from probex_jax.experts import Recipe, advancing, sweep, units
from probex_jax.experts.recipe import variants
from probex_jax.experts.units import Cost, Room, Unit

ENCODER = {"name": "probex", "n_probes": 4, "proj_dim": 4, "rep_dim": 8}
RECIPE = Recipe(epochs=12, eval_every=5, batch_size=9, learning_rate=3e-3)
KINDS = ("ant", "bee", "cat", "dog")


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
        labels = str([KINDS[n] for n in sorted(chosen)])
        save_file(
            {**weights, "f.weight": frozen},
            folder / "model.safetensors",
            {"dataset_chosen_targets": labels},
        )
    return px.pack(px.scan(zoo), tmp_path_factory.mktemp("stores") / "Six").store


def run(store, workdir, **changes):
    settings = {"encoder": ENCODER, "head": "class", "recipe": RECIPE, "normalise": "centre"}
    return sweep(store, workdir, **{**settings, **changes})


@pytest.fixture(scope="module")
def swept(tree, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sweep") / "w"
    return workdir, run(tree, workdir)


def params(workdir, layer="a.weight"):
    return px.Expert.load(workdir / "layers" / layer / "expert").variables["params"]


def assert_close(a, b, rtol=1e-4, atol=1e-5):
    for (path, left), right in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        np.testing.assert_allclose(left, right, rtol=rtol, atol=atol, err_msg=str(path))


@pytest.mark.parametrize("layer", ["d.weight", "e.weight"])
def test_a_layer_among_others_is_trained_as_alone(swept, tree, tmp_path, layer):
    workdir, result = swept
    alone = run(tree, tmp_path / "w", layers=[layer])
    assert_close(params(workdir, layer), params(tmp_path / "w", layer))
    assert result.layers[layer] == pytest.approx(alone.layers[layer], abs=1e-6)


def test_a_frozen_layer_is_left_out_of_its_unit(swept):
    workdir, result = swept
    assert set(result.layers) == {f"{letter}.weight" for letter in "abcde"}
    assert list(result.metrics["left_out"]) == ["f.weight"]
    assert not (workdir / "training").exists()


def test_programs_are_as_many_as_shapes(tree, tmp_path, monkeypatch):
    made = []
    lower = advancing.advance.lower
    monkeypatch.setattr(
        "probex_jax.experts.side_by_side.advance",
        type("Counted", (), {"lower": lambda *args: made.append(1) or lower(*args)}),
    )
    # So little memory that three of the layers of one shape do not fit at once.
    cost = Cost(layer=1.0, expert=1.0, batch=1.0, read=1.0)
    monkeypatch.setattr(units, "cost_of", lambda *args: cost)
    monkeypatch.setattr(Room, "here", lambda devices: Room(4.0, 1e9))
    run(tree, tmp_path / "w", layers=[f"{letter}.weight" for letter in "abcdef"])
    assert len(made) == 2


def test_units_are_of_one_size_and_fit():
    names, recipes = list("abcdefg"), variants(Recipe(), {"seed": list(range(5))})
    # Each layer 10, each expert 4, of 60: five variants of a layer take 30.
    found = units._of_one_shape(
        names, recipes, Cost(10.0, 4.0, 1.0, 10.0), Room(60.0, 1e9), 1, False
    )
    assert [unit.layers for unit in found] == [("a", "b"), ("c", "d"), ("e", "f"), ("g", "g")]
    assert {unit.recipes for unit in found} == {recipes}
    # Three variants at most, hence two times three of five.
    found = units._of_one_shape(
        names[:1], recipes, Cost(10.0, 4.0, 1.0, 10.0), Room(24.0, 1e9), 1, False
    )
    assert [len(unit.recipes) for unit in found] == [3, 3]
    assert {recipe for unit in found for recipe in unit.recipes} == set(recipes)
    # Among four processes no unit is so large that one of them has nothing to do.
    found = units._of_one_shape(
        names, recipes[:1], Cost(1.0, 1.0, 1.0, 1.0), Room(1e9, 1e9), 4, False
    )
    assert [unit.layers for unit in found] == [("a", "b"), ("c", "d"), ("e", "f"), ("g", "g")]
    # Nor so large that several of them do not fit the memory of the machine.
    host = Room(60.0, 10.0)
    found = units._of_one_shape(names, recipes[:1], Cost(10.0, 4.0, 1.0, 10.0), host, 1, False)
    assert [len(unit.layers) for unit in found] == [1] * 7
    # What does not fit at all is streamed.
    found = units._of_one_shape(
        names, recipes[:1], Cost(10.0, 4.0, 1.0, 10.0), Room(13.0, 1e9), 1, False
    )
    assert found == [Unit((name,), recipes[:1], streamed=True) for name in names]


def test_too_large_a_program_is_made_smaller(tree, tmp_path, monkeypatch, swept):
    """The compiler says what a program needs; here that two layers are too many."""
    tried = []
    monkeypatch.setattr(
        "probex_jax.experts.side_by_side.memory",
        lambda devices: tried.append(1) or (0.0 if len(tried) < 4 else 1e12),
    )
    monkeypatch.setattr(units, "cost_of", lambda *args: Cost(1.0, 1.0, 1.0, 1.0))
    monkeypatch.setattr(Room, "here", lambda devices: Room(24.0, 1e9))
    result = run(tree, tmp_path / "w")
    assert len(tried) > 4
    assert dict(result.layers) == pytest.approx(dict(swept[1].layers), abs=1e-6)


def test_a_grid_keeps_the_best_variant_of_each_layer(tree, tmp_path):
    grid = {"learning_rate": [1e-5, 1e-2], "seed": [0, 3]}
    layers = ["a.weight", "b.weight"]
    result = run(tree, tmp_path / "w", grid=grid, layers=layers)
    for layer in layers:
        tried = result.metrics["variants"][layer]
        assert [(t["learning_rate"], t["seed"]) for t in tried] == [
            (1e-5, 0), (1e-5, 3), (1e-2, 0), (1e-2, 3)
        ]  # fmt: skip
        found = [t["val_accuracy"] for t in tried]
        assert len(set(found)) > 1, "nothing to choose from: the test shows nothing"
        assert result.layers[layer] == max(found)
    fourth = run(tree, tmp_path / "alone", recipe=variants(RECIPE, grid)[3], layers=["a.weight"])
    found = result.metrics["variants"]["a.weight"][3]["val_accuracy"]
    assert fourth.layers["a.weight"] == pytest.approx(found, abs=1e-6)
    best = result.expert.card
    assert best["recipe"]["learning_rate"] == 1e-2
    assert best["metrics"]["val_accuracy"] == max(result.layers.values())


def test_variants_that_need_two_programs_runs_share_the_program(tree, tmp_path, monkeypatch):
    """Three seeds, two at a time: the second unit has one seed twice."""
    monkeypatch.setattr(units, "cost_of", lambda *args: Cost(1.0, 1.0, 1.0, 1.0))
    monkeypatch.setattr(Room, "here", lambda devices: Room(3.5, 1e9))
    grid, layers = {"seed": [0, 1, 2]}, ["a.weight"]
    divided = run(tree, tmp_path / "two", grid=grid, layers=layers)
    monkeypatch.undo()
    together = run(tree, tmp_path / "one", grid=grid, layers=layers)
    assert len(divided.metrics["variants"]["a.weight"]) == 3
    for one, other in zip(
        divided.metrics["variants"]["a.weight"],
        together.metrics["variants"]["a.weight"],
        strict=True,
    ):
        assert one["val_accuracy"] == pytest.approx(other["val_accuracy"], abs=1e-6)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"epochs": [1, 2]}, "grid.epochs: a grid can be of learning_rate, l2, seed alone"),
        ({"seed": []}, "grid.seed: .* is no list of values"),
        ({"seed": [1, 1]}, "has a value twice"),
        ({"l2": [-1.0]}, "recipe.l2: -1.0"),
    ],
)
def test_impossible_grids_are_refused(tree, tmp_path, grid, message):
    with pytest.raises(px.ProbexError, match=message):
        run(tree, tmp_path / "w", grid=grid)
    assert not (tmp_path / "w").exists()


def test_streaming_takes_the_same_batches(tree, tmp_path, swept):
    """To the rounding of one step: with a rate so small, Adam cannot blow it up."""
    recipe = dataclasses.replace(RECIPE, learning_rate=1e-3, epochs=5)
    resident = run(tree, tmp_path / "r", recipe=recipe, layers=["a.weight", "b.weight"])
    streamed = run(
        tree, tmp_path / "s", recipe=recipe, layers=["a.weight", "b.weight"], stream=True
    )
    for layer in ("a.weight", "b.weight"):
        assert_close(params(tmp_path / "r", layer), params(tmp_path / "s", layer))
        cards = [
            px.Expert.load(tmp_path / which / "layers" / layer / "expert").card["metrics"]
            for which in "rs"
        ]
        np.testing.assert_allclose(cards[0]["losses"], cards[1]["losses"], rtol=1e-5)
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
    for left, right in zip(
        jax.tree.leaves(params(tmp_path / "w")),
        jax.tree.leaves(params(tmp_path / "whole")),
        strict=True,
    ):
        np.testing.assert_array_equal(left, right)
