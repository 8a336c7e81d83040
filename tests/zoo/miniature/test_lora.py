"""The tree of LoRAs: the denoiser against NumPy, splits, files, losses, determinism, resume."""

import collections
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import probex_jax as px
from probex_jax.errors import ProbexError
from probex_jax.zoo.miniature import (
    Lora,
    Settings,
    adaptation,
    build,
    concepts,
    count,
    kinds,
    settings,
)
from probex_jax.zoo.miniature.denoiser import Denoiser
from probex_jax.zoo.miniature.recipes import held_out_concepts, lora_recipes
from tests.zoo.miniature.reading import Layers, contents, metadata_of

pytestmark = pytest.mark.xdist_group("lora")

_TREE = "MiniLoRA"
_LORA = Lora(
    digits=3,
    transforms=3,
    models=4,
    rank=4,
    images=(5, 7),
    steps=(15, 20),
    learning_rates=(5e-3, 1e-2),
    batch_size=8,
    pretraining_steps=100,
    pretraining_batch_size=8,
    pretraining_rate=3e-3,
    models_at_once=4,
)
_DEFAULT = Settings(trees=(_TREE,))
_TINY = dataclasses.replace(_DEFAULT, seed=7, lora=_LORA)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """The tree's folder, the summary of its building, and the progress it reported."""
    out = tmp_path_factory.mktemp("zoo")
    progress: list[int] = []
    [summary] = build(_TINY, out, progress.append)
    return out / _TREE, summary, progress


def _models(folder):
    return sorted(folder.glob("*/model_idx_????/pytorch_lora_weights.safetensors"))


def _reference(params, noisy_BSS, level_B):
    """The denoiser in float64, token by token, from its definition."""
    layers = Layers(params, 4)
    params, dense, norm = layers.params, layers.dense, layers.norm

    def guess(image, level):
        corners = [(row, column) for row in range(0, 8, 2) for column in range(0, 8, 2)]
        x = np.stack([image[r : r + 2, c : c + 2].ravel() for r, c in corners])
        x = dense(x, "pos_embed.proj") + params["pos_embed.pos_embed"]
        angles = np.pi / 2 * 2.0 ** np.arange(8) * level
        h = dense(np.concatenate([np.sin(angles), np.cos(angles)]), "time_embed.linear_1")
        x = x + dense(h / (1 + np.exp(-h)), "time_embed.linear_2")
        for index in range(3):
            at = f"transformer_blocks.{index}."
            names = [f"{at}attn1.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")]
            x = x + layers.attention(norm(x, at + "norm1"), *names)
            h = np.maximum(dense(norm(x, at + "norm2"), at + "ff.net.0.proj"), 0)
            x = x + dense(h, at + "ff.net.2")
        x = dense(norm(x, "norm_out"), "proj_out")
        clean = np.zeros((8, 8))
        for (r, c), patch in zip(corners, x, strict=True):
            clean[r : r + 2, c : c + 2] = patch.reshape(2, 2)
        return clean

    return np.stack([guess(*pair) for pair in zip(noisy_BSS, level_B, strict=True)])


def _reference_loss(params, clean_BSS):
    noise_BSS, level_B = adaptation.evaluation_noise(len(clean_BSS))
    level_B11 = level_B[:, None, None].astype(np.float64)
    noisy_BSS = (1 - level_B11) * clean_BSS + level_B11 * noise_BSS
    return np.square(_reference(params, noisy_BSS, level_B) - clean_BSS).mean()


def _merged(root, path):
    merged = {name: value.astype(np.float64) for name, value in root.items()}
    lora = load_file(path)
    for name in lora:
        if name.endswith(".down.weight"):
            layer = name.removeprefix("transformer.").removesuffix(".lora.down.weight")
            up = lora[name.replace(".down.", ".up.")].astype(np.float64)
            merged[layer + ".weight"] += up @ lora[name]
    return merged


def _held_back(concept):
    names = concepts.names(_LORA.digits, _LORA.transforms)
    return concepts.load(_LORA.digits, _LORA.transforms).held_back[names.index(concept)]


def test_denoiser_agrees_with_the_definition(zoo):
    folder, _, _ = zoo
    rng = np.random.default_rng(1)
    params = {  # no bias is zero and no scale is one, so that none can be left out
        name: value + 0.1 * rng.normal(size=value.shape).astype(np.float32)
        for name, value in load_file(folder / "root" / "model.safetensors").items()
    }
    noisy_BSS = rng.normal(size=(3, 8, 8)).astype(np.float32)
    level_B = np.array([0.0, 0.3, 1.0], np.float32)
    ours = jax.jit(Denoiser().apply)(params, noisy_BSS, level_B)
    np.testing.assert_allclose(ours, _reference(params, noisy_BSS, level_B), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("settings", "n_models"), [(_TINY, 36), (_DEFAULT, 1200)])
