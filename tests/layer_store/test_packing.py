import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import probex_jax as px
from probex_jax.files import one_writer, writer_of
from probex_jax.integrity import sealed
from probex_jax.layer_store import packing
from probex_jax.layer_store.blocks import Form, Slot, Stored, writing
from probex_jax.zoo.tables import Tables
from tests.conftest import CLASSES, write_toy_model, write_toy_zoo

LAYERS = {"a.weight": (12, 16), "b.weight": (6, 18), "c.bias": (5, 1)}


def pack(zoo, store, layers=None):
    return px.pack(px.scan(zoo), store, layers)


def folder_hash(folder):
    """Of every file below a folder, names and bytes."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def edit(model, change, metadata=None):
    """Changes the weights of a toy model in place."""
    file = model / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata or {"dataset_chosen_targets": str([CLASSES[0]])})


@pytest.fixture
def zoo(tmp_path):
    return write_toy_zoo(tmp_path / "Toy", 20)


def test_a_store_holds_what_the_files_hold(toy_zoo, toy_store):
    assert toy_store.layers == LAYERS
    assert toy_store.classes == CLASSES
    assert toy_store.tree == "Toy"
    for split, count in (("train", 70), ("val", 10), ("test", 20)):
        matrices = {layer: toy_store.matrices(layer, split) for layer in LAYERS}
        targets = toy_store.targets(split)
        assert len(targets) == count
        for index, model in enumerate(toy_store.split(split)):
            file = toy_zoo / split / model.id / "model.safetensors"
            for layer, shape in LAYERS.items():
                expected = load_file(file)[layer].reshape(shape)
                np.testing.assert_array_equal(matrices[layer][index], expected)
            with px.open_model(file) as opened:
                stated = opened.metadata["dataset_chosen_targets"]
            assert {CLASSES[i] for i in np.flatnonzero(targets[index])} == set(
                json.loads(stated.replace("'", '"'))
            )


def test_only_the_layers_asked_for_are_packed(zoo, tmp_path):
    store = pack(zoo, tmp_path / "s", "b.*").store
    assert list(store.layers) == ["b.weight"]
    with pytest.raises(px.ProbexError, match=r"no layer 'a\.weight'.*'b\.weight'"):
        store.matrices("a.weight")


def test_packing_again_adds_nothing_and_writes_nothing(zoo, tmp_path):
    assert pack(zoo, tmp_path / "s").added == 20
    before = folder_hash(tmp_path / "s")
    assert pack(zoo, tmp_path / "s").added == 0
    assert folder_hash(tmp_path / "s") == before


def test_new_models_are_appended_without_rewriting(zoo, tmp_path):
    first = pack(zoo, tmp_path / "s").store
    shards = {n: h for n, h in folder_hash(tmp_path / "s").items() if "/c/" in n}
    kept = first.matrices("a.weight", "test")
    rng = np.random.default_rng(5)
    for index in range(3):
        write_toy_model(zoo / "test" / f"later_{index}", CLASSES[:2], rng)
    second = pack(zoo, tmp_path / "s")
    assert second.added == 3
    assert folder_hash(tmp_path / "s").items() >= shards.items()
    np.testing.assert_array_equal(second.store.matrices("a.weight", "test")[: len(kept)], kept)
    assert len(second.store.matrices("a.weight", "test")) == len(kept) + 3
    assert second.store.hash != first.hash


# Imports once and forks a child for each kill: after how many calls of which method.
KILLED_PACKS = """
import os, signal, sys
import probex_jax as px
from probex_jax.layer_store import packing
from probex_jax.layer_store.shard_writer import LayerWriter

packing._BLOCK_MODELS = 6
_, zoo, store, *kills = sys.argv
for where, count in zip(kills[::2], kills[1::2]):
    child = os.fork()
    if not child:
        real, calls = getattr(LayerWriter, where), []
        def killed(*arguments):
            result = real(*arguments)
            calls.append(0)
            if len(calls) == int(count):
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        setattr(LayerWriter, where, killed)
        px.pack(px.scan(zoo), store)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""


