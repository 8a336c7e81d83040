"""GGUF files: names, shapes and numbers are those of transformers; damaged ones are refused."""

import gguf
import numpy as np
import pytest

from probex_jax.errors import ProbexError
from probex_jax.model_files import Limits, fingerprint, open_model
from tests.model_files.containers.gguf_files import HEADS, HIDDEN, KEYS, drawn, write

Q = gguf.GGMLQuantizationType


def interleaved(values, heads):
    """As llama.cpp stores query and key: halves of each head, row by row."""
    rows = []
    for head in np.split(values, heads):
        first, second = np.split(head, 2)
        rows += [row for pair in zip(first, second, strict=True) for row in pair]
    return np.stack(rows)


def test_a_llama_has_the_names_and_rows_of_transformers(tmp_path):
    weights = {
        "model.embed_tokens.weight": drawn(10, HIDDEN),
        "model.layers.1.self_attn.q_proj.weight": drawn(HIDDEN, HIDDEN, seed=1),
        "model.layers.1.self_attn.k_proj.weight": drawn(HIDDEN // 2, HIDDEN, seed=2),
        "model.layers.1.mlp.down_proj.weight": drawn(HIDDEN, 48, seed=3),
        "model.layers.1.input_layernorm.weight": drawn(HIDDEN, seed=4),
    }
    embeddings, query, key, down, norm = weights.values()
    stored = {
        "token_embd.weight": embeddings,
        "blk.1.attn_q.weight": interleaved(query, HEADS),
        "blk.1.attn_k.weight": interleaved(key, KEYS),
        "blk.1.ffn_down.weight": down,
        "blk.1.attn_norm.weight": norm,
    }
    path = write(tmp_path / "a.gguf", "llama", stored, name="mine", token_list=[b"a"] * 1000)
    with open_model(path) as m:
        assert {*m.tensors} == {*weights}
        for name, value in weights.items():
            np.testing.assert_array_equal(m.tensor(name), value)
        assert m.layers["model.layers.1.mlp.down_proj.weight"].shape == (HIDDEN, 48)
        np.testing.assert_array_equal(m.rows("model.embed_tokens.weight", [3]), embeddings[[3]])
        assert m.metadata["general.name"] == "mine"
        assert m.metadata["general.architecture"] == "llama"
        assert not any(key.startswith("tokenizer.") for key in m.metadata)
        m.check_unchanged()


def test_olmo_is_interleaved_too(tmp_path):
    query = drawn(HIDDEN, HIDDEN)
    stored = {"blk.0.attn_q.weight": interleaved(query, HEADS)}
    with open_model(write(tmp_path / "a.gguf", "olmo", stored)) as m:
        np.testing.assert_array_equal(m.matrix("model.layers.0.self_attn.q_proj.weight"), query)


def test_qwen_is_not_interleaved_and_gemma_has_one_added_to_norms(tmp_path):
    query, norm = drawn(HIDDEN, HIDDEN), drawn(HIDDEN)
    stored = {"blk.0.attn_q.weight": query, "blk.0.attn_norm.weight": norm + 1}
    names = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.input_layernorm.weight"
    with open_model(write(tmp_path / "a.gguf", "gemma", stored)) as m:
        np.testing.assert_array_equal(m.tensor(names[0]), query)
        np.testing.assert_allclose(m.tensor(names[1]), norm, atol=1e-6)
    with open_model(write(tmp_path / "b.gguf", "qwen2", stored)) as m:
        np.testing.assert_array_equal(m.tensor(names[0]), query)
        np.testing.assert_array_equal(m.tensor(names[1]), norm + 1)


@pytest.mark.parametrize(
    ("architecture", "tables"),
    [("llama", ["rope_freqs"]), ("phi3", ["rope_factors_long", "rope_factors_short"])],
)
def test_tables_of_positions_are_no_part_of_the_architecture(tmp_path, architecture, tables):
    stored = {"token_embd.weight": drawn(10, HIDDEN), "blk.0.attn_norm.weight": drawn(HIDDEN)}
    with open_model(write(tmp_path / "a.gguf", architecture, stored)) as m:
        names, expected = {*m.all_layers}, fingerprint(m)
    stored |= {f"{table}.weight": drawn(4) for table in tables}
    with open_model(write(tmp_path / "b.gguf", architecture, stored)) as m:
        assert ({*m.all_layers}, fingerprint(m)) == (names, expected)
        assert {*m.left_out} == {f"{table}.weight" for table in tables}


def test_of_an_unknown_architecture_names_stay(tmp_path):
    with open_model(write(tmp_path / "a.gguf", "rwkv6", {"blk.0.attn_q.weight": drawn(4, 8)})) as m:
        assert m.layers["blk.0.attn_q.weight"].shape == (4, 8)


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("qwen3moe", "model.layers.0.mlp.experts.{}.{}_proj.weight"),
        ("olmoe", "model.layers.0.mlp.experts.{}.{}_proj.weight"),
        ("llama", "model.layers.0.block_sparse_moe.experts.{}.{}.weight"),
    ],
)
def test_stacked_experts_are_apart_as_in_transformers(tmp_path, architecture, name):
    """As they lie on the hub, one matrix for each expert."""
    mixtral = {"gate": "w1", "up": "w3", "down": "w2"}
    parts = {part: drawn(3, 8, HIDDEN, seed=i) for i, part in enumerate(mixtral)}
    stored = {f"blk.0.ffn_{part}_exps.weight": value for part, value in parts.items()}
    types = {"blk.0.ffn_up_exps.weight": Q.Q8_0}
    with open_model(write(tmp_path / "a.gguf", architecture, stored, types)) as m:
        assert len(m.layers) == 9
        for part, value in parts.items():
            called = mixtral[part] if architecture == "llama" else part
            for expert in range(3):
                found = m.matrix(name.format(expert, called))
                atol = np.abs(value).max() / 127 if part == "up" else 0
                np.testing.assert_allclose(found, value[expert], atol=atol)


