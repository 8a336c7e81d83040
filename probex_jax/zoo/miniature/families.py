"""Families of miniature models whose descent is known: to learn lineage on, and to test it.

Each has a root, children, grandchildren and a great-grandchild, LoRAs and one that is merged into
its base, merges, and copies that were pruned, quantised, noised, renamed or had hidden units
permuted; and two models that are no kin. `family.json` says what is derived from what. The models'
own files say nothing of it, and their names are random.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from probex_jax.bucket_paths import on_a_disk
from probex_jax.claims import check_same
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
from probex_jax.zoo.miniature.params import Params
from probex_jax.zoo.miniature.resnet import ResNet
from probex_jax.zoo.miniature.settings import (
    WHOLE,
    Checks,
    Settings,
    check,
    generator,
    is_whole,
    log_uniform,
    stated,
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
      training: how roots are pre-trained and children fine-tuned; its trees, number of models,
        seed and `lora` count for nothing.

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

    A family is finished once it has its `family.json`, and is not made again.

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
        said = json.loads(json.dumps(stated(settings)))
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
    model = _architecture(settings.training, kind)
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
      number: of the family, from 0. In even ones task arithmetic leaves its base a positive share,
        in odd ones a negative one; it is never near zero.

    Returns:
      Its models, parents before children, and two that are no kin.
    """
    family = _Family(settings, kind, generator(settings, kind, number))
    family.add("root", "root", {}, family.trained_from_scratch(kind))
    family.fine_tune()
    family.adapt()
    family.merge((0.25, 0.4) if number % 2 == 0 else (0.6, 0.8))
    family.change()
    family.add("same data", "unrelated", {}, family.trained_from_scratch(kind))
    # ViTs have pre-trainings to choose from; the other roots differ in length, too.
    other = {"MiniSupViT": "MiniMAE", "MiniMAE": "MiniSupViT"}.get(kind, kind)
    family.add("unrelated", "unrelated", {}, family.trained_from_scratch(other, shorter=3))
    return list(family.members.values())


