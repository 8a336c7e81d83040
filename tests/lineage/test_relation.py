"""How two models relate: moments, direction, kind and the order of units."""

import ml_dtypes
import numpy as np
import pytest

from probex_jax.lineage.pairs import pair_layers
from probex_jax.lineage.relation import in_order_of, relate
from probex_jax.matrices import LowRank
from probex_jax.model_files import open_model
from tests.lineage import copying
from tests.lineage.copying import in_int8, tuned, weights
from tests.lineage.planting import in_memory, increments, plus


def related(one, other, **settings):
    models = in_memory(one), in_memory(other)
    return relate(*models, pair_layers(*models), **settings)


def of_odd_shapes(seed):
    rng = np.random.default_rng([1, seed])
    return {
        "conv.weight": rng.normal(size=(7, 3, 5, 3)),
        "embed_tokens.weight": rng.normal(size=(101, 13)),
        "fc1.weight": rng.normal(size=(13, 101)),
        "narrow.weight": rng.normal(size=(1, 17)),
        "norm.weight": rng.normal(size=(19,)),
        "classifier.weight": rng.normal(size=(5, 13)),
        "norm.running_mean": rng.normal(size=(19,)),
    }


def test_moments_and_distance_are_those_of_a_reference():
    one = of_odd_shapes(0)
    noise = of_odd_shapes(1)
    other = {name: value + 0.2 * noise[name] for name, value in one.items()}
    one, other = copying.cast(one, "f4"), copying.cast(other, "f4")
    found = related(one, other)
    kept = {"conv.weight", "embed_tokens.weight", "fc1.weight", "narrow.weight", "norm.weight"}
    assert {*found.names} == kept
    for place, name in enumerate(found.names):
        a, b = (np.float64(x[name]).ravel() for x in (one, other))
        assert found.one[place] == pytest.approx(a @ a, rel=1e-6)
        assert found.other[place] == pytest.approx(b @ b, rel=1e-6)
        assert found.inner[place] == pytest.approx(a @ b, rel=1e-6)
        assert found.squared[place] == pytest.approx(((a - b) ** 2).sum(), rel=1e-5)
        assert found.entries[place] == found.sizes[place] == a.size
        assert found.is_matrix[place] == (name not in {"norm.weight", "narrow.weight"})
    a, b = (np.concatenate([x[n].ravel() for n in kept]).astype("f8") for x in (one, other))
    assert found.distance == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-5)
    assert found.unchanged == 0


def test_layers_that_differ_most_come_first():
    one = copying.cast(of_odd_shapes(0), "f4")
    other = dict(one)
    for name, share in (("fc1.weight", 0.3), ("conv.weight", 0.2), ("norm.weight", 0.1)):
        other[name] = (1 + np.float32(share)) * one[name]
    found = related(one, other)
    assert found.farthest(2) == ("fc1.weight", "conv.weight")
    assert found.farthest(9) == ("fc1.weight", "conv.weight", "norm.weight")
    assert found.unchanged == pytest.approx(2 / 5)


def adapter(seed, folder, rank):
    """An adapter, open, and its updates multiplied out."""
    rng, factors, whole = np.random.default_rng([2, seed]), {}, {}
    for block, (height, width) in enumerate([(24, 17), (9, 40)]):
        down, up = rng.normal(size=(rank, width)), rng.normal(size=(height, rank))
        name = f"base_model.model.layers.{block}.proj"
        factors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        whole[block] = up @ down
    path = copying.saved(copying.cast(factors, "f4"), folder / "adapter_model.safetensors")
    return open_model(path), whole


def test_adapters_are_compared_as_if_multiplied_out(tmp_path):
    one, a = adapter(0, tmp_path / "a", 3)
    other, b = adapter(1, tmp_path / "b", 5)
    with one, other:
        assert all(isinstance(one.matrix(name), LowRank) for name in one.layers)
        found = relate(one, other, pair_layers(one, other))
        same = relate(one, one, pair_layers(one, one))
    assert len(found.names) == 2
    for name, aa, bb, ab in zip(found.names, found.one, found.other, found.inner, strict=True):
        block = int(name.split("layers.")[1][0])
        assert aa == pytest.approx((a[block] ** 2).sum(), rel=1e-5)
        assert bb == pytest.approx((b[block] ** 2).sum(), rel=1e-5)
        assert ab == pytest.approx((a[block] * b[block]).sum(), rel=1e-4, abs=1e-3)
    assert (same.unchanged, same.distance, same.direction) == (1, 0, 0)


