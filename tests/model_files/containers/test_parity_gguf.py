"""GGUF files as transformers reads them: the same names and numbers."""

import numpy as np
import pytest

from probex_jax.model_files import fingerprint, open_model
from tests.model_files.containers.gguf_files import (
    BLOCKS,
    HEADS,
    HIDDEN,
    INNER,
    KEYS,
    VOCABULARY,
    gguf_names,
    write,
)

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore"),
]

SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEYS,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"n_embd": HIDDEN, "n_layer": BLOCKS, "n_head": HEADS, "vocab_size": VOCABULARY}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2, "n_inner": INNER, "n_positions": 64}
EXPERTS = {"num_experts": 4, "moe_intermediate_size": 16, "num_local_experts": 4}

# Of an architecture, the class of its configuration and model, and further settings.
MODELS = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", SIZES),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", SIZES),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", SIZES | {"head_dim": 8}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", SIZES | {"head_dim": 8}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", SIZES | {"head_dim": 8}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", SIZES),
    "stablelm": ("StableLmConfig", "StableLmForCausalLM", SIZES),
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM", SIZES),
    "nemotron": ("NemotronConfig", "NemotronForCausalLM", SIZES),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", GPT2),
}
# Those of which transformers reads no GGUF file: the names alone.
NAMES = {
    "gemma": ("GemmaConfig", "GemmaForCausalLM", SIZES | {"head_dim": 8}),
    "granite": ("GraniteConfig", "GraniteForCausalLM", SIZES),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", SIZES),
    "cohere2": ("Cohere2Config", "Cohere2ForCausalLM", SIZES),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", SIZES),
    "arcee": ("ArceeConfig", "ArceeForCausalLM", SIZES),
    "command-r": ("CohereConfig", "CohereForCausalLM", SIZES | {"use_qk_norm": True}),
    "olmo": ("OlmoConfig", "OlmoForCausalLM", SIZES),
    "phi2": ("PhiConfig", "PhiForCausalLM", SIZES | {"num_key_value_heads": HEADS}),
    "seed_oss": ("SeedOssConfig", "SeedOssForCausalLM", SIZES | {"head_dim": 8}),
    "bert": ("BertConfig", "BertModel", SIZES),
}


def random_model(config, model, settings):
    import torch
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**settings))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def written(folder, architecture, model, types=None):
    """Any numbers under the names of a model's tensors: both readers undo the same of them."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    names = gguf_names(architecture, state)
    tensors = {names[n]: np.ascontiguousarray(v) for n, v in state.items() if names[n]}
    if architecture == "gpt2":
        turned = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
        for name in tensors:
            if name.endswith(turned):
                tensors[name] = np.ascontiguousarray(tensors[name].T)
    return write(folder / "model.gguf", architecture, tensors, types)


@pytest.mark.parametrize("architecture", MODELS)
def test_tensors_are_as_transformers_reads_them(tmp_path, architecture):
    import transformers

    config, name, settings = MODELS[architecture]
    model = random_model(config, name, settings)
    written(tmp_path, architecture, model)
    theirs = getattr(transformers, name).from_pretrained(
        tmp_path, gguf_file="model.gguf", config=model.config
    )
    expected = {n: v.float().numpy() for n, v in theirs.state_dict().items()}
    with open_model(tmp_path / "model.gguf") as ours:
        assert {*ours.tensors} | {"lm_head.weight"} == {*expected} | {"lm_head.weight"}
        for name in ours.tensors:
            np.testing.assert_allclose(ours.tensor(name), expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("architecture", MODELS | NAMES)
def test_a_model_and_its_gguf_copy_have_the_same_layers(tmp_path, architecture):
    model = random_model(*(MODELS | NAMES)[architecture])
    model.save_pretrained(tmp_path / "whole")
    copy = written(tmp_path, architecture, model)
    absent = {"pooler.dense.weight", "pooler.dense.bias"}  # which llama.cpp leaves out
    with open_model(tmp_path / "whole") as one, open_model(copy) as other:
        shapes = [
            {name: info.shape for name, info in m.all_layers.items() if name not in absent}
            for m in (one, other)
        ]
        shapes[1].pop("lm_head.weight", None)
        shapes[0].pop("lm_head.weight", None)
        assert shapes[0] == shapes[1]
        assert architecture == "bert" or fingerprint(one) == fingerprint(other)
