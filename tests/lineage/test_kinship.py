"""The test against independent training: it holds for strangers and finds kin in disguise."""

import ml_dtypes
import numpy as np
import pytest
from scipy.stats import binom

from probex_jax import ProbexError
from probex_jax.lineage.kinship import check_comparable, kinship
from probex_jax.lineage.pairs import pair_layers
from probex_jax.model_files import open_model
from tests.lineage import copying
from tests.lineage.copying import tuned, weights
from tests.lineage.planting import in_memory


def kin(one, other, **settings):
    return kinship(in_memory(one), in_memory(other), **settings)


def p_values(pairs, orders=199):
    return np.array([kin(one, other, orders=orders).p_value for one, other in pairs])


def most_below(level, count):
    """More p-values below a level than this are there once in a thousand times."""
    return binom.ppf(0.999, count, level)


def mlps(seed, blocks=2, hidden=40, stream=24):
    rng, found = np.random.default_rng([3, seed]), {}
    for block in range(blocks):
        found[f"layers.{block}.fc1.weight"] = rng.normal(size=(hidden, stream))
        found[f"layers.{block}.fc2.weight"] = rng.normal(size=(stream, hidden))
    return found


def test_p_values_of_strangers_are_no_smaller_than_stated():
    found = p_values((mlps(2 * k), mlps(2 * k + 1)) for k in range(200))
    assert (found < 0.05).sum() <= most_below(0.05, 200)
    assert (found < 0.2).sum() <= most_below(0.2, 200)
    # Nor much larger: the test would have no power.
    assert (found < 0.5).sum() > 50


def of_equal_lengths(seed):
    """All units of one length, and all weights beside a large mean that models share."""
    model = mlps(seed)
    return {n: 3 + x / np.linalg.norm(x, axis=1, keepdims=True) for n, x in model.items()}


def with_heads(seed):
    """Attention whose units have places, as rotary positions make of queries and keys."""
    rng, found = np.random.default_rng([4, seed]), mlps(seed)
    places = np.linspace(3, 0, 40)[:, None] * np.random.default_rng(5).normal(size=(40, 24))
    for block in range(2):
        for name in ("q_proj", "k_proj", "v_proj"):
            found[f"layers.{block}.self_attn.{name}.weight"] = places + rng.normal(size=(40, 24))
        found[f"layers.{block}.self_attn.o_proj.weight"] = places.T + rng.normal(size=(24, 40))
    return found


def with_sines(seed):
    """Positions are sines, which give each unit of the stream a place and a size of its own."""
    rng, found = np.random.default_rng([6, seed]), mlps(seed)
    at = np.arange(64)[:, None] / 100 ** (np.arange(12) / 12)
    sizes = np.linspace(3, 0, 24)
    for name in found:
        common = np.outer(np.ones(40), sizes)
        found[name] = found[name] + (common if "fc1" in name else common.T)
    found["position_embeddings.weight"] = np.concatenate([np.sin(at), np.cos(at)], axis=1)
    found["embeddings.weight"] = rng.normal(size=(64, 24)) + sizes
    return found


@pytest.mark.parametrize("made", [of_equal_lengths, with_heads, with_sines])
def test_structure_that_strangers_share_is_no_kinship(made):
    found = p_values((made(2 * k), made(2 * k + 1)) for k in range(100))
    assert (found < 0.05).sum() <= most_below(0.05, 100)


def test_the_stream_is_left_out_where_positions_are_sines():
    one, other = with_sines(0), with_sines(1)
    assert kin(one, other).units == "40 units of 4 layers"
    del one["position_embeddings.weight"], other["position_embeddings.weight"]
    found = kin(one, other)
    assert found.units.startswith("24 units")
    assert found.p_value < 1e-3
    assert kin(with_sines(0), tuned(with_sines(0), 0.3)).p_value < 1e-3


def pruned(tensors):
    """The smaller half of each matrix set to zero."""
    return {
        n: np.where(np.abs(x) < np.median(np.abs(x)), 0, x) if x.ndim > 1 else x
        for n, x in tensors.items()
    }


def in_int4(tensors):
    """Rounded to 15 values a row."""
    found = dict(tensors)
    for name in (name for name, value in tensors.items() if value.ndim > 1):
        scale = np.abs(tensors[name]).max(1, keepdims=True) / 7
        found[name] = np.round(tensors[name] / scale) * scale
    return found


DISGUISES = {
    "fine-tuned": lambda tensors: tuned(tensors, 0.3),
    "pruned": pruned,
    "in 4 bits": in_int4,
    "in bfloat16": lambda tensors: copying.cast(tensors, ml_dtypes.bfloat16),
    "renamed": lambda tensors: copying.shuffled(tuned(tensors, 0.1)),
    "with permuted units": lambda tensors: copying.with_permuted_units(tuned(tensors, 0.3)),
    "all of it": lambda tensors: copying.with_permuted_units(in_int4(pruned(tuned(tensors, 0.1)))),
}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_kin_in_disguise(disguise):
    one = weights()
    found = kin(one, DISGUISES[disguise](one))
    assert found.p_value < 1e-3
    assert found.units
    assert found.layers[0].z > 3
    assert list(found.layers) == sorted(found.layers, key=lambda layer: -layer.z)


