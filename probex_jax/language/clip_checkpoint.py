"""CLIP checkpoints in Hugging Face's format: finding the files, and reading the text tower."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from probex_jax.errors import ProbexError
from probex_jax.language.clip_tower import ACTIVATIONS, TextTower
from probex_jax.model_files import ModelFile
from probex_jax.model_files.locate import INDEX, SINGLE, local_files
from probex_jax.model_files.untrusted_text import quoted

_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_HUB_FILES = [
    "config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    SINGLE,
    INDEX,
    "model-*-of-*.safetensors",
]
_CONVERT = (
    "load it with transformers' CLIPTextModelWithProjection or CLIPModel and call "
    "save_pretrained(folder)"
)

_MODEL_TYPES = ("clip", "clip_text_model")

# Field of TextTower -> field of config.json, and what transformers takes where it is absent.
_SIZES = {
    "vocab_size": ("vocab_size", 49408),
    "context": ("max_position_embeddings", 77),
    "width": ("hidden_size", 512),
    "mlp_width": ("intermediate_size", 2048),
    "n_layers": ("num_hidden_layers", 12),
    "n_heads": ("num_attention_heads", 8),
}
_DEFAULT_DIM, _DEFAULT_END_TOKEN, _DEFAULT_EPSILON = 512, 49407, 1e-5
# Configs from before transformers knew better say this; the end token is then the greatest.
_LEGACY_END_TOKEN = 2

_BODY = "text_model."
_PROJECTION = "text_projection.weight"
_OTHER_PARTS = re.compile(r"vision_model\..*|visual_projection\..*|logit_scale")
# Older files keep the numbers 0, 1, 2, … as if they were weights.
_BUFFER = "text_model.embeddings.position_ids"


def find_checkpoint(path_or_hub_id: str) -> Path:
    """The folder of a checkpoint: a local one, or where the hub's client keeps it."""
    path = Path(path_or_hub_id)
    if "\0" not in path_or_hub_id and path.exists():
        return local_files(path)[0].parent
    hub_id = _HUB_ID.fullmatch(path_or_hub_id)
    if not hub_id:
        raise ProbexError(
            f"{quoted(path_or_hub_id)}: no such folder, and no hub id such as "
            "openai/clip-vit-large-patch14, or one with @revision"
        )
    return _download(hub_id[1], hub_id[2])


def _download(repository: str, revision: str | None) -> Path:
    try:
        import huggingface_hub
    except ImportError:
        raise ProbexError(
            f"{repository}: no such folder; the hub needs huggingface_hub: "
            "pip install huggingface_hub"
        ) from None
    # All files of one commit, or what is whole in the client's cache where there is no network.
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=_HUB_FILES
            )
        )
    except Exception as error:  # OSError, ValueError, or of the HTTP library that it uses
        reason = " ".join(str(error).split())[:300]
        raise ProbexError(
            f"{repository}: no such folder, and the hub's client says: {reason}"
        ) from error
    if not any((folder / name).exists() for name in (SINGLE, INDEX)):
        raise ProbexError(f"{repository}: no {SINGLE} on the hub; {_CONVERT}, then give the folder")
    return folder


