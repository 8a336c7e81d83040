"""Writes the seeds of `fuzz_atheris`: a file of each dialect, configs, and the hostile models.

python -m tests.model_files.fuzz_seeds
"""

import io
import json
import tempfile
from functools import partial
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
from flax import serialization
from safetensors.numpy import save

from tests.model_files.containers.gguf_files import write as write_gguf
from tests.model_files.fuzz_target import KINDS, PEFT, SHARDS, TREE, ZARR, ones
from tests.model_files.test_hostile import HOSTILE

CORPUS = Path(__file__).parent / "corpus"
DATA = Path(__file__).parent / "containers" / "data"
MAX_BYTES = 30_000
_FILES = {
    "model.safetensors": "file",
    "model.safetensors.index.json": "index",
    "adapter_config.json": "adapter",
    "config.json": "config",
}


def kohya(path, alpha):
    return {
        f"{path}.lora_up.weight": ones(4, 2),
        f"{path}.lora_down.weight": ones(2, 3),
        f"{path}.alpha": alpha,
    }


def factors(path, up=(4, 2), down=(2, 3), dtype="f4", middle=".lora"):
    shapes = {"up": up, "down": down}
    return {f"{path}{middle}.{k}.weight": ones(*v, dtype=dtype) for k, v in shapes.items()}


GOOD = {
    "dense": {
        "layer.0.weight": ones(3, 4),
        "layer.1.weight": ones(2, 5, 1, 2, dtype="f2"),
        "layer.2.weight": ones(2, 3, dtype=ml_dtypes.float8_e4m3fn),
        "layer.3.weight": ones(2, 3, dtype=ml_dtypes.float8_e5m2),
        "layer.4.weight": ones(2, 3, dtype=ml_dtypes.bfloat16),
        "classifier.weight": ones(2, 3, dtype="f8"),
        "positions": ones(1, 2, 3),
        "ids": ones(3, dtype="i4"),
        "none": ones(0, 2),
        "scalar": ones(),
    },
    "peft": PEFT,
    "kohya": {
        **kohya("lora_unet_mid_block_attentions_0_proj_in", ones()),
        **kohya("lora_te1_text_model_encoder_layers_0_mlp_fc1", ones(1, dtype="i8")),
    },
    "diffusers": factors("unet.mid_block.attentions.0.to_k"),
    "processors": factors("down_blocks.0.attentions.0.attn1", middle=".processor.to_out_lora"),
    "loha": {"x.hada_w1_a": ones(2, 2), "w": ones(2, 2)},
    "unknown module": kohya("lora_unet_what_is_this", ones()),
    "two adapters": {f"w.lora_A{name}.weight": ones(2, 2) for name in ("", ".one", ".two")},
    "odd factors": {
        **factors("integers", dtype="i4"),
        **factors("vectors", (2,), (2,)),
        **factors("empty", (0, 2), (2, 3)),
        **factors("kernels", (3, 2, 3, 3), (2, 3, 1, 1)),
    },
    "six axes": {"w": ones(2, 1, 2, 1, 1, 2)},
}
TEXTS = {
    "index": json.dumps(
        {"metadata": {}, "weight_map": {n: f for f, s in SHARDS.items() for n in s}}
    ),
    "adapter": (
        '{"r": 2, "lora_alpha": 4, "use_rslora": true, "alpha_pattern": {"conv_in": 1, '
        '"0.to_q": 2.5}, "base_model_name_or_path": "me/base"}'
    ),
    "config": '{"_name_or_path": "me/base", "model_type": "vit", "id2label": {"0": "ant"}}',
    "card": "---\ntags:\n- a\nbase_model:\n- me/base # mine\n---\n# A model\n",
    "card list": "---\nbase_model: ['a/b', c]\n---\n",
    "labels": r"""['ant', "sea's \x41 \u00e9", 'bee',]""",
    "labels json": r'["ant", "\ud83d\ude00"]',
    "card texts": (
        "---\ntags: [a, 'b']\ninstance_prompt: sks\nwidget:\n- text: >-\n    a\n    b\n"
        "license: &x mit\ndatasets: *x\n---\n"
    ),
    "tags": (
        '{"10_cat": {"cat": 20, "sofa \\\\(red\\\\)": 5}, '
        '"2_dog": {"n_repeats": 2, "img_count": 8}}'
    ),
    "tags datasets": (
        '[{"tag_frequency": {"1_x": {"cat": 2}}, "subsets": [{"image_dir": "a/1_x", '
        '"img_count": 4, "class_tokens": "x"}]}]'
    ),
    "sidecar": (
        '{"baseModel": "Pony", "trainedWords": ["a, b"], "model": {"name": "M", "tags": ["t"]}, '
        '"images": [{"meta": {"prompt": "p"}}], "civitai": {"creator": {"username": "me"}}}'
    ),
    "table": 'model,kind,lr,sharp\na,amp;"pedal",0.1,yes\nb,[],2e-3,NA\nc,n/a,"0,5",no\n',
    "table semicolons": "Modell;Rate;Anteil\r\na;0,001;93 %\r\nb;1.234,5;-\r\n",
    "rows": (
        '[{"model": "a", "kind": ["amp", "pedal"], "lr": 0.1, "sharp": true}, '
        '{"id": "b", "lr": "1e-3", "kind": null, "sharp": false}]'
    ),
    "rows by model": '{"a": {"kind": "amp", "steps": 3}, "b": {"steps": NaN}}',
    "revision": "0123abcd",
    "scales": '{"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {"conv_in": 1}}',
}


