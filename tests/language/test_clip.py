"""The CLIP text tower against a float64 reference, and what a checkpoint may not be."""

import json
import math
import sys

import numpy as np
import pytest

from probex_jax import ProbexError
from probex_jax.language import ClipTextEncoder, text_encoder

TEXTS = ["three", "Inverted three", "a seven, mirrored", "word " * 20, "é 猫 42!"]


def reference(weights, config, tokens):
    """One text in float64, without padding: its projected embedding."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        scale = w[f"{name}.weight"] / np.sqrt(variance + config["layer_norm_eps"])
        return centred * scale + w[f"{name}.bias"]

    def activation(x):
        if config["hidden_act"] == "quick_gelu":
            return x / (1 + np.exp(-1.702 * x))
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    def attention(x, name):
        q, k, v = (linear(x, f"{name}.{part}_proj") for part in "qkv")
        mixed = np.zeros_like(q)
        size = q.shape[1] // config["num_attention_heads"]
        for head in range(config["num_attention_heads"]):
            part = slice(head * size, (head + 1) * size)
            for at in range(len(x)):
                logits = k[: at + 1, part] @ q[at, part] / math.sqrt(size)
                shares = np.exp(logits - logits.max())
                mixed[at, part] = shares / shares.sum() @ v[: at + 1, part]
        return linear(mixed, f"{name}.out_proj")

    x = w["text_model.embeddings.token_embedding.weight"][tokens]
    x = x + w["text_model.embeddings.position_embedding.weight"][: len(tokens)]
    for number in range(config["num_hidden_layers"]):
        layer = f"text_model.encoder.layers.{number}"
        x = x + attention(norm(x, f"{layer}.layer_norm1"), f"{layer}.self_attn")
        hidden = activation(linear(norm(x, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1"))
        x = x + linear(hidden, f"{layer}.mlp.fc2")
    return norm(x, "text_model.final_layer_norm")[-1] @ w["text_projection.weight"].T


def unpadded(encoder, text, end):
    tokens = [int(token) for token in encoder.tokenizer([text])[0]]
    return tokens[: tokens.index(end) + 1]


@pytest.fixture(scope="module")
def folder(toy_clip, tmp_path_factory):
    """A checkpoint; not to be changed by a test."""
    return toy_clip.write(tmp_path_factory.mktemp("clip") / "toy")


@pytest.fixture(scope="module")
def encoder(folder):
    return ClipTextEncoder.load(folder)


@pytest.mark.parametrize(("activation", "end"), [("quick_gelu", "greatest"), ("gelu", "named")])
def test_agrees_with_a_float64_reference(toy_clip, tmp_path, activation, end):
    end_token = toy_clip.vocabulary()[toy_clip.END]
    config = toy_clip.text_config(
        hidden_act=activation, layer_norm_eps=1e-2, eos_token_id=end_token if end == "named" else 2
    )
    weights = toy_clip.random_weights()
    encoder = text_encoder(f"clip:{toy_clip.write(tmp_path, config=config, weights=weights)}")
    ours = encoder.encode(TEXTS)
    assert ours.dtype == np.float32
    for text, row in zip(TEXTS, ours, strict=True):
        expected = reference(weights, config, unpadded(encoder, text, end_token))
        np.testing.assert_allclose(row, expected / np.linalg.norm(expected), rtol=0, atol=2e-5)


def test_end_is_the_greatest_token_where_the_config_is_old(toy_clip, tmp_path):
    # A token above the end, as those that users add: an old config reads the text out there.
    vocab = toy_clip.vocabulary()
    start, end, above = vocab[toy_clip.START], vocab[toy_clip.END], len(vocab)
    weights = toy_clip.random_weights()
    token_embedding = "text_model.embeddings.token_embedding.weight"
    weights[token_embedding] = np.concatenate([weights[token_embedding], np.ones([1, 24], "f4")])
    tokens = np.array([[start, 5, above, 7, end]])
    for name, eos, last in [("old", 2, 3), ("new", end, 5)]:
        config = toy_clip.text_config(eos_token_id=eos, vocab_size=len(vocab) + 1)
        path = toy_clip.write(tmp_path / name, config=config, weights=weights)
        encoder = ClipTextEncoder.load(path)
        ours = encoder._apply(encoder.params, tokens)[0]
        expected = reference(weights, config, tokens[0, :last])
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5)


def test_batches_and_padding_do_not_matter(encoder):
    texts = [f"{'in ' * (n % 3)}three {n}" for n in range(40)]
    together = encoder.encode(texts)
    assert together.shape == (40, encoder.dim)
    for number in (0, 31, 32, 39):
        alone = encoder.encode([texts[number]])
        np.testing.assert_array_equal(alone[0], together[number])
    assert encoder.encode([]).shape == (0, encoder.dim)
    assert len(np.unique(together.round(5), axis=0)) == 40


def test_a_whole_clip_is_the_same_encoder(toy_clip, tmp_path, encoder):
    text = toy_clip.text_config()
    vision = {
        "vision_model.post_layernorm.bias": np.zeros(3, np.float32),
        "visual_projection.weight": np.zeros([2, 3], np.float32),
        "logit_scale": np.array(2.6, np.float32),
        "text_model.embeddings.position_ids": np.arange(10)[None],
    }
    # The projection's size is CLIP's own; transformers ignores the tower's, too.
    changed = text | {"projection_dim": 512}
    config = {"model_type": "clip", "projection_dim": 12, "text_config": changed}
    whole = toy_clip.write(
        tmp_path / "whole", config=config, weights=toy_clip.random_weights() | vision
    )
    assert ClipTextEncoder.load(whole).name == encoder.name
    # As old configs have it: text_config_dict counts, text_config does not.
    config |= {"text_config_dict": text, "text_config": text | {"hidden_act": "gelu"}}
    (tmp_path / "whole" / "config.json").write_text(json.dumps(config))
    assert ClipTextEncoder.load(whole).name == encoder.name


def test_name_is_of_the_content(toy_clip, tmp_path, encoder):
    assert encoder.name.startswith("clip-")
    assert len(encoder.name) == 21
    copy = toy_clip.write(tmp_path / "copy")
    assert ClipTextEncoder.load(copy).name == encoder.name
    weights = toy_clip.random_weights()
    weights["text_model.final_layer_norm.bias"][3] += 1e-3
    others = [
        {"weights": weights},
        {"config": toy_clip.text_config(layer_norm_eps=1e-4)},
        {"config": toy_clip.text_config(hidden_act="gelu")},
        {"config": toy_clip.text_config(num_attention_heads=2)},
        {"config": toy_clip.text_config(eos_token_id=2)},
        {"write_tokenizer": toy_clip.write_tokenizer_json},
    ]
    names = {encoder.name}
    for number, other in enumerate(others):
        names.add(ClipTextEncoder.load(toy_clip.write(tmp_path / str(number), **other)).name)
    assert len(names) == 1 + len(others)


BIAS = "text_model.encoder.layers.1.mlp.fc1.bias"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new', expected one of gelu, quick_gelu"),
        ({"hidden_act": ["gelu"]}, "hidden_act is "),
        ({"layer_norm_eps": "small"}, "layer_norm_eps is 'small'"),
        ({"eos_token_id": 7}, "texts end with token 523, config.json says eos_token_id 7"),
        ({"eos_token_id": [523]}, "eos_token_id is .523., expected a positive integer"),
        ({"num_attention_heads": 5}, "hidden_size 24 is not a multiple of num_attention_heads 5"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"num_hidden_layers": 10**9}, "config.json says 1000000000 layers"),
        ({"num_hidden_layers": 1}, "unknown tensor 'text_model.encoder.layers.1"),
        ({"num_hidden_layers": 3}, "layers.2.* is missing, expected shape"),
        ({"projection_dim": 13}, r"projection.weight' is of shape \[12, 24\], expected .*\[13, 24"),
        ({"vocab_size": 500}, "has a token 523, config.json says vocab_size 500"),
        ({"vocab_size": 525}, "token_embedding.weight' is of shape"),
        ({"model_type": "siglip"}, "model_type is 'siglip', expected one of clip, clip_text_model"),
        ({"model_type": "clip", "text_config": 3}, "text_config is 3, expected an object"),
    ],
)
def test_configs_that_do_not_fit(toy_clip, tmp_path, config, message):
    path = toy_clip.write(tmp_path, config=toy_clip.text_config(**config))
    with pytest.raises(ProbexError, match=message):
        ClipTextEncoder.load(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (BIAS, None, f"tensor '{BIAS}' is missing"),
        (BIAS, np.zeros([41], "f4"), rf"tensor '{BIAS}' is of shape \[41\], expected shape \[40\]"),
        (BIAS, np.full([40], np.nan, "f4"), "are NaN"),
        ("text_projection.weight", None, "no text_projection.weight, .* CLIPTextModelWithProj"),
        ("text_projection.bias", np.zeros([12], "f4"), "unknown tensor 'text_projection.bias'"),
        ("lora.up", np.zeros([2, 3], "f4"), "unknown tensor 'lora.up'"),
    ],
)
def test_weights_that_do_not_fit(toy_clip, tmp_path, name, value, message):
    weights = toy_clip.random_weights() | {name: value}
    weights = {name: value for name, value in weights.items() if value is not None}
    with pytest.raises(ProbexError, match=message) as raised:
        ClipTextEncoder.load(toy_clip.write(tmp_path, weights=weights))
    assert str(tmp_path) in str(raised.value)


def test_folders_that_are_no_checkpoint(tmp_path, folder, toy_clip, monkeypatch):
    with pytest.raises(ProbexError, match="no such folder, and no hub id such as openai/clip"):
        ClipTextEncoder.load("/no/such/folder")
    path = toy_clip.write(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ProbexError, match=r"no config\.json"):
        ClipTextEncoder.load(path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ProbexError, match="CLIP needs tokenizers: pip install tokenizers"):
        ClipTextEncoder.load(folder)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ProbexError, match="pip install huggingface_hub"):
        ClipTextEncoder.load("openai/clip-vit-large-patch14")
