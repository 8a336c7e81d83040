"""What a forest says of models: of one, of many, and of what is none."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from probex_jax import Forest, ProbexError, open_model
from probex_jax.experts import expert, together
from probex_jax.experts.predictions import stored_logits
from probex_jax.experts.tag_cut import TagCut
from probex_jax.experts.tags import ranked_tags, tag_scores, vocabulary
from probex_jax.fitting import inference
from probex_jax.fitting.ranked import Curve
from probex_jax.forest import grow as grow_tree
from probex_jax.model_files import ModelFile
from tests.conftest import CLASSES, write_toy_lora
from tests.forest.conftest import (
    CONV,
    LAYER,
    class_expert,
    labels_of,
    one_line,
    pack_tree,
    probabilities,
    text_expert,
    write_member,
)

# One worker makes the toy trees and the forest.
pytestmark = pytest.mark.xdist_group("forest")


def test_models_are_described_by_the_expert_of_their_tree(forest, trees):
    folder, _ = trees
    for name in ("Ant", "Bee"):
        for number in range(17, 22):
            found = forest.describe(folder / name / "test" / f"m{number}")
            seed = 100 * (1 if name == "Ant" else 2) + number
            assert (found.id, found.tree) == (f"m{number}", name)
            assert {p.label for p in found.predicted} == set(labels_of(seed))
            assert found.stated.labels == labels_of(seed)
            assert (found.comparison.n_right, found.comparison.n_classes) == (6, 6)
            expert = forest.trees[name].expert
            with open_model(found.path) as model:
                x = {layer: model.matrix(layer)[None] for layer in expert.layers}
            expected = dict(zip(CLASSES, map(float, expert.probabilities(x)[0]), strict=True))
            assert probabilities(found) == pytest.approx(expected, rel=1e-4)
            ordered = [p.probability for p in found.predictions]
            assert ordered == sorted(ordered, reverse=True)
    assert found.root == ""
    assert forest.describe(folder / "Ant" / "test" / "m17").root == "me/ant-root"


def test_who_predicted_is_said(forest, trees):
    found = forest.describe(trees[0] / "Bee" / "test" / "m17").expert
    tree = forest.trees["Bee"].expert
    assert (found.hash, found.layers, found.n_train) == (tree.hash, (LAYER, CONV), None)
    assert found.calibration_error == tree.card.calibration.after
    assert (found.chosen, found.encoder, found.accuracy) == ("several", "dense", None)


def test_a_model_of_no_known_tree_is_said_to_be(forest, trees):
    for path in sorted((trees[0] / "Cow" / "test").iterdir()):
        found = forest.describe(path)
        assert (found.tree, found.root, found.predictions, found.expert) == ("", "", (), None)
        assert found.stated.labels
        assert found.comparison is None
        assert json.loads(json.dumps(found.as_json()))["tree"] == ""


def test_an_adapter_that_cannot_be_read_is_described_as_such(forest, tmp_path):
    factors = {"q.oft_R.weight": np.ones((8, 2), "f4"), "k.vera_lambda_b": np.ones(8, "f4")}
    save_file(factors, tmp_path / "adapter.safetensors")
    found = forest.describe(tmp_path / "adapter.safetensors")
    assert (found.tree, found.predictions) == ("", ())
    assert "adapter" in found.route.reason
    assert "adapter" in found.stated.kind


def test_of_a_tree_without_an_expert_nothing_is_predicted(tmp_path, trees):
    grow_tree(tmp_path / "f", trees[1]["Ant"])
    found = Forest.load(tmp_path / "f").describe(trees[0] / "Ant" / "test" / "m17")
    assert (found.tree, found.predictions, found.predicted, found.expert) == ("Ant", (), (), None)
    assert found.comparison is None
    assert Forest.load(tmp_path / "f").trees["Ant"].layers == {}


def test_loras_are_described_without_the_text_encoder(
    forest_path, toy_lora_store, toy_lora_zoo, monkeypatch
):
    tree = Forest.load(forest_path).trees["ToyLoRA"].expert
    classes = list(toy_lora_store.seen_classes)
    sentences = [f"a photo of a {'a thing' if c == classes[0] else c}" for c in classes]
    texts = tree.text_encoder().encode(sentences)

    def asked(*_):
        raise AssertionError("the text encoder was opened")

    monkeypatch.setattr(expert, "text_encoder", asked)
    paths = sorted((toy_lora_zoo / "test").iterdir())[:5]
    for found in Forest.load(forest_path).describe_all(paths):
        assert (found.tree, found.expert.chosen) == ("ToyLoRA", "one")
        assert found.stated.is_lora
        with open_model(found.path) as model:
            x = model.matrix("a")
        x = dataclasses.replace(x, up=x.up[None], down=x.down[None])
        expected = dict(
            zip(classes, np.asarray(tree.probabilities(x, texts))[0].tolist(), strict=True)
        )
        assert probabilities(found) == pytest.approx(expected, rel=1e-3)
        assert sum(expected.values()) == pytest.approx(1, abs=1e-5)
        assert len(found.predicted) == 1
        words = {p.label: p.text for p in found.predictions}
        assert words == {c: "a thing" if c == classes[0] else c for c in classes}


def with_tags(aligned, known):
    return aligned.with_card(text=dataclasses.replace(aligned.text, tags=known))


def test_tags_are_ranked_without_the_text_encoder(
    tmp_path, toy_lora_store, toy_lora_zoo, monkeypatch
):
    known = TagCut("tags", ("red", "red ant"), ("pink dog",), Curve(1, 0), Curve(1, 0), cut=0.5)
    aligned = with_tags(text_expert(toy_lora_store), known)
    words = vocabulary(aligned, ["a moon", "red"])
    logits = stored_logits(aligned, toy_lora_store, "test", words.texts_VD)
    middle, spread = (f(tag_scores(aligned, logits, words)[:, 0]) for f in (np.median, np.std))
    known = dataclasses.replace(known, seen_curve=Curve(float(1 / spread), float(-middle / spread)))
    aligned = with_tags(aligned, known)
    grow_tree(tmp_path / "f", toy_lora_store, aligned, tags=["a moon", "red"])
    for more, done in ((["a moon", "red"], "unchanged"), ((), "replaced"), (["moon"], "replaced")):
        assert grow_tree(tmp_path / "f", toy_lora_store, aligned, tags=more)[1] == done
    grow_tree(tmp_path / "f", toy_lora_store, aligned, tags=["a moon", "red"])
    other = text_expert(toy_lora_store, seed=1)  # what is kept has its tags
    grow_tree(tmp_path / "f", toy_lora_store, other, label_set="other")
    monkeypatch.delattr(expert, "text_encoder")
    paths, n_shown = sorted((toy_lora_zoo / "test").iterdir()), set()
    for found in Forest.load(tmp_path / "f").describe_all(paths):
        tags, none = (answer.tags for answer in found.answers)
        assert none is None
        assert (tags.n_tags, tags.wrong) == (4, known.wrong)
        with open_model(found.path) as model:
            x = model.matrix("a")
        x = dataclasses.replace(x, up=x.up[None], down=x.down[None])
        ranked = ranked_tags(aligned, np.asarray(aligned.logits(x, words.texts_VD)), words)[0]
        assert [p.label for p in tags.shown] == [each.tag for each in ranked]
        expected = [each.probability for each in ranked]
        assert [p.probability for p in tags.shown] == pytest.approx(expected, abs=1e-2)
        n_shown.add(len(ranked))
        assert found.as_json()["answers"][0]["tags"]["n_tags"] == 4
    assert len(n_shown) > 1


def test_tags_need_an_expert_that_ranks_them(tmp_path, toy_lora_store):
    with pytest.raises(ProbexError, match=r"text\.tags") as error:
        grow_tree(tmp_path / "f", toy_lora_store, text_expert(toy_lora_store), tags=["moon"])
    assert one_line(error)


def test_a_model_that_fits_the_tree_but_not_the_expert_is_one_line(tmp_path):
    """An expert on the classifier, of which the fingerprint takes no notice."""
    store = pack_tree(tmp_path, "Ant", 1)
    head = class_expert("Ant", 1, layer="classifier.weight", shape=(3, 16))
    grow_tree(tmp_path / "f", store, head)
    forest = Forest.load(tmp_path / "f")
    write_member(tmp_path / "other", 1, of=1, n_head=7)
    write_member(tmp_path / "none", 1, of=1, **{"classifier.weight": np.ones(3)})
    message = r"layer classifier\.weight is \(7, 16\), the expert reads \(3, 16\)"
    with pytest.raises(ProbexError, match=message) as error:
        forest.describe(tmp_path / "other")
    assert one_line(error)
    with pytest.raises(ProbexError, match=r"classifier\.weight"):
        forest.describe(tmp_path / "none")
    assert forest.describe(tmp_path / "Ant" / "test" / "m17").tree == "Ant"


def test_weights_too_large_to_compute_with_are_one_models_error(tmp_path, forest):
    """Finite in the file; in the sketch, in an update, in what the expert reads."""
    store = pack_tree(tmp_path, "Ant", 1)
    given = class_expert("Ant", 1, layer="classifier.weight", shape=(3, 16))
    grow_tree(tmp_path / "f", store, given)
    head = np.resize([3e38, -3e38, 1.0], (3, 16))
    paths = [
        write_member(tmp_path / "head", 1, of=1, **{"classifier.weight": head}),
        tmp_path / "Ant" / "test" / "m17",
        write_member(tmp_path / "body", 1, of=1, **{LAYER: np.full((12, 16), 3e38)}),
    ]
    huge, fine, far = Forest.load(tmp_path / "f").describe_all(paths)
    assert (huge.tree, huge.predictions) == ("", ())
    assert "classifier.weight" in huge.route.reason
    assert fine.tree == "Ant"
    assert np.isfinite([p.probability for p in fine.predictions]).all()
    assert far.tree == ""
    assert np.isfinite(far.route.distance)
    write_toy_lora(tmp_path / "lora", "red ant", np.random.default_rng(0))
    path = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    save_file({name: 1e30 * w for name, w in load_file(path).items()}, path)
    found = forest.describe(path)
    assert found.predictions == ()
    assert "a" in {finding.layer for finding in found.soundness.findings}


def test_nothing_is_predicted_of_weights_that_are_not_finite(forest, tmp_path):
    path = write_member(tmp_path / "m", 1, ["ant"], of=1, **{"body.bias": np.full(6, np.nan)})
    found = forest.describe(path)
    assert (found.tree, found.answers) == ("Ant", ())
    assert [finding.layer for finding in found.soundness.findings] == ["body.bias"]


def broken_models(folder):
    """Model files that cannot be described, by what the error should name."""
    folder.mkdir(parents=True)
    (folder / "text.safetensors").write_text("hello")
    (folder / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (folder / "model.bin").write_bytes(b"x")
    return {
        folder / "text.safetensors": "too few",
        folder / "cut.safetensors": "header",
        folder / "model.bin": "pickle",
        folder / "nope": "no such file",
    }


def test_what_cannot_be_described_is_one_line(tmp_path, forest):
    for path, part in broken_models(tmp_path / "b").items():
        with pytest.raises(ProbexError, match=part) as error:
            forest.describe(path)
        assert one_line(error)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_file_that_changes_while_it_is_read_is_one_line(tmp_path, forest, monkeypatch, change):
    path = write_member(tmp_path / "m", 1, ["ant"], of=1) / "model.safetensors"
    real = ModelFile.matrix

    def written_to(model, name):
        matrix = real(model, name)
        if change == "size":
            with path.open("ab") as file:
                file.write(b"\0")
        else:
            os.utime(path)
        return matrix

    monkeypatch.setattr(ModelFile, "matrix", written_to)
    with pytest.raises(ProbexError) as error:
        forest.describe(path)
    assert str(error.value) == f"{path}: changed while it was read; try again"


@pytest.fixture(scope="module")
def many(trees, toy_lora_zoo, tmp_path_factory):
    """Seventy models of all trees and none, and broken ones, mixed."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    broken = list(broken_models(folder / "b"))
    paths = []
    for number in range(70):
        kind = number % 7
        path = folder / f"m{number:02d}"
        if kind < 4:
            write_member(path, number, labels_of(number), of=1 + kind % 3)
        elif kind < 6:
            write_toy_lora(path, "red ant", rng, rank=2 + number % 3)
        else:
            path = broken[number % len(broken)]
        paths.append(path)
    return paths


