"""What the miniature zoo varies and records: each attribute is true, and a table says it."""

import csv
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probex_jax as px
from configs import zoo_miniature
from experiments.zoo_steps import zoo_settings
from probex_jax.errors import ProbexError
from probex_jax.zoo.miniature import TREES, Settings, Variety, ViT, build, concepts, data
from probex_jax.zoo.miniature.adaptation import held_back_loss
from probex_jax.zoo.miniature.denoiser import Denoiser
from probex_jax.zoo.miniature.finetuning import fine_tune
from probex_jax.zoo.miniature.hf_files import load
from probex_jax.zoo.miniature.params import initialise
from probex_jax.zoo.miniature.recipes import classifier_recipes, lora_recipes
from probex_jax.zoo.miniature.training import Sgd, fit
from probex_jax.zoo.miniature.varied import augmented, repeated, varied
from tests.zoo.miniature.reading import contents, metadata_of

pytestmark = pytest.mark.xdist_group("zoo")

_SMALL = ViT(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=40)
_TINY = dataclasses.replace(
    zoo_settings(zoo_miniature.get_config("attributes_tiny").to_dict()),
    trees=("MiniLoRA",),
    seed=7,
    vit=_SMALL,
)
_WHOLE = zoo_settings(zoo_miniature.get_config("attributes").to_dict())
_DIGITS = data.load()


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    out = tmp_path_factory.mktemp("zoo")
    build(_TINY, out)
    return out


def _recipes(settings, tree):
    return TREES[tree].recipes(settings, tree)


def _weights(folder):
    """Model to its file."""
    models = px.scan(folder).models
    return {model.id: next(model.path.rglob("*.safetensors")) for model in models}


def test_the_table_says_what_the_files_and_the_recipes_say(zoo):
    [tree] = _TINY.trees
    with (zoo / tree / "labels.csv").open() as file:
        rows = {row.pop("model"): row for row in csv.DictReader(file)}
    files = _weights(zoo / tree)
    assert rows.keys() == files.keys()
    columns = {
        *("learning_rate", "weight_decay", "steps", "images", "augmentation", "optimiser"),
        *("batch_size", "seed_group", "rank", "scale", "loss_ratio"),
    }
    for model, row in rows.items():
        assert row.keys() == columns
        metadata = metadata_of(files[model])
        for column, said in row.items():
            assert metadata[column] == said, (model, column)
    for recipe in _recipes(_TINY, tree):
        row = rows[TREES[tree].folder_name(tree, recipe.index)]
        assert float(row["learning_rate"]) == recipe.learning_rate
        assert row["augmentation"] == ("yes" if recipe.augmented else "no")
        assert row["optimiser"] == recipe.optimiser


def test_scan_reads_the_table(zoo):
    tables = px.scan(zoo / "MiniLoRA").tables
    assert {"learning_rate", "weight_decay", "scale", "loss_ratio"} <= set(tables.numbers)
    kinds = {"augmentation": {"yes", "no"}, "optimiser": {"AdamW", "SGD"}, "rank": {"2", "4", "8"}}
    for column, classes in kinds.items():
        said = tables.columns[column]
        assert len(said) == 36
        assert {label for labels in said.values() for label in labels} == classes


def test_a_table_that_is_missing_is_written_again(zoo, tmp_path):
    shutil.copytree(zoo, tmp_path, dirs_exist_ok=True)
    (tmp_path / "MiniLoRA" / "labels.csv").unlink()
    build(_TINY, tmp_path)
    assert contents(tmp_path) == contents(zoo)


def test_readers_see_the_rank_and_scale_of_a_lora(zoo):
    root = load(zoo / "MiniLoRA" / "root" / "model.safetensors")
    images = concepts.load(_TINY.lora.digits, _TINY.lora.transforms)
    names = concepts.names(_TINY.lora.digits, _TINY.lora.transforms)
    for recipe in lora_recipes(_TINY, "MiniLoRA")[:6]:
        folder = zoo / "MiniLoRA" / recipe.split / f"model_idx_{recipe.index:04d}"
        path = folder / "pytorch_lora_weights.safetensors"
        factors = load(path)
        merged = dict(root)
        with px.open_model(folder) as model:
            assert {layer.rank for layer in model.layers.values()} == {recipe.rank}
            for layer in model.layers:
                name = f"transformer.{layer.removeprefix('transformer.')}.lora."
                product = factors[f"{name}up.weight"] @ factors[f"{name}down.weight"]
                read = model.matrix(layer)
                read = np.asarray(read.up) @ np.asarray(read.down)
                np.testing.assert_allclose(read, recipe.scale * product, rtol=1e-5, atol=1e-9)
                weight = layer.removeprefix("transformer.") + ".weight"
                merged[weight] = root[weight] + read
        loss = held_back_loss(Denoiser(), merged, images.held_back[names.index(recipe.concept)])
        assert float(metadata_of(path)["loss"]) == pytest.approx(float(loss), rel=1e-4)
    assert {recipe.scale for recipe in lora_recipes(_TINY, "MiniLoRA")[:6]} > {1.0}