@pytest.mark.parametrize("kind", [Q.Q8_0, Q.Q4_0, Q.Q5_1, Q.BF16, Q.TQ2_0, Q.MXFP4])
def test_quantised_types_are_read_as_the_package_does(tmp_path, kind):
    values = drawn(6, 256)
    names = [f"blk.0.{n}.weight" for n in ("attn_q", "attn_output", "ffn_up")]
    path = write(tmp_path / "a.gguf", "qwen2", dict.fromkeys(names, values), {names[1]: kind})
    expected = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
    with open_model(path) as m:
        name = "model.layers.0.self_attn.o_proj.weight"
        assert (m.layers[name].dtype, m.layers[name].shape) == (kind.name, (6, 256))
        np.testing.assert_array_equal(m.matrix(name), expected)
        assert m.tensor(name).shape == expected.shape
        np.testing.assert_array_equal(m.rows(name, [4, 0]), expected[[4, 0]])
        whole = open_model(write(tmp_path / "b.gguf", "qwen2", dict.fromkeys(names, values)))
        with whole:
            assert fingerprint(m) == fingerprint(whole)


def test_of_quantised_query_rows_are_put_back_in_order(tmp_path):
    query = drawn(64, 64)
    stored = {"blk.0.attn_q.weight": interleaved(query, HEADS)}
    path = write(tmp_path / "a.gguf", "llama", stored, {"blk.0.attn_q.weight": Q.Q8_0})
    with open_model(path) as m:
        found = m.matrix("model.layers.0.self_attn.q_proj.weight")
        np.testing.assert_allclose(found, query, atol=np.abs(query).max() / 127)


def test_an_adapter_is_that_of_peft(tmp_path):
    down, up = drawn(4, HIDDEN), drawn(HIDDEN, 4, seed=1)
    stored = {
        "blk.0.attn_q.weight.lora_a": down,
        "blk.0.attn_q.weight.lora_b": interleaved(up, HEADS),
    }
    path = write(tmp_path / "a.gguf", "llama", stored, **{"adapter.lora.alpha": 8.0})
    with open_model(path) as m:
        assert [*m.layers] == ["model.layers.0.self_attn.q_proj"]
        assert not m.unscaled
        found = m.matrix("model.layers.0.self_attn.q_proj")
        np.testing.assert_allclose(found.up @ found.down, 2 * up @ down, rtol=1e-5, atol=1e-5)


def test_a_convolution_that_comfyui_made_a_matrix(tmp_path):
    kernel = drawn(8, 4, 3, 3)
    key = "comfy.gguf.orig_shape.conv_in.weight"
    stored = {"conv_in.weight": kernel.reshape(8, 36), "x.weight": drawn(8, 4)}
    path = write(tmp_path / "a.gguf", "sd1", stored, **{key: [8, 4, 3, 3]})
    with open_model(path) as m:
        assert m.layers["conv_in.weight"].kind == "conv"
        np.testing.assert_array_equal(m.tensor("conv_in.weight"), kernel)


def test_a_type_that_is_not_dequantised_is_left_out_by_name(tmp_path):
    path = write(tmp_path / "a.gguf", "llama", {"a.weight": drawn(4, 32), "b.weight": drawn(2, 2)})
    data = bytearray(path.read_bytes())
    at = data.index(b"a.weight") + len("a.weight") + 4 + 16
    data[at : at + 4] = int(Q.Q8_K).to_bytes(4, "little")
    data[at - 16 : at - 8] = (256).to_bytes(8, "little")
    data[at - 8 : at] = (1).to_bytes(8, "little")
    path.write_bytes(data)
    with open_model(path) as m:
        assert "Q8_K" in m.left_out["a.weight"]
        assert [*m.layers] == ["b.weight"]