def described(forest, paths, **settings):
    """What is compared between two ways of describing, by place."""
    return [
        str(found) if isinstance(found, ProbexError) else found
        for found in forest.describe_all(paths, **settings)
    ]


def test_many_are_described_as_one_by_one_is_and_in_order(forest, many):
    together = described(forest, many)
    assert len(together) == 70
    for path, found in zip(many, together, strict=True):
        [alone] = described(forest, [path])
        if isinstance(alone, str):
            assert found == alone
            continue
        assert dataclasses.replace(found, answers=()) == dataclasses.replace(alone, answers=())
        assert probabilities(found) == pytest.approx(probabilities(alone), rel=1e-3, abs=1e-6)
    kinds = [found if isinstance(found, str) else found.tree for found in together]
    assert kinds[:6] == ["Ant", "Bee", "", "Ant", "ToyLoRA", "ToyLoRA"]
    backwards = described(forest, many[::-1])[::-1]
    assert [f if isinstance(f, str) else f.tree for f in backwards] == kinds


def test_few_programs_are_compiled_for_many(forest_path, many, tmp_path):
    forest = Forest.load(forest_path)
    programs = inference.logits, together.program
    for program in programs:
        program.clear_cache()
    list(forest.describe_all(many))
    # Ant's one layer, and LoRAs, filled up to rank 4; Bee's two layers together.
    first = [program._cache_size() for program in programs]
    assert first == [2, 1]
    list(forest.describe_all(many))
    assert [program._cache_size() for program in programs] == first
    for rank in (3, 4):
        write_toy_lora(tmp_path / f"{rank}", "red ant", np.random.default_rng(0), rank=rank)
    forest.describe(tmp_path / "4")
    first = inference.logits._cache_size()
    forest.describe(tmp_path / "3")
    assert inference.logits._cache_size() == first


