"""What is usual in a tree: statistics of the layers of its training models.

A model is as unusual as the most unusual of its numbers: a statistic of a layer, or how that
differs from what it is in the model's other layers. Each is divided by how far nearly all training
models are from their median. That score is compared with the scores of the training models, whose
statistics were computed without them, so that no more than one of a hundred models of the tree is
called unusual.

Letters: those of `layer_statistics`, and L layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from probex_jax.forest.layer_statistics import LEAST_S, STATISTICS
from probex_jax.forest.root_sample import RootSample
from probex_jax.forest.soundness import Finding
from probex_jax.forest.usual_layer import Sampled, UsualLayer
from probex_jax.layer_store import LayerStore

# Trees of another version are grown again.
USUAL_VERSION = 1

_MOST_LAYERS, _MOST_MODELS = 64, 320
_MOST_BYTES = 2**32  # read of a store, beside the layers that must be
_ALARMS = 0.01
_LEAST_MODELS = 20
# With too few models for that share: as much more unusual than any of them.
_MARGIN = 1.5
_NEARLY_ALL = 0.98
_LIKE = 0.5  # multiple of the centre


@dataclass(frozen=True)
class Usual:
    """What is usual in one tree.

    Args:
      layers: those that are looked at.
      statistics_NLS: of the training models, each without itself, float32.
      root: the tree's root; None if it was not at hand.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> models = 1 + 0.1 * rng.normal(size=(120, 8, 8))
      >>> samples = Sampled.of(models, "a", (8, 8)), Sampled.of(1.5 * models[:1], "a", (8, 8))
      >>> usual = Usual.of({"a": samples[0]}, {"a": (8, 8)})
      >>> p_value, [finding] = usual.judge({"a": samples[1]})
      >>> round(p_value, 3), finding.fact, round(finding.value, 1)
      (0.008, 'size', 1.5)
    """

    layers: tuple[UsualLayer, ...]
    statistics_NLS: np.ndarray
    root: RootSample | None = None

    @classmethod
    def fit(cls, store: LayerStore, needed: Iterable[str] = (), root: str = "") -> Usual | None:
        """Learns from the training models of a store; None if there are too few to say anything.

        Args:
          store: the tree's models.
          needed: layers that are read of every model in any case.
          root: where the tree's root is, if on this machine.

        Raises:
          ProbexError: if the root cannot be read.
        """
        count = len(store.split("train"))
        if count < 2:
            return None
        models = np.unique(np.linspace(0, count - 1, min(count, _MOST_MODELS)).round().astype(int))
        samples = {
            name: Sampled.joined(
                [
                    Sampled.of(block, name, store.layers[name])
                    for block in store.blocks(name, "train", models)
                ]
            )
            for name in _chosen(store, set(needed), len(models))
        }
        if not samples:
            return None
        found = cls.of(samples, store.layers)
        if store.ranks:  # of updates the root has no part
            return found
        return replace(found, root=RootSample.fit(root, samples, store.layers))

    @classmethod
    def of(cls, samples: Mapping[str, Sampled], shapes: Mapping[str, tuple[int, int]]) -> Usual:
        """Learns from samples of the layers of training models, and the shapes of the layers."""
        fitted = [UsualLayer.fit(name, shapes[name], x) for name, x in samples.items()]
        found_NLS = np.stack([found_NS for _, found_NS in fitted], axis=1)
        return cls(tuple(layer for layer, _ in fitted), _filled(found_NLS).astype(np.float32))

    @property
    def n_models(self) -> int:
        """Number of training models."""
        return len(self.statistics_NLS)

    def resembles(self, samples: Mapping[str, Sampled]) -> bool:
        """Whether most layers of a model, by name, have the centre of the tree in them.

        Where the models of a tree have nothing in common, any model does.
        """
        layers = [layer for layer in self.layers if layer.is_centred and layer.name in samples]
        size = STATISTICS.index("size")
        shares = [layer.measure(samples[layer.name])[size] for layer in layers]
        return bool(np.median(np.nan_to_num(shares)) > _LIKE) if shares else True

    def judge(self, samples: Mapping[str, Sampled]) -> tuple[float | None, tuple[Finding, ...]]:
        """Compares a model with the tree's.

        Args:
          samples: of its layers, by name; others than `layers` do not count.

        Returns:
          `p_value` and `findings` as of a `Soundness`.
        """
        places = [place for place, layer in enumerate(self.layers) if layer.name in samples]
        layers = [self.layers[place] for place in places]
        equal = [layer.equal_entries(samples[layer.name]) for layer in layers]
        near = [self.root.finding(samples)] if self.root is not None else []
        findings = [finding for finding in near + equal if finding is not None]
        if self.n_models < _LEAST_MODELS or not places:
            return None, tuple(findings)
        found_LS = np.stack([layer.measure(samples[layer.name]) for layer in layers])
        trained_NLS = self.statistics_NLS[:, places]
        usual, trained_N = self._whole if len(places) == len(self.layers) else _scale(trained_NLS)
        scores_2LS = usual.scores(found_LS[None])[0]
        rank = int(np.sum(trained_N >= scores_2LS.max()))
        p_value = (1 + rank) / (self.n_models + 1)
        few = self.n_models + 1 < 1 / _ALARMS
        limit = np.sort(trained_N)[-1 - int(_ALARMS * (self.n_models + 1) - 1) if not few else -1]
        # Where all training models are the same, what rounding changes is no news either.
        limit = max(limit * (_MARGIN if few else 1.0), 1.0)
        findings += [
            layer.finding(
                samples[layer.name], found_LS[place], trained_NLS[:, place], scores_2LS[:, place]
            )
            for place, layer in enumerate(layers)
            if scores_2LS[:, place].max() > limit
        ]
        return p_value, tuple(findings)

    @cached_property
    def _whole(self) -> tuple[_Scale, np.ndarray]:
        return _scale(self.statistics_NLS)

    def as_json(self) -> list[dict[str, Any]]:
        """The layers without their arrays."""
        return [
            {
                "name": layer.name,
                "shape": list(layer.shape),
                "is_centred": layer.is_centred,
                "may_vanish": layer.may_vanish,
                "may_be_equal": layer.may_be_equal,
            }
            for layer in self.layers
        ]

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, as they are stored beside those of the router."""
        made = {"usual": self.statistics_NLS}
        for place, layer in enumerate(self.layers):
            made[f"usual.{place}.centre"] = layer.centre_HW
            made[f"usual.{place}.left"] = layer.left_HK
            made[f"usual.{place}.right"] = layer.right_WK
            if self.root is not None and layer.name in self.root.layers:
                made[f"usual.{place}.root"] = self.root.layers[layer.name].astype(np.float32)
        if self.root is not None:
            made["usual.root"] = self.root.distances_N.astype(np.float32)
        return {name: np.ascontiguousarray(array) for name, array in made.items()}

    @classmethod
    def from_json(cls, value: Any, arrays: Mapping[str, np.ndarray]) -> Usual:
        """From what `as_json` and `arrays` made; ValueError, KeyError or TypeError if damaged."""
        layers = tuple(
            UsualLayer(
                name=str(layer["name"]),
                shape=(int(layer["shape"][0]), int(layer["shape"][1])),
                is_centred=bool(layer["is_centred"]),
                may_vanish=bool(layer["may_vanish"]),
                may_be_equal=bool(layer["may_be_equal"]),
                centre_HW=arrays[f"usual.{place}.centre"],
                left_HK=arrays[f"usual.{place}.left"],
                right_WK=arrays[f"usual.{place}.right"],
            )
            for place, layer in enumerate(value)
        )
        roots = {
            layer.name: arrays[f"usual.{place}.root"]
            for place, layer in enumerate(layers)
            if f"usual.{place}.root" in arrays
        }
        root = RootSample(roots, arrays["usual.root"]) if roots else None
        found = cls(layers, arrays["usual"], root)
        if (shape := found.statistics_NLS.shape)[1:] != (len(layers), len(STATISTICS)):
            raise ValueError(f"statistics of shape {shape}")
        for layer in layers:
            if not layer.fits:
                raise ValueError(f"centre of {layer.name} of shape {layer.centre_HW.shape}")
        return found