def test_a_layers_cosine_is_that_of_its_centred_units():
    rng = np.random.default_rng(0)
    a, noise = 2 + rng.normal(size=(2, 40, 24))
    b = a + 0.8 * noise
    (found,) = kin(*({"fc1.weight": x, "head.weight": np.ones((5, 40))} for x in (a, b))).layers
    a, b = a - a.mean(0), b - b.mean(0)
    expected = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
    assert found.name == "fc1.weight"
    assert found.cosine == pytest.approx(expected, abs=1e-5)
    # In standard deviations of the matches at places drawn at random.
    c = a @ b.T
    drawn = [c[np.arange(len(c)), rng.permutation(len(c))].sum() for _ in range(4000)]
    assert found.z == pytest.approx((np.trace(c) - np.mean(drawn)) / np.std(drawn), rel=0.06)


def bottlenecks(seed):
    rng, found = np.random.default_rng([5, seed]), {}
    for block in range(3):
        found[f"layer1.{block}.conv1.weight"] = rng.normal(size=(16, 32, 1, 1))
        found[f"layer1.{block}.conv2.weight"] = rng.normal(size=(16, 16, 3, 3))
        found[f"layer1.{block}.conv3.weight"] = rng.normal(size=(32, 16, 1, 1))
    found["conv1.weight"] = rng.normal(size=(32, 3, 7, 7))
    found["layer2.0.conv.weight"] = rng.normal(size=(24, 32, 3, 3))
    found["layer2.1.conv.weight"] = rng.normal(size=(32, 24, 3, 3))
    return found


def with_permuted_channels(model):
    found, rng = dict(model), np.random.default_rng(0)
    for block in range(3):
        first, last = rng.permutation(16), rng.permutation(16)
        conv1, conv2, conv3 = (f"layer1.{block}.conv{k}.weight" for k in (1, 2, 3))
        found[conv1] = model[conv1][first]
        found[conv2] = model[conv2][last][:, first]
        found[conv3] = model[conv3][:, last]
    order = rng.permutation(24)
    found["layer2.0.conv.weight"] = model["layer2.0.conv.weight"][order]
    found["layer2.1.conv.weight"] = model["layer2.1.conv.weight"][:, order]
    return found


def test_convolutions():
    one = bottlenecks(0)
    assert kin(one, tuned(one, 0.3)).p_value < 1e-3
    assert kin(one, with_permuted_channels(tuned(one, 0.3))).p_value < 1e-3
    found = p_values((bottlenecks(2 * k), bottlenecks(2 * k + 1)) for k in range(60))
    assert (found < 0.05).sum() <= most_below(0.05, 60)


def test_channels_of_convolutions_are_units_not_their_taps():
    """What only some taps share is found by the channels that are read."""
    one, other = ({} for _ in range(2))
    rng = np.random.default_rng(0)
    for model in (one, other):
        model["a.weight"] = rng.normal(size=(24, 10, 3, 3))
        model["b.weight"] = rng.normal(size=(12, 24, 3, 3))
    other["b.weight"] = one["b.weight"] + 0.3 * rng.normal(size=(12, 24, 3, 3))
    found = kin(one, other)
    assert found.p_value < 1e-3
    best = found.layers[0]
    assert best.name == "b.weight"
    assert best.cosine == pytest.approx(1 / np.sqrt(1.09), abs=0.02)


def lora(seed, start=None, rank=4):
    """An adapter whose down factors began as those of `start`, and what training added."""
    rng, found = np.random.default_rng([2, seed]), {}
    for block in range(4):
        down, up = (f"base_model.model.layers.{block}.q_proj.lora_{x}.weight" for x in "AB")
        if start is None:
            found[down] = rng.normal(size=(rank, 32))
        else:
            found[down] = start[down] + 0.3 * rng.normal(size=(rank, 32))
        found[up] = rng.normal(size=(24, rank))
    return found


def opened(tensors, folder):
    return open_model(
        copying.saved(copying.cast(tensors, "f4"), folder / "adapter_model.safetensors")
    )


def test_adapters_of_one_start_are_kin_and_others_are_not(tmp_path):
    start = lora(0)
    with (
        opened(lora(1, start), tmp_path / "a") as one,
        opened(lora(2, start), tmp_path / "b") as kin,
        opened(lora(3), tmp_path / "c") as stranger,
        opened(lora(4, rank=8), tmp_path / "d") as wider,
    ):
        found = kinship(one, kin)
        assert found.p_value < 1e-3
        assert len(found.layers) == 4
        assert kinship(one, stranger).p_value > 0.01
        assert kinship(one, wider).p_value == 1


def test_p_values_of_independent_adapters(tmp_path):
    values = []
    for number in range(60):
        folders = (tmp_path / f"{number}-{side}" for side in "ab")
        models = [opened(lora(2 * number + k + 10), folder) for k, folder in enumerate(folders)]
        values.append(kinship(*models, orders=199).p_value)
        for model in models:
            model.close()
    assert (np.array(values) < 0.05).sum() <= most_below(0.05, 60)


