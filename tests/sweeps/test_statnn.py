"""StatNN sees the scale of weights, but not their directions."""

import numpy as np
import pytest
from safetensors.numpy import save_file

import probex_jax as px
from probex_jax.experts import Predictions
from probex_jax.fitting import OneClass, SeveralClasses
from probex_jax.sweeps import run_statnn


def test_statnn_sees_the_scale_of_weights_but_not_their_directions(toy_store, tmp_path):
    found = run_statnn(toy_store, tmp_path / "w", n_trees=50)
    score = found["test_accuracy"]
    assert 0.3 < score["value"] < 0.7, "the toy's classes are directions: statistics cannot tell"
    usual = toy_store.targets("train").mean(axis=0) > 0.5
    assert score["chance"] == pytest.approx(np.mean(toy_store.targets("test") == usual))
    kept = Predictions.read(tmp_path / "w")
    assert (kept.task, kept.vectors.shape) == (SeveralClasses(), (0, 0))
    accuracies = SeveralClasses().accuracies(kept.logits, kept.y)
    assert score["value"] == pytest.approx(accuracies.mean())

    rng = np.random.default_rng(0)
    for index in range(60):
        folder = tmp_path / "Scale" / ("train" if index < 40 else "test") / f"m{index}"
        folder.mkdir(parents=True)
        weights = (1 + index % 2) * rng.normal(size=(8, 8)).astype(np.float32)
        labels = {"dataset_chosen_targets": "['large']" if index % 2 else "['small']"}
        save_file({"w": weights}, folder / "model.safetensors", labels)
    scales = px.pack(px.scan(tmp_path / "Scale"), tmp_path / "s").store
    found_of_scales = run_statnn(scales, tmp_path / "v", n_trees=50)
    assert found_of_scales["test_accuracy"]["value"] > 0.9
    # One class each: the same task as an expert would have.
    assert found_of_scales["task"] == OneClass.name
    y, large = Predictions.read(tmp_path / "v").y, scales.classes.index("large")
    np.testing.assert_array_equal(y == large, scales.targets("test")[:, large])
    assert run_statnn(toy_store, tmp_path / "w", n_trees=50) == found


def test_wrong_settings_are_refused(toy_store, toy_lora_store, tmp_path):
    run_statnn(toy_store, tmp_path / "Toy", n_trees=2)
    for store, settings, message in (
        (toy_store, {"n_trees": 3}, r"encoder\.n_trees is 2 there, 3 here"),
        (toy_store, {"n_trees": 0}, r"encoder\.n_trees"),
        (toy_store, {"seed": True}, r"recipe\.seed"),
        (toy_lora_store, {"n_trees": 2}, "factors"),
    ):
        with pytest.raises(px.ProbexError, match=message):
            run_statnn(store, tmp_path / store.tree, **settings)
