"""Finding the tree of a model: the nearest centre, within a radius learnt from its models.

A model within the radius is still rejected if a layer of the sketch, or one that the expert reads,
has another length than in the training models, or is no closer to theirs than by chance.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.forest.clusters import Clusters
from probex_jax.forest.reach import (
    Reach,
    geometric_mean,
    length_range,
    resized,
    shared_size,
)
from probex_jax.forest.sketch import Sketch, SketchLayer
from probex_jax.layer_store import LayerStore
from probex_jax.model_files import ModelFile, fingerprint, stated_base
from probex_jax.model_files.architecture import is_head, same_base
from probex_jax.model_files.untrusted_text import quoted

# Trees of another version are grown again.
ROUTER_VERSION = 3


@dataclass(frozen=True)
class Route:
    """The tree of a model.

    Args:
      tree: its name; "" if it is unknown.
      nearest: the tree with the nearest centre, relative to its radius; "" if none has the
        architecture of the model.
      distance: L2 distance of the sketch from that centre, if any.
      radius: of that tree.
      reason: why the tree is unknown, or "".
    """

    tree: str
    nearest: str = ""
    distance: float | None = None
    radius: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class TreeRouter:
    """Recognises the models of one tree.

    Args:
      tree: its name.
      root: its root, as given when the tree was grown; "" if unknown.
      fingerprints: of the architectures of its models.
      bases: the ancestors that its models state.
      is_lora: whether they are LoRAs, whose weights say little about their ancestor.
      sketch: for distances.
      heads: heads and position embeddings that the expert reads. Unrelated models may share them
        and those of a tree need not, so distances ignore them, but they are checked.
      centres_CD: [C, D] float32, the layers of `sketch` before those of `heads`; several centres if
        a store holds several trees.
      radii: C radii.
      layer_limits: C times K maximal distances of single layers; None where unrelated models may
        be as close.
      scales: C bounds of `shared_size`; None where they are not known.
      length: bounds of the geometric mean of the lengths of the layers of `sketch`.
      lengths: bounds of the length of each layer of both.
      usual_lengths: of the layers of `sketch`, in its order.
      n_models: number of training models.
    """

    tree: str
    root: str
    fingerprints: tuple[str, ...]
    bases: tuple[str, ...]
    is_lora: bool
    sketch: Sketch
    heads: Sketch
    centres_CD: np.ndarray
    radii: tuple[float, ...]
    layer_limits: tuple[tuple[float | None, ...], ...]
    scales: tuple[tuple[float, float] | None, ...]
    length: tuple[float, float]
    lengths: Mapping[str, tuple[float, float]]
    usual_lengths: tuple[float, ...]
    n_models: int

    @classmethod
    def fit(cls, store: LayerStore, root: str = "", layers: Collection[str] = ()) -> TreeRouter:
        """Learns a router from the training models of a store.

        Args:
          store: the tree's models.
          root: the root of the tree; "" if unknown.
          layers: the layers of the store that the expert reads.

        Raises:
          ProbexError: if there are no training models, the store holds only heads or lacks a layer,
            or the models have too little in common to be told apart from unrelated ones.
        """
        models = store.split("train")
        matrices = {n: shape for n, shape in store.layers.items() if n not in store.vectors}
        if all(map(is_head, matrices)):
            raise ProbexError(
                f"{store.path}: holds only a classifier head, which does not identify a tree; pack "
                "a layer of the backbone as well"
            )
        if missing := sorted(set(layers) - set(store.layers)):
            raise ProbexError(f"{store.path}: lacks layer {missing[0]}, which the expert reads")
        is_lora, layers = bool(store.ranks), set(layers)
        sketch = Sketch.of_layers(matrices, also=layers)
        sketched = {layer.name for layer in sketch.layers}
        heads = Sketch.of_all({n: store.layers[n] for n in sorted(layers - sketched)})
        checked = sketch + heads
        checked_ND, lengths_NK = checked.of_store(store)
        clusters = Clusters(sketch, one_tree=is_lora)
        for number, checked_D in enumerate(checked_ND):
            clusters.add(number, checked_D[: sketch.size])
        members = [cluster.members for cluster in clusters.finish()]
        sketch_lengths_NK = lengths_NK[:, : len(sketch.layers)]
        usual_K = geometric_mean(sketch_lengths_NK.T)
        sizes_NK = _relative(sketch_lengths_NK, usual_K)
        reaches = [
            Reach.fit(sketch, heads, checked_ND[rows], sizes_NK[rows], is_lora) for rows in members
        ]
        # Of several models, one that is related to no other has nothing in common with them.
        told = [r.n_inside for r, rows in zip(reaches, members, strict=True) if len(rows) > 1]
        if len(models) > 1 and sum(told) < len(models) / 2:
            raise ProbexError(
                f"{store.path}: its training models have too little in common to be told apart "
                "from unrelated ones; pack more models or more layers"
            )
        bases = {model.base for model in models if model.base}
        return cls(
            tree=store.tree,
            root=root,
            fingerprints=tuple(sorted({model.fingerprint for model in models})),
            bases=tuple(sorted(bases)),
            is_lora=is_lora,
            sketch=sketch,
            heads=heads,
            centres_CD=np.stack([reach.centre_D for reach in reaches]),
            radii=tuple(reach.radius for reach in reaches),
            layer_limits=tuple(reach.layer_limits for reach in reaches),
            scales=tuple(reach.scale for reach in reaches),
            length=length_range(geometric_mean(sketch_lengths_NK), is_lora, as_a_whole=True),
            lengths={
                layer.name: length_range(lengths_N, is_lora, may_vanish=1 in layer.shape)
                for layer, lengths_N in zip(checked.layers, lengths_NK.T, strict=True)
            },
            usual_lengths=tuple(map(float, usual_K)),
            n_models=len(models),
        )

    @property
    def checked(self) -> Sketch:
        """All checked layers."""
        return self.sketch + self.heads

    @property
    def stated_root(self) -> str:
        """The ancestor that all its models state; "" if there is none."""
        return self.bases[0] if len(self.bases) == 1 else ""

    def may_hold(self, architecture: str, base: str) -> bool:
        """Whether a model with this fingerprint and stated ancestor may belong to the tree."""
        if architecture not in self.fingerprints:
            return False
        return not (self.is_lora and self.bases) or any(same_base(base, b) for b in self.bases)

    def nearest(self, sketch_D: np.ndarray) -> tuple[float, float, int]:
        """Distance, radius and index of the centre that is nearest relative to its radius."""
        centres_CD = self.centres_CD[:, : self.sketch.size]
        distances_C = np.linalg.norm(centres_CD - np.float64(sketch_D), axis=1)
        place = int(np.argmin(distances_C / np.asarray(self.radii)))
        return float(distances_C[place]), self.radii[place], place

    def objection(self, model: ModelFile, place: int) -> str:
        """Why a model within a radius does not belong to the tree, or "".

        Args:
          model: open.
          place: index of the centre.

        Raises:
          ProbexError: if a layer cannot be read.
        """
        checked = self.checked.fitting(model)  # heads may have other shapes
        checked_D, lengths = checked.of_model(model)
        for layer, length in zip(checked.layers, lengths, strict=True):
            if found := resized(length, self.lengths[layer.name]):
                return f"its layer {quoted(layer.name)} is {found} that of models of {self.tree}"
        of_sketch = [layer in self.sketch.layers for layer in checked.layers]
        found = resized(float(geometric_mean(lengths[of_sketch])), self.length)
        if (scale := self.scales[place]) and not found:
            size = self.sketch.size
            sizes_NK = _relative(lengths[None, of_sketch], self.usual_lengths)
            [shared] = shared_size(
                self.sketch, self.centres_CD[place, :size], checked_D[None, :size], sizes_NK
            )
            found = resized(float(max(shared, 0.01 * scale[0])), scale)
        if found:
            return f"it is as a whole {found} models of {self.tree}"
        limits = dict(zip(self.checked.layers, self.layer_limits[place], strict=True))
        for layer in checked.layers:
            centre_D = self.centres_CD[place, self.checked.columns(layer)]
            apart = np.linalg.norm(checked_D[checked.columns(layer)] - np.float64(centre_D))
            if (limit := limits[layer]) is not None and apart > limit:
                return (
                    f"its layer {quoted(layer.name)} is as far from that of {self.tree} as in "
                    "unrelated models"
                )
        return ""

    def as_json(self) -> dict[str, Any]:
        """All of it but the centres."""
        return {
            "tree": self.tree,
            "root": self.root,
            "fingerprints": list(self.fingerprints),
            "bases": list(self.bases),
            "is_lora": self.is_lora,
            "sketch": _sketch_as_json(self.sketch),
            "heads": _sketch_as_json(self.heads),
            "radii": list(self.radii),
            "layer_limits": [list(limits) for limits in self.layer_limits],
            "scales": [None if scale is None else list(scale) for scale in self.scales],
            "length": list(self.length),
            "usual_lengths": list(self.usual_lengths),
            "lengths": {name: list(bounds) for name, bounds in self.lengths.items()},
            "n_models": self.n_models,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], centres_CD: np.ndarray) -> TreeRouter:
        """From what `as_json` made of one.

        Raises:
          ValueError, KeyError, TypeError: if it is damaged.
        """
        router = cls(
            tree=_text(value["tree"]),
            root=_text(value["root"]),
            fingerprints=tuple(map(_text, value["fingerprints"])),
            bases=tuple(map(_text, value["bases"])),
            is_lora=value["is_lora"],
            sketch=_sketch_from_json(value["sketch"]),
            heads=_sketch_from_json(value["heads"]),
            centres_CD=centres_CD,
            radii=tuple(map(float, value["radii"])),
            layer_limits=tuple(
                tuple(None if limit is None else float(limit) for limit in limits)
                for limits in value["layer_limits"]
            ),
            scales=tuple(None if scale is None else _range(scale) for scale in value["scales"]),
            length=_range(value["length"]),
            usual_lengths=tuple(map(float, value["usual_lengths"])),
            lengths={name: _range(bounds) for name, bounds in value["lengths"].items()},
            n_models=value["n_models"],
        )
        if centres_CD.shape != (len(router.radii), router.checked.size):
            raise ValueError(f"centres of shape {centres_CD.shape}")
        if len(router.scales) != len(router.radii):
            raise ValueError("scales of other centres")
        if len(router.usual_lengths) != len(router.sketch.layers):
            raise ValueError("usual_lengths of other layers")
        names = [layer.name for layer in router.checked.layers]
        if list(map(len, router.layer_limits)) != [len(names)] * len(router.radii):
            raise ValueError("layer_limits of other layers")
        if set(router.lengths) != set(names):
            raise ValueError("lengths of other layers")
        return router


def route(model: ModelFile, trees: Sequence[TreeRouter], base: str | None = None) -> Route:
    """Finds the tree of a model.

    Args:
      model: open.
      trees: the known trees.
      base: `stated_base` of the model, if known.

    Returns:
      The tree with the nearest centre relative to its radius; none outside all radii, or if the
      tree has an `objection`.

    Raises:
      ProbexError: if a layer cannot be read, or has another shape than in the tree.
    """
    if model.without_layers:
        return Route("", reason=model.without_layers)
    architecture, base = fingerprint(model), stated_base(model) if base is None else base
    alike = [tree for tree in trees if architecture in tree.fingerprints]
    if not alike:
        return Route("", reason="no known tree has its architecture")
    possible = [tree for tree in alike if tree.may_hold(architecture, base)]
    if not possible:
        return Route("", reason="its files name another base model than those of the known trees")
    if len(possible) > 1 and any(tree.is_lora for tree in possible):
        # Their weights say little about their ancestor.
        return Route("", reason="its files do not name the base model of the LoRA")
    sketches = {tree.sketch: None for tree in possible}
    sketched = {sketch: sketch.of_model(model)[0] for sketch in sketches}
    found = [(*tree.nearest(sketched[tree.sketch]), tree) for tree in possible]
    distance, radius, place, tree = min(found, key=lambda one: one[0] / one[1])
    if distance > radius:
        reason = _farther(distance / radius, tree.tree)
    else:
        reason = tree.objection(model, place)
    return Route("" if reason else tree.tree, tree.tree, distance, radius, reason)


def _farther(ratio: float, tree: str) -> str:
    """By how much a distance is beyond a radius, never rounded to nothing."""
    if ratio < 2:
        return f"{100 * (ratio - 1):.2g} % farther from {tree} than its models can be"
    return f"{ratio:.3g} times as far from {tree} as its models can be"


def _relative(lengths_NK: np.ndarray, usual_K: Sequence[float] | np.ndarray) -> np.ndarray:
    """Lengths relative to the usual ones; 0 where these are."""
    usual_K = np.asarray(usual_K)
    return np.where(usual_K > 0, lengths_NK / np.where(usual_K > 0, usual_K, 1.0), 0.0)


def check_apart(new: TreeRouter, known: TreeRouter) -> None:
    """Checks that the models of two trees can be told apart.

    Raises:
      ProbexError: if a centre of one lies within a radius of the other; for LoRAs, if they change
        the same layers of what may be the same base model.
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
            f"tree {new.tree}: its models cannot be told apart from those of {known.tree}; keep "
            "only one of the two trees"
        )


