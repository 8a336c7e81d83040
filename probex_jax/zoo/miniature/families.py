"""Families of miniature models whose descent is known: to learn lineage on, and to test it.

Each has a root, children, grandchildren and a great-grandchild, LoRAs and one that is merged into
its base, merges, and copies that were pruned, quantised, noised, renamed or had hidden units
permuted; and two models that are no kin. `family.json` says what is derived from what. The models'
own files say nothing of it, and their names are random.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from probex_jax.bucket_paths import on_a_disk
from probex_jax.claims import check_same
from probex_jax.errors import ProbexError
from probex_jax.files import one_writer, read_json, write_json
from probex_jax.zoo.miniature import concepts, data, hf_files, pretraining
from probex_jax.zoo.miniature.changes import (
    halved,
    linear,
    noised,
    permuted,
    pruned,
    quantised,
    slerp,
)
from probex_jax.zoo.miniature.denoiser import Denoiser
from probex_jax.zoo.miniature.resnet import ResNet
from probex_jax.zoo.miniature.settings import (
    WHOLE,
    Checks,
    Settings,
    check,
    generator,
    is_whole,
    log_uniform,
)
from probex_jax.zoo.miniature.tuning import Classify, Denoise, Objective, adapted, fine_tuned

KINDS = ("MiniSupViT", "MiniMAE", "MiniResNet", "MiniDenoiser")

Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Families:
    """Everything that decides what families there are.

    Attributes:
      kinds: of which architectures and pre-trainings, of `KINDS`.
      families: how many of each kind.
      seed: decides every random choice; a family is the same however many there are.
      training: how roots are pre-trained and children fine-tuned; its trees, number of models and
        seed count for nothing.

    Example:
      >>> Families(families=2).kinds[-1]
      'MiniDenoiser'
    """

    kinds: tuple[str, ...] = KINDS
    families: int = 5
    seed: int = 0
    training: Settings = dataclasses.field(default_factory=Settings)

    def __post_init__(self) -> None:
        checks: Checks = {
            "kinds": (_are_kinds, f"a tuple of {', '.join(KINDS)}: at least one, each once"),
            "families": (is_whole, WHOLE),
            "seed": (lambda x: is_whole(x, 0, 2**63 - 1), "a whole number from 0 to 2**63 - 1"),
            "training": (lambda x: isinstance(x, Settings), "Settings"),
        }
        check(self, checks)


def _are_kinds(value: Any) -> bool:
    known = isinstance(value, tuple) and all(type(x) is str and x in KINDS for x in value)
    return known and 0 < len(value) == len(set(value))


@dataclasses.dataclass(frozen=True)
class Member:
    """A model of a family.

    Attributes:
      role: what it is in the family, such as "child 1"; each once.
      kind: "root", "unrelated", "copy" or one of `lineage.KINDS`.
      parents: role of each parent to its coefficient, 1 but in merges.
      tensors: by name, those of the model or of an adapter.
      settings: what else there is to know, such as a learning rate.
    """

    role: str
    kind: str
    parents: Mapping[str, float]
    tensors: Tensors
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def build_families(
    settings: Families, out: Path, on_progress: Callable[[int], None] = lambda families: None
) -> list[Path]:
    """Builds families, or those that an interrupted build has left undone.

    Args:
      settings: what to build.
      out: folder to build in; made if absent. Each family gets a folder `KIND-NUMBER` with
        `family.json` and `models/`.
      on_progress: called with 1 after each family.

    Returns:
      The families' folders.

    Raises:
      ProbexError: `out` holds families of other settings, or is being written.
    """
    with one_writer(on_a_disk(out)):
        said = json.loads(json.dumps(dataclasses.asdict(settings)))
        del said["families"], said["kinds"]  # a family is the same whichever others there are
        card = out / "families.json"
        if card.exists():
            check_same(out, read_json(card).get("settings"), said)
        write_json(card, {"settings": said})
        folders = []
        for kind in settings.kinds:
            for number in range(settings.families):
                folder = out / f"{kind}-{number}"
                if not (folder / "family.json").exists():
                    _write(settings, folder, kind, grow(settings, kind, number))
                folders.append(folder)
                on_progress(1)
    return folders


def _write(settings: Families, folder: Path, kind: str, members: list[Member]) -> None:
    rng = generator(settings, folder.name, 9)
    names = [f"m{number:02d}" for number in rng.permutation(len(members))]
    ids = {member.role: name for member, name in zip(members, names, strict=True)}
    truth = {}
    for member in members:
        name = ids[member.role]
        files = _files(settings, kind, member)
        hf_files.write(folder, folder / "models" / name, files)
        truth[name] = {
            "role": member.role,
            "kind": member.kind,
            "parents": {ids[role]: share for role, share in member.parents.items()},
            **member.settings,
        }
    write_json(folder / "family.json", {"kind": kind, "models": dict(sorted(truth.items()))})


def _files(settings: Families, kind: str, member: Member) -> dict[str, bytes]:
    if member.kind == "LoRA":
        config = {"peft_type": "LORA", "r": member.settings["rank"]}
        config["lora_alpha"] = member.settings["rank"]
        tensors = {_in_peft(name): value for name, value in member.tensors.items()}
        weights = hf_files.serialise(tensors, {})
        return {
            "adapter_config.json": json.dumps(config).encode(),
            "adapter_model.safetensors": weights,
        }
    model = _architecture(settings, kind)
    if member.kind == "copy":
        return hf_files.sharded(model.config(), member.tensors)
    return hf_files.plain(model.config(), hf_files.serialise(member.tensors, {}))


def _in_peft(name: str) -> str:
    part, weight = name.split()
    letter = {"down": "A", "up": "B"}[part]
    return f"base_model.model.{weight.removesuffix('.weight')}.lora_{letter}.weight"


def grow(settings: Families, kind: str, number: int) -> list[Member]:
    """Makes the models of one family.

    Args:
      settings: of the families.
      kind: one of `KINDS`.
      number: of the family, from 0.

    Returns:
      Its models, parents before children, and two that are no kin.
    """
    rng = generator(settings, kind, number)
    members: list[Member] = []
    tensors: dict[str, Tensors] = {}

    def add(role: str, kind: str, parents: Mapping[str, float], made: Tensors, **more: Any) -> None:
        members.append(Member(role, kind, parents, made, more))
        tensors[role] = made

    add("root", "root", {}, _root(settings, kind, rng))
    for role, parent in _TRAINED:
        how = _how(settings.training, rng)
        made = fine_tuned(_objective(settings, kind), tensors[parent], _classes(kind, rng), **how)
        add(role, "fine-tune", {parent: 1.0}, made, **how)
    for role, base in (("1", "root"), ("2", "child 3")):
        how = _how(settings.training, rng) | {"rank": int(rng.choice([2, 4]))}
        how["learning_rate"] *= 4  # LoRAs take higher ones
        del how["weight_decay"]
        lora, merged = adapted(
            _objective(settings, kind), tensors[base], _classes(kind, rng), **how
        )
        add(f"LoRA {role}", "LoRA", {base: 1.0}, _two_dimensional(lora), **how)
        if role == "1":
            add("merged LoRA", "LoRA merged", {base: 1.0}, merged, lora="LoRA 1", **how)
    _add_merges(add, tensors, rng)
    share, bits, size = (
        rng.uniform(0.3, 0.6),
        int(rng.choice([4, 8])),
        log_uniform(rng, (0.01, 0.05)),
    )
    add("pruned", "pruned", {"child 2": 1.0}, pruned(tensors["child 2"], share), share=share)
    add("quantised", "quantised", {"child 1": 1.0}, quantised(tensors["child 1"], bits), bits=bits)
    add("noised", "noised", {"child 3": 1.0}, noised(tensors["child 3"], size, rng), size=size)
    add("permuted", "permuted", {"child 1": 1.0}, permuted(tensors["child 1"], rng))
    add("copy", "copy", {"grandchild 1": 1.0}, halved(tensors["grandchild 1"]))
    add("same data", "unrelated", {}, _root(settings, kind, rng))
    other = "MiniMAE" if kind == "MiniSupViT" else "MiniSupViT"
    of = other if kind.endswith(("ViT", "MAE")) else kind
    add("unrelated", "unrelated", {}, _root(settings, of, rng, short=True))
    return members


# Role and parent of the models that are fine-tuned.
_TRAINED = (
    ("child 1", "root"),
    ("child 2", "root"),
    ("child 3", "root"),
    ("grandchild 1", "child 1"),
    ("grandchild 2", "child 1"),
    ("grandchild 3", "child 2"),
    ("great-grandchild", "grandchild 1"),
)


def _add_merges(add: Callable[..., None], tensors: Mapping[str, Tensors], rng: Any) -> None:
    """Merges of two and three; none twice of the same two."""
    share = float(rng.uniform(0.3, 0.7))
    parents = {"child 1": share, "child 2": 1 - share}
    add("linear merge", "merge", parents, linear(parents, tensors), method="linear")
    parents = dict(zip(("child 1", "child 3", "grandchild 3"), rng.dirichlet([8] * 3).tolist()))
    add("merge of three", "merge", parents, linear(parents, tensors), method="linear")
    share = float(rng.uniform(0.3, 0.7))
    made = slerp(tensors["child 2"], tensors["grandchild 2"], share)
    parents = {"child 2": 1 - share, "grandchild 2": share}
    add("SLERP merge", "merge", parents, made, method="SLERP")
    first, second = rng.uniform(0.3, 0.6, 2).tolist()
    parents = {"root": 1 - first - second, "child 2": first, "child 3": second}
    made = linear(parents, tensors)
    add("task arithmetic", "merge", parents, made, method="task arithmetic")


def _how(training: Settings, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "seed": int(rng.integers(2**31)),
        "steps": int(rng.choice(training.steps)),
        "learning_rate": log_uniform(rng, training.learning_rates),
        "weight_decay": log_uniform(rng, training.weight_decays),
    }


def _classes(kind: str, rng: np.random.Generator) -> list[int]:
    known = (
        len(data.CLASSES)
        if kind != "MiniDenoiser"
        else len(concepts.DIGITS) * len(concepts.TRANSFORMS)
    )
    return rng.permutation(known)[:10].tolist()


def _architecture(settings: Families, kind: str) -> Any:
    return {"MiniResNet": ResNet(), "MiniDenoiser": Denoiser()}.get(kind, settings.training.vit)


def _objective(settings: Families, kind: str) -> Objective:
    size = settings.training.batch_size
    if kind == "MiniDenoiser":
        return Denoise(_architecture(settings, kind), size)
    return Classify(_architecture(settings, kind), size)


def _root(
    settings: Families, kind: str, rng: np.random.Generator, *, short: bool = False
) -> Tensors:
    """A model that was trained from scratch, on the data of all roots of its kind."""
    training, seed = settings.training, int(rng.integers(2**31))
    model = _architecture(settings, kind)
    if short:
        steps = -(-training.pretraining_steps // 3)
        training = dataclasses.replace(training, pretraining_steps=steps)
    if kind == "MiniDenoiser":
        lora = dataclasses.replace(
            training.lora,
            pretraining_steps=training.pretraining_steps,
            pretraining_batch_size=training.pretraining_batch_size,
        )
        images = concepts.load(len(concepts.DIGITS), len(concepts.TRANSFORMS)).train
        return jax.device_get(pretraining.denoiser(model, lora, images, seed))
    images = data.load(model.image_size).pretraining
    how = "masked" if kind == "MiniMAE" else "supervised"
    return jax.device_get(pretraining.classifier(model, how, training, images, seed))


def _two_dimensional(lora: Tensors) -> Tensors:
    return {name: np.asarray(value) for name, value in lora.items()}
