import pytest

from probex_jax.errors import ProbexError
from probex_jax.model_files import select_layers


def vit_base() -> list[str]:
    """The matrices of ViT-Base with a classifier, patch projection included."""
    layer = [
        *(f"attention.attention.{part}" for part in ("query", "key", "value")),
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ]
    return [
        "vit.embeddings.position_embeddings",
        "vit.embeddings.patch_embeddings.projection.weight",
        *(f"vit.encoder.layer.{i}.{part}.weight" for i in range(12) for part in layer),
        "classifier.weight",
    ]


def resnet_101() -> list[str]:
    names = ["resnet.embedder.embedder.convolution.weight", "classifier.1.weight"]
    for stage, depth in enumerate((3, 4, 23, 3)):
        prefix = f"resnet.encoder.stages.{stage}.layers"
        names.append(f"{prefix}.0.shortcut.convolution.weight")
        names += [
            f"{prefix}.{block}.layer.{i}.convolution.weight"
            for block in range(depth)
            for i in range(3)
        ]
    return names


@pytest.mark.parametrize(
    ("names", "number", "expected"),
    [
        (vit_base(), 0, "classifier.weight"),
        (vit_base(), 1, "vit.embeddings.position_embeddings"),
        (vit_base(), 47, "vit.encoder.layer.5.attention.output.dense.weight"),
        (vit_base(), 59, "vit.encoder.layer.7.attention.output.dense.weight"),
        (vit_base(), 64, "vit.encoder.layer.8.attention.attention.value.weight"),
        (resnet_101(), 59, "resnet.encoder.stages.2.layers.19.layer.0.convolution.weight"),
        (resnet_101(), 67, "resnet.encoder.stages.2.layers.20.layer.2.convolution.weight"),
    ],
)
def test_numbers_are_the_reference_s(names, number, expected):
    assert select_layers(names, number) == [expected]
    assert select_layers(reversed(names), str(number)) == [expected]


def test_vectors_have_no_numbers():
    vectors = {"vit.encoder.layer.5.layernorm.bias", "a.bias", "z.bias"}
    everything = [*vit_base(), *vectors]
    expected = select_layers(vit_base(), 59)
    assert select_layers(everything, 59, vectors) == expected
    assert select_layers(everything, "z.bias, 59", vectors) == [*expected, "z.bias"]
    assert {*select_layers(everything, None, vectors)} == {*everything}


NAMES = ["c.weight", "a.0.weight", "a.1.weight", "a.10.weight", "b,x.weight"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, ["a.0.weight", "a.1.weight", "a.10.weight", "b,x.weight", "c.weight"]),
        ("c.weight", ["c.weight"]),
        ("b,x.weight", ["b,x.weight"]),
        ("c.weight, 0", ["a.0.weight", "c.weight"]),
        ([4, "0", "c.weight"], ["a.0.weight", "c.weight"]),
        (["1,2", r"c\..*"], ["a.1.weight", "a.10.weight", "c.weight"]),
        (r"a\.\d{1,2}\.weight", ["a.0.weight", "a.1.weight", "a.10.weight"]),
        (r"a\.\d{2,2}\.weight,0", ["a.0.weight", "a.10.weight"]),
        (r"a\.\d\.weight", ["a.0.weight", "a.1.weight"]),
        (".*", ["a.0.weight", "a.1.weight", "a.10.weight", "b,x.weight", "c.weight"]),
    ],
)
def test_select_layers(spec, expected):
    assert select_layers(NAMES, spec) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (5, "no layer number 5, numbers go from 0 to 4; There are 5 layers: 'a.0.weight',"),
        (-1, "no layer number -1"),
        ("9" * 10_000, "no layer number 9"),
        ("²", "no layer '²'"),
        ("a", "no layer 'a'; "),
        ("c.wieght", "no layer 'c.wieght'; did you mean 'c.weight'?"),
        ("0,nothing.*", "no layer 'nothing"),
        ("a(", r"'a\(' is neither a layer nor a regular expression: missing \)"),
        ("[[a]", "no layer"),
        ("a{99999999999}", "neither a layer nor a regular expression"),
        ("", "an empty text"),
        ("0,", "an empty text"),
        ([], "an empty list"),
        (True, "by number or text, not by True"),
        (1.0, "by number or text"),
        ([None], "by number or text"),
        ("x" * 1000, "no layer 'x{100}'…"),
    ],
)
def test_selections_that_pick_nothing(spec, message):
    with pytest.raises(ProbexError, match=message):
        select_layers(NAMES, spec)


def test_a_model_without_layers():
    assert select_layers([], None) == []
    with pytest.raises(ProbexError, match="there are no layers"):
        select_layers([], 0)
