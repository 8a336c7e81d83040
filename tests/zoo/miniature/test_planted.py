"""Planted zoos: layout, labels, what is in the matrices, determinism, resuming, bad settings."""

import ast
import dataclasses
import json
import shutil

import numpy as np
import pytest

import probex_jax as px
from configs import zoo_planted
from probex_jax.errors import ProbexError
from probex_jax.zoo.miniature import Planted, build
from tests.zoo.miniature.reading import contents, metadata_of

_SETTINGS = {"PlantedViT": Planted(**zoo_planted.get_config("tiny").to_dict())}
_SETTINGS["PlantedLoRA"] = dataclasses.replace(_SETTINGS["PlantedViT"], factors=True)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """The folder of both trees."""
    out = tmp_path_factory.mktemp("planted")
    for settings in _SETTINGS.values():
        build(settings, out)
    return out


def _models(tree):
    return sorted(tree.glob("*/models--*/snapshots/*/model.safetensors"))


def test_the_defaults_are_those_of_the_config():
    assert dataclasses.asdict(Planted()) == zoo_planted.get_config().to_dict()


@pytest.mark.parametrize("tree", _SETTINGS)
def test_a_tree_packs_with_its_labels_and_says_what_it_is(zoo, tree, tmp_path):
    found = px.scan(zoo / tree)
    assert found.tree == tree
    assert "planted" in json.loads((zoo / tree / "zoo.json").read_text())["pretraining"]
    store = px.pack(found, tmp_path).store
    assert tuple(store.layers.values()) == _SETTINGS[tree].layers
    assert set(store.ranks.values()) == ({3 + 2 + 1} if tree == "PlantedLoRA" else set())
    assert [len(store.split(split)) for split in ("train", "val", "test")] == [14, 2, 4]
    stated = {
        path.parents[2].name: set(ast.literal_eval(metadata_of(path)["dataset_chosen_targets"]))
        for path in _models(zoo / tree)
    }
    assert {model.id: set(model.labels) for model in store.models} == stated
    assert {len(labels) for labels in stated.values()} == {3}
    assert set().union(*stated.values()) == set(store.classes)


@pytest.mark.parametrize("tree", _SETTINGS)
def test_a_class_is_one_direction_in_all_models(tree, tmp_path):
    """Without nuisance and noise."""
    clean = {"nuisance": 0.0, "noise": 0.0, "models": 40, "strengths": (0.9, 1.1)}
    settings = dataclasses.replace(_SETTINGS[tree], **clean)
    build(settings, tmp_path)
    store = px.pack(px.scan(tmp_path / tree), tmp_path / "store").store
    for layer, shape in store.layers.items():
        x_NHW = store.matrices(layer)
        if tree == "PlantedLoRA":
            x_NHW = x_NHW.up @ x_NHW.down
        else:
            x_NHW -= px.open_model(tmp_path / tree / "root").matrix(layer)
        x_NF, t_NY = x_NHW.reshape(len(x_NHW), -1), store.targets("train")
        w_YF = np.linalg.lstsq(t_NY, x_NF, rcond=None)[0]
        assert np.linalg.norm(x_NF - t_NY @ w_YF) < 0.1 * np.linalg.norm(x_NF)
        for w_HW in w_YF.reshape(-1, *shape):
            first, second = np.linalg.svd(w_HW, compute_uv=False)[:2]
            assert second < 0.2 * first, "a class has more than one direction"


def test_nuisance_adds_directions_and_noise_the_rest(zoo, tmp_path):
    build(dataclasses.replace(_SETTINGS["PlantedViT"], models=1, noise=0.0), tmp_path)
    for out, rank in ((tmp_path, 3 + 2 + 1), (zoo, 8)):
        folder = out / "PlantedViT"
        x_HW, base_HW = (
            px.open_model(path.parent).matrix("layers.0.weight")
            for path in (_models(folder)[0], folder / "root" / "model.safetensors")
        )
        assert np.linalg.matrix_rank(x_HW - base_HW, tol=1e-4) == rank


@pytest.mark.parametrize("tree", _SETTINGS)
def test_more_models_change_no_other(zoo, tree, tmp_path):
    build(dataclasses.replace(_SETTINGS[tree], models=10), tmp_path)
    fewer = contents(tmp_path / tree)
    del fewer["zoo.json"]
    assert len(fewer) == 2 + 3 * 10
    assert fewer.items() <= contents(zoo / tree).items()


@pytest.mark.parametrize("tree", _SETTINGS)
def test_what_is_missing_is_made_again(zoo, tree, tmp_path):
    shutil.copytree(zoo / tree, tmp_path / tree)
    first, *others = _models(tmp_path / tree)
    shutil.rmtree(first.parents[2])
    (tmp_path / tree / "root" / "model.safetensors").unlink()
    progress = []
    build(_SETTINGS[tree], tmp_path, progress.append)
    assert progress == [len(others), 1]
    assert contents(tmp_path / tree) == contents(zoo / tree)
    with pytest.raises(ProbexError, match="seed"):
        build(dataclasses.replace(_SETTINGS[tree], seed=1), tmp_path)


@pytest.mark.parametrize(("dtype", "bytes_each"), [("bfloat16", 2), ("float16", 2)])
def test_files_in_half_precision_hold_the_same_rounded(zoo, dtype, bytes_each, tmp_path):
    build(dataclasses.replace(_SETTINGS["PlantedViT"], models=1, dtype=dtype), tmp_path)
    [halved], whole = _models(tmp_path / "PlantedViT"), _models(zoo / "PlantedViT")
    [like] = [path for path in whole if path.parents[2].name == halved.parents[2].name]
    n_entries = sum(rows * columns for rows, columns in _SETTINGS["PlantedViT"].layers)
    assert like.stat().st_size - halved.stat().st_size > (4 - bytes_each) * n_entries - 64
    for layer in ("layers.0.weight", "layers.1.weight"):
        x_HW, y_HW = (px.open_model(path.parent).matrix(layer) for path in (halved, like))
        assert not np.array_equal(x_HW, y_HW)
        np.testing.assert_allclose(x_HW, y_HW, rtol=2**-8)


IMPOSSIBLE = {
    "models": (0, 2.0),
    "seed": (-1,),
    "layers": ((), (8, 8), ((8, 0),), [(8, 8)]),
    "factors": (1,),
    "classes": (0,),
    "chosen": (0, 7),
    "strengths": ((1.5, 0.5), 1.0),
    "shared": (-1,),
    "own": (0.5,),
    "nuisance": (-0.1, float("nan"), "1"),
    "noise": (float("inf"),),
    "dtype": ("float64", 4),
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field in IMPOSSIBLE for value in IMPOSSIBLE[field]]
)
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(ProbexError, match=f"^{field}: "):
        dataclasses.replace(_SETTINGS["PlantedViT"], **{field: value})
