"""Which known tree a model is of: the nearest centre, within a radius learnt from its models.

A model within the radius is still refused if a layer that tells the tree, or that its expert
reads, is of another size than in the training models, or no nearer to theirs than by chance.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.forest.chance import chance_limits
from probex_jax.forest.clusters import Clusters
from probex_jax.forest.sketch import Sketch, SketchLayer
from probex_jax.layer_store import LayerStore
from probex_jax.model_files import ModelFile, fingerprint, stated_base
from probex_jax.model_files.architecture import is_head, same_base
from probex_jax.model_files.untrusted_text import quoted

# A radius reaches over the farthest training model by this much, and over the mean of the
# logarithms of the distances by so many of their standard deviations, these being no less than so.
_MARGIN = 1.5
_DEVIATIONS = 6.0
_LEAST_DEVIATION = 0.1
# Of few models that deviation is itself a guess: no less than this over the root of their number.
_FEW_DEVIATION = 0.5
# No radius is below this share of the centre's length: half precision alone moves weights by less.
_LEAST_RADIUS = 0.02
# A layer may be larger or smaller than in all training models by a factor: its logarithm is no less
# than this, nor than this over the root of the number of models, nor than so many standard
# deviations of the logarithms of the lengths, and so many more over that root.
_LEAST_GROWTH = 0.3
_FEW_GROWTH = 1.0
_FEW_GROWTH_AS_A_WHOLE = 0.5  # layers that differ by chance make up for each other
_GROWTH_DEVIATIONS = 1.5
_FEW_GROWTH_DEVIATIONS = 8.0
# Of LoRAs, whose sizes follow from learning rates and alphas, it is this.
_LORA_GROWTH = float(np.log(100))
# Part of what a tree is grown from: another number, and trees are grown anew.
ROUTER_VERSION = 2
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
      heads: heads and embeddings of positions that the expert reads; models of a tree have nothing
        in common there, and only their lengths are checked.
      centres_CD: [C, D] float32; more than one where a store holds several trees.
      radii: C radii.
      layer_limits: C times K distances of single layers of the sketch, below which models of the
        tree are; None where unrelated ones may be, too.
      length: the least and the greatest geometric mean of the lengths of the layers of `sketch`.
      lengths: by layer of `sketch` and `heads` the least and the greatest length.
      n_models: training models that it was learnt from.
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
    length: tuple[float, float]
    lengths: Mapping[str, tuple[float, float]]
    n_models: int

    @classmethod
    def fit(cls, store: LayerStore, root: str = "", layers: Collection[str] = ()) -> TreeRouter:
        """Learns the centres and radii of a store's tree from its training models.

        Args:
          store: the tree's models.
          root: name of the tree's root; "" where unknown.
          layers: of the store, those that the tree's expert reads.

        Raises:
          ProbexError: if there are no training models, the store holds nothing but heads, or lacks
            a layer; or if the models have too little in common to be told from unrelated ones.
        """
        models = store.split("train")
        if all(map(is_head, store.layers)):
            raise ProbexError(
                f"{store.path}: holds a classifier head alone, by which no tree can be told; pack "
                "a layer of the backbone as well"
            )
        if missing := sorted(set(layers) - set(store.layers)):
            raise ProbexError(f"{store.path}: lacks layer {missing[0]}, which the expert reads")
        is_lora = bool(store.ranks)
        sketch = Sketch.of_layers(store.layers, also=layers)
        sketched = {layer.name for layer in sketch.layers}
        heads = Sketch.of_all({n: store.layers[n] for n in sorted(set(layers) - sketched)})
        sketches_ND, lengths_NK = sketch.of_store(store)
        _, head_lengths_NK = heads.of_store(store)
        clusters = Clusters(one_tree=is_lora)
        for number, sketch_D in enumerate(sketches_ND):
            clusters.add(number, sketch_D)
        members = [cluster.members for cluster in clusters.finish()]
        around = [_Around.fit(sketch, sketches_ND[rows], is_lora) for rows in members]
        if sum(one.n_inside for one in around) < len(models) / 2:
            raise ProbexError(
                f"{store.path}: its training models have too little in common to be told from "
                "unrelated ones; pack more models, or more of their layers"
            )
        names = [layer.name for layer in (*sketch.layers, *heads.layers)]
        lengths_KN = np.concatenate([lengths_NK, head_lengths_NK], axis=1).T
        bases = {model.base for model in models if model.base}
        return cls(
            tree=store.tree,
            root=root,
            fingerprints=tuple(sorted({model.fingerprint for model in models})),
            bases=tuple(sorted(bases)),
            is_lora=is_lora,
            sketch=sketch,
            heads=heads,
            centres_CD=np.stack([one.centre_D for one in around]),
            radii=tuple(one.radius for one in around),
            layer_limits=tuple(one.layer_limits for one in around),
            length=_length_range(
                _geometric_mean(lengths_NK), is_lora, few_growth=_FEW_GROWTH_AS_A_WHOLE
            ),
            lengths={
                name: _length_range(lengths_N, is_lora)
                for name, lengths_N in zip(names, lengths_KN, strict=True)
            },
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

    def nearest(self, sketch_D: np.ndarray) -> tuple[float, float, int]:
        """Distance from the centre that is the nearest in its radii, its radius, and its place."""
        distances_C = np.linalg.norm(self.centres_CD - np.float64(sketch_D), axis=1)
        place = int(np.argmin(distances_C / np.asarray(self.radii)))
        return float(distances_C[place]), self.radii[place], place

    def objection(
        self, model: ModelFile, sketch_D: np.ndarray, lengths_K: np.ndarray, place: int
    ) -> str:
        """Why a model within a radius is not of the tree all the same; "" if it is.

        Args:
          model: open.
          sketch_D, lengths_K: what `sketch` makes of it.
          place: of the centre.

        Raises:
          ProbexError: if a layer cannot be read.
        """
        # Heads of other shapes are no concern of the tree.
        heads = Sketch(
            tuple(
                head
                for head in self.heads.layers
                if head.name in model.layers and model.layers[head.name].shape == head.shape
            )
        )
        _, head_lengths_K = heads.of_model(model) if heads.layers else (None, np.empty(0))
        names = [layer.name for layer in (*self.sketch.layers, *heads.layers)]
        for name, length in zip(names, [*lengths_K, *head_lengths_K], strict=True):
            if found := _resized(length, self.lengths[name]):
                return f"its layer {quoted(name)} is {found} in models of {self.tree}"
        if found := _resized(float(_geometric_mean(lengths_K)), self.length):
            return f"it is as a whole {found} in models of {self.tree}"
        apart_D = np.float64(sketch_D) - self.centres_CD[place]
        for layer, limit in zip(self.sketch.layers, self.layer_limits[place], strict=True):
            if limit is not None and np.linalg.norm(apart_D[self.sketch.columns(layer)]) > limit:
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
            "length": list(self.length),
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
            length=_range(value["length"]),
            lengths={name: _range(bounds) for name, bounds in value["lengths"].items()},
            n_models=value["n_models"],
        )
        if centres_CD.shape != (len(router.radii), router.sketch.size):
            raise ValueError(f"centres of shape {centres_CD.shape}")
        if list(map(len, router.layer_limits)) != [len(router.sketch.layers)] * len(router.radii):
            raise ValueError("layer_limits do not fit the sketch")
        if set(router.lengths) != {
            layer.name for layer in (*router.sketch.layers, *router.heads.layers)
        }:
            raise ValueError("lengths do not fit the sketch")
        return router


def route(model: ModelFile, trees: Sequence[TreeRouter], base: str | None = None) -> Route:
    """Finds the tree of a model.

    Args:
      model: open.
      trees: those that are known.
      base: `stated_base` of the model, where that is known already.

    Returns:
      The tree of the nearest centre, distances being measured in the trees' radii; none outside
      of all radii, nor where the tree has an `objection`.

    Raises:
      ProbexError: if a layer cannot be read, or is of another shape than in the tree's models.
    """
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
    found = [(*tree.nearest(sketched[tree.sketch][0]), tree) for tree in possible]
    distance, radius, place, tree = min(found, key=lambda one: one[0] / one[1])
    if distance > radius:
        reason = f"{distance / radius:.3g} times as far from {tree.tree} as its models can be"
    else:
        reason = tree.objection(model, *sketched[tree.sketch], place)
    return Route("" if reason else tree.tree, tree.tree, distance, radius, reason)


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


@dataclass(frozen=True)
class _Around:
    """What surrounds a centre: see `TreeRouter`.

    Args:
      n_inside: how many of its training models are no farther than `radius`, each from the mean of
        the others.
    """

    centre_D: np.ndarray
    radius: float
    layer_limits: tuple[float | None, ...]
    n_inside: int

    @classmethod
    def fit(cls, sketch: Sketch, sketches_ND: np.ndarray, is_lora: bool) -> _Around:
        centre_D = sketches_ND.mean(axis=0)
        apart_ND = _from_the_others(np.float64(sketches_ND) - centre_D)
        distances_N = np.linalg.norm(apart_ND, axis=1)
        if is_lora:  # they have little in common, whatever their origin
            radius = _radius(distances_N, centre_D, np.inf, is_lora=True)
            return cls(centre_D, radius, (None,) * len(sketch.layers), len(apart_ND))
        limit, limits_K = chance_limits(sketch, centre_D, sketches_ND, apart_ND)
        radius = _radius(distances_N, centre_D, limit)
        varies = _reach(distances_N, float(np.linalg.norm(centre_D))) is not None
        layer_limits: list[float | None] = []
        for layer, layer_limit in zip(sketch.layers, limits_K, strict=True):
            columns = sketch.columns(layer)
            farthest = float(np.max(np.linalg.norm(apart_ND[:, columns], axis=1)))
            # Of few models, others may be farther; of one, nobody knows how far.
            told = varies and farthest * (1 + len(apart_ND) ** -0.5) < layer_limit
            layer_limits.append(float(layer_limit) if told else None)
        n_inside = int(np.sum(distances_N < limit))
        return cls(centre_D, radius, tuple(layer_limits), n_inside)


def _from_the_others(apart_ND: np.ndarray) -> np.ndarray:
    """Of differences from the mean those from the mean of the others: each has drawn it near."""
    count = len(apart_ND)
    return apart_ND * (count / max(count - 1, 1))


def _radius(
    distances_N: np.ndarray, centre_D: np.ndarray, limit: float, *, is_lora: bool = False
) -> float:
    """How far from a centre models of its tree may be.

    Never so far as unrelated models are; nor so far that they would have less than half of their
    weights in common with it, unless training models have; but LoRAs have little in common anyway.

    Args:
      distances_N: of each training model, from the mean of the others.
      centre_D: the mean of all.
      limit: no unrelated model is nearer.
      is_lora: whether they are LoRAs.
    """
    length = float(np.linalg.norm(centre_D))
    reach = _reach(distances_N, length)
    if reach is None:
        radius = length or 1.0
    elif is_lora:
        radius = reach
    else:
        farthest = _MARGIN * float(np.max(distances_N))
        radius = min(max(reach, _LEAST_RADIUS * length), max(farthest, length))
    return max(min(radius, limit), _ROUNDING * (length or 1.0))


def _reach(distances_N: np.ndarray, length: float) -> float | None:
    """How far training models show that others may be; None for one model, or if all are alike."""
    farthest = _MARGIN * float(np.max(distances_N))
    if farthest <= _ROUNDING * length:
        return None
    logs_N = np.log(np.maximum(distances_N, 1e-6 * farthest))
    few = _FEW_DEVIATION / np.sqrt(len(distances_N))
    deviation = max(float(logs_N.std()), _LEAST_DEVIATION, few)
    return max(farthest, float(np.exp(logs_N.mean() + _DEVIATIONS * deviation)))


def _geometric_mean(lengths_NK: np.ndarray) -> np.ndarray:
    """Of the last axis."""
    with np.errstate(divide="ignore"):  # of a length of zero it is zero
        return np.exp(np.mean(np.log(lengths_NK), axis=-1))


def _resized(length: float, bounds: tuple[float, float]) -> str:
    """What a length is that lies outside of its bounds; "" of one within."""
    least, greatest = bounds
    if least <= length <= greatest:
        return ""
    typical = np.sqrt(least * greatest) or greatest
    return f"{length / typical:.2g} times as large as" if length else "all zeros, unlike"


def _length_range(
    lengths_N: np.ndarray, is_lora: bool, few_growth: float = _FEW_GROWTH
) -> tuple[float, float]:
    """The least and the greatest length that a layer, or all together, may have in a tree."""
    least, greatest = float(np.min(lengths_N)), float(np.max(lengths_N))
    few = float(1 / np.sqrt(len(lengths_N)))
    if is_lora:
        growth = _LORA_GROWTH
    else:
        deviation = float(np.log(lengths_N[lengths_N > 0]).std()) if greatest > 0 else 0.0
        deviations = _GROWTH_DEVIATIONS + _FEW_GROWTH_DEVIATIONS * few
        growth = max(_LEAST_GROWTH, few_growth * few, deviations * deviation)
    return least * float(np.exp(-growth)), greatest * float(np.exp(growth))
