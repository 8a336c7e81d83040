"""State dicts of the PyTorch implementations of ProbeX and MVProbe, and our names for them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from probex_jax.errors import ProbexError
from probex_jax.model_files import ModelFile, open_model
from probex_jax.model_files.untrusted_text import json_object, quoted

METADATA = "probex_jax"
VERSION = 1
TREE = "probex_jax.tree."


class Key(NamedTuple):
    """Where a tensor of a state dict is among our variables.

    Args:
      ours: its path there.
      axes: of the tensor in the state dict, a letter each or a product of such.
      transposed: whether ours is its transpose.
    """

    ours: str
    axes: tuple[str, ...]
    transposed: bool = False


def _linear(theirs: str, ours: str, to: str, of: str) -> dict[str, Key]:
    """The keys of a `torch.nn.Linear`."""
    return {
        f"{theirs}.weight": Key(f"params/{ours}/dense/kernel", (to, of), transposed=True),
        f"{theirs}.bias": Key(f"params/{ours}/dense/bias", (to,)),
    }


def _probing(probes: str, projection: str, branch: str, probed: str, left: str) -> dict[str, Key]:
    """The keys of probes, of which X @ weight is taken, and of what projects their responses."""
    return {
        f"{probes}.weight": Key(f"params/encoder/probes{branch}", (probed, "U")),
        f"{projection}.weight": Key(f"params/encoder/projection{branch}", ("V", left), True),
    }


# Axes: H rows, W columns, U probes, V projections, T representation, Y classes, D of a text's
# embedding, R rank.
ENCODERS: Mapping[str, Mapping[str, Key]] = {
    "probex": {
        **_probing("probes", "shared_probe_proj", "", "W", "H"),
        **_linear("per_probe_encoders", "encoder/encoder", "T", "UV"),
    },
    "mvprobe": {
        **_probing("probes_xu", "shared_probe_proj_row", "_xu", "W", "H"),
        **_probing("probes_xxtu", "shared_probe_proj_row2", "_xxtu", "H", "H"),
        **_probing("probes_xtu", "shared_probe_proj_col", "_xtu", "H", "W"),
        **_probing("probes_xtxu", "shared_probe_proj_col2", "_xtxu", "W", "W"),
        **_linear("concat_all4_encoder", "encoder/encoder", "T", "4UV"),
    },
}
HEADS: Mapping[str, Mapping[str, Key]] = {
    "class": _linear("classification_head", "head/linear", "Y", "T"),
    "text": _linear("regression_head", "head/linear", "T", "D"),
}
TREE_KEYS: Mapping[str, Key] = {
    f"{TREE}scale": Key("tree/scale", ()),
    f"{TREE}centre": Key("tree/centre", ("H", "W")),
    f"{TREE}centre_up": Key("tree/centre_up", ("H", "R")),
    f"{TREE}centre_down": Key("tree/centre_down", ("R", "W")),
}
# Tensors [] that say what a ProbeX does otherwise than the reference's, each 1: field to its value.
SWITCHES: Mapping[str, tuple[str, bool]] = {
    "probex_jax.linear": ("relu", False),
    "probex_jax.standardise": ("standardise", True),
}
# What of a tree there is together.
_TREES = ((), ("scale",), ("scale", "centre"), ("scale", "centre_up", "centre_down"))


@dataclass(frozen=True)
class Found:
    """What a state dict holds.

    Args:
      path: its file.
      variables: ours.
      encoder: name and fields, as on a card.
      head: "class" or "text"; "none" where the metadata says so.
      sizes: of the axes, by their letters.
      tree: names of what it has in the collection `tree`.
      about: what the metadata says of it; None where it is not of ours.
    """

    path: Path
    variables: Mapping[str, Any]
    encoder: Mapping[str, Any]
    head: str
    sizes: Mapping[str, int]
    tree: tuple[str, ...]
    about: Mapping[str, Any] | None


def read(path: Path) -> Found:
    """Reads a state dict, every tensor of it into its place.

    Raises:
      ProbexError: if the file is damaged or of another format, or a tensor is missing, unexpected,
        of another shape than the others have it, or of another dtype than float32.
    """
    with open_model(path) as file:
        about = _about(file, path)
        encoder = _kind(file, path, ENCODERS, "encoder")
        head = _kind(file, path, HEADS, "head")
        tree = tuple(key.removeprefix(TREE) for key in TREE_KEYS if key in file.tensors)
        # What there should be of a tree, the metadata say; or else what there is of it.
        complete = next((names for names in _TREES if set(tree) <= set(names)), _TREES[-1])
        expected = (about or {}).get("tree", complete)
        keys = {**ENCODERS[encoder], **HEADS[head]}
        keys |= {TREE + name: TREE_KEYS[TREE + name] for name in expected}
        switches = [key for key in SWITCHES if key in file.tensors and encoder == "probex"]
        keys |= {key: Key(key, ()) for key in switches}
        _check_names(path, keys, file)
        sizes = _sizes(path, keys, file)
        arrays = {}
        for key, (ours, _, transposed) in keys.items():
            array = file.tensor(key)
            arrays[ours] = np.array(array.T if transposed else array, order="C")
    if "tree/scale" in arrays and not arrays["tree/scale"] > 0:
        raise ProbexError(f"{path}: tensor {TREE}scale is {arrays['tree/scale']}, expected > 0")
    fields = {"name": encoder, "n_probes": sizes["U"], "proj_dim": sizes["V"]}
    fields["rep_dim"] = sizes["T"]
    for key in switches:
        if arrays.pop(key) != 1:
            raise ProbexError(f"{path}: tensor {key} is not 1")
        field, fields[field] = SWITCHES[key]
    if about is not None and about["card"].get("head") == "none":
        head = _without_head(path, arrays, sizes)
    variables = traverse_util.unflatten_dict(arrays, sep="/")
    return Found(path, variables, fields, head, sizes, tree, about)


def _without_head(path: Path, arrays: dict[str, np.ndarray], sizes: Mapping[str, int]) -> str:
    """Takes the head off that `identity_head` put on."""
    square = sizes.get("Y") == sizes["T"]  # or else an identity may be larger than the file
    for key, value in identity_head(sizes["T"]).items() if square else ():
        square &= np.array_equal(arrays.pop(f"params/{key}"), value)
    if not square:
        raise ProbexError(
            f"{path}: classification_head is not the identity, but its card has no head"
        )
    return "none"


def identity_head(outputs: int) -> dict[str, np.ndarray]:
    """Parameters of the class head that leaves an encoder's outputs as they are."""
    kernel = np.eye(outputs, dtype=np.float32)
    return {"head/linear/dense/kernel": kernel, "head/linear/dense/bias": np.zeros_like(kernel[0])}


