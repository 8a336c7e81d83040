"""A toy CLIP: random weights, and a byte-pair vocabulary with a few merges."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Regex as Pattern
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = ("t h", "th r", "e e</w>", "thr ee</w>", "s e", "v e", "se ve", "seve n</w>", "i n", "a n")
CONTEXT, WIDTH, INNER, LAYERS, HEADS, DIM = 10, 24, 40, 2, 4, 12


def vocabulary():
    """Token to number: bytes, bytes that end a word, merges, start, end."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += [merge.replace(" ", "") for merge in MERGES]
    return {token: number for number, token in enumerate([*tokens, START, END])}


def write_vocabulary(folder):
    """The tokenizer as `vocab.json` and `merges.txt`."""
    (folder / "vocab.json").write_text(json.dumps(vocabulary(), ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))


def write_tokenizer_json(folder):
    """The tokenizer as the `tokenizer.json` of CLIP's checkpoints on the hub has it."""
    vocab = vocabulary()
    pairs = [tuple(merge.split(" ")) for merge in MERGES]
    tokenizer = Tokenizer(
        models.BPE(vocab, pairs, unk_token=END, end_of_word_suffix="</w>", fuse_unk=False)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Pattern(r"\s+"), " "), normalizers.Lowercase()]
    )
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Pattern(pattern), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        (END, vocab[END]), (START, vocab[START]), trim_offsets=False, add_prefix_space=False
    )
    tokenizer.add_special_tokens([START, END])
    tokenizer.enable_padding(length=77)
    tokenizer.save(str(folder / "tokenizer.json"))


def random_weights(seed=0):
    """The tensors of a CLIPTextModelWithProjection, large enough that every part matters."""
    rng = np.random.default_rng(seed)
    weights = {
        "text_model.embeddings.token_embedding.weight": rng.normal(size=(len(vocabulary()), WIDTH)),
        "text_model.embeddings.position_embedding.weight": rng.normal(size=(CONTEXT, WIDTH)),
        "text_projection.weight": rng.normal(size=(DIM, WIDTH)) * WIDTH**-0.5,
    }

    def linear(name, n_in, n_out):
        weights[f"{name}.weight"] = rng.normal(size=(n_out, n_in)) * 1.5 * n_in**-0.5
        weights[f"{name}.bias"] = rng.normal(size=n_out) * 0.5

    def norm(name):
        weights[f"{name}.weight"] = rng.uniform(0.5, 1.5, size=WIDTH)
        weights[f"{name}.bias"] = rng.normal(size=WIDTH) * 0.5

    for number in range(LAYERS):
        layer = f"text_model.encoder.layers.{number}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{layer}.self_attn.{name}", WIDTH, WIDTH)
        linear(f"{layer}.mlp.fc1", WIDTH, INNER)
        linear(f"{layer}.mlp.fc2", INNER, WIDTH)
        norm(f"{layer}.layer_norm1")
        norm(f"{layer}.layer_norm2")
    norm("text_model.final_layer_norm")
    return {name: value.astype(np.float32) for name, value in weights.items()}


def text_config(**changes):
    """A config.json of the text tower alone."""
    return {
        "model_type": "clip_text_model",
        "vocab_size": len(vocabulary()),
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "projection_dim": DIM,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": CONTEXT,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "eos_token_id": vocabulary()[END],
        **changes,
    }


class ToyClip:
    """Writes toy checkpoints; a fixture, since test modules do not import one another."""

    START, END, CONTEXT, HEADS = START, END, CONTEXT, HEADS
    vocabulary = staticmethod(vocabulary)
    random_weights = staticmethod(random_weights)
    text_config = staticmethod(text_config)
    write_vocabulary = staticmethod(write_vocabulary)
    write_tokenizer_json = staticmethod(write_tokenizer_json)

    @staticmethod
    def write(folder, *, config=None, weights=None, write_tokenizer=write_vocabulary):
        """A whole checkpoint in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config or text_config()))
        save_file(weights or random_weights(), folder / "model.safetensors", {"format": "pt"})
        write_tokenizer(folder)
        return str(folder)


@pytest.fixture(scope="session")
def toy_clip():
    """The writer of toy checkpoints."""
    return ToyClip