@pytest.mark.parametrize("tree", ["MiniSupViT", "MiniLoRA"])
def test_variety_covers_its_ranges(tree):
    recipes = _recipes(_WHOLE, tree)
    assert len(recipes) == 400
    own = _WHOLE.lora if tree == "MiniLoRA" else _WHOLE
    images = [r.images if tree == "MiniSupViT" else len(r.images) for r in recipes]
    for values, bounds in (([r.steps for r in recipes], own.variety.steps),
                           (images, own.variety.images)):  # fmt: skip
        assert bounds[0] <= min(values) < 1.2 * bounds[0]
        assert bounds[1] >= max(values) > bounds[1] / 1.2
        assert np.median(values) == pytest.approx(np.sqrt(bounds[0] * bounds[1]), rel=0.3)
    assert {recipe.batch_size for recipe in recipes} == set(own.variety.batch_sizes)
    for share in ([r.augmented for r in recipes], [r.optimiser == "SGD" for r in recipes]):
        assert np.mean(share) == pytest.approx(0.5, abs=0.08)
    seeds = {}
    for recipe in recipes:
        assert seeds.setdefault(recipe.seed_group, recipe.seed) == recipe.seed
    assert len(seeds) == len(set(seeds.values())) == 8


def test_variety_leaves_other_choices_as_they_are():
    plain = dataclasses.replace(
        _WHOLE, variety=Variety(), lora=dataclasses.replace(_WHOLE.lora, variety=Variety())
    )
    for tree in ("MiniMAE", "MiniLoRA"):
        for ours, theirs in zip(_recipes(_WHOLE, tree), _recipes(plain, tree), strict=True):
            assert ours.learning_rate == theirs.learning_rate
            assert ours.split == theirs.split
            assert (theirs.optimiser, theirs.augmented, theirs.seed_group) == ("AdamW", False, None)
            shared = "classes" if tree == "MiniMAE" else "concept"
            assert getattr(ours, shared) == getattr(theirs, shared)


def test_cards_of_zoos_without_variety_are_those_of_the_first_zoos():
    for tree in TREES:
        said = json.dumps(TREES[tree].card(Settings(), tree)["settings"])
        assert "variety" not in said
        assert "ranks" not in said
        assert "variety" in json.dumps(TREES[tree].card(_WHOLE, tree)["settings"])


@pytest.fixture(scope="module")
def tune():
    """Fine-tunes four models, each of a recipe's changes, in one program."""
    root = jax.device_get(initialise(_SMALL.shapes(20), jax.random.key(3)))
    recipe = classifier_recipes(_TINY, "MiniMAE")[0]
    plain = {"steps": 3, "images": 140, "augmented": False, "optimiser": "AdamW", "batch_size": 4}
    plain = dataclasses.replace(recipe, **plain)

    def run(*changes, digits=_DIGITS, vary=True):
        batch = [dataclasses.replace(plain, **change) for change in changes]
        batch += [plain] * (4 - len(batch))
        tensors, _ = fine_tune(_SMALL, root, digits, batch, batch_size=4, max_steps=6, vary=vary)
        return [{name: value[place] for name, value in tensors.items()} for place in range(4)]

    return run


def _differ(ours, theirs):
    return any((ours[name] != theirs[name]).any() for name in ours)


def test_models_that_vary_in_nothing_are_those_of_the_program_without_variety(tune):
    for ours, theirs in zip(tune(), tune(vary=False), strict=True):
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_every_choice_changes_the_weights(tune):
    *changed, plain = tune({"augmented": True}, {"optimiser": "SGD"}, {"batch_size": 2})
    assert all(_differ(model, plain) for model in changed)