def test_the_order_of_two_models_does_not_matter():
    one = weights()
    for other in (tuned(one, 3.0), weights(1)):
        there, back = kin(one, other, orders=1999), kin(other, one, orders=1999)
        assert there.p_value == pytest.approx(back.p_value, rel=0.5, abs=0.03)
        assert there.units == back.units
        z = ({layer.name: layer.z for layer in found.layers} for found in (there, back))
        assert next(z) == pytest.approx(next(z), rel=1e-3)


def test_the_smallest_p_value_counts_as_often_as_lengths_were_tested():
    """One length of axes here, two there, two tests each: none is surer than all orders allow."""
    one = mlps(0)
    assert kin(one, one, orders=999).p_value == 4 / 1000
    head = {"fc1.weight": one["layers.0.fc1.weight"], "head.weight": np.ones((5, 40))}
    assert kin(head, head, orders=999).p_value == 2 / 1000


def test_the_seed_decides_the_orders():
    one = mlps(0)
    other = next(two for n in range(1, 99) if kin(one, two := mlps(n)).p_value < 0.8)
    first, again, another = (kin(one, other, seed=seed).p_value for seed in (1, 1, 2))
    assert first == again != another


@pytest.mark.parametrize(
    "tensors",
    [
        {"norm.weight": np.arange(32.0)},
        {"a.weight": np.ones((40, 24)), "b.weight": np.ones((24, 40))},
        {"a.weight": np.arange(24.0).reshape(4, 6), "b.weight": np.arange(24.0).reshape(6, 4)},
        {"a.weight": np.arange(576.0).reshape(24, 24)},
    ],
    ids=["vectors", "equal units", "few units", "no units between layers"],
)
def test_where_nothing_can_be_compared_nothing_is_said(tensors):
    found = kin(tensors, tensors)
    assert (found.p_value, found.units, found.layers) == (1.0, "", ())


def compared(one, other, folder):
    paths = [copying.saved(x, folder / f"{n}.safetensors") for n, x in (("a", one), ("b", other))]
    with open_model(paths[0]) as first, open_model(paths[1]) as second:
        check_comparable(first, second, pair_layers(first, second))


def test_models_of_other_architectures_are_not_comparable(tmp_path):
    other = copying.cast(mlps(0), "f4")
    with pytest.raises(ProbexError, match=r"a\.safetensors.*b\.safetensors"):
        compared(weights(), other, tmp_path)
    deeper = other | {f"more.{k}.weight": np.ones((9, 7), "f4") for k in range(5)}
    for pair in ((other, deeper), (deeper, other)):
        with pytest.raises(ProbexError, match=r"a\.safetensors.*b\.safetensors"):
            compared(*pair, tmp_path)
    compared(weights(), copying.shuffled(weights(1)), tmp_path)
    head = {"classifier.weight": np.ones((5, 24), "f4")}
    compared(other | head, other | {"classifier.weight": np.ones((7, 24), "f4")}, tmp_path)


def test_units_in_another_order_everywhere_around_them():
    """No layer is left in which units could be compared one by one; they still vary alike."""
    one = mlps(0)
    for layer in range(2):
        up, down = f"layers.{layer}.fc1.weight", f"layers.{layer}.fc2.weight"
        order = np.random.default_rng(layer).permutation(len(one[up]))
        one = one | {up: one[up][order], down: one[down][:, order]}
    assert kin(mlps(0), one).p_value < 1e-3


def smooth(rng, units, pixels=64):
    """Weights of units over pixels, of which neighbours are alike in any model."""
    return np.cumsum(rng.normal(size=(units, pixels)), axis=1)


@pytest.mark.parametrize(
    ("reads", "writes"),
    [("encoder.0.weight", "decoder.2.weight"), ("fc1.weight", "fc4.weight")],
)
def test_pixels_of_autoencoders_are_no_units(reads, writes):
    """They are written as well as read, and vary alike in strangers."""

    def trained(seed):
        rng = np.random.default_rng([11, seed])
        return {reads: smooth(rng, 32), writes: smooth(rng, 32).T.copy()}

    found = p_values((trained(2 * k), trained(2 * k + 1)) for k in range(20))
    assert (found < 0.05).sum() <= most_below(0.05, 20)
    assert kin(trained(0), trained(0)).p_value < 1e-3


@pytest.mark.parametrize("name", ["embed.weight", "model.wte.weight"])
def test_words_are_no_units(name):
    """Where there are as many as an MLP has units, and words vary alike in strangers."""

    def trained(seed):
        rng = np.random.default_rng([12, seed])
        return {
            name: smooth(rng, 16, 40).T.copy(),
            "layers.0.fc1.weight": rng.normal(size=(40, 16)),
            "layers.0.fc2.weight": rng.normal(size=(16, 40)),
        }

    found = p_values((trained(2 * k), trained(2 * k + 1)) for k in range(20))
    assert (found < 0.05).sum() <= most_below(0.05, 20)
