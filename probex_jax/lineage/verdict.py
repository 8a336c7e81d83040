"""What can be said of two models: the same weights, parent and child, kin, or none of these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from probex_jax.lineage.adapters import base_fit
from probex_jax.lineage.copies import find_copies
from probex_jax.lineage.difference import copy_difference
from probex_jax.lineage.kinship import SIGNIFICANT, LayerMatch, check_comparable, kinship
from probex_jax.lineage.marks import mark
from probex_jax.lineage.pairs import pair_layers
from probex_jax.lineage.relation import REORDERED, Relation, relate
from probex_jax.lineage.sketch import sketch
from probex_jax.model_files import ModelFile, open_model

_SURE = 0.9
_SHOWN = 3
_SPEAKS = 3.0  # standard deviations from which a layer speaks for kinship


@dataclass(frozen=True)
class Verdict:
    """The result of `compare`.

    Args:
      relation: "same weights"; "derived", one from the other; "kin", and no more can be told;
        "independent", as far as a test can tell; of an adapter and a whole model "fits", the model
        or a kin of it being the base; or "cannot be told".
      parent: "one" or "other" where one is derived from the other, or may be its base; else "".
      kind: what makes the child of the parent, one of `lineage.KINDS`, or "".
      p_value: of the test against independence.
      units: what was compared for it, in words; "" if nothing could be.
      confidence: the probability of the direction, if one is derived from the other.
      distance: the L2 distance as a share of the first model's length; None if not compared.
      unchanged: share of the layers that are equal; None if not compared.
      largest_difference: of two entries, of models with the same weights; else None.
      speak: the layers that speak most for kinship.
      differ: the layers that differ most.
    """

    relation: str
    parent: str = ""
    kind: str = ""
    p_value: float = 1.0
    units: str = ""
    confidence: float = 0.5
    distance: float | None = None
    unchanged: float | None = None
    largest_difference: float | None = None
    speak: tuple[LayerMatch, ...] = field(default=())
    differ: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @property
    def sentence(self) -> str:
        """The verdict in words, the first model being A and the second B."""
        parent, child = ("A", "B") if self.parent == "one" else ("B", "A")
        if self.relation == "same weights":
            return "A and B have the same weights"
        if self.relation == "derived":
            return f"{child} is derived from {parent}: {_IN_WORDS[self.kind]}"
        if self.relation == "fits":
            return f"{child} is an adapter of {parent}, or of a kin of {parent}"
        if self.relation == "kin" and self.kind == "permuted":
            return "A and B are the same but for the order of hidden units"
        if self.relation == "kin":
            return "A and B are kin: one is derived from the other, or both from another model"
        if self.relation == "independent":
            return "A and B show no sign of a common origin"
        if self.kind == "LoRA":
            return f"whether {child} is an adapter of {parent} cannot be told from a LoRA alone"
        return "whether A and B are kin cannot be told from their weights"


_IN_WORDS = {
    "fine-tune": "trained further",
    "LoRA merged": "changed by matrices of low rank, as a merged LoRA does",
    "pruned": "the same with entries set to zero",
    "quantised": "the same, rounded to few values",
    "noised": "the same with noise",
    "permuted": "the same with hidden units in another order",
    "LoRA": "an adapter",
}


def compare(one: str | Path, other: str | Path) -> Verdict:
    """Compares two models, reading no more of them than that takes.

    Args:
      one: path or address of a model, as for `open_model`.
      other: of another one.

    Returns:
      The verdict.

    Raises:
      ProbexError: if one cannot be read, or if they are of different architectures: "not
        comparable", with what does match.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> from safetensors.numpy import save_file
      >>> folder, rng = Path(tempfile.mkdtemp()), np.random.default_rng(0)
      >>> one, two = (rng.normal(size=s).astype("f4") for s in ((64, 32), (32, 64)))
      >>> add = lambda x: (x + 0.1 * rng.normal(size=x.shape)).astype("f4")
      >>> save_file({"fc1.w": one, "fc2.w": two}, folder / "a.safetensors")
      >>> save_file({"fc1.w": add(one), "fc2.w": add(two)}, folder / "b.safetensors")
      >>> found = compare(folder / "a.safetensors", folder / "b.safetensors")
      >>> found.sentence, found.p_value < 0.001
      ('B is derived from A: the same with noise', True)

    References:
      docs/lineage.md.
    """
    with open_model(one) as a, open_model(other) as b:
        for model in (a, b):
            model.check_has_layers()
        are_adapters = [any(x.is_update for x in model.layers.values()) for model in (a, b)]
        found = (
            _of_adapter(a, b, "other" if are_adapters[0] else "one")
            if are_adapters[0] != are_adapters[1]
            else _of_two(a, b, are_adapters[0])
        )
        a.check_unchanged()
        b.check_unchanged()
        return found


def _of_adapter(a: ModelFile, b: ModelFile, base: str) -> Verdict:
    found = base_fit(a, b) if base == "other" else base_fit(b, a)
    relation = "fits" if found.p_value < SIGNIFICANT else "cannot be told"
    return Verdict(relation, base, "LoRA", found.p_value, found.units)


def _of_two(a: ModelFile, b: ModelFile, are_adapters: bool) -> Verdict:
    marks = [mark(sketch(model)) for model in (a, b)]
    if find_copies(marks).equal and (largest := copy_difference(a, b)) is not None:
        return Verdict("same weights", largest_difference=largest, distance=0.0, unchanged=1.0)
    pairs = pair_layers(a, b)
    check_comparable(a, b, pairs)
    tested = kinship(a, b, pairs)
    said = {"p_value": tested.p_value, "units": tested.units, "speak": _speaking(tested.layers)}
    relation = relate(a, b, pairs)
    is_kin = tested.p_value < SIGNIFICANT
    if is_kin and not are_adapters and relation.distance > REORDERED:
        ordered = relate(a, b, pairs, permuted=True)
        if ordered.distance < REORDERED:
            return _derived(ordered, said, "permuted")
    if is_kin:
        return _derived(relation, said)
    # Two adapters of one base are independent of each other.
    of = "independent" if tested.units and not are_adapters else "cannot be told"
    return Verdict(of, **said, **_apart(relation))  # type: ignore[arg-type]


def _derived(relation: Relation, said: dict[str, Any], kind: str = "") -> Verdict:
    forward = 1 / (1 + math.exp(-relation.direction))
    confidence = max(forward, 1 - forward)
    # Putting units in order leaves no trace of who did it.
    is_sure = confidence >= _SURE and not kind
    return Verdict(
        "derived" if is_sure else "kin",
        parent=("one" if forward > 0.5 else "other") if is_sure else "",
        kind=kind or relation.kind,
        confidence=confidence if not kind else 0.5,
        **said,
        **_apart(relation),
    )


def _speaking(layers: Sequence[LayerMatch]) -> tuple[LayerMatch, ...]:
    return tuple(match for match in layers[:_SHOWN] if match.z > _SPEAKS)


def _apart(relation: Relation) -> dict[str, Any]:
    return {
        "distance": relation.distance,
        "unchanged": relation.unchanged,
        "differ": relation.farthest(_SHOWN),
    }