def _is_near(one: TreeRouter, other: TreeRouter) -> bool:
    """Whether a centre of one lies within a radius of the other, by their common layers."""
    shared = [layer for layer in one.sketch.layers if layer in other.sketch.layers]
    if not shared:
        return False
    ours, theirs = (
        tree.centres_CD[:, np.r_[*(tree.sketch.columns(layer) for layer in shared)]]
        for tree in (one, other)
    )
    # Distances grow with the square root of the number of entries.
    radii = np.asarray(other.radii) * np.sqrt(theirs.shape[1] / other.sketch.size)
    return bool(np.any(np.linalg.norm(ours[:, None] - theirs, axis=-1) < radii))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.50} is not a string")
    return value


def _range(value: Any) -> tuple[float, float]:
    least, greatest = value
    return float(least), float(greatest)


def _sketch_as_json(sketch: Sketch) -> list[dict[str, Any]]:
    return [
        {"name": layer.name, "shape": list(layer.shape), "rows": list(layer.rows)}
        for layer in sketch.layers
    ]


def _sketch_from_json(value: Any) -> Sketch:
    layers = [
        SketchLayer(_text(layer["name"]), tuple(layer["shape"]), tuple(layer["rows"]))
        for layer in value
    ]
    return Sketch(tuple(layers))
