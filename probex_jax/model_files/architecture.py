"""Fingerprints of architectures, and when two names may mean one ancestor."""

import hashlib
import json
import re
from collections.abc import Iterable

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


# What unrelated models share, such as sines.
_POSITIONS = re.compile(
    r".*(?:position_embed|pos_emb|pos_enc|embed_positions|positional_e|position_enc|position_ids|"
    r"relative_position|wpe|A_log|inv_freq).*|(?:.*\.)?pe(?:\.weight)?"
)


def are_positions(name: str) -> bool:
    """Whether a tensor tells positions or rates, which unrelated models may share.

    Example:
      >>> are_positions("vit.embeddings.position_embeddings"), are_positions("fc.weight")
      (True, False)
    """
    return _POSITIONS.fullmatch(name) is not None


_STATISTICS = re.compile(r"(?:.*\.)?(?:running_mean|running_var|num_batches_tracked)")


def are_statistics(name: str) -> bool:
    """Whether a tensor holds statistics of activations, which no gradient changes.

    Example:
      >>> are_statistics("bn1.running_mean"), are_statistics("bn1.weight")
      (True, False)
    """
    return _STATISTICS.fullmatch(name) is not None


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
    which fine-tuning replaces. An adapter counts by the layers it changes, whatever its spelling,
    method and rank, a quantised layer by its own shape. The dtype does not count, nor do a
    quantiser's scales and what wrappers put into names (`_orig_mod.`, `module.`, `base_layer`).

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
    updates = {name: layer for name, layer in model.layers.items() if layer.is_update}
    shapes: dict[str, list[object]] = {
        name: list(shape) for name, shape in model.architecture_shapes.items()
    }
    shapes |= {name: ["lora", *layer.shape] for name, layer in updates.items()}
    kept = [[name, shapes[name]] for name in sorted(backbone(shapes))]
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:16]


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