def test_a_model_sees_only_its_own_images(tune):
    cut = _DIGITS.train.copy()
    cut[:, 5:] = np.nan
    few = {"images": 5}
    [ours, *_], [theirs, _, _, whole] = (
        tune(few),
        tune(few, digits=data.Digits(cut, _DIGITS.held_back)),
    )
    assert not _differ(ours, theirs)
    assert np.isnan(whole["classifier.weight"]).any()


def test_sgd_is_that_by_hand_and_adam_stays_itself():
    rng = np.random.default_rng(5)
    matrix, vector, target = rng.normal(size=(3, 4)), rng.normal(size=3), rng.normal(size=(3, 4))
    params = {"matrix": jnp.asarray(matrix), "vector": jnp.asarray(vector)}

    def loss(params, step):
        return 3 * ((params["matrix"] - target) ** 2).sum() + params["vector"].sum(), {}

    how = {"steps": 2, "learning_rate": 0.01, "weight_decay": 0.5}
    sgd = Sgd(gain=7.0, clip=2.0, momentum=0.8)
    made = fit(loss, params, **how, is_sgd=jnp.array(True), sgd=sgd)
    kept = {"matrix": np.zeros((3, 4)), "vector": np.zeros(3)}
    for rate in (0.01, 0.005):
        gradients = {"matrix": 6 * (matrix - target), "vector": np.ones(3)}
        norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
        assert norm > sgd.clip
        for name, gradient in gradients.items():
            kept[name] = 0.8 * kept[name] + gradient * 2.0 / norm
        matrix = matrix - rate * (7 * kept["matrix"] + 0.5 * matrix)
        vector = vector - rate * 7 * kept["vector"]
    np.testing.assert_allclose(made["matrix"], matrix, rtol=1e-5)
    np.testing.assert_allclose(made["vector"], vector, rtol=1e-5)
    alone, beside = fit(loss, params, **how), fit(loss, params, **how, is_sgd=jnp.array(False))
    np.testing.assert_allclose(beside["matrix"], alone["matrix"], rtol=1e-6)


def _one(**changes):
    """What varies of one model, as one of many has it."""
    recipe = dataclasses.replace(classifier_recipes(_TINY, "MiniMAE")[0], **changes)
    return jax.tree.map(lambda values: values[0], varied([recipe]))


def test_a_small_batch_fills_the_large_one_by_being_repeated():
    images = jnp.asarray(_DIGITS.train[3, :8])
    np.testing.assert_array_equal(
        repeated(_one(batch_size=2), images), np.tile(images[:2], (4, 1, 1))
    )
    np.testing.assert_array_equal(repeated(_one(batch_size=8), images), images)


@pytest.mark.parametrize("size", [8, 16])
def test_augmented_images_are_moved_by_a_pixel_and_noised(size):
    images = jnp.asarray(data.load(size).train[3, :120])
    plain = augmented(_one(augmented=False), images, jax.random.key(0))
    np.testing.assert_array_equal(plain, images)
    changed = np.asarray(augmented(_one(augmented=True), images, jax.random.key(0)))
    pixel, shifts = size // 8, set()
    for before, after in zip(np.asarray(images), changed, strict=True):
        padded = np.pad(before, pixel, constant_values=-1)
        moved = {
            (y, x): padded[y * pixel :, x * pixel :][:size, :size]
            for y in range(3)
            for x in range(3)
        }
        errors = {shift: np.std(after - image) for shift, image in moved.items()}
        shifts.add(min(errors, key=errors.get))
        assert 0.2 < min(errors.values()) < 0.4
    assert len(shifts) == 9


IMPOSSIBLE = {
    "steps": ((5,), (5, 3), (3.0, 5.0), None),
    "images": ((0, 4), (4, 141)),
    "augmented": (-0.1, 1.1, True),
    "optimisers": ((), ("Adam",), ("SGD", "SGD")),
    "batch_sizes": ((4, 6), (0,), 8),
    "seed_groups": (-1, 2.0),
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field in IMPOSSIBLE for value in IMPOSSIBLE[field]]
)
def test_impossible_varieties_are_refused(field, value):
    with pytest.raises(ProbexError, match=rf"^variety\.{field}: "):
        Variety(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"), [("ranks", (0,)), ("scales", (0.0,)), ("weight_decays", (1.0,))]
)
def test_impossible_loras_are_refused(field, value):
    with pytest.raises(ProbexError, match=rf"^lora\.{field}: "):
        dataclasses.replace(_WHOLE.lora, **{field: value})