def gguf_file():
    tensors = {
        "blk.0.attn_q.weight": ones(4, 32),
        "blk.0.ffn_up_exps.weight": ones(2, 2, 4, dtype="f2"),
        "output_norm.weight": ones(4),
    }
    types = {"blk.0.attn_q.weight": gguf.GGMLQuantizationType.Q8_0}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.gguf"
        write_gguf(path, "llama", tensors, types, name="mine", token_list=[b"a", b"b"])
        return path.read_bytes()


def msgpack_file():
    params = {"fc": {"kernel": ones(2, 3), "bias": ones(3)}, "half": ones(2, 2, dtype="f2")}
    chunked = {
        "__msgpack_chunked_array__": True,
        "shape": {"0": 2, "1": 3},
        "chunks": {"0": ones(4), "1": ones(2)},
    }
    state = {"params": {**params, "long": chunked}, "opt_state": {"0": ones(2)}, "step": 3}
    return serialization.msgpack_serialize(state)


def npz_file(save):
    file = io.BytesIO()
    save(file, **{"params/a/kernel": ones(2, 3), "b": np.asfortranarray(ones(2, 2))})
    return file.getvalue()


CONTAINERS = {
    "gguf": gguf_file,
    "msgpack": msgpack_file,
    "npz": partial(npz_file, np.savez),
    "npz packed": partial(npz_file, np.savez_compressed),
    "hdf5": (DATA / "small.weights.h5").read_bytes,
    "hdf5 old": (DATA / "small.h5").read_bytes,
    "keras": (DATA / "small.keras").read_bytes,
    "tree": lambda: TREE,
    "zarr": lambda: ZARR,
}


def seeds():
    """Name to input."""
    for name, make in CONTAINERS.items():
        yield name, (name.partition(" ")[0], make())
    for name, tensors in GOOD.items():
        data = save(tensors)
        yield name, ("file", data)
        size = int.from_bytes(data[:8], "little")
        yield f"{name} header", ("header", data[8 : 8 + size].rstrip())
    for name, text in TEXTS.items():
        yield name, (name.partition(" ")[0], text.encode())
    for case, (write, _) in HOSTILE.items():
        with tempfile.TemporaryDirectory() as folder:
            inner = Path(folder) / "model"
            inner.mkdir()
            write(inner)
            found = [path for path in inner.iterdir() if path.name in _FILES]
            path = min(found, key=lambda path: path.name, default=None)
            if path and path.is_file() and not path.is_symlink():
                yield f"hostile {case}", (_FILES[path.name], path.read_bytes())


def main():
    for name, (kind, body) in seeds():
        if len(body) <= (MAX_BYTES if kind in CONTAINERS else 4000):
            path = CORPUS / name.replace(" ", "-").replace(",", "")
            path.write_bytes(bytes([ord("0") + KINDS.index(kind)]) + b"..." + body)


if __name__ == "__main__":
    main()
