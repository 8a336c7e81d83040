"""Families of known descent: the files are what family.json says, and do not say it themselves."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from probex_jax.errors import ProbexError
from probex_jax.matrices import LowRank
from probex_jax.model_files import open_model
from probex_jax.zoo.miniature import Families, Settings, ViT, build_families, hf_files
from probex_jax.zoo.miniature.changes import permuted
from probex_jax.zoo.miniature.denoiser import Denoiser
from probex_jax.zoo.miniature.params import initialise, is_head
from probex_jax.zoo.miniature.resnet import ResNet
from tests.zoo.miniature.reading import contents

# One worker builds them.
pytestmark = pytest.mark.xdist_group("families")

_VIT = ViT(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=40)
_TINY = Families(
    kinds=("MiniMAE",),
    families=2,
    seed=5,
    training=Settings(
        steps=(3, 5), batch_size=8, pretraining_steps=6, pretraining_batch_size=8, vit=_VIT
    ),
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_families(_TINY, tmp_path_factory.mktemp("families"))


class _Family:
    """One that is built, by roles."""

    def __init__(self, folder):
        self.models = json.loads((folder / "family.json").read_text())["models"]
        self.folder = folder / "models"
        self.ids = {said["role"]: id for id, said in self.models.items()}

    def said(self, role):
        return self.models[self.ids[role]]

    def path(self, role):
        return self.folder / self.ids[role]

    def tensors(self, role):
        return hf_files.load(self.path(role) / "model.safetensors")

    def parents(self, role):
        """The tensors of each parent with its coefficient."""
        parents = self.said(role)["parents"].items()
        return [(share, self.tensors(self.models[id]["role"])) for id, share in parents]


@pytest.fixture(scope="module")
def family(built):
    return _Family(built[0])


def test_three_generations_and_unequal_branches(built):
    for folder in built:
        family = _Family(folder)

        def depth(id, models=family.models):
            parents = models[id]["parents"]
            return 1 + max(map(depth, parents)) if parents else 0

        depths = {role: depth(id) for role, id in family.ids.items()}
        assert depths["root"] == depths["same data"] == depths["unrelated"] == 0
        assert depths["great-grandchild"] == 3
        children = [said["parents"] for said in family.models.values()]
        counts = {id: sum(id in parents for parents in children) for id in family.models}
        assert counts[family.ids["child 1"]] != counts[family.ids["child 3"]]


@pytest.mark.parametrize("role", ["linear merge", "merge of three", "task arithmetic"])
def test_a_merge_is_the_sum_of_its_parents(built, role):
    for folder in built:
        family = _Family(folder)
        parents = family.parents(role)
        assert np.isclose(sum(share for share, _ in parents), 1)
        for name, value in family.tensors(role).items():
            if not is_head(name):
                total = sum(share * np.float64(tensors[name]) for share, tensors in parents)
                np.testing.assert_allclose(value, total, rtol=1e-5, atol=1e-6)


def test_task_arithmetic_never_hides_its_base(built):
    shares = []
    for folder in built:
        family = _Family(folder)
        shares.append(family.said("task arithmetic")["parents"][family.ids["root"]])
    assert 0.2 <= shares[0] <= 0.5
    assert -0.6 <= shares[1] <= -0.2


def test_a_slerp_merge_keeps_its_length(family):
    (share, one), (other_share, other) = family.parents("SLERP merge")
    assert share + other_share == 1
    made = family.tensors("SLERP merge")
    for name, value in made.items():
        if value.ndim > 1:
            lengths = [np.linalg.norm(tensors[name]) for tensors in (one, other)]
            assert min(lengths) * 0.999 <= np.linalg.norm(value) <= max(lengths) * 1.001


def test_a_merged_lora_is_its_base_and_the_lora(family):
    base, merged = family.tensors("root"), family.tensors("merged LoRA")
    with open_model(family.path("LoRA 1")) as lora:
        updates = {f"{name}.weight": lora.matrix(name) for name in lora.layers}
    changed = {name for name in base if not np.array_equal(base[name], merged[name])}
    assert {name for name in changed if not is_head(name)} == set(updates)
    for name, update in updates.items():
        assert isinstance(update, LowRank)
        whole = np.float64(update.up) @ update.down
        np.testing.assert_allclose(base[name] + whole, merged[name], rtol=1e-5, atol=1e-6)


def test_a_pruned_model_has_its_share_of_zeros(family):
    share, ((_, parent),) = family.said("pruned")["share"], family.parents("pruned")
    for name, value in family.tensors("pruned").items():
        if value.ndim > 1:
            assert abs(np.mean(value == 0) - share) < 2 / value.size + 0.01
            np.testing.assert_array_equal(value[value != 0], parent[name][value != 0])


def test_a_quantised_model_has_few_numbers_a_row(family):
    bits, ((_, parent),) = family.said("quantised")["bits"], family.parents("quantised")
    for name, value in family.tensors("quantised").items():
        if value.ndim > 1:
            rows, scale = value.reshape(len(value), -1), np.abs(value).max()
            assert max(len(np.unique(row)) for row in rows) < 2**bits
            assert np.abs(value - parent[name]).max() <= 0.51 * scale / (2 ** (bits - 1) - 1)


def test_noise_is_of_the_size_that_is_said(family):
    size, ((_, parent),) = family.said("noised")["size"], family.parents("noised")
    for name, value in family.tensors("noised").items():
        if value.size > 500 and value.ndim > 1:
            noise = (value - parent[name]).std() / parent[name].std()
            assert abs(noise / size - 1) < 0.2


@pytest.mark.parametrize("model", [_VIT, ResNet(), Denoiser()], ids=lambda m: type(m).__name__)
def test_permuted_hidden_units_compute_the_same(model):
    sizes = (4,) if not isinstance(model, Denoiser) else ()
    params = jax.device_get(initialise(model.shapes(*sizes), jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = {name: value + 0.1 * rng.random(value.shape, "f4") for name, value in params.items()}
    made = permuted(params, rng)
    assert sum(not np.array_equal(made[name], params[name]) for name in params) >= 3
    if isinstance(model, Denoiser):
        images = rng.normal(size=(2, 8, 8)).astype("f4")
        inputs = (images, np.array([0.2, 0.7], "f4"))
    else:
        inputs = (rng.normal(size=(2, 8, 8)).astype("f4"),)
    outputs = [_outputs(model, tensors, inputs) for tensors in (params, made)]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-3, atol=1e-4)


def _outputs(model, tensors, inputs):
    made = model.apply(tensors, *inputs)
    return np.asarray(made[0] if isinstance(made, tuple) else made)


def test_a_copy_opens_with_the_same_numbers_under_other_names(family):
    with open_model(family.path("grandchild 1")) as one, open_model(family.path("copy")) as copy:
        assert set(one.tensors).isdisjoint(copy.tensors)
        for name in one.all_layers:
            np.testing.assert_array_equal(np.float16(one.matrix(name)), copy.matrix(name))
        assert {layer.dtype for layer in copy.layers.values()} == {"F16"}
    assert len(list(family.path("copy").glob("*.safetensors"))) == 2


def test_files_and_names_say_nothing_of_descent(built):
    families = [_Family(folder) for folder in built]
    assert families[0].ids != families[1].ids
    for family in families:
        for path, text in contents(family.folder).items():
            if path.endswith(".json"):
                assert not any(role.encode() in text for role in family.ids)
            told = [id for id in family.ids.values() if id.encode() in text.split(b"\0")[0][:400]]
            assert not told


def test_a_resumed_build_has_the_same_bytes(built, tmp_path):
    [folder] = build_families(dataclasses.replace(_TINY, families=1), tmp_path)
    (folder / "family.json").unlink()  # as if it had been killed
    shutil.rmtree(next((folder / "models").iterdir()))
    done = []
    assert [f.name for f in build_families(_TINY, tmp_path, done.append)] == [f.name for f in built]
    assert done == [1, 1]
    assert contents(tmp_path) == contents(built[0].parent)


def test_a_finished_family_is_left_alone(built, tmp_path):
    shutil.copytree(built[0].parent, tmp_path / "there")
    marked = tmp_path / "there" / built[0].name / "family.json"
    marked.write_text("{}")
    build_families(_TINY, tmp_path / "there")
    assert marked.read_text() == "{}"


def test_families_of_another_seed_do_not_mix(built):
    with pytest.raises(ProbexError, match="seed"):
        build_families(dataclasses.replace(_TINY, seed=6), built[0].parent)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kinds", ()),
        ("kinds", ("MiniLoRA",)),
        ("kinds", ("MiniMAE", "MiniMAE")),
        ("families", 0),
        ("seed", -1),
        ("training", None),
    ],
)
def test_settings_are_checked(field, value):
    with pytest.raises(ProbexError, match=field):
        Families(**{field: value})