def test_no_other_tree_s_expert_is_read(forest_path, trees, tmp_path):
    shutil.copytree(forest_path, tmp_path / "forest")
    shutil.rmtree(tmp_path / "forest" / "trees" / "Bee" / "expert")
    forest = Forest.load(tmp_path / "forest")
    [ant, bee] = (trees[0] / name / "test" / "m17" for name in ("Ant", "Bee"))
    assert forest.describe(ant).predicted
    with pytest.raises(ProbexError, match="Bee"):
        forest.describe(bee)


def test_ids_and_neighbours_are_those_given(forest, trees):
    paths = [trees[0] / "Ant" / "test" / "m17", trees[0] / "Cow" / "test" / "m00"]
    asked = []

    def nearest(tree, paths):
        asked.append((tree, paths))
        return [[]]

    ant, cow = forest.describe_all(paths, ["a", "b"], nearest=nearest)
    assert (ant.id, cow.id, ant.neighbours, cow.neighbours) == ("a", "b", (), None)
    assert asked == [("Ant", paths[:1])]

    def fails(*_):
        raise ProbexError("the index is damaged")

    failed, cow = forest.describe_all(paths, nearest=fails)
    assert str(failed) == "the index is damaged"
    assert cow.id == "m00"
    assert list(forest.describe_all([])) == []