def decayed(tensors, share):
    """Weight decay shortens all matrices by one share."""
    return {n: (1 - share) * x if x.ndim > 1 else x for n, x in tensors.items()}


def trained(parent, share, decay):
    """Increments of unequal sizes at right angles; weight decay shortens all matrices alike."""
    change = increments(parent, 1)[0]
    sizes = np.geomspace(0.2, 3, len(change))
    change = {n: size * x for size, (n, x) in zip(sizes, change.items(), strict=True)}
    return plus(
        {n: (1 - decay) * x if n in change else x for n, x in parent.items()}, change, share
    )


@pytest.mark.parametrize("share", [0.003, 0.03, 0.3])
def test_direction_of_what_training_added(share):
    parent = weights()
    child = trained(parent, share, 0)
    found = related(parent, child)
    assert found.direction > 0.5
    assert related(child, parent).direction == pytest.approx(-found.direction)


@pytest.mark.parametrize(("share", "decay"), [(0.03, 0.005), (0.1, 0.02), (0.2, 0.05)])
def test_direction_of_a_child_that_weight_decay_made_shorter(share, decay):
    """Length alone would turn the edge."""
    parent = weights()
    child = trained(parent, share, decay)
    lengths = [sum((x**2).sum() for x in m.values() if x.ndim > 1) for m in (parent, child)]
    assert lengths[1] < lengths[0]
    found = related(parent, child)
    assert found.direction > 0.5
    assert related(child, parent).direction == pytest.approx(-found.direction)


def in_blocks(tensors, steps):
    """Rounded to some values in blocks of 32 entries of a row, as GGUF does."""
    found = dict(tensors)
    for name, value in tensors.items():
        if value.ndim > 1:
            blocks = value.reshape(-1, 32 if value.shape[1] % 32 == 0 else value.shape[1])
            scale = np.abs(blocks).max(1, keepdims=True) / steps
            found[name] = (np.round(blocks / scale) * scale).reshape(value.shape).astype("f4")
    return found


def in_int4(tensors):
    """Rounded to 15 values a row."""
    found = dict(tensors)
    for name in (name for name, value in tensors.items() if value.ndim > 1):
        scale = np.abs(tensors[name]).max(1, keepdims=True) / 7
        found[name] = (np.round(tensors[name] / scale) * scale).astype("f4")
    return found


ROUNDED = {
    "8 bits": in_int8,
    "4 bits": in_int4,
    "8 bits in blocks": lambda tensors: in_blocks(tensors, 127),
    "4 bits in blocks": lambda tensors: in_blocks(tensors, 7),
}


@pytest.mark.parametrize("rounding", ROUNDED)
def test_rounded_copies(rounding):
    one = wide(0)
    copy = ROUNDED[rounding](one)
    there, back = related(one, copy), related(copy, one)
    assert (there.rounded, there.pruned, there.kind) == (1, 0, "quantised")
    assert (back.rounded, back.pruned) == (-1, 0)
    assert there.direction == -back.direction > 3


def wide(seed):
    """Matrices whose rows have entries enough to be rounded in."""
    rng = np.random.default_rng([4, seed])
    return {
        f"layers.{k}.weight": 0.05 * rng.standard_t(5, (40, 256)).astype("f4") for k in range(3)
    } | {"norm.weight": 1 + 0.1 * rng.normal(size=256).astype("f4")}


def pruned(tensors, share=0.5):
    return {
        n: np.where(np.abs(x) < np.quantile(np.abs(x), share), 0, x) if x.ndim > 1 else x
        for n, x in tensors.items()
    }


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_pruned_copies(share):
    one = wide(0)
    copy = pruned(one, share)
    there, back = related(one, copy), related(copy, one)
    assert (there.pruned, there.kind, back.pruned) == (1, "pruned", -1)
    assert there.direction == -back.direction > 3


