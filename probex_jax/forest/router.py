"""Which known tree a model is of: the nearest centre, within a radius learnt from its models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.forest.clusters import Clusters
from probex_jax.forest.sketch import Sketch, SketchLayer
from probex_jax.layer_store import LayerStore
from probex_jax.model_files import ModelFile, fingerprint, stated_base
from probex_jax.model_files.architecture import is_head, same_base

# A radius reaches over the farthest training model by this much, and over the mean of the
# logarithms of the distances by so many of their standard deviations, these being no less than so.
_MARGIN = 1.5
_DEVIATIONS = 6.0
_LEAST_DEVIATION = 0.1
# Of few models that deviation is itself a guess: no less than this over the root of their number.
_FEW_DEVIATION = 0.5
# No radius is below this share of the centre's length: half precision alone moves weights by less.
_LEAST_RADIUS = 0.02
# Part of what a tree is grown from: another number, and trees are grown anew.
ROUTER_VERSION = 1
_ROUNDING = 1e-5  # of a centre's length


@dataclass(frozen=True)
class Route:
    """Where a model belongs.

    Args:
      tree: name of its tree; "" for an unknown one.
      nearest: the tree whose centre is the nearest, in its radii; "" where none is of the model's
        architecture.
      distance: L2 distance from that centre, between sketches; None where there is none.
      radius: of that tree.
      reason: why the tree is unknown; "" where it is known.
    """

    tree: str
    nearest: str = ""
    distance: float | None = None
    radius: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class TreeRouter:
    """What a router knows of one tree.

    Args:
      tree: its name.
      root: name of its root, as whoever grew the tree gave it; "" where unknown.
      fingerprints: of the architectures of its models.
      bases: what its models call their ancestor.
      is_lora: whether they are LoRAs, which say little of their ancestor by their weights.
      sketch: what distances are measured on.
      centres_CD: [C, D] float32; more than one where a store holds several trees.
      radii: C radii.
      n_models: training models that it was learnt from.
    """

    tree: str
    root: str
    fingerprints: tuple[str, ...]
    bases: tuple[str, ...]
    is_lora: bool
    sketch: Sketch
    centres_CD: np.ndarray
    radii: tuple[float, ...]
    n_models: int

    @classmethod
    def fit(cls, store: LayerStore, root: str = "") -> TreeRouter:
        """Learns the centres and radii of a store's tree from its training models.

        Args:
          store: the tree's models.
          root: name of the tree's root; "" where unknown.

        Raises:
          ProbexError: if there are no training models, or the store holds nothing but heads.
        """
        models = store.split("train")
        if all(map(is_head, store.layers)):
            raise ProbexError(
                f"{store.path}: holds a classifier head alone, by which no tree can be told; pack "
                "a layer of the backbone as well"
            )
        is_lora = bool(store.ranks)
        sketch = Sketch.of_layers(store.layers)
        sketches_ND = sketch.of_store(store)
        clusters = Clusters(one_tree=is_lora)
        for number, sketch_D in enumerate(sketches_ND):
            clusters.add(number, sketch_D)
        members = [cluster.members for cluster in clusters.finish()]
        centres_CD = np.stack([sketches_ND[rows].mean(axis=0) for rows in members])
        distances = [
            np.linalg.norm(sketches_ND[rows] - centre_D, axis=1)
            for rows, centre_D in zip(members, centres_CD, strict=True)
        ]
        bases = {model.base for model in models if model.base}
        return cls(
            tree=store.tree,
            root=root,
            fingerprints=tuple(sorted({model.fingerprint for model in models})),
            bases=tuple(sorted(bases)),
            is_lora=is_lora,
            sketch=sketch,
            centres_CD=centres_CD,
            radii=tuple(
                _radius(distances_N, centre_D, is_lora)
                for distances_N, centre_D in zip(distances, centres_CD, strict=True)
            ),
            n_models=len(models),
        )

    @property
    def stated_root(self) -> str:
        """What its models' files agree on as their ancestor, "" if they do not, or do not say."""
        return self.bases[0] if len(self.bases) == 1 else ""

    def may_hold(self, architecture: str, base: str) -> bool:
        """Whether a model of this fingerprint and stated ancestor may be of the tree."""
        if architecture not in self.fingerprints:
            return False
        return not (self.is_lora and self.bases) or any(same_base(base, b) for b in self.bases)

    def nearest(self, sketch_D: np.ndarray) -> tuple[float, float]:
        """Distance from the centre that is the nearest in its radii, and its radius."""
        distances_C = np.linalg.norm(self.centres_CD - np.float64(sketch_D), axis=1)
        place = int(np.argmin(distances_C / np.asarray(self.radii)))
        return float(distances_C[place]), self.radii[place]

    def as_json(self) -> dict[str, Any]:
        """All of it but the centres."""
        return {
            "tree": self.tree,
            "root": self.root,
            "fingerprints": list(self.fingerprints),
            "bases": list(self.bases),
            "is_lora": self.is_lora,
            "sketch": [
                {"name": layer.name, "shape": list(layer.shape), "rows": list(layer.rows)}
                for layer in self.sketch.layers
            ],
            "radii": list(self.radii),
            "n_models": self.n_models,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], centres_CD: np.ndarray) -> TreeRouter:
        """From what `as_json` made of one.

        Raises:
          ValueError, KeyError, TypeError: if it is damaged.
        """
        layers = [
            SketchLayer(layer["name"], tuple(layer["shape"]), tuple(layer["rows"]))
            for layer in value["sketch"]
        ]
        router = cls(
            tree=_text(value["tree"]),
            root=_text(value["root"]),
            fingerprints=tuple(map(_text, value["fingerprints"])),
            bases=tuple(map(_text, value["bases"])),
            is_lora=value["is_lora"],
            sketch=Sketch(tuple(layers)),
            centres_CD=centres_CD,
            radii=tuple(map(float, value["radii"])),
            n_models=value["n_models"],
        )
        if centres_CD.shape != (len(router.radii), router.sketch.size):
            raise ValueError(f"centres of shape {centres_CD.shape}")
        return router


