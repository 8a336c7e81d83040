"""LoRAs in a store: kept as factors, padded to one rank, with held-out classes."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import probex_jax as px
from tests.conftest import CONCEPTS, HELD_OUT, write_toy_lora, write_toy_lora_zoo, write_toy_model

FILE = "pytorch_lora_weights.safetensors"


def pack(zoo, store):
    return px.pack(px.scan(zoo), store)


def edit(model, **changes):
    weights = load_file(model / FILE)
    concept = changes.pop("concept", None)
    with px.open_model(model) as opened:
        metadata = dict(opened.metadata) | ({"concept": concept} if concept else {})
    save_file(weights | changes, model / FILE, metadata)


@pytest.fixture
def zoo(tmp_path):
    return write_toy_lora_zoo(tmp_path / "ToyLoRA")


def test_a_store_holds_the_factors_padded_to_the_highest_rank(toy_lora_zoo, toy_lora_store):
    assert toy_lora_store.layers == {"a": (12, 16), "b": (6, 8)}
    assert toy_lora_store.ranks == {"a": 4, "b": 4}
    for split, count in (("train", 104), ("val", 26), ("test", 26), ("val_holdout", 12)):
        matrices = toy_lora_store.matrices("a", split)
        assert isinstance(matrices, px.LowRank)
        assert matrices.up.shape == (count, 12, 4)
        assert matrices.down.shape == (count, 4, 16)
        for index, model in enumerate(toy_lora_store.split(split)):
            weights = load_file(toy_lora_zoo / split / model.id / FILE)
            rank = len(weights["a.lora.down.weight"])
            np.testing.assert_array_equal(matrices.up[index, :, :rank], weights["a.lora.up.weight"])
            np.testing.assert_array_equal(
                matrices.down[index, :rank], weights["a.lora.down.weight"]
            )
            assert not matrices.up[index, :, rank:].any()
            assert not matrices.down[index, rank:].any()


def test_nothing_of_the_products_size_is_on_disk(toy_lora_store):
    folders = {path.parent.name for path in toy_lora_store.path.glob("layers/*/*/zarr.json")}
    assert folders == {"up", "down"}


def test_classes_are_seen_or_held_out(toy_lora_store):
    assert toy_lora_store.classes == tuple(sorted(CONCEPTS))
    assert toy_lora_store.held_out_classes == tuple(sorted(HELD_OUT))
    assert toy_lora_store.seen_classes == tuple(sorted(set(CONCEPTS) - set(HELD_OUT)))
    seen = toy_lora_store.seen_classes
    indices = toy_lora_store.class_indices("val", seen)
    expected = [model.labels[0] for model in toy_lora_store.split("val")]
    assert [seen[index] for index in indices] == expected


def test_a_class_outside_the_candidates_and_several_classes_are_refused(toy_lora_store, toy_store):
    with pytest.raises(px.ProbexError, match=r"test_holdout .*'red cat'"):
        toy_lora_store.class_indices("test_holdout", toy_lora_store.seen_classes)
    with pytest.raises(px.ProbexError, match="3 classes"):
        toy_store.class_indices("train", toy_store.classes)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_held_out_class_in_another_split_is_refused(zoo, tmp_path, split):
    model = next((zoo / split).iterdir())
    edit(model, concept="blue ant")
    with pytest.raises(px.ProbexError, match=rf"class 'blue ant' .*{model.name}"):
        pack(zoo, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_held_out_class_is_refused_when_it_comes_later(zoo, tmp_path):
    store = pack(zoo, tmp_path / "s").store
    write_toy_lora(zoo / "train" / "later", "blue ant", np.random.default_rng(0))
    with pytest.raises(px.ProbexError, match="held-out class"):
        pack(zoo, tmp_path / "s")
    assert len(px.LayerStore.open(tmp_path / "s").models) == len(store.models)


def test_a_store_changed_by_hand_does_not_cheat(zoo, tmp_path):
    store = pack(zoo, tmp_path / "s").store
    table = store.path / "models.jsonl"
    lines = [json.loads(line) for line in table.read_text().splitlines()]
    next(line for line in lines if line["split"] == "train")["labels"] = ["red cat"]
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(px.ProbexError, match="class 'red cat'"):
        _ = px.LayerStore.open(store.path).held_out_classes


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"a.lora.up.weight": np.ones((12, 7), "f4")}, "its factors disagree in rank"),
        (
            {"c.lora.up.weight": np.ones((12, 7), "f4")},
            "LoRA 'c' has 'c.lora.up.weight', the up factor, without the down",
        ),
    ],
)
def test_damaged_loras_are_skipped_with_the_reason(zoo, tmp_path, change, reason):
    edit(zoo / "train" / "lora_0000", **change)
    summary = pack(zoo, tmp_path / "s")
    assert list(summary.skipped) == ["lora_0000"]
    assert reason in summary.skipped["lora_0000"]


def test_what_does_not_fit_is_skipped_later(zoo, tmp_path):
    pack(zoo, tmp_path / "s")
    rng = np.random.default_rng(1)
    write_toy_lora(zoo / "train" / "higher", "red ant", rng, rank=6)
    write_toy_lora(zoo / "train" / "lower", "red ant", rng, rank=2)
    write_toy_model(zoo / "train" / "dense", ["ant"], rng)
    dense = {"a": np.ones((12, 16), "f4"), "b": np.ones((6, 8), "f4")}
    save_file(dense, zoo / "train" / "dense" / "model.safetensors", {"concept": "red ant"})
    summary = pack(zoo, tmp_path / "s")
    assert summary.added == 1
    assert "factors of rank 6, the store holds ranks up to 4" in summary.skipped["higher"]
    assert "dense, most models have factors" in summary.skipped["dense"]


def test_wordnet_ids_are_labels_and_texts_stand_for_them(zoo, tmp_path):
    for model in zoo.glob("*/*"):
        with px.open_model(model) as opened:
            concept = opened.metadata["concept"]
        save_file(load_file(model / FILE), model / FILE, {"imagenet_class_id": f"n{concept}"})
    texts = {f"n{concept}": f"a {concept}" for concept in CONCEPTS}
    (zoo / "zoo.json").write_text(json.dumps({"texts": texts | {"nowhere": "x"}}))
    store = pack(zoo, tmp_path / "s").store
    assert store.classes == tuple(sorted(texts))
    assert store.texts == texts
    for others in ({"nred ant": "other words"}, {}):
        (zoo / "zoo.json").write_text(json.dumps({"texts": others}))
        with pytest.raises(px.ProbexError, match="holds other texts"):
            pack(zoo, tmp_path / "s")


def test_packing_in_two_runs_gives_the_same_numbers(zoo, tmp_path):
    whole = pack(zoo, tmp_path / "whole").store
    shutil.move(zoo / "train" / "lora_0005", tmp_path)
    pack(zoo, tmp_path / "s")
    shutil.move(tmp_path / "lora_0005", zoo / "train")
    parts = pack(zoo, tmp_path / "s").store
    assert parts.hash == whole.hash


def test_loras_without_alpha_are_counted(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(3):
        path = "base_model.model.conv_in" if number else "unet.conv_in.lora"
        up, down = ("lora_B", "lora_A") if number else ("up", "down")
        tensors = {
            f"{path}.{up}.weight": rng.normal(size=(4, 2)).astype("f4"),
            f"{path}.{down}.weight": rng.normal(size=(2, 4)).astype("f4"),
        }
        folder = tmp_path / "Zoo" / "train" / f"m{number}"
        folder.mkdir(parents=True)
        save_file(tensors, folder / "adapter.safetensors", {"concept": "cat"})
    (folder / "adapter_config.json").write_text('{"lora_alpha": 2}')
    found = px.pack(px.scan(tmp_path / "Zoo"), tmp_path / "store")
    assert (found.added, found.unscaled) == (3, 1)