@dataclass(frozen=True)
class _Scale:
    """What statistics are divided by: how far they are from their medians in nearly all models.

    The first of two is of the statistics, the second of their differences from the median of the
    model's layers. `low` and `high` are of the two sides.
    """

    median_LS: np.ndarray
    low_2LS: np.ndarray
    high_2LS: np.ndarray

    @classmethod
    def fit(cls, trained_NLS: np.ndarray) -> _Scale:
        median_LS = np.median(trained_NLS, axis=0)
        apart_N2LS = cls(median_LS, median_LS, median_LS)._apart(trained_NLS)
        low_2LS, high_2LS = np.quantile(apart_N2LS, [1 - _NEARLY_ALL, _NEARLY_ALL], axis=0)
        return cls(median_LS, np.maximum(-low_2LS, LEAST_S), np.maximum(high_2LS, LEAST_S))

    def scores(self, found_NLS: np.ndarray) -> np.ndarray:
        """How unusual each statistic is, and each beside those of other layers: [N, 2, L, S]."""
        apart_N2LS = self._apart(found_NLS)
        return np.maximum(apart_N2LS / self.high_2LS, -apart_N2LS / self.low_2LS)

    def _apart(self, found_NLS: np.ndarray) -> np.ndarray:
        """Differences from the medians; 0 for what makes no sense."""
        apart_NLS = np.nan_to_num(found_NLS - self.median_LS)
        beside_NLS = apart_NLS - np.median(apart_NLS, axis=1, keepdims=True)
        return np.stack([apart_NLS, beside_NLS], axis=1)


def _filled(found_NLS: np.ndarray) -> np.ndarray:
    """Statistics of which those that make no sense are as usual, or 0 where no model has any."""
    known_LS = ~np.all(np.isnan(found_NLS), axis=0)
    usual_LS = np.nanmedian(np.where(known_LS, found_NLS, 0), axis=0)
    return np.where(np.isnan(found_NLS), usual_LS, found_NLS)


def _scale(trained_NLS: np.ndarray) -> tuple[_Scale, np.ndarray]:
    """What statistics are divided by, and the scores [N] of the training models."""
    scale = _Scale.fit(trained_NLS)
    return scale, scale.scores(trained_NLS).max(axis=(1, 2, 3))


def _chosen(store: LayerStore, needed: set[str], n_models: int) -> list[str]:
    """The matrices that are looked at: those that are read anyway, and others up to a limit."""
    matrices = sorted(set(store.layers) - set(store.vectors))
    places = np.linspace(0, len(matrices) - 1, min(len(matrices), _MOST_LAYERS)).round()
    spread = [matrices[int(place)] for place in places]
    chosen, left = needed & set(matrices), _MOST_BYTES
    for name in spread:
        left -= 4 * n_models * store.reader.entries(name)
        if left >= 0:
            chosen.add(name)
    return sorted(chosen)