def test_empty_tensors_of_any_type_are_empty(tmp_path):
    stored = {"blk.0.attn_q.weight": np.ones((8, 0), "f4"), "blk.0.attn_k.weight": drawn(8, 32)}
    path = write(tmp_path / "a.gguf", "llama", stored, {"blk.0.attn_k.weight": Q.Q8_0})
    data = bytearray(path.read_bytes())
    at = data.index(b"blk.0.attn_k.weight") + len("blk.0.attn_k.weight") + 4
    data[at : at + 8] = bytes(8)
    path.write_bytes(data)
    with open_model(path) as m:
        assert {*m.left_out.values()} == {"empty"}
        for name, shape in (("q_proj", (8, 0)), ("k_proj", (8, 0))):
            assert m.tensor(f"model.layers.0.self_attn.{name}.weight").shape == shape


def test_shards_are_read_together(tmp_path):
    names = [f"mine-0000{number}-of-00002.gguf" for number in (1, 2)]
    write(tmp_path / names[0], "llama", {"token_embd.weight": drawn(4, 8)}, name="mine")
    write(tmp_path / names[1], "llama", {"output.weight": drawn(4, 8)})
    write(tmp_path / "a-00001-of-00001.gguf", "llama", {"token_embd.weight": drawn(2, 2)})
    with pytest.raises(ProbexError, match=r"which of its 3 other files"):
        open_model(tmp_path)
    (tmp_path / "a-00001-of-00001.gguf").unlink()
    for path in (tmp_path, *(tmp_path / name for name in names)):
        with open_model(path) as m:
            assert [*m.layers] == ["lm_head.weight", "model.embed_tokens.weight"]
            assert m.metadata["general.name"] == "mine"
    (tmp_path / names[1]).unlink()
    with pytest.raises(ProbexError, match="shard 2 of 2 is missing"):
        open_model(tmp_path)
    with pytest.raises(ProbexError, match=f"{names[1]}: no such file"):
        open_model(tmp_path / names[0])


@pytest.mark.parametrize("name", ["a-3-of-2.gguf", "a-0-of-2.gguf", "a-1-of-999999.gguf"])
def test_a_shard_that_cannot_be(tmp_path, name):
    write(tmp_path / name, "llama", {"token_embd.weight": drawn(4, 8)})
    with pytest.raises(ProbexError, match=f"{name}: shard"):
        open_model(tmp_path / name)


def test_of_several_files_one_must_be_named(tmp_path):
    for kind in ("Q4_K_M", "Q8_0"):
        write(tmp_path / f"model-{kind}.gguf", "llama", {"token_embd.weight": drawn(4, 8)})
    with pytest.raises(ProbexError, match=r"which of its 2 other files .*Q8_0\.gguf"):
        open_model(tmp_path)


def number(value, size=8):
    return value.to_bytes(size, "little")


def head(tensors=1, keys=0, version=3):
    return b"GGUF" + number(version, 4) + number(tensors) + number(keys)


def text(value):
    return number(len(value)) + value


HUGE = 2**63
HOSTILE = {
    "a version of the future": (head(version=9), "version 9"),
    "big-endian": (b"GGUF" + (3).to_bytes(4, "big") + head()[8:], "version"),
    "many tensors": (head(10**6), "1000000 tensors, the limit is 250000"),
    "many keys": (head(keys=HUGE), "keys, the limit"),
    "a long name": (head() + number(HUGE), "a text of"),
    "a long value": (head(keys=1) + text(b"a") + number(8, 4) + number(HUGE), "a text of"),
    "a long list": (
        head(keys=1) + text(b"a") + number(9, 4) + number(4, 4) + number(HUGE), "truncated"),
    "a long list of texts": (
        head(keys=1) + text(b"a") + number(9, 4) + number(8, 4) + number(HUGE), "missing"),
    "lists of lists": (
        head(keys=1) + text(b"a") + number(9, 4) + 1000 * (number(9, 4) + number(1)), "deep"),
    "many axes": (head() + text(b"a") + number(9, 4), "9 axes"),
    "a huge shape": (
        head() + text(b"a") + number(2, 4) + 2 * number(2**62) + number(0, 4) + number(0),
        "shape"),
    "a block cut": (
        head() + text(b"a") + number(1, 4) + number(5) + number(8, 4) + number(0), "shape"),
    "beyond the end": (
        head() + text(b"a") + number(1, 4) + number(8) + number(0, 4) + number(HUGE), "truncated"),
    "a name that leads out": (
        head() + text(b"../a") + number(1, 4) + number(1) + number(0, 4) + number(0) + bytes(40),
        "leads out"),
    "an alignment of zero": (
        head(keys=1) + text(b"general.alignment") + number(4, 4) + number(0, 4)
        + text(b"a") + number(1, 4) + number(1) + number(0, 4) + number(0) + bytes(40),
        "alignment"),
    "no tensors": (head(0) + bytes(32), "no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_in_one_line(tmp_path, case):
    data, fragment = HOSTILE[case]
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    with pytest.raises(ProbexError, match=fragment) as caught:
        open_model(path)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).isprintable()


def test_the_limit_of_headers_holds(tmp_path):
    path = write(tmp_path / "a.gguf", "llama", {"a.weight": drawn(4, 8)}, token_list=[b"a"] * 1000)
    open_model(path).close()
    with pytest.raises(ProbexError, match="limit"):
        open_model(path, limits=Limits(header_bytes=5000))
