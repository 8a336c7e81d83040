"""Experts as the PyTorch implementations of ProbeX and MVProbe keep theirs, both ways.

A file is a state dict in safetensors. What a state dict cannot say (the layer, the tree, the
classes, …) is given when one is read, and is in the header's metadata of those written here. What a
module of the reference does not do has tensors of its own: the centre and the scale of a tree, a
ProbeX without its ReLU or of standardised matrices (`SWITCHES`). The module refuses them
(`strict=True`), so none runs without them by mistake. An expert without a head gets one that leaves
its encoder's outputs as they are.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors.numpy import save

from probex_jax.bucket_paths import on_a_disk
from probex_jax.encoders import MVProbe, ProbeX
from probex_jax.errors import ProbexError
from probex_jax.experts.alignment import Alignment
from probex_jax.experts.card import versions
from probex_jax.experts.card_parts import LAYOUTS
from probex_jax.experts.expert import Expert
from probex_jax.experts.member import Member
from probex_jax.experts.torch_format.state_dict import (
    ENCODERS,
    HEADS,
    METADATA,
    SWITCHES,
    TREE,
    TREE_KEYS,
    VERSION,
    Found,
    identity_head,
)
from probex_jax.experts.torch_format.state_dict import read as read_state_dict
from probex_jax.files import disk_errors, one_writer
from probex_jax.model_files.untrusted_text import is_unicode, quoted


def from_torch(
    path: str | os.PathLike[str],
    *,
    layer: str | None = None,
    tree: str | None = None,
    classes: Sequence[str] | None = None,
    texts: Mapping[str, str] | None = None,
    text: Alignment | None = None,
    layout: str | None = None,
) -> Expert:
    """Reads an expert of the PyTorch implementations of ProbeX and MVProbe.

    Every tensor of the state dict is used once or named in an error. Encoder, head and sizes are
    told by names and shapes. What `to_torch` wrote needs no arguments, and is the same expert.

    Args:
      path: a state dict, `.safetensors`; or the folder that `to_torch` made of a committee.
      layer: name of the layer it was trained on.
      tree: name of the tree.
      classes: names of the classes, in the order of the outputs, which the reference
        implementations sort by name; of an expert aligned with text those that it was trained on.
      texts: of an expert aligned with text, the words for classes whose names are none.
      text: how its classes became text embeddings.
      layout: "reference" for one that was trained on convolutions larger than 1x1 as the reference
        implementation reads them (`model_files.reference_matrix`); "canonical" otherwise.

    Returns:
      The expert, ready to be saved.

    Raises:
      ProbexError: if a file is no such state dict, is damaged, or something is missing, too much
        or does not fit; the message names the file and the tensor or argument.

    References:
      docs/formats.md, "Experts of the PyTorch implementations".
    """
    path = Path(path)
    given: dict[str, Any] = {"layer": layer, "tree": tree, "classes": classes, "texts": texts}
    given |= {"text": text, "layout": layout}
    needless = [name for name, value in given.items() if value is not None]
    if path.is_dir():
        found = [read_state_dict(file) for file in sorted(path.glob("*.safetensors"))]
        if not found:
            raise ProbexError(f"{path}: no .safetensors file here")
    else:
        found = [read_state_dict(path)]
        if found[0].about is None:
            return _foreign(found[0], **given)
    if needless:
        raise ProbexError(f"{path}: says itself what it is; {needless[0]} is not to be given")
    expert = _ours(path, found)
    for member in expert.members:
        _check_expressible(member, path)
    if expert.hash != (found[0].about or {}).get("hash"):
        raise ProbexError(f"{path}: damaged: its content does not match its hash")
    return expert


def to_torch(expert: Expert, path: str | os.PathLike[str]) -> None:
    """Writes an expert as the PyTorch implementations keep theirs.

    Args:
      expert: with the encoder ProbeX or MVProbe, on classes or aligned with text; a committee all
        of whose members have one of these.
      path: where a file, `.safetensors`, or of a committee a folder with a file of each member,
        is made; there must be none yet. Outputs stay in the order of `expert.card.classes`, which
        the metadata names.

    Raises:
      ProbexError: if the expert has no such form, such as a Dense one; if there is something at
        the path, or it cannot be written.

    References:
      docs/formats.md, "Experts of the PyTorch implementations".
    """
    path = on_a_disk(path)
    files = [_as_file(expert, member, number) for number, member in enumerate(expert.members)]
    alone = len(expert.members) == 1
    if alone != (path.suffix == ".safetensors"):
        raise ProbexError(
            f"{path}: an expert on one layer is written as a .safetensors file"
            if alone
            else f"{path}: a committee is written as a folder, not as a .safetensors file"
        )
    partial = path.with_name(path.name + ".partial")
    with disk_errors(path):
        path.parent.stat()  # its folder must be there
    with one_writer(path, beside=True), disk_errors(path):
        if path.exists() or path.is_symlink():
            raise ProbexError(f"{path}: is there already; choose another")
        if alone:
            partial.write_bytes(files[0])
        else:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            for number, data in enumerate(files):
                (partial / f"member_{number:03d}.safetensors").write_bytes(data)
        os.replace(partial, path)


def _as_file(expert: Expert, member: Member, number: int) -> bytes:
    where = f"the expert of tree {expert.card.tree}, {member.layer}"
    _check_expressible(member, where)
    member.check_variables(where)
    arrays = traverse_util.flatten_dict(member.variables, sep="/")
    head = expert.card.head
    if head == "none":
        of_head = identity_head(member.rep_dim)
        arrays |= {f"params/{key}": value for key, value in of_head.items()}
    keys = {**ENCODERS[member.card.encoder["name"]], **HEADS["class" if head == "none" else head]}
    tree = [key for key, (ours, *_) in TREE_KEYS.items() if ours in arrays]
    keys |= {key: TREE_KEYS[key] for key in tree}
    tensors = {}
    for key, (ours, _, transposed) in keys.items():
        array = np.asarray(arrays[ours], np.float32)
        # A copy in C order (safetensors writes memory as it lies) of the shape [], too.
        tensors[key] = np.array(array.T if transposed else array, order="C")
    tensors |= {key: np.ones([], np.float32) for key in _switches(member)}
    card = expert.card.to_json()
    about: dict[str, Any] = {
        "version": VERSION,
        "hash": expert.hash,
        "tree": [key.removeprefix(TREE) for key in tree],
        "card": {key: value for key, value in card.items() if key != "members"},
    }
    if "members" in card:
        about["member"] = {"number": number, "of": len(expert.members)}
        about["member"]["card"] = card["members"][number]
    # One key alone: safetensors writes several in a random order.
    return save(tensors, {METADATA: json.dumps(about, sort_keys=True)})


def _switches(member: Member) -> list[str]:
    """Names of the tensors that say what a member's encoder does otherwise than the reference's."""
    encoder = member.network.encoder
    if not isinstance(encoder, ProbeX):
        return []
    return [key for key, (field, value) in SWITCHES.items() if getattr(encoder, field) == value]


def _check_expressible(member: Member, where: Any) -> None:
    """Raises a ProbexError if a network has no form in the PyTorch implementations."""
    encoder = member.network.encoder
    name = member.card.encoder["name"]
    if name not in ENCODERS:
        raise ProbexError(
            f"{where}: its encoder is {name}, which the PyTorch implementations have no state dict "
            "for; they have ProbeX and MVProbe (configs/probex.py, configs/mvprobe.py)"
        )
    if isinstance(encoder, MVProbe):
        sizes = (encoder.n_probes, encoder.proj_dim, encoder.rep_dim)
        if encoder != MVProbe(*sizes, parent=None):
            raise ProbexError(
                f"{where}: the PyTorch implementation of MVProbe always has all four branches, "
                "standardised, with a ReLU"
            )


def _ours(path: Path, found: Sequence[Found]) -> Expert:
    """The expert that `to_torch` wrote as these files."""
    about = [each.about or {} for each in found]
    for each, said in zip(found, about, strict=True):
        if path.is_dir() and "member" not in said:
            raise ProbexError(f"{each.path}: is not a member of a committee; convert it by itself")
        if not path.is_dir() and "member" in said:
            raise ProbexError(
                f"{path}: is a member of a committee of {said['member']['of']}; give their folder"
            )
        for key in ("card", "hash"):
            if said.get(key) != about[0].get(key):
                raise ProbexError(f"{each.path}: is of another committee than {found[0].path.name}")
    card = dict(about[0]["card"])
    if not path.is_dir():
        variables: Any = found[0].variables
    else:
        members = {said["member"]["number"]: said["member"]["card"] for said in about}
        of = about[0]["member"]["of"]
        if len(found) != of or sorted(members) != list(range(of)):
            raise ProbexError(f"{path}: {len(found)} members here, the committee has {of}")
        card["members"] = [members[number] for number in range(of)]
        variables = {
            str(said["member"]["number"]): each.variables
            for each, said in zip(found, about, strict=True)
        }
    _check_names_on_card(path, card)
    expert = Expert.checked(path, variables, card)
    numbers = [said["member"]["number"] if path.is_dir() else 0 for said in about]
    for each, number in zip(found, numbers, strict=True):
        member = expert.members[number]
        told = [key for key, (field, value) in SWITCHES.items() if each.encoder.get(field) == value]
        if told != _switches(member):
            raise ProbexError(
                f"{each.path}: has the tensors {told}, but its card says {_switches(member)}"
            )
    return expert


def _foreign(
    found: Found,
    layer: str | None,
    tree: str | None,
    classes: Sequence[str] | None,
    texts: Mapping[str, str] | None,
    text: Alignment | None,
    layout: str | None,
) -> Expert:
    """The expert of a state dict that says nothing of itself."""
    path, sizes = found.path, found.sizes
    if layer is None or tree is None or classes is None:
        needed = {"layer": layer, "tree": tree, "classes": classes}
        missing = ", ".join(name for name, value in needed.items() if value is None)
        raise ProbexError(
            f"{path}: a state dict does not say what it was trained on: give {missing}"
        )
    if layer.isdigit():
        raise ProbexError(f"layer {layer}: give its name; select_layers tells it by the number")
    shape = [sizes["H"], sizes["W"]]
    card: dict[str, Any] = {
        "encoder": dict(found.encoder),
        "head": found.head,
        "layer": layer,
        "shape": shape[::-1] if layout == "reference" else shape,
        "tree": tree,
        "classes": classes if isinstance(classes, str) else list(classes),
        "normalise": ("none", "scale", "centre")[min(len(found.tree), 2)],
        "versions": versions(),
    }
    _check_names_on_card(path, card)
    if layout not in (None, *LAYOUTS):
        raise ProbexError(f"layout: {layout!r} is not one of {', '.join(LAYOUTS)}")
    if layout == "reference":
        card["layout"] = layout
    if "R" in sizes:
        card["centre_rank"] = sizes["R"]
    if found.head == "class":
        if text is not None or texts is not None:
            raise ProbexError(f"{path}: has a classification_head, no text is needed")
        if len(classes) != sizes["Y"]:
            raise ProbexError(
                f"{path}: classification_head has {sizes['Y']} outputs, given are {len(classes)} "
                "classes"
            )
    elif unknown := sorted(set(texts or ()) - set(classes)):
        raise ProbexError(f"{path}: texts has words for {quoted(unknown[0])}, which is not a class")
    elif text is None:
        raise ProbexError(f"{path}: has a regression_head: give the text encoder, too")
    elif text.encoder.dim != sizes["D"]:
        raise ProbexError(
            f"{path}: regression_head takes text embeddings of {sizes['D']} dimensions, "
            f"{text.encoder.name} gives {text.encoder.dim}"
        )
    else:
        card["text"] = dataclasses.asdict(text.card(classes, texts or {}))
    return Expert.checked(path, found.variables, card)


def _check_names_on_card(path: Path, card: Mapping[str, Any]) -> None:
    """Raises a ProbexError unless tree, layers and classes are names, and the classes distinct."""
    members = card.get("members", [card])
    for what, name in (("tree", card.get("tree")), *(("layer", m.get("layer")) for m in members)):
        if not (isinstance(name, str) and name and is_unicode(name)):
            raise ProbexError(f"{path}: {what} {quoted(name)} is not a name")
    classes = card.get("classes")
    named = isinstance(classes, list) and all(isinstance(c, str) and is_unicode(c) for c in classes)
    if not named or not classes or len(set(classes)) < len(classes):
        raise ProbexError(f"{path}: classes {quoted(classes)} are not a list of distinct names")