def test_a_killed_pack_goes_on_to_the_same_bytes(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_BLOCK_MODELS", 6)
    pack(zoo, tmp_path / "whole")
    # In the first block; where one of the two layers of the second ends; in the third or fourth.
    kills = ["put", "7", "finish", "3", "put", "21"]
    command = [sys.executable, "-c", KILLED_PACKS, zoo, tmp_path / "killed", *kills]
    subprocess.run(command, check=True, timeout=120)
    with (tmp_path / "killed" / "models.jsonl").open("a") as table:
        table.write('{"id": "torn')
    pack(zoo, tmp_path / "killed")
    assert folder_hash(tmp_path / "killed") == folder_hash(tmp_path / "whole")


def test_a_run_in_which_no_model_can_be_packed_changes_nothing(zoo, tmp_path):
    before = len(pack(zoo, tmp_path / "s").store.models)
    (zoo / "train" / "junk.safetensors").write_bytes(b"junk")
    for _ in range(2):
        summary = pack(zoo, tmp_path / "s")
        assert (summary.added, list(summary.skipped)) == (0, ["junk"])
        assert len(summary.store.models) == before


def test_workers_of_a_writer_that_is_gone_write_nothing(zoo, tmp_path):
    store = pack(zoo, tmp_path / "s").store
    before = folder_hash(tmp_path / "s")
    slot = Slot(px.scan(zoo).models[0], store.block)
    assert not writer_of(tmp_path / "s")
    with one_writer(tmp_path / "s"):
        assert writer_of(tmp_path / "s")
        ours = writing(Form.of(store, writer_of(tmp_path / "s")))
        gone = writing(Form.of(store, "pid 1 on elsewhere"))
        assert not ours.read(slot).fault
        for write in (gone.read, lambda slot: gone.compute([slot], [Stored("0")])):
            with pytest.raises(px.ProbexError, match="another process"):
                write(slot)
        closed = writing(Form.of(store))
        closed.close()
        with pytest.raises(px.ProbexError, match="interrupted"):
            closed.read(slot)
        ours.compute([slot], [Stored("", "faulty")])  # which drops the block
    assert folder_hash(tmp_path / "s") == before


def spoil_nan(model):
    edit(model, lambda w: w["a.weight"].__setitem__((0, 0), np.nan))


def spoil_truncated(model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def spoil_gone(model):
    (model / "model.safetensors").unlink()


def change(**weights):
    """Replaces layers of a model; one of None is removed."""
    return lambda model: edit(
        model, lambda w: [w.pop(n) if v is None else w.update({n: v}) for n, v in weights.items()]
    )


def label(**metadata):
    return lambda model: edit(model, lambda w: None, metadata)


CODE = "__import__('os').system('touch /tmp/probex_pwned')"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_nan, "layer 'a.weight': 1 of 192 values are NaN or infinite"),
        (
            change(**{"a.weight": np.zeros((3, 3), "f4")}),
            "a.weight: shape 3x3, most models have 12",
        ),
        (change(**{"b.weight": None}), "layer b.weight: missing"),
        (label(other="metadata"), "no label: expected 'dataset_chosen_targets'"),
        (label(dataset_chosen_targets=CODE), "dataset_chosen_targets"),
        (label(dataset_chosen_targets="['gnu']"), "label 'gnu' is not among the 6 classes"),
        (spoil_truncated, "model.safetensors"),
        (spoil_gone, "model"),
    ],
)
@pytest.mark.parametrize("position", ["train/model_0000", "test/model_0017"])
def test_one_bad_model_is_listed_and_the_rest_go_on(zoo, tmp_path, spoil, reason, position):
    (zoo / "zoo.json").write_text(json.dumps({"classes": CLASSES}))
    spoil(zoo / position)
    faults = []
    summary = px.pack(px.scan(zoo), tmp_path / "s", on_model=faults.append)
    assert summary.added == 19
    assert list(summary.skipped) == [Path(position).name]
    assert reason in summary.skipped[Path(position).name]
    assert str(zoo / position) in summary.skipped[Path(position).name]
    assert [fault for fault in faults if fault] == [
        f"{Path(position).name}: {summary.skipped[Path(position).name]}"
    ]
    assert dict(summary.store.skipped) == dict(summary.skipped)
    assert not Path("/tmp/probex_pwned").exists()


def test_a_mended_model_is_packed_by_the_next_run(zoo, tmp_path):
    spoil_nan(zoo / "train" / "model_0002")
    assert pack(zoo, tmp_path / "s").added == 19
    edit(zoo / "train" / "model_0002", lambda w: w["a.weight"].fill(0.5))
    again = pack(zoo, tmp_path / "s")
    assert again.added == 1
    assert not again.skipped
    assert not again.store.skipped


