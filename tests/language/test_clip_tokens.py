"""CLIP's tokens, worked out by hand on a toy vocabulary."""

import numpy as np
import pytest

from probex_jax import ProbexError
from probex_jax.language import ClipTextEncoder
from probex_jax.language.clip_checkpoint import read_tower
from probex_jax.language.clip_tokens import ClipTokenizer


@pytest.fixture(params=["write_vocabulary", "write_tokenizer_json"])
def tokenizer(request, toy_clip, tmp_path):
    getattr(toy_clip, request.param)(tmp_path)
    return ClipTokenizer(tmp_path, read_tower(toy_clip.text_config(), "config.json"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("three", ["three</w>"]),
        ("  THREE\n\tseven ", ["three</w>", "seven</w>"]),
        ("sevens", ["seve", "n", "s</w>"]),
        ("ab12", ["a", "b</w>", "1</w>", "2</w>"]),
        ("an's!?", ["a", "n</w>", "'", "s</w>", "!", "?</w>"]),
        ("e\u0301", ["Ã", "©</w>"]),  # composed, then its two bytes
        ("É", ["Ã", "©</w>"]),
        ("<|endoftext|>", ["<|endoftext|>"]),
        ("", []),
        ("in " * 30, ["i", "n</w>"] * 4),
        ("three " * 30, ["three</w>"] * 8),
    ],
)
def test_tokens_by_hand(toy_clip, tokenizer, text, expected):
    vocab = toy_clip.vocabulary()
    tokens = tokenizer([text])
    assert tokens.dtype == np.int32
    assert tokens.shape == (1, toy_clip.CONTEXT)
    body = [vocab[toy_clip.START], *(vocab[token] for token in expected)]
    padding = [vocab[toy_clip.END]] * (toy_clip.CONTEXT - len(body))
    assert tokens[0].tolist() == body + padding
    assert padding, "the end is missing"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", r"tokenizer\.json: no tokenizer can be made of it"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "0 tokens, ex"),
        ("vocab.json", "[1]", r"vocab\.json is a JSON list, expected an object"),
        ("vocab.json", '{"a": 1}', r"vocab\.json: no tokenizer .* no token <\|startoftext\|>"),
        ("merges.txt", "t hh", "no tokenizer can be made of it"),
        ("merges.txt", b"\xff", "no tokenizer can be made of it"),
        ("merges.txt", None, r"no merges\.txt; a tokenizer is tokenizer\.json, or vocab\.json"),
    ],
)
def test_files_that_are_no_tokenizer(toy_clip, tmp_path, name, content, message):
    path = toy_clip.write(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ProbexError, match=message):
        ClipTextEncoder.load(path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "vocab.json", "merges.txt"])
def test_files_of_a_checkpoint_are_no_links_that_lead_out(toy_clip, tmp_path, name):
    folder = tmp_path / "clip"
    folder.mkdir()
    path = toy_clip.write(folder)
    if name == "tokenizer.json":
        toy_clip.write_tokenizer_json(folder)
    encoder = ClipTextEncoder.load(path)
    (folder / name).rename(folder / "inside")
    (folder / name).symlink_to("inside")
    assert ClipTextEncoder.load(path).name == encoder.name
    (folder / "inside").rename(tmp_path / "outside")
    (folder / name).unlink()
    (folder / name).symlink_to("../outside")
    with pytest.raises(ProbexError, match=f"{name}: a link that leads out of the model's folder"):
        ClipTextEncoder.load(path)