def read_tower(config: Mapping[str, Any], where: str) -> TextTower:
    """The tower that a config.json describes, of a whole CLIP or of a text tower alone."""
    if config.get("model_type") not in _MODEL_TYPES:
        raise ProbexError(
            f"{where}: model_type is {quoted(config.get('model_type'))}, expected one of "
            f"{', '.join(_MODEL_TYPES)}"
        )
    # transformers lets text_config_dict, where an old config has it, replace text_config.
    parts = [config[k] for k in ("text_config_dict", "text_config") if config.get(k) is not None]
    text = parts[0] if parts else config
    if not isinstance(text, Mapping):
        raise ProbexError(f"{where}: text_config is {quoted(text)}, expected an object")

    def size(values: Mapping[str, Any], field: str, default: int) -> int:
        value = values.get(field, default)
        if type(value) is not int or not 0 < value < 2**31:
            raise ProbexError(f"{where}: {field} is {quoted(value)}, expected a positive integer")
        return value

    sizes: dict[str, Any] = {name: size(text, *field) for name, field in _SIZES.items()}
    end_token = size(text, "eos_token_id", _DEFAULT_END_TOKEN)
    activation, epsilon = text.get("hidden_act", "quick_gelu"), text.get("layer_norm_eps")
    epsilon = _DEFAULT_EPSILON if epsilon is None else epsilon
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ProbexError(
            f"{where}: hidden_act is {quoted(activation)}, expected one of {', '.join(ACTIVATIONS)}"
        )
    if type(epsilon) not in (int, float) or not 0 <= epsilon < 1:
        raise ProbexError(f"{where}: layer_norm_eps is {quoted(epsilon)}, expected 0 to 1")
    if sizes["width"] % sizes["n_heads"]:
        raise ProbexError(
            f"{where}: hidden_size {sizes['width']} is not a multiple of num_attention_heads "
            f"{sizes['n_heads']}"
        )
    return TextTower(
        **sizes,
        dim=size(config, "projection_dim", _DEFAULT_DIM),
        activation=activation,
        epsilon=float(epsilon),
        end_token=None if end_token == _LEGACY_END_TOKEN else end_token,
    )


def read_params(model: ModelFile, tower: TextTower) -> dict[str, Any]:
    """The tower's parameters, each tensor of the text side used once."""
    where = str(model.path)
    if _PROJECTION not in model.tensors:
        raise ProbexError(
            f"{where}: no {_PROJECTION}, so it is not a text tower with its projection; {_CONVERT}"
        )
    if tower.n_layers > len(model.tensors):
        raise ProbexError(
            f"{where}: config.json says {tower.n_layers} layers, there are "
            f"{len(model.tensors)} tensors in all"
        )
    params = {}
    unused = {name for name in model.tensors if not _OTHER_PARTS.fullmatch(name)} - {_BUFFER}
    for path, expected in _parameters(tower):
        name = _stored_name(path)
        transposed = path[-1] == "kernel"
        params[path] = _read(model, name, expected.shape, transposed)
        unused.discard(name)
    if unused:
        raise ProbexError(
            f"{where}: unknown tensor {quoted(min(unused))}, expected CLIP's text_model.* as "
            "config.json describes it"
        )
    return traverse_util.unflatten_dict(params)


def _parameters(tower: TextTower) -> Iterator[tuple[tuple[str, ...], jax.ShapeDtypeStruct]]:
    tokens = jax.ShapeDtypeStruct([1, 1], np.int32)
    shapes = jax.eval_shape(tower.init, jax.random.key(0), tokens)["params"]
    yield from sorted(traverse_util.flatten_dict(shapes).items())


def _stored_name(path: tuple[str, ...]) -> str:
    """Where a parameter lies in the file: ("layers_0", "mlp", "fc1", "kernel") and the like."""
    first, *rest = path
    rest[-1] = "bias" if rest[-1] == "bias" else "weight"
    if first.startswith("layers_"):
        first = f"{_BODY}encoder.layers.{first.removeprefix('layers_')}"
    elif first.endswith("_embedding"):
        first = f"{_BODY}embeddings.{first}"
    elif first == "final_layer_norm":
        first = f"{_BODY}{first}"
    return ".".join([first, *rest])


def _read(model: ModelFile, name: str, shape: tuple[int, ...], transposed: bool) -> jax.Array:
    expected = shape[::-1] if transposed else shape
    found = model.tensors.get(name)
    if found is None or found.shape != expected:
        state = "is missing" if found is None else f"is of shape {list(found.shape)}"
        raise ProbexError(
            f"{model.path}: tensor {name!r} {state}, expected shape {list(expected)} as "
            "config.json describes it"
        )
    tensor = model.tensor(name)
    return jnp.asarray(tensor.T if transposed else tensor)