def route(model: ModelFile, trees: Sequence[TreeRouter], base: str | None = None) -> Route:
    """Finds the tree of a model.

    Args:
      model: open.
      trees: those that are known.
      base: `stated_base` of the model, where that is known already.

    Returns:
      The tree of the nearest centre, distances being measured in the trees' radii; none outside
      of all radii.

    Raises:
      ProbexError: if a layer cannot be read, or is of another shape than in the tree's models.
    """
    if model.without_layers:
        return Route("", reason=model.without_layers)
    architecture, base = fingerprint(model), stated_base(model) if base is None else base
    alike = [tree for tree in trees if architecture in tree.fingerprints]
    if not alike:
        return Route("", reason="no known tree is of its architecture")
    possible = [tree for tree in alike if tree.may_hold(architecture, base)]
    if not possible:
        return Route("", reason="its files name another ancestor than those of known trees do")
    if len(possible) > 1 and any(tree.is_lora for tree in possible):
        # Their weights say little of their ancestor.
        return Route("", reason="its files do not say of which model it is an update")
    sketches = {tree.sketch: None for tree in possible}
    sketched = {sketch: sketch.of_model(model) for sketch in sketches}
    found = [(*tree.nearest(sketched[tree.sketch]), tree.tree) for tree in possible]
    distance, radius, nearest = min(found, key=lambda one: one[0] / one[1])
    if distance > radius:
        reason = f"{distance / radius:.1f} times as far from {nearest} as its models can be"
        return Route("", nearest, distance, radius, reason)
    return Route(nearest, nearest, distance, radius)


def check_apart(new: TreeRouter, known: TreeRouter) -> None:
    """Checks that models of two trees can be told apart.

    Raises:
      ProbexError: if a centre of one lies within a radius of the other; of LoRAs, if they change
        the same layers of what may be the same model.
    """
    if not set(new.fingerprints) & set(known.fingerprints):
        return
    if new.is_lora:
        may_be_same = not (new.bases and known.bases) or any(
            same_base(one, other) for one in new.bases for other in known.bases
        )
    else:
        may_be_same = _is_near(new, known) or _is_near(known, new)
    if may_be_same:
        raise ProbexError(
            f"tree {new.tree}: its models cannot be told from those of {known.tree}; keep one of "
            "the two in a forest"
        )


def _is_near(one: TreeRouter, other: TreeRouter) -> bool:
    """Whether a centre of one lies within a radius of the other, by the layers they both sketch."""
    shared = [layer for layer in one.sketch.layers if layer in other.sketch.layers]
    if not shared:
        return False
    ours, theirs = (
        tree.centres_CD[:, np.concatenate([tree.sketch.columns(layer) for layer in shared])]
        for tree in (one, other)
    )
    # Distances grow with the root of the number of entries.
    radii = np.asarray(other.radii) * np.sqrt(theirs.shape[1] / other.centres_CD.shape[1])
    return bool(np.any(np.linalg.norm(ours[:, None] - theirs, axis=-1) < radii))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.50} is no text")
    return value


def _radius(distances_N: np.ndarray, centre_D: np.ndarray, is_lora: bool) -> float:
    """How far from a centre models of its tree may be.

    Never so far that they would have less than half of their weights in common with it, unless
    training models have; but LoRAs have little in common anyway.

    Args:
      distances_N: of the training models, from their mean.
      centre_D: that mean.
      is_lora: whether they are LoRAs.
    """
    count = len(distances_N)
    length = float(np.linalg.norm(centre_D))
    # As far as each is from the mean of the others: it has drawn their mean to itself.
    distances_N = np.asarray(distances_N, np.float64) * count / max(count - 1, 1)
    farthest = _MARGIN * float(np.max(distances_N))
    if farthest <= _ROUNDING * length:  # one model, or all alike
        return length or 1.0
    logs_N = np.log(np.maximum(distances_N, 1e-6 * farthest))
    deviation = max(float(logs_N.std()), _LEAST_DEVIATION, _FEW_DEVIATION / np.sqrt(count))
    reach = max(farthest, float(np.exp(logs_N.mean() + _DEVIATIONS * deviation)))
    if is_lora:
        return reach
    return min(max(reach, _LEAST_RADIUS * length), max(farthest, length))