def _about(file: ModelFile, path: Path) -> Mapping[str, Any] | None:
    """What `to_torch` wrote into the metadata, its outer form checked; None where it did not."""
    if METADATA not in file.metadata:
        return None
    where = f"{path}: metadata {METADATA}"
    about = json_object(file.metadata[METADATA].encode("utf-8", "replace"), where)
    if about.get("version") != VERSION:
        raise ProbexError(f"{where} has version {quoted(about.get('version'))}, expected {VERSION}")
    tree = about.get("tree")
    if not isinstance(tree, list) or tuple(tree) not in _TREES:
        raise ProbexError(f"{where} has tree {quoted(tree)}, expected names of tensors")
    if not isinstance(about.get("card"), dict) or "members" in about["card"]:
        raise ProbexError(f"{where} has no card of an expert")
    member = about.get("member")
    if "member" in about and not (
        isinstance(member, dict)
        and isinstance(member.get("card"), dict)
        and all(type(member.get(name)) is int for name in ("number", "of"))
    ):
        raise ProbexError(f"{where} has no number and card of a member")
    return about


def _kind(file: ModelFile, path: Path, kinds: Mapping[str, Mapping[str, Key]], what: str) -> str:
    """Which of the kinds the file has tensors of."""
    found = [kind for kind, keys in kinds.items() if any(key in file.tensors for key in keys)]
    if len(found) != 1:
        firsts = " or ".join(next(iter(keys)) for keys in kinds.values())
        count = "two of them" if found else "none"
        raise ProbexError(f"{path}: expected one {what}, with a tensor {firsts}; there is {count}")
    return found[0]


def _check_names(path: Path, keys: Mapping[str, Key], file: ModelFile) -> None:
    """Raises a ProbexError unless there is every tensor, each float32, and no other."""
    for names, what in (
        ([key for key in keys if key not in file.tensors], "missing"),
        ([name for name in file.tensors if name not in keys], "unexpected"),
    ):
        if names:
            shown = ", ".join(map(quoted, names[:5])) + (", …" if len(names) > 5 else "")
            raise ProbexError(f"{path}: {what} in the state dict: {shown}")
    for key in keys:
        if file.tensors[key].dtype != "F32":
            raise ProbexError(
                f"{path}: tensor {key} is of {file.tensors[key].dtype}, expected F32: "
                "save it again after module.float()"
            )


def _sizes(path: Path, keys: Mapping[str, Key], file: ModelFile) -> dict[str, int]:
    """The size of every axis, on which all tensors must agree."""
    sizes: dict[str, int] = {}
    for key, (_, axes, _) in keys.items():
        shape = file.tensors[key].shape
        if len(shape) == len(axes):
            for axis, size in zip(axes, shape, strict=True):
                if len(axis) == 1:
                    sizes.setdefault(axis, size)
        # U and V are known before anything is a product of them.
        expected = tuple(
            math.prod(int(part) if part.isdigit() else sizes.get(part, 0) for part in axis)
            for axis in axes
        )
        if shape != expected or 0 in shape:
            raise ProbexError(
                f"{path}: tensor {key} is {list(shape)}, expected [{', '.join(axes)}] = "
                f"{[size or 'any' for size in expected]} ({_known(sizes)})"
            )
    return sizes


def _known(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis} = {size}" for axis, size in sizes.items()) or "nothing known yet"
