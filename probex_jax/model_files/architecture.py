"""Fingerprints of architectures, and the ancestor that a file names."""

import hashlib
import json
import re
from collections.abc import Iterable
from itertools import pairwise

from probex_jax.errors import ProbexError
from probex_jax.model_files.model_file import ModelFile

# What stands on top of a backbone and is replaced for another task, as transformers, timm and
# torchvision name it. Some heads come with a pooler, others without.
_HEAD = re.compile(
    r"(?:(?:model|module)\.)?(?:"
    r"(?:(?:pre_|cls_|distillation_)?classifiers?|classification_head|cls|fc|heads?|head_dist|"
    r"last_linear|lm_head|projector|qa_outputs|score|AuxLogits)\.|"
    r"(?:[^.]+\.)?pooler\.).*"
)

_FILE = re.compile(r"\.(?:safetensors|ckpt|bin|pth?)$")

# Fields of metadata that name the model that was fine-tuned; the last two are kohya's.
_BASE_KEYS = ("base_model", "ss_sd_model_name", "ss_base_model_version")
_BASE_FIELD = "base_model:"
_MAX_README_BYTES = 1024 * 1024
_MAX_BASE_CHARACTERS = 200


def is_head(name: str) -> bool:
    """Whether a tensor is of the head, which fine-tuning replaces.

    Example:
      >>> is_head("classifier.weight"), is_head("vit.encoder.layer.0.output.dense.weight")
      (True, False)
    """
    return _HEAD.fullmatch(name) is not None


def backbone(names: Iterable[str]) -> list[str]:
    """The names that are not of a head; all of them if there are no others."""
    names = list(names)
    return [name for name in names if not is_head(name)] or names


def fingerprint(model: ModelFile) -> str:
    """A hash of tensor names and shapes, the same for all models of one architecture.

    It covers tensors with one axis or more of the dtypes that are read, except the classifier head,
    which fine-tuning replaces. A LoRA counts by the layers it changes, whatever its rank. The dtype
    does not count, nor do a quantiser's scales and the prefixes of wrappers (`_orig_mod.` of
    torch.compile, `module.` of DistributedDataParallel).

    Args:
      model: the model, open.

    Returns:
      16 hexadecimal digits.

    Example:
      >>> import tempfile, numpy as np
      >>> from safetensors.numpy import save_file
      >>> from probex_jax.model_files import open_model
      >>> found = []
      >>> for classes, dtype in ((10, "f4"), (3, "f2")):
      ...     tensors = {"body.weight": np.ones([4, 4]), "classifier.weight": np.ones([classes, 4])}
      ...     tensors = {name: value.astype(dtype) for name, value in tensors.items()}
      ...     with tempfile.TemporaryDirectory() as folder:
      ...         save_file(tensors, f"{folder}/model.safetensors")
      ...         with open_model(folder) as m:
      ...             found.append(fingerprint(m))
      >>> found[0] == found[1], len(found[0])
      (True, 16)
    """
    loras = {name: layer for name, layer in model.layers.items() if layer.kind == "lora"}
    shapes: dict[str, list[object]] = {
        name: list(shape) for name, shape in model.architecture_shapes.items()
    }
    shapes |= {name: ["lora", *layer.shape] for name, layer in loras.items()}
    kept = [[name, shapes[name]] for name in sorted(backbone(shapes))]
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:16]


def stated_base(model: ModelFile) -> str:
    """The model that this one was fine-tuned from, as its file or folder states.

    Looked up in this order: `base_model` in the file's metadata, `base_model_name_or_path` in
    `adapter_config.json`, `_name_or_path` in `config.json`, `base_model` in the front matter of
    `README.md`, and the metadata of kohya's scripts.

    Args:
      model: the model, open.

    Returns:
      A hub id, a path or a word, as it stands there; "" if nothing states a usable name.
    """
    readme = _base_in_readme(model)
    stated = (
        model.metadata.get(_BASE_KEYS[0]),
        _field(model, "adapter_config.json", "base_model_name_or_path"),
        _field(model, "config.json", "_name_or_path"),
        readme,
        *(model.metadata.get(key) for key in _BASE_KEYS[1:]),
    )
    return next((name for name in map(_name, stated) if name), "")


def same_base(one: str, other: str) -> bool:
    """Whether two names may mean one ancestor: "" may be any, and an id's owner is ignored.

    Example:
      >>> same_base("runwayml/stable-diffusion-v1-5", "/models/Stable-Diffusion-v1-5")
      True
      >>> same_base("", "a/b"), same_base("a/b", "a/c")
      (True, False)
    """
    return not (one and other) or base_key(one) == base_key(other)


def base_key(name: str) -> str:
    """The part of an ancestor's name that is compared; "" for ""."""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return _FILE.sub("", last.lower())


def _name(value: object) -> str:
    if not isinstance(value, str):
        return ""
    value = value.strip()
    return value if len(value) <= _MAX_BASE_CHARACTERS and value.isprintable() else ""


def _field(model: ModelFile, file: str, name: str) -> object:
    try:
        return model.beside(file).get(name)
    except ProbexError:
        return None  # the weights can be read beside a damaged config


def _base_in_readme(model: ModelFile) -> object:
    try:
        text = (model.bytes_beside("README.md", _MAX_README_BYTES) or b"").decode(errors="replace")
    except ProbexError:
        return None
    # Line by line: a regular expression could take hours on a stranger's text.
    first, *lines = (line.rstrip() for line in text.split("\n"))
    if first != "---" or "---" not in lines:
        return None
    for line, following in pairwise(lines[: lines.index("---") + 1]):
        if line.startswith(_BASE_FIELD):
            value = line.removeprefix(_BASE_FIELD).strip()
            if not value and following.lstrip().startswith("- "):  # a list
                value = following.lstrip().removeprefix("- ")
            if value.startswith("["):
                value = value.strip("[]").partition(",")[0]
            return value.partition(" #")[0].strip(" \t'\"")
    return None