def test_names_of_models_come_from_their_paths(tmp_path, forest, monkeypatch):
    write_member(tmp_path / "mine", 1, of=1)
    shutil.copy(tmp_path / "mine" / "model.safetensors", tmp_path / "mine" / "v2.safetensors")
    names = {"mine": "mine", "mine/model.safetensors": "mine", "mine/v2.safetensors": "v2"}
    for path, name in names.items():
        assert forest.describe(tmp_path / path).id == name
    snapshot = tmp_path / "models--me--ant" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--me--ant" / "blobs").mkdir()
    shutil.copy(tmp_path / "mine" / "v2.safetensors", tmp_path / "models--me--ant" / "blobs" / "aa")
    (snapshot / "model.safetensors").symlink_to("../../blobs/aa")
    for path in (snapshot, snapshot / "model.safetensors"):
        assert forest.describe(path).id == "models--me--ant"
    monkeypatch.chdir(tmp_path / "mine")
    assert forest.describe(".").id == "mine"


def test_a_lora_without_alpha_is_said_to_be_one(tmp_path, forest):
    from probex_jax.reports import model_card

    rng = np.random.default_rng(0)
    factors = {
        f"base_model.model.conv_in.lora_{half}.weight": rng.normal(size=(4, 4)).astype("f4")
        for half in "AB"
    }
    save_file(factors, tmp_path / "adapter_model.safetensors")
    found = forest.describe(tmp_path)
    assert (found.stated.unscaled, found.tree) == (1, "")
    assert "1 of its layers state no alpha" in model_card(found)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 1}')
    assert forest.describe(tmp_path).stated.unscaled == 0


def test_of_a_single_file_checkpoint_the_part_of_a_known_tree_is_described(forest, trees, tmp_path):
    path = next((trees[0] / "Ant" / "test").iterdir())
    with open_model(path) as alone:
        tensors = {f"model.diffusion_model.{n}": alone.tensor(n) for n in alone.tensors}
    vae = {"first_stage_model.decoder.conv_in.weight": np.ones((2, 2), "f4")}
    save_file(tensors | vae, tmp_path / "sd.safetensors")
    found, expected = forest.describe(tmp_path / "sd.safetensors"), forest.describe(path)
    assert found.tree == expected.tree == "Ant"
    assert probabilities(found) == pytest.approx(probabilities(expected), abs=1e-6)