def broken_zoo(tmp_path, spoil):
    zoo = write_toy_zoo(tmp_path / "Broken", 3)
    for model in zoo.glob("*/*"):
        spoil(model)
    return zoo


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda tmp, zoo: (tmp / "nowhere", None), "nowhere: no such folder"),
        (lambda tmp, zoo: ((tmp / "empty").mkdir() or tmp / "empty", None), "empty: no models"),
        (lambda tmp, zoo: (broken_zoo(tmp, spoil_gone), None), "no model can be packed; the first"),
        (lambda tmp, zoo: (broken_zoo(tmp, spoil_nan), None), "could be packed; the first: .*NaN"),
        (lambda tmp, zoo: (zoo, "z.weight"), "no layer 'z.weight'"),
        (lambda tmp, zoo: (zoo, "99"), "no layer number 99"),
    ],
)
def test_nothing_to_pack_is_one_line(tmp_path, zoo, prepare, message):
    folder, layers = prepare(tmp_path, zoo)
    with pytest.raises(px.ProbexError, match=message) as error:
        pack(folder, tmp_path / "s", layers)
    assert "\n" not in str(error.value)


def test_a_store_is_not_mixed_with_another_zoo(zoo, tmp_path):
    pack(zoo, tmp_path / "s", "a.weight")
    with pytest.raises(px.ProbexError, match="already holds 1 layers"):
        pack(zoo, tmp_path / "s", "b.weight")
    shutil.move(zoo, tmp_path / "Other")
    with pytest.raises(px.ProbexError, match="holds models of Toy, not of Other"):
        pack(tmp_path / "Other", tmp_path / "s")


def test_model_in_two_splits_is_refused(zoo, tmp_path):
    shutil.copytree(zoo / "train" / "model_0000", zoo / "test" / "model_0000")
    with pytest.raises(px.ProbexError, match="model_0000 is in both train/ and test/"):
        pack(zoo, tmp_path / "s")


def test_labels_json_takes_precedence(zoo, tmp_path):
    (zoo / "labels.json").write_text(json.dumps({"model_0000": ["fox"]}))
    store = pack(zoo, tmp_path / "s").store
    assert store.models[0].labels == ("fox",)


def test_a_matrix_of_zeros_is_kept(zoo, tmp_path):
    (zoo / "zoo.json").write_text(json.dumps({"classes": CLASSES}))
    for model in sorted((zoo / "train").iterdir()):
        edit(model, lambda w: w["a.weight"].fill(0))
    store = pack(zoo, tmp_path / "s").store
    assert store.matrices("a.weight", "train").shape == (14, 12, 16)
    assert not store.matrices("a.weight", "train").any()
    assert store.matrices("a.weight", "test").any()


def test_layers_that_few_models_have_are_reported(zoo, tmp_path):
    for model in sorted(zoo.glob("*/*"))[:10]:
        edit(model, lambda w: w.pop("b.weight"))
    summary = pack(zoo, tmp_path / "s")
    assert list(summary.store.layers) == ["a.weight", "c.bias"]
    assert summary.left_out == {"b.weight": "in 10 of 20 models"}
    with pytest.raises(px.ProbexError, match=r"no layer 'b.weight'.*left out: b.weight"):
        pack(zoo, tmp_path / "t", "b.weight")


def test_a_packed_model_that_moved_or_has_other_labels_is_refused(zoo, tmp_path):
    before = pack(zoo, tmp_path / "s").store.models[0]
    (zoo / "labels.json").write_text(json.dumps({before.id: ["fox"]}))
    with pytest.raises(px.ProbexError, match=f"{before.id} was packed as train of"):
        pack(zoo, tmp_path / "s")
    (zoo / "labels.json").unlink()
    shutil.move(zoo / "train" / before.id, zoo / "test" / before.id)
    with pytest.raises(px.ProbexError, match="the zoo now says test of the same"):
        pack(zoo, tmp_path / "s")


def test_other_kinds_of_weight_files_are_not_passed_over(zoo, tmp_path):
    (zoo / "train" / "old.bin").write_bytes(b"pickle")
    summary = pack(zoo, tmp_path / "s")
    assert "safe_serialization" in summary.skipped["old.bin"]


def test_odd_layer_names_stay_apart_and_inside_the_store(tmp_path):
    zoo = tmp_path / "Odd"
    names = ["x", "..x", "a/b", "a%2Fb", "c d|\n"]
    for index in range(3):
        folder = zoo / "train" / f"m{index}"
        folder.mkdir(parents=True)
        arrays = {n: np.full((2, 2), i + 10.0 * index, np.float32) for i, n in enumerate(names)}
        save_file(arrays, folder / "model.safetensors", {"dataset_chosen_targets": "['x']"})
    store = pack(zoo, tmp_path / "s").store
    for i, name in enumerate(names):
        assert store.matrices(name)[:, 0, 0].tolist() == [i, i + 10, i + 20]
    assert {path.name for path in tmp_path.iterdir()} == {"Odd", "s"}


