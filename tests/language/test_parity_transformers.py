"""The CLIP text tower and its tokens against transformers, on random checkpoints it writes."""

import json

import numpy as np
import pytest

from probex_jax.language import ClipTextEncoder

pytestmark = pytest.mark.parity

TEXTS = [
    "three",
    "An inverted three, mirrored!",
    "a photo of the seventh seven's 42nd 'three' … they'd've",
    "in an " * 60,
    "x" * 500,
    "  many\t\tspaces\r\n and\u00a0\u2003\u3000others\u200bzero\ufeff\u0085 ",
    "ÀÉÎ e\u0301 ﬁ İstanbul STRASSE ß Ǆ ΑΣ",
    "猫の写真 किताब ปลา قطة Ⅷ ²³ ½ ٣ 1234567890",
    "🐟👩‍👩‍👧 ❤\ufe0f ‽ ¿? --- <b> ``'' 's 'S 't'm",
    "a <|endoftext|> b <|startoftext|> c <|ENDOFTEXT|>",
    "<|endoftext|>",
    "",
    "\x00 \x01\x7f",
]


@pytest.fixture
def folder(request, toy_clip, tmp_path):
    """A folder with the tokenizer as transformers writes it, or as its old files."""
    import transformers

    toy_clip.write_vocabulary(tmp_path)
    if request.param == "tokenizer.json":
        transformers.CLIPTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
        assert (tmp_path / "tokenizer.json").exists()
    return tmp_path


def text_config(toy_clip, **changes):
    import transformers

    vocab = toy_clip.vocabulary()
    return transformers.CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        intermediate_size=52,
        projection_dim=20,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=24,
        initializer_factor=3.0,
        bos_token_id=vocab[toy_clip.START],
        **changes,
    )


def randomised(model_class, config):
    """Random biases and norms, too, which start as zeros and ones."""
    import torch

    torch.manual_seed(0)
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.eval()


def theirs(folder, model, texts):
    """transformers' text embeddings of one padded batch."""
    import torch
    import transformers

    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=24, return_tensors="pt")
    with torch.no_grad():
        return getattr(model, "get_text_features", model)(**tokens)


@pytest.mark.parametrize(
    ("folder", "activation", "eos"),
    [
        ("tokenizer.json", "quick_gelu", "named"),
        ("tokenizer.json", "gelu", "legacy"),
        ("vocab.json", "quick_gelu", "legacy"),
        ("vocab.json", "gelu", "named"),
    ],
    indirect=["folder"],
)
def test_text_tower_with_projection(toy_clip, folder, activation, eos):
    import transformers

    end = toy_clip.vocabulary()[toy_clip.END] if eos == "named" else 2
    config = text_config(toy_clip, hidden_act=activation, eos_token_id=end, layer_norm_eps=1e-3)
    model = randomised(transformers.CLIPTextModelWithProjection, config)
    model.save_pretrained(folder)
    expected = theirs(folder, model, TEXTS).text_embeds.numpy()
    ours = ClipTextEncoder.load(str(folder)).encode(TEXTS)
    assert 0.5 < expected.std() < 5
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(ours, unit, rtol=0, atol=1e-5)


@pytest.mark.parametrize("folder", ["tokenizer.json"], indirect=True)
def test_whole_clip(toy_clip, folder):
    import transformers

    text = text_config(toy_clip, eos_token_id=toy_clip.vocabulary()[toy_clip.END])
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    config = transformers.CLIPConfig(
        text_config=text.to_dict(), vision_config=vision, projection_dim=28
    )
    model = randomised(transformers.CLIPModel, config)
    model.save_pretrained(folder)
    assert "vision_config" in json.loads((folder / "config.json").read_text())
    expected = theirs(folder, model, TEXTS).pooler_output.numpy()
    encoder = ClipTextEncoder.load(str(folder))
    assert encoder.dim == 28
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode(TEXTS), unit, rtol=0, atol=1e-5)


@pytest.mark.parametrize("folder", ["tokenizer.json", "vocab.json"], indirect=True)
def test_tokens(toy_clip, folder):
    import transformers

    from probex_jax.language.clip_checkpoint import read_tower
    from probex_jax.language.clip_tokens import ClipTokenizer

    ours = ClipTokenizer(folder, read_tower(toy_clip.text_config(), "config.json"))(TEXTS)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    expected = tokenizer(
        TEXTS, padding="max_length", truncation=True, max_length=toy_clip.CONTEXT
    ).input_ids
    assert ours.tolist() == expected


def test_tokens_of_the_files_on_the_hub(toy_clip, tmp_path):
    """Where tokenizer.json was not written by the transformers of today."""
    toy_clip.write_tokenizer_json(tmp_path)
    test_tokens(toy_clip, tmp_path)
