"""One linear classifier, trained on the models of some trees and tested on those of others."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import probex_jax as px
from probex_jax.errors import ProbexError
from probex_jax.fitting import ClosedForm, SeveralClasses, Split, build_network, fit_closed_form

# Wide enough for a training set whose spread is mostly that between its trees.
RECIPE = ClosedForm(penalties=tuple(10.0 ** (n / 2) for n in range(-12, 3)))

# Layers whose names have one of these are not tried: they are no attention and no MLP.
LEFT_OUT = ("classifier", "embed")

# What the tested trees are to those that train; the last is a control.
WITHIN, TOGETHER, ACROSS, ACROSS_CENTRED = "within", "together", "across", "across, centred"


class Models(NamedTuple):
    """One layer of some models.

    Args:
      x_NHW: matrices as stored.
      y_NY: zeros and ones, which classes each model is of.
    """

    x_NHW: np.ndarray
    y_NY: np.ndarray


@dataclass(frozen=True)
class Tree:
    """One layer of a tree's models, in three splits; named as the folder of its store."""

    name: str
    train: Models
    val: Models
    test: Models

    @classmethod
    def read(cls, store: px.LayerStore, layer: str) -> "Tree":
        """From a store; its matrices stay as they are."""
        splits = [
            Models(np.asarray(store.matrices(layer, name)), store.targets(name))
            for name in ("train", "val", "test")
        ]
        return cls(store.path.name, *splits)

    @cached_property
    def centred(self) -> "Tree":
        """All matrices less the mean of the training ones; no label is used."""
        mean_HW = self.train.x_NHW.mean(axis=0)
        splits = (self.train, self.val, self.test)
        less = [Models(split.x_NHW - mean_HW, split.y_NY) for split in splits]
        return Tree(self.name, *less)


@dataclass(frozen=True)
class Outcome:
    """What one classifier came to.

    Args:
      right_N: of each test model, the share of classes told rightly.
      val_accuracy, val_loss: on the models that chose.
      penalty, factor: chosen on them.
      n_train: models it was trained on.
    """

    right_N: np.ndarray
    val_accuracy: float
    val_loss: float
    penalty: float
    factor: float
    n_train: int


def shared_layers(stores: Sequence[px.LayerStore]) -> list[str]:
    """The attention and MLP layers that all stores have in one shape, in the order of the first.

    Raises:
      ProbexError: if there are none, two stores have one name, classes differ, or a store holds
        factors.
    """
    first, *others = stores
    names = [store.path.name for store in stores]
    if len(set(names)) < len(names):
        raise ProbexError(f"two stores have one name: {', '.join(names)}")
    for store in stores:
        if store.classes != first.classes:
            raise ProbexError(f"{store.path}: its classes are not those of {first.path}")
        if store.ranks:
            raise ProbexError(f"{store.path}: it holds factors; this reads dense layers")
    layers = [
        layer
        for layer, shape in first.layers.items()
        if layer not in first.vectors
        and not any(part in layer for part in LEFT_OUT)
        and all(store.layers.get(layer) == shape for store in others)
    ]
    if not layers:
        raise ProbexError(f"{', '.join(names)} share no attention or MLP layer of one shape")
    return layers


def pooled(splits: Sequence[Models]) -> Models:
    """The models of several splits, one split after the other."""
    x_NHW, y_NY = (np.concatenate(arrays) for arrays in zip(*splits, strict=True))
    return Models(x_NHW, y_NY)