def test_held_out_concepts_are_in_their_splits_alone(settings, n_models):
    recipes = lora_recipes(settings, _TREE)
    assert len(recipes) == count(settings) == n_models
    assert [recipe.index for recipe in recipes] == list(range(n_models))
    by_concept = collections.defaultdict(collections.Counter)
    for recipe in recipes:
        by_concept[recipe.concept][recipe.split] += 1
    held_out = held_out_concepts(settings, _TREE)
    many = settings is _DEFAULT
    seen = {"train": 10, "val": 2, "test": 3} if many else {"train": 2, "val": 1, "test": 1}
    unseen = {"val_holdout": 5, "test_holdout": 10} if many else {"val_holdout": 1}
    unseen |= {} if many else {"test_holdout": 3}
    for concept in concepts.names(settings.lora.digits, settings.lora.transforms):
        assert by_concept[concept] == (unseen if concept in held_out else seen), concept
    # A model's number says nothing of its concept or split.
    assert len({recipe.concept for recipe in recipes[:12]}) > 4


def test_recipes_differ_from_model_to_model_and_seed_to_seed():
    recipes = lora_recipes(_DEFAULT, _TREE)
    assert recipes == lora_recipes(_DEFAULT, _TREE)
    assert len({recipe.seed for recipe in recipes}) == len(recipes)
    assert len({recipe.learning_rate for recipe in recipes}) == len(recipes)
    assert {len(recipe.images) for recipe in recipes} == {5, 6, 7, 8, 9, 10}
    assert all(len(set(recipe.images)) == len(recipe.images) for recipe in recipes)
    other = dataclasses.replace(_DEFAULT, seed=1)
    assert held_out_concepts(other, _TREE) != held_out_concepts(_DEFAULT, _TREE)
    pairs = zip(recipes, lora_recipes(other, _TREE), strict=True)
    assert all(ours.images != theirs.images for ours, theirs in pairs)


def test_files_are_as_diffusers_names_them_in_model_js_layout(zoo):
    folder, summary, progress = zoo
    assert sum(progress) == 36
    assert summary.models == {
        "train": 12, "val": 6, "test": 6, "val_holdout": 3, "test_holdout": 9
    }  # fmt: skip
    card = json.loads((folder / "zoo.json").read_text())
    assert card["classes"] == list(concepts.names(3, 3))
    assert set(card["held_out"]) == held_out_concepts(_TINY, _TREE)
    lora = dataclasses.asdict(_LORA)
    for newer in ("ranks", "scales", "weight_decays", "variety"):
        del lora[newer]
    assert card["settings"] == json.loads(json.dumps({"seed": 7, "lora": lora}))
    assert {path.name for path in (folder / "root").iterdir()} == {
        "config.json",
        "model.safetensors",
    }
    layers = [
        f"transformer.transformer_blocks.{block}.attn1.{name}"
        for block in range(3)
        for name in ("to_q", "to_k", "to_v", "to_out.0")
    ]
    shapes = {f"{layer}.lora.down.weight": (4, 32) for layer in layers}
    shapes |= {f"{layer}.lora.up.weight": (32, 4) for layer in layers}
    for recipe in lora_recipes(_TINY, _TREE):
        path = folder / recipe.split / f"model_idx_{recipe.index:04d}"
        weights, picture = "pytorch_lora_weights.safetensors", "preview.png"
        assert {file.name for file in path.iterdir()} == {weights, picture}
        path = path / weights
        tensors = load_file(path)
        assert {name: value.shape for name, value in tensors.items()} == shapes
        assert {value.dtype for value in tensors.values()} == {np.dtype("float32")}
        metadata = metadata_of(path)
        assert metadata["concept"] == recipe.concept
        assert metadata["split"] == recipe.split
        assert metadata["rank"] == "4"
        for key in ("seed", "learning_rate", "steps"):
            assert float(metadata[key]) == getattr(recipe, key)


def test_previews_show_the_images_of_the_recipe(zoo):
    folder, _, _ = zoo
    recipes = [recipe for recipe in lora_recipes(_TINY, _TREE) if recipe.index % 5 == 0]
    for recipe in recipes:
        place = concepts.names(3, 3).index(recipe.concept)
        images = concepts.load(3, 3).train[place][list(recipe.images)]
        path = folder / recipe.split / f"model_idx_{recipe.index:04d}" / "preview.png"
        with Image.open(path) as picture:
            assert (picture.format, picture.mode) == ("PNG", "L")
            width, height = picture.size
            shown = np.asarray(picture)
        columns, rows = (width + 4) // 68, (height + 4) // 68
        assert (width, height) == (68 * columns - 4, 68 * rows - 4)
        assert columns * (rows - 1) < len(images) <= columns * rows, "no row is empty"
        assert rows <= columns < 2 * rows + 1
        for number, image in enumerate(images):
            y, x = (68 * at for at in divmod(number, columns))
            own = shown[y : y + 64, x : x + 64].reshape(8, 8, 8, 8)
            assert (own.min(axis=(1, 3)) == own.max(axis=(1, 3))).all()
            np.testing.assert_allclose(own[:, 0, :, 0], (1 - image) * 127.5, atol=0.5)
    assert {recipe.concept.split()[0] for recipe in recipes} == {"upright", "rotated", "inverted"}