class _Family:
    """A family that is being made; every step draws from one generator, in turn."""

    def __init__(self, settings: Families, kind: str, rng: np.random.Generator) -> None:
        self.members: dict[str, Member] = {}
        self._training, self._kind, self._rng = settings.training, kind, rng
        objective = Denoise if kind == "MiniDenoiser" else Classify
        self._objective: Objective = objective(
            _architecture(settings.training, kind), settings.training.batch_size
        )

    def add(
        self, role: str, kind: str, parents: Mapping[str, float], tensors: Tensors, **settings: Any
    ) -> None:
        self.members[role] = Member(role, kind, parents, tensors, settings)

    def trained_from_scratch(self, kind: str, *, shorter: int = 1) -> Tensors:
        """A model that was trained on the data of all roots of its kind, in fewer steps."""
        seed, steps = int(self._rng.integers(2**31)), self._training.pretraining_steps
        training = dataclasses.replace(self._training, pretraining_steps=-(-steps // shorter))
        return _arrays(from_scratch(training, kind, seed))

    def fine_tune(self) -> None:
        for role, parent in _FINE_TUNED.items():
            how = self._how()
            made = fine_tuned(self._objective, self._params(parent), self._classes(), **how)
            self.add(role, "fine-tune", {parent: 1.0}, _arrays(made), **how)

    def adapt(self) -> None:
        """LoRAs, and one of them merged into its base."""
        for role, base in (("LoRA 1", "root"), ("LoRA 2", "child 3")):
            how = self._how() | {"rank": int(self._rng.choice([2, 4]))}
            how["learning_rate"] *= 4  # LoRAs take higher ones
            del how["weight_decay"]
            lora, merged = adapted(self._objective, self._params(base), self._classes(), **how)
            self.add(role, "LoRA", {base: 1.0}, _arrays(lora), **how)
            if role == "LoRA 1":
                made = _arrays(merged)
                self.add("merged LoRA", "LoRA merged", {base: 1.0}, made, lora=role, **how)

    def merge(self, shares: tuple[float, float]) -> None:
        """Merges of two and three; none twice of the same. Bounds are of task arithmetic."""
        share = float(self._rng.uniform(0.3, 0.7))
        self._add_linear("linear merge", {"child 1": share, "child 2": 1 - share})
        parts = self._rng.dirichlet([8] * 3).tolist()
        three = zip(("child 1", "child 3", "grandchild 3"), parts, strict=True)
        self._add_linear("merge of three", dict(three))
        share = float(self._rng.uniform(0.3, 0.7))
        made = slerp(self._tensors("child 2"), self._tensors("grandchild 2"), share)
        parents = {"child 2": 1 - share, "grandchild 2": share}
        self.add("SLERP merge", "merge", parents, made, method="SLERP")
        first, second = self._rng.uniform(*shares, 2).tolist()
        parents = {"root": 1 - first - second, "child 2": first, "child 3": second}
        self._add_linear("task arithmetic", parents, "task arithmetic")

    def change(self) -> None:
        """Copies that were pruned, quantised, noised, permuted or stored otherwise."""
        one, two, three = (self._tensors(f"child {number}") for number in (1, 2, 3))
        share, bits = float(self._rng.uniform(0.3, 0.6)), int(self._rng.choice([4, 8]))
        size = log_uniform(self._rng, (0.01, 0.05))
        self.add("pruned", "pruned", {"child 2": 1.0}, pruned(two, share), share=share)
        self.add("quantised", "quantised", {"child 1": 1.0}, quantised(one, bits), bits=bits)
        self.add("noised", "noised", {"child 3": 1.0}, noised(three, size, self._rng), size=size)
        self.add("permuted", "permuted", {"child 1": 1.0}, permuted(one, self._rng))
        self.add("copy", "copy", {"grandchild 1": 1.0}, halved(self._tensors("grandchild 1")))

    def _tensors(self, role: str) -> Tensors:
        return self.members[role].tensors

    def _params(self, role: str) -> Params:
        return {name: jnp.asarray(value) for name, value in self._tensors(role).items()}

    def _add_linear(self, role: str, parents: Mapping[str, float], method: str = "linear") -> None:
        made = linear(parents, {parent: self._tensors(parent) for parent in parents})
        self.add(role, "merge", parents, made, method=method)

    def _how(self) -> dict[str, Any]:
        return {
            "seed": int(self._rng.integers(2**31)),
            "steps": int(self._rng.choice(self._training.steps)),
            "learning_rate": log_uniform(self._rng, self._training.learning_rates),
            "weight_decay": log_uniform(self._rng, self._training.weight_decays),
        }

    def _classes(self) -> list[int]:
        concept_count = len(concepts.DIGITS) * len(concepts.TRANSFORMS)
        known = concept_count if self._kind == "MiniDenoiser" else len(data.CLASSES)
        return self._rng.permutation(known)[: self._training.chosen].tolist()


# The models that are fine-tuned, to their parents.
_FINE_TUNED = {
    "child 1": "root",
    "child 2": "root",
    "child 3": "root",
    "grandchild 1": "child 1",
    "grandchild 2": "child 1",
    "grandchild 3": "child 2",
    "great-grandchild": "grandchild 1",
}


def from_scratch(training: Settings, kind: str, seed: int | jax.Array) -> Params:
    """A model that is trained from scratch.

    Args:
      training: how.
      kind: one of `KINDS`.
      seed: decides initial weights and batches; it may be traced.

    Returns:
      Its tensors by name.
    """
    model = _architecture(training, kind)
    if kind == "MiniDenoiser":
        lora = dataclasses.replace(
            training.lora,
            pretraining_steps=training.pretraining_steps,
            pretraining_batch_size=training.pretraining_batch_size,
            pretraining_rate=training.pretraining_rate,
        )
        images = concepts.load(len(concepts.DIGITS), len(concepts.TRANSFORMS)).train
        return pretraining.denoiser(model, lora, images, seed)
    images = data.load(model.image_size).pretraining
    how = "masked" if kind == "MiniMAE" else "supervised"
    return pretraining.classifier(model, how, training, images, seed)


def _arrays(params: Params) -> Tensors:
    return {name: np.asarray(value) for name, value in params.items()}


def _architecture(training: Settings, kind: str) -> Any:
    return {"MiniResNet": ResNet(), "MiniDenoiser": Denoiser()}.get(kind, training.vit)