def told(train: Models, val: Models, tests: Sequence[Models]) -> list[Outcome]:
    """Fits a ridge regression, chooses penalty and factor on `val`, and tests it.

    All matrices are taken less the mean of the training set and divided by its standard deviation,
    one scalar: the same in every setting, whichever trees the training set is of.
    """
    network = build_network({"name": "dense"}, head="none", n_outputs=train.y_NY.shape[1])
    mean_HW = train.x_NHW.mean(axis=0)
    std = (train.x_NHW - mean_HW).std()

    def read(models: Models) -> Split:
        return Split(jnp.asarray((models.x_NHW - mean_HW) / std), jnp.asarray(models.y_NY))

    found = fit_closed_form(network, SeveralClasses(), RECIPE, read(train), read(val))

    def right(models: Models) -> np.ndarray:
        logits_NY = np.asarray(network.apply({"params": found.params}, read(models).x))
        return np.mean((logits_NY > 0) == (models.y_NY > 0.5), axis=1)

    val_accuracy, n_train = float(right(val).mean()), len(train.y_NY)
    chosen = val_accuracy, found.loss, found.penalty, found.factor, n_train
    return [Outcome(right(test), *chosen) for test in tests]


def transfer(sources: Sequence[Tree], targets: Sequence[Tree]) -> list[Outcome]:
    """Trains and chooses on some trees, and tests on each of others, or the same."""
    train, val = (pooled([getattr(t, split) for t in sources]) for split in ("train", "val"))
    return told(train, val, [tree.test for tree in targets])


def settings(forest: Sequence[Tree], unseen: Tree) -> dict[str, dict[str, Outcome]]:
    """Every setting of one layer: setting to tree to outcome.

    Within a tree, its own training split trains; together, those of the whole forest; across, those
    of the forest's other trees, which for `unseen` are all of the forest. Validation is of the
    trees that train, always.
    """
    everyone = (*forest, unseen)
    names = [tree.name for tree in everyone]
    centred = [tree.centred for tree in everyone]
    together = dict(zip(names, transfer(forest, everyone), strict=True))
    of_all = together.pop(unseen.name)
    return {
        WITHIN: {tree.name: transfer([tree], [tree])[0] for tree in everyone},
        TOGETHER: together,
        ACROSS: {tree.name: _left_out(forest, tree) for tree in forest} | {unseen.name: of_all},
        ACROSS_CENTRED: {tree.name: _left_out(centred[:-1], tree) for tree in centred},
    }


def _left_out(forest: Sequence[Tree], tree: Tree) -> Outcome:
    return transfer([other for other in forest if other.name != tree.name], [tree])[0]


def validation_within(found: Mapping[str, Mapping[str, Outcome]]) -> float:
    """What a layer is chosen by: validation accuracy within a tree, mean over the forest.

    The forest is what is trained on together: the unseen tree has no say.
    """
    return float(np.mean([found[WITHIN][name].val_accuracy for name in found[TOGETHER]]))


def joined(
    tree: Tree, other: Tree, own: int, joining: Sequence[int], seeds: Sequence[int]
) -> Iterator[tuple[int, int, Outcome]]:
    """So many models of a tree, with more and more of another in the training set.

    A seed draws the tree's own models and the order in which the other's join, so that what joins
    first is there in all larger sets. Validation and test are of the tree alone.

    Args:
      tree, other: the two.
      own: models of `tree` in the training set.
      joining: numbers of models of `other`.
      seeds: one draw each.

    Yields:
      The number that joined, the seed, and what came of it.

    Raises:
      ProbexError: if a tree has too few models.
    """
    for which, needed in ((tree, own), (other, max(joining))):
        if needed > len(which.train.y_NY):
            raise ProbexError(f"{which.name}: {needed} of {len(which.train.y_NY)} training models")
    for seed in seeds:
        rng = np.random.default_rng(seed)
        own_N = rng.permutation(len(tree.train.y_NY))[:own]
        others_N = rng.permutation(len(other.train.y_NY))
        for count in joining:
            train = pooled([_rows(tree.train, own_N), _rows(other.train, others_N[:count])])
            yield count, seed, told(train, tree.val, [tree.test])[0]


def _rows(models: Models, rows_N: np.ndarray) -> Models:
    return Models(models.x_NHW[rows_N], models.y_NY[rows_N])