def test_a_zoo_without_previews_is_the_same_zoo(zoo, tmp_path):
    folder, _, _ = zoo
    bare = tmp_path / _TREE
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("preview.png"))
    progress: list[int] = []
    build(_TINY, tmp_path, progress.append)
    assert progress == [36], "models that were built again"
    for look in (px.scan, px.find_models):
        ours, theirs = look(folder), look(bare)
        moved = repr(theirs).replace(str(tmp_path), str(folder.parent))
        assert repr(ours) == moved
    packed = [px.pack(px.scan(zoo), tmp_path / name) for zoo, name in ((folder, "a"), (bare, "b"))]
    assert packed[0].store.hash == packed[1].store.hash
    assert packed[0].added == 36


def test_recorded_losses_are_those_of_root_and_update_merged(zoo):
    folder, summary, _ = zoo
    root = load_file(folder / "root" / "model.safetensors")
    assert {name: value.shape for name, value in root.items()} == Denoiser().shapes()
    ratios = []
    for path in _models(folder):
        metadata = metadata_of(path)
        ratios.append(float(metadata["loss_ratio"]))
        if len(ratios) % 6:
            continue
        images = _held_back(metadata["concept"])
        loss, of_root = (_reference_loss(x, images) for x in (_merged(root, path), root))
        assert float(metadata["loss"]) == pytest.approx(loss, rel=1e-4)
        assert ratios[-1] == pytest.approx(loss / of_root, rel=1e-4)
    assert max(ratios) < 1, "a LoRA that learnt nothing"
    assert summary.measure == "loss_ratio"
    assert summary.score == pytest.approx(np.mean(ratios))


def test_loras_know_their_own_concept_best(zoo):
    folder, _, _ = zoo
    root = load_file(folder / "root" / "model.safetensors")
    one_each = {metadata_of(path)["concept"]: path for path in _models(folder)}
    chosen = ["upright zero", "rotated one", "inverted two"]
    losses = np.array(
        [
            [_reference_loss(_merged(root, one_each[a]), _held_back(b)) for b in chosen]
            for a in chosen
        ]
    )
    assert losses.argmin(0).tolist() == [0, 1, 2]


def test_a_fresh_lora_changes_nothing():
    model = Denoiser()
    fresh = adaptation.new_lora(model, 4, jax.random.key(3))
    assert fresh["down"].std() > 0
    root = {name: np.ones(shape, np.float32) for name, shape in model.shapes().items()}
    merged = adaptation.merge(model, root, fresh)
    assert merged.keys() == root.keys()
    for name, value in root.items():
        np.testing.assert_array_equal(merged[name], value)


def test_what_is_missing_is_built_again_to_the_same_bytes(zoo, tmp_path):
    folder, _, _ = zoo
    shutil.copytree(folder, tmp_path / _TREE)
    first, second, *others = _models(tmp_path / _TREE)
    shutil.rmtree(first.parent)
    second.unlink()
    shutil.rmtree(tmp_path / _TREE / "root")
    (tmp_path / _TREE / ".partial-model_idx_0003").mkdir()
    kept = {path: path.stat().st_mtime_ns for path in others}
    progress: list[int] = []
    build(_TINY, tmp_path, progress.append)
    assert progress[0] == len(others)
    assert {path: path.stat().st_mtime_ns for path in others} == kept
    assert contents(tmp_path / _TREE) == contents(folder)


def test_other_settings_are_refused_by_name(zoo):
    folder, _, _ = zoo
    other = dataclasses.replace(_TINY, lora=dataclasses.replace(_LORA, rank=2))
    with pytest.raises(ProbexError, match=r"another config: lora\.rank is 4 there, 2 here;"):
        build(other, folder.parent)


IMPOSSIBLE = {
    "digits": (1, 11),
    "transforms": (9,),
    "models": (2,),
    "rank": (0,),
    "images": ((5, 4), (5, 141), (5.0, 10.0)),
    "steps": ((),),
    "learning_rates": ((1e-2, 1e-3),),
    "batch_size": (0,),
    "pretraining_steps": (0,),
    "pretraining_batch_size": (2.5,),
    "pretraining_rate": (0.0,),
    "models_at_once": (True,),
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field in IMPOSSIBLE for value in IMPOSSIBLE[field]]
)
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(ProbexError, match=rf"^lora\.{field}: "):
        dataclasses.replace(_LORA, **{field: value})


def test_every_tree_that_settings_know_has_a_kind():
    assert tuple(kinds.TREES) == settings.TREE_NAMES