def test_a_layer_that_cannot_be_a_folder_is_refused(tmp_path):
    folder = tmp_path / "Odd" / "train" / "m"
    folder.mkdir(parents=True)
    labels = {"dataset_chosen_targets": "['x']"}
    save_file({"...": np.ones((2, 2), np.float32)}, folder / "model.safetensors", labels)
    with pytest.raises(px.ProbexError, match="dots alone"):
        pack(tmp_path / "Odd", tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("file", ["zoo.json", "labels.json"])
def test_tables_of_a_zoo_are_no_links_that_lead_out(zoo, tmp_path, file):
    (tmp_path / "secret").write_text("{}")
    (zoo / file).symlink_to("../secret")
    with pytest.raises(px.ProbexError, match=f"{file}: a link that leads out of the zoo's folder"):
        px.scan(zoo)
    (zoo / "mine").write_text("{}")
    (zoo / file).unlink()
    (zoo / file).symlink_to("mine")
    (tmp_path / "link").symlink_to(zoo)
    assert len(px.scan(tmp_path / "link").models) == 20


def test_a_zoo_in_the_hub_s_cache_reaches_its_blobs(zoo, tmp_path):
    root = tmp_path / "datasets--me--zoo"
    (root / "snapshots").mkdir(parents=True)
    (root / "blobs").mkdir()
    (root / "blobs" / "ffee").write_text('{"tree": "Cached"}')
    zoo = zoo.rename(root / "snapshots" / "0123abcd")
    (zoo / "zoo.json").symlink_to("../../blobs/ffee")
    assert px.scan(zoo).tree == "Cached"


def test_a_malformed_entry_of_labels_json_is_that_models_fault(zoo, tmp_path):
    (zoo / "labels.json").write_text(json.dumps({"model_0000": [[]], "nobody": ["fox"]}))
    assert px.scan(zoo).unmatched == {"labels.json": ("nobody",)}
    summary = pack(zoo, tmp_path / "s")
    assert list(summary.skipped) == ["model_0000"]
    assert summary.added == 19


def restated(**fields):
    """Changes fields of `store.json`."""

    def change(store):
        about = json.loads((store / "store.json").read_text())
        (store / "store.json").write_text(json.dumps(sealed(about | fields)))

    return change


def torn_table(store):
    with (store / "models.jsonl").open("a") as table:
        table.write("not json\n")


def shard_of(store):
    (shard,) = (store / "layers" / "a.weight").glob("matrices/c/*/*/*")
    return shard


def flipped_bit(store):
    content = bytearray(shard_of(store).read_bytes())
    content[100] ^= 1
    shard_of(store).write_bytes(content)


WRONG = {"layers": ([], {"a.weight": [12]}), "block": (0, "x"), "classes": (5,), "tree": (None,)}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (restated(version=99), "version 99"),
        *[(restated(**{field: value}), "damaged") for field in WRONG for value in WRONG[field]],
        (restated(layers=LAYERS | {"a.weight": [16, 12]}), r"a\.weight.*store\.json"),
        (torn_table, "damaged"),
        (flipped_bit, r"a\.weight.*damaged"),
        (lambda store: shard_of(store).unlink(), r"a\.weight.*missing"),
    ],
)
def test_damaged_stores(zoo, tmp_path, damage, message):
    store = pack(zoo, tmp_path / "s").store.path
    damage(store)
    with pytest.raises(px.ProbexError, match=message):
        px.LayerStore.open(store).matrices("a.weight")


def test_what_is_not_there(tmp_path, toy_store):
    with pytest.raises(px.ProbexError, match="no layer store here"):
        px.LayerStore.open(tmp_path)
    with pytest.raises(px.ProbexError, match="no model in split 'holdout'"):
        toy_store.targets("holdout")


@pytest.mark.parametrize(
    "changed",
    [
        lambda zoo: {"tree": "T\ud800"},
        lambda zoo: {"classes": ("\ud800",)},
        lambda zoo: {"tables": Tables({"kind": {zoo.models[0].id: ("\ud800",)}})},
        lambda zoo: {"tables": Tables({}, {"\ud800": {zoo.models[0].id: 1.0}})},
        lambda zoo: {"models": (replace(zoo.models[0], id="\ud800"), *zoo.models[1:])},
    ],
    ids=["tree", "classes", "labels", "column", "id"],
)
def test_names_that_are_no_unicode_leave_a_store_that_can_be_read(zoo, tmp_path, changed):
    found = px.scan(zoo)
    with pytest.raises(px.ProbexError, match="ud800"):
        px.pack(replace(found, **changed(found)), tmp_path / "s")
    px.pack(found, tmp_path / "s")
    assert len(px.LayerStore.open(tmp_path / "s").models) == len(found.models)