def test_what_is_no_rounded_or_pruned_copy():
    one = wide(0)
    half = {name: value.astype(ml_dtypes.bfloat16).astype("f4") for name, value in one.items()}
    tuned_half = {
        name: value.astype(ml_dtypes.bfloat16).astype("f4")
        for name, value in tuned(half, 0.02).items()
    }
    pairs = {
        "a fine-tune of bfloat16 in float32": (half, tuned(half, 0.01)),
        "a fine-tune of bfloat16 in bfloat16": (half, tuned_half),
        "the same": (one, one),
        "strangers": (one, wide(1)),
        "a rounded stranger": (one, in_int4(wide(1))),
        "a fine-tune of a rounded model": (in_int4(one), tuned(in_int4(one), 0.3)),
        "a fine-tune of a pruned model": (pruned(one), tuned(pruned(one), 0.1)),
    }
    for name, (a, b) in pairs.items():
        found = related(a, b)
        assert (found.pruned, found.rounded) == (0, 0), name
    same = related(one, one)
    assert (same.direction, same.distance, same.unchanged) == (0, 0, 1)


def test_a_head_of_another_size_does_not_count():
    one = weights()
    child = tuned(one, 0.1)
    head = {"lm_head.weight": np.random.default_rng(0).normal(size=(9, copying.HIDDEN))}
    found = related(one, child | head)
    expected = related(one, child)
    assert found.names == expected.names
    assert "lm_head.weight" not in found.names
    assert found.distance == expected.distance
    assert found.direction == expected.direction


def test_kinds():
    one, rng = wide(0), np.random.default_rng(0)

    def changed(change):
        return {n: x + change(x).astype("f4") if x.ndim > 1 else x for n, x in one.items()}

    def merged(x):
        return 0.02 * rng.normal(size=(len(x), 4)) @ rng.normal(size=(4, x.shape[1]))

    def noise(x):
        return 0.01 * rng.normal(size=x.shape)

    def trained(x):
        """Training changes some directions more than others."""
        return noise(x) @ np.diag(4 / (1 + np.arange(x.shape[1]) / 10))

    kinds = {"LoRA merged": merged, "noised": noise, "fine-tune": trained}
    assert {kind: related(one, changed(change)).kind for kind, change in kinds.items()} == {
        kind: kind for kind in kinds
    }


def test_units_in_another_order_are_found_in_rows_and_columns():
    one = weights()
    child = tuned(one, 0.1)
    other = copying.with_permuted_units(child)
    assert related(one, other).distance > 0.5
    found = related(one, other, permuted=True)
    expected = related(one, child)
    matrices = expected.is_matrix
    true = np.sqrt(expected.squared[matrices].sum() / expected.one[matrices].sum())
    assert found.distance == pytest.approx(true, rel=1e-4)
    assert {*found.names} == {*np.array(expected.names)[matrices]}
    assert related(one, weights(1), permuted=True).distance > 1


@pytest.mark.parametrize("axis", [0, 1])
def test_order_of_rows_or_columns(axis):
    rng = np.random.default_rng(0)
    like = rng.normal(size=(30, 700))
    shuffled = rng.permuted(np.arange(like.shape[axis]))
    near = like + 0.1 * rng.normal(size=like.shape)
    np.testing.assert_array_equal(in_order_of(like, np.take(near, shuffled, axis)), near)
    stranger = rng.normal(size=like.shape)
    np.testing.assert_array_equal(in_order_of(like, stranger), stranger)


def test_of_large_layers_some_rows_stand_for_all(tmp_path):
    rng = np.random.default_rng(0)
    one = {f"layers.{k}.weight": rng.normal(size=(2048, 768), scale=1 + k) for k in range(4)}
    sizes = np.linspace(0.05, 0.2, 2048)[:, None]
    other = {n: x + sizes * rng.normal(size=x.shape) for n, x in one.items()}
    paths = [
        copying.saved(copying.cast(x, "f4"), tmp_path / f"{n}.safetensors")
        for n, x in (("one", one), ("other", other))
    ]
    with open_model(paths[0]) as a, open_model(paths[1]) as b:
        found = relate(a, b, pair_layers(a, b))
    assert (found.entries == 2048 * 768).all()
    assert found.sizes.sum() <= 1.1 * 2**22 < found.entries.sum()
    for place, name in enumerate(found.names):
        true = np.square(one[name] - other[name]).sum()
        assert found.squared[place] == pytest.approx(true, rel=0.05)
    lengths = [sum(np.square(x).sum() for x in m.values()) for m in (one, other)]
    apart = sum(np.square(one[n] - other[n]).sum() for n in one)
    assert found.distance == pytest.approx(np.sqrt(apart / lengths[0]), rel=0.03)
    assert found.direction > 1
