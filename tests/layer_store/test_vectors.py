"""Vectors in a store beside the matrices, and what `pack` leaves out."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import probex_jax as px
from experiments import steps
from probex_jax.fitting.moments import moments
from probex_jax.integrity import sealed
from probex_jax.layer_store import arrays

# Tensors of a model, with their shapes in a store.
TENSORS = {
    "0.bias": ((7,), (7, 1)),
    "body.weight": ((6, 4), (6, 4)),
    "body.long": ((3000,), (3000, 1)),
    "body.longer": ((5000,), (5000, 1)),
    "conv.weight": ((4, 2, 3), (4, 6)),
    "head.weight": ((1, 8, 1), (1, 8)),
    "mixer.weight": ((16, 1, 1), (16, 1)),
    "norm.running_var": ((2000,), (2000, 1)),
    "scale": ((), (1, 1)),
    "token": ((1, 1, 9), (1, 9)),
}
SHAPES = {name: shape for name, (_, shape) in sorted(TENSORS.items())}
MATRICES = ("body.weight", "conv.weight")
# Of no layer, in all models.
OTHERS = {
    "norm.num_batches_tracked": np.array(3),
    "position_ids": np.arange(5),
    "nothing": np.zeros((0, 4), np.float32),
    "quantised.weight.absmax": np.ones(4, np.float32),
    "quantised.weight": np.zeros((8, 1), np.uint8),
    "body.hada_w1_a": np.ones((2, 2), np.float32),
}


def write(folder, seed, **changes):
    """A model of all tensors; of None is removed."""
    rng = np.random.default_rng(seed)
    drawn = {n: rng.normal(size=shape).astype(np.float32) for n, (shape, _) in TENSORS.items()}
    tensors = {name: np.asarray(value) for name, value in (drawn | OTHERS | changes).items()}
    kept = {name: value for name, value in tensors.items() if value.dtype != object}
    folder.mkdir(parents=True)
    save_file(kept, folder / "model.safetensors", {"dataset_chosen_targets": f"['{seed % 2}']"})


@pytest.fixture
def zoo(tmp_path):
    for number, split in enumerate(["train"] * 8 + ["val", "test"]):
        write(tmp_path / "zoo" / split / f"m{number}", number)
    return tmp_path / "zoo"


def check_holds_the_files(store, layers=tuple(SHAPES)):
    for name in layers:
        for split in ("train", "val", "test"):
            found = store.matrices(name, split)
            for model, matrix in zip(store.split(split), found, strict=True):
                with px.open_model(model.source) as file:
                    value = load_file(file.path / "model.safetensors")[name]
                np.testing.assert_array_equal(matrix, value.reshape(SHAPES[name]), strict=True)


def test_without_being_told_which_a_store_holds_all_vectors(zoo, tmp_path):
    summary = px.pack(px.scan(zoo), tmp_path / "s")
    store = summary.store
    assert (summary.added, dict(summary.skipped)) == (10, {})
    assert store.layers == SHAPES
    assert list(store.layers) == list(SHAPES)
    assert set(store.vectors) == set(SHAPES) - set(MATRICES)
    check_holds_the_files(store)
    name = "body.long"
    everything = store.matrices(name)
    np.testing.assert_array_equal(store.matrices(name, models=[5, 0]), everything[[5, 0]])
    found, expected = store.moments(name), moments([everything])
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-6)
    # Few arrays, none of which is longer than it must be.
    assert len([*(tmp_path / "s").glob("vectors/*/zarr.json")]) == 3
    assert {path.name for path in (tmp_path / "s" / "layers").iterdir()} == set(MATRICES)


def test_models_packed_later_have_their_vectors(zoo, tmp_path):
    first = px.pack(px.scan(zoo), tmp_path / "s").store
    check_holds_the_files(first)
    write(zoo / "test" / "later", 77)
    assert px.pack(px.scan(zoo), tmp_path / "s").added == 1
    check_holds_the_files(px.LayerStore.open(tmp_path / "s"))
    check_holds_the_files(first)  # which knows nothing of them


def test_the_content_hash_tells_vectors_apart(zoo, tmp_path):
    stores = [px.pack(px.scan(zoo), tmp_path / "a").store]
    file = zoo / "train" / "m3" / "model.safetensors"
    weights = load_file(file)
    weights["token"][0, 0, 8] *= np.float32(1 + 2**-22)
    save_file(weights, file, {"dataset_chosen_targets": "['1']"})
    stores.append(px.pack(px.scan(zoo), tmp_path / "b").store)
    one, other = ([(model.id, model.content_hash) for model in store.models] for store in stores)
    assert {name for name, _ in {*one} - {*other}} == {"m3"}
    assert stores[0].hash != stores[1].hash


def test_numbers_are_those_of_matrices(zoo, tmp_path):
    with px.open_model(zoo / "train" / "m0") as model:
        assert (tuple(model.layers), set(model.vectors) & set(MATRICES)) == (MATRICES, set())
        assert px.select_layers(model.all_layers, "1", model.vectors) == [MATRICES[1]]
    store = px.pack(px.scan(zoo), tmp_path / "s", 0).store
    assert (list(store.layers), store.vectors) == ([MATRICES[0]], ())
    whole = px.pack(px.scan(zoo), tmp_path / "all").store
    assert px.select_layers(whole.layers, 1, whole.vectors) == [MATRICES[1]]
    with pytest.raises(px.ProbexError, match="no layer number 2"):
        px.pack(px.scan(zoo), tmp_path / "t", 2)


@pytest.mark.parametrize("asked", ["mixer.*", "head.weight, token", "scale"])
def test_vectors_are_asked_for_by_name_or_pattern(zoo, tmp_path, asked):
    store = px.pack(px.scan(zoo), tmp_path / "s", asked).store
    assert tuple(store.layers) == store.vectors == tuple(px.select_layers(SHAPES, asked))
    check_holds_the_files(store, store.layers)
    assert px.pack(px.scan(zoo), tmp_path / "s", asked).added == 0


def test_what_is_left_out_is_told_with_its_reason(zoo, tmp_path):
    """Once each: also what few models have, and what most have in another form."""
    rare = {"extra.bias": np.ones(3, np.float32), "mask": np.zeros((2, 2), bool)}
    for number in (10, 11, 12):
        write(zoo / "train" / f"m{number}", number, **rare, step=np.ones(number, np.float32))
    found = px.pack(px.scan(zoo), tmp_path / "s").left_out
    assert {name: reason.split(" (")[0] for name, reason in found.items()} == {
        "body.hada_w1_a": "part of an adapter",
        "extra.bias": "in 3 of 13 models",
        "mask": "boolean, in 3 of 13 models",
        "norm.num_batches_tracked": "integer",
        "nothing": "empty",
        "position_ids": "integer",
        "quantised.weight": "quantised",
        "quantised.weight.absmax": "part of a quantised layer",
        "step": "in 3 of 13 models, in 3 shapes",
    }
    # Whoever named the layers did not want the others.
    assert px.pack(px.scan(zoo), tmp_path / "t", "body.weight").left_out == {}


def test_the_command_gives_a_line_for_each_reason(zoo, tmp_path, capsys):
    steps.pack(zoo, tmp_path / "s")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out")]
    assert len(lines) == len(OTHERS) - 1
    [integers] = [line for line in lines if line.endswith(": integer")]
    assert {"norm.num_batches_tracked,", "position_ids:"} <= {*integers.split()}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mixer.weight": np.ones((16, 2, 1), np.float32)}, "mixer.weight: shape 16x2"),
        ({"scale": None}, "scale: missing"),
        ({"0.bias": np.full(7, np.nan, np.float32)}, "'0.bias': 7 of 7 values are NaN"),
    ],
)
def test_a_model_whose_vectors_do_not_fit_is_skipped(zoo, tmp_path, changes, reason):
    write(zoo / "train" / "a", 5, **changes)
    summary = px.pack(px.scan(zoo), tmp_path / "s")
    assert list(summary.skipped) == ["a"]
    assert reason in summary.skipped["a"]
    check_holds_the_files(summary.store)


def test_what_stands_beside_loras_is_stored_beside_their_factors(tmp_path):
    layer, rng = "base_model.model.unet.to_q", np.random.default_rng(0)
    for number in range(3):
        shapes = {"lora_A.weight": (2, 6), "lora_B.weight": (4, 2), "bias": (4,)}
        tensors = {f"{layer}.{end}": rng.normal(size=shape) for end, shape in shapes.items()}
        tensors |= {
            "base_model.model.head.weight": rng.normal(size=(3, 4)),
            "head.bias": rng.normal(size=3),
        }
        folder = tmp_path / "zoo" / "train" / str(number)
        folder.mkdir(parents=True)
        kept = {name: value.astype(np.float32) for name, value in tensors.items()}
        save_file(kept, folder / "adapter_model.safetensors", {"concept": "x"})
    store = px.pack(px.scan(tmp_path / "zoo"), tmp_path / "s").store
    assert store.ranks == {"unet.to_q": 2}
    assert store.layers["head.weight"] == (3, 4)
    assert store.vectors == ("head.bias", "unet.to_q.bias")
    assert store.matrices("head.bias")[2].ravel().tolist() == kept["head.bias"].tolist()


def test_models_of_vectors_alone_are_packed(tmp_path):
    for number in range(3):
        folder = tmp_path / "zoo" / "train" / str(number)
        folder.mkdir(parents=True)
        bias = np.full(4, number, np.float32)
        save_file({"b": bias}, folder / "model.safetensors", {"dataset_chosen_targets": "['x']"})
    store = px.pack(px.scan(tmp_path / "zoo"), tmp_path / "s").store
    assert store.matrices("b")[:, 0, 0].tolist() == [0, 1, 2]


def test_a_store_from_before_vectors_is_read_and_added_to(zoo, tmp_path):
    store = px.pack(px.scan(zoo), tmp_path / "s", ".*y.weight|conv.*").store
    about = json.loads((store.path / "store.json").read_text())
    assert about.pop("vectors") == {}
    del about["crc32c"]
    (store.path / "store.json").write_text(json.dumps(about | {"version": 3, "selection": None}))
    old = px.LayerStore.open(store.path)
    assert (old.layers, old.vectors, old.hash) == (store.layers, (), store.hash)
    write(zoo / "train" / "later", 78)
    assert px.pack(px.scan(zoo), store.path).added == 1
    check_holds_the_files(px.LayerStore.open(store.path), MATRICES)


@pytest.mark.parametrize("places", [[], {"0.bias": 3}, {"0.bias": [0, -1]}, {"none": [0, 0]}])
def test_damaged_places_are_one_line(zoo, tmp_path, places):
    path = px.pack(px.scan(zoo), tmp_path / "s", "0.bias").store.path
    about = json.loads((path / "store.json").read_text())
    (path / "store.json").write_text(json.dumps(about | {"vectors": places}))
    with pytest.raises(px.ProbexError, match="damaged"):
        px.LayerStore.open(path)


@pytest.mark.parametrize("damage", ["flip", "gone", "elsewhere"])
def test_damaged_vectors_are_one_line(zoo, tmp_path, damage):
    path = px.pack(px.scan(zoo), tmp_path / "s", "0.bias").store.path
    [shard] = path.glob("vectors/0/c/*/*/*")
    if damage == "flip":
        content = bytearray(shard.read_bytes())
        content[10] ^= 1
        shard.write_bytes(content)
    elif damage == "gone":
        shard.unlink()
    else:
        about = json.loads((path / "store.json").read_text())
        about = sealed(about | {"vectors": {"0.bias": [0, 1]}})
        (path / "store.json").write_text(json.dumps(about))
    with pytest.raises(px.ProbexError, match=r"vectors.0: ") as error:
        px.LayerStore.open(path).matrices("0.bias")
    assert "\n" not in str(error.value)


def test_no_array_of_vectors_is_longer_than_it_must_be():
    sizes = {
        str(n): int(size) for n, size in enumerate(np.random.default_rng(0).integers(1, 6000, 99))
    }
    places = arrays.places(sizes)
    ends: dict[int, int] = {}
    for name, size in sizes.items():
        assert places[name].start == ends.get(places[name].array, 0)
        ends[places[name].array] = places[name].start + size
    assert ends == arrays.array_sizes(sizes, places)
    assert all(end <= 4096 or end in sizes.values() for end in ends.values())
