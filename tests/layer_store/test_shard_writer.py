"""What `pack` writes: the files that TensorStore would, also where the disk is full."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
from safetensors.numpy import load_file, save_file

import probex_jax as px
from probex_jax.layer_store import packing
from probex_jax.layer_store.arrays import LayerArray
from probex_jax.layer_store.shard_writer import LayerWriter
from tests.conftest import CLASSES, write_toy_zoo
from tests.layer_store.test_packing import folder_hash

SHAPE, BLOCK, ARRAY = (3, 5), 4, "layers/l/matrices"


@pytest.fixture
def zoo(tmp_path):
    return write_toy_zoo(tmp_path / "Toy", 20)


def written(folder, places, n_rows):
    """Random matrices written to places, the rows of an array but for those of no model."""
    matrices = np.random.default_rng(0).normal(size=(len(places), *SHAPE)).astype(np.float32)
    writer = LayerWriter(folder / ARRAY, SHAPE, BLOCK)
    for place, matrix in zip(places, matrices, strict=True):
        writer.put(place, matrix)
    for first in range(0, n_rows, BLOCK):
        ended = [p for p in places if first <= p < first + BLOCK]
        writer.finish(first, ended)
        writer.grow(first + len(ended))
    return matrices


def tensorstore_array(path):
    checked = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    shards = {"chunk_shape": [1, *SHAPE], "codecs": checked, "index_codecs": checked}
    metadata = {
        "shape": [0, *SHAPE],
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [BLOCK, *SHAPE]}},
        "codecs": [{"name": "sharding_indexed", "configuration": shards}],
    }
    kvstore = {"driver": "file", "path": f"{path}/"}
    spec = {"driver": "zarr3", "kvstore": kvstore, "metadata": metadata}
    return ts.open({**spec, "create": True, "store_data_equal_to_fill_value": True}).result()


def test_the_files_are_those_of_tensorstore(tmp_path):
    matrices = written(tmp_path / "ours", range(6), 6)
    array = tensorstore_array(tmp_path / "theirs" / ARRAY)
    for first in range(0, 6, BLOCK):  # as `pack` wrote them first
        part = matrices[first : first + BLOCK]
        array = array.resize(exclusive_max=[first + len(part), None, None]).result()
        array[first : first + len(part)].write(part).result()
    assert folder_hash(tmp_path / "ours") == folder_hash(tmp_path / "theirs")


def test_places_of_no_model_are_passed_over(tmp_path):
    matrices = written(tmp_path, [0, 2, 3, 4, 6], 7)  # 1 and 5 were never finished
    read = LayerArray.open(tmp_path / ARRAY, SHAPE)
    np.testing.assert_array_equal(read.read(np.array([0, 1, 2, 4, 5])), matrices)
    with pytest.raises(px.ProbexError, match="missing"):
        read.read(np.array([3]))


def test_the_rest_of_a_longer_file_is_cut_off(tmp_path):
    written(tmp_path / "once", range(2), 2)
    writer = LayerWriter(tmp_path / "twice" / ARRAY, SHAPE, BLOCK)
    for place in range(BLOCK):
        writer.put(place, np.full(SHAPE, 7, np.float32))
    written(tmp_path / "twice", range(2), 2)
    assert folder_hash(tmp_path / "once") == folder_hash(tmp_path / "twice")


def spoil(model):
    weights = load_file(model / "model.safetensors")
    weights["b.weight"][0, 0] = np.nan
    labels = {"dataset_chosen_targets": str([CLASSES[0]])}
    save_file(weights, model / "model.safetensors", labels)


@pytest.mark.parametrize("bad", [[0], [2, 3], [5], [4, 5, 6], [*range(6, 12)], [13]])
def test_models_whose_weights_are_unfit_leave_no_gap(zoo, tmp_path, monkeypatch, bad):
    monkeypatch.setattr(packing, "_BLOCK_MODELS", 6)
    for number in bad:
        spoil(zoo / "train" / f"model_{number:04d}")
    (zoo / "zoo.json").write_text(f'{{"classes": {list(CLASSES)}}}'.replace("'", '"'))
    summary = px.pack(px.scan(zoo), tmp_path / "s")
    store = summary.store
    assert sorted(summary.skipped) == [f"model_{number:04d}" for number in bad]
    good = [number for number in range(14) if number not in bad]
    assert [model.id for model in store.split("train")] == [f"model_{n:04d}" for n in good]
    for layer, shape in store.layers.items():
        for model, matrix in zip(store.split("train"), store.matrices(layer), strict=True):
            expected = load_file(Path(model.source) / "model.safetensors")[layer]
            np.testing.assert_array_equal(matrix, expected.reshape(shape))
    # Whoever tries them again writes nothing.
    before = folder_hash(tmp_path / "s")
    assert px.pack(px.scan(zoo), tmp_path / "s").added == 0
    assert folder_hash(tmp_path / "s") == before


@pytest.mark.parametrize("writes", [0, 1, 9, 17, 30])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_the_next_run_goes_on(zoo, tmp_path, monkeypatch, writes, code):
    monkeypatch.setattr(packing, "_BLOCK_MODELS", 6)
    px.pack(px.scan(zoo), tmp_path / "whole")
    real, left = os.pwritev, [writes]

    def nearly_full(descriptor, parts, offset):
        left[0] -= 1
        if left[0] == 0:  # the last bytes that there is room for
            return real(descriptor, [parts[0][:3]], offset)
        if left[0] < 0:
            raise OSError(code, os.strerror(code))
        return real(descriptor, parts, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", nearly_full)
        with pytest.raises(px.ProbexError, match="no space left on the disk; free some") as error:
            px.pack(px.scan(zoo), tmp_path / "s")
    assert "\n" not in str(error.value)
    assert str(tmp_path / "s") in str(error.value)
    summary = px.pack(px.scan(zoo), tmp_path / "s")
    assert not summary.skipped
    assert folder_hash(tmp_path / "s") == folder_hash(tmp_path / "whole")


def test_a_disk_too_full_for_the_table_is_one_line(zoo, tmp_path, monkeypatch):
    px.pack(px.scan(zoo), tmp_path / "whole")
    real = Path.open

    def full(self, mode="r", *arguments, **options):
        if self.name == "models.jsonl" and "a" in mode:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return real(self, mode, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(px.ProbexError, match=r"models\.jsonl: No space left"):
            px.pack(px.scan(zoo), tmp_path / "s")
    px.pack(px.scan(zoo), tmp_path / "s")
    assert folder_hash(tmp_path / "s") == folder_hash(tmp_path / "whole")


def test_a_shard_cut_short_by_the_power_is_seen_when_packing_goes_on(zoo, tmp_path):
    px.pack(px.scan(zoo), tmp_path / "s", "a.weight")
    [shard] = (tmp_path / "s" / "layers" / "a.weight").glob("matrices/c/*/*/*")
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(px.ProbexError, match="cut short; remove the store and pack it again"):
        px.pack(px.scan(zoo), tmp_path / "s")
    shard.unlink()
    with pytest.raises(px.ProbexError, match="No such file"):
        px.pack(px.scan(zoo), tmp_path / "s")


def test_the_content_hash_tells_weights_and_shapes_apart(zoo, tmp_path):
    stores = [px.pack(px.scan(zoo), tmp_path / str(n)).store for n in range(2)]
    assert stores[0].hash == stores[1].hash
    assert len({model.content_hash for model in stores[0].models}) == 20
    file = zoo / "train" / "model_0003" / "model.safetensors"
    weights = load_file(file)
    weights["b.weight"][-1, -1, -1, -1] *= np.float32(1 + 2**-22)
    with px.open_model(file) as model:
        metadata = dict(model.metadata)
    save_file(weights, file, metadata)
    other = px.pack(px.scan(zoo), tmp_path / "other").store
    changed = [
        a.id
        for a, b in zip(stores[0].models, other.models, strict=True)
        if a.content_hash != b.content_hash
    ]
    assert changed == ["model_0003"]
    assert other.hash != stores[0].hash


def test_a_model_that_changed_after_its_header_was_read_is_read_anew(zoo, tmp_path, monkeypatch):
    file = zoo / "train" / "model_0003" / "model.safetensors"
    with px.open_model(file) as model:
        metadata = dict(model.metadata)
    weights = {"before": np.ones((7, 9), np.float32), **load_file(file)}
    weights["b.weight"] *= 2
    real = packing._create

    def create(*arguments):
        save_file(weights, file, metadata)
        return real(*arguments)

    monkeypatch.setattr(packing, "_create", create)
    store = px.pack(px.scan(zoo), tmp_path / "s").store
    [row] = [n for n, model in enumerate(store.split("train")) if model.id == "model_0003"]
    expected = weights["b.weight"].reshape(store.layers["b.weight"])
    np.testing.assert_array_equal(store.matrices("b.weight", "train")[row], expected)
