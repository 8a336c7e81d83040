"""A sweep in closed form: the kernel of each layer, and one ridge regression on all of them.

What a layer gives is kept in the work directory until the sweep is finished: the inner products of
training and validation models, and of large layers their responses to probes. Small layers are read
once more, for the weights of those that answer. Where all layers answer,
the statistics of the small ones are one more layer: what is the same in any order of the entries
is hard to tell from these, and easily from their statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from math import inf, prod
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from probex_jax.encoders import N_STATISTICS, Statistics, statistics
from probex_jax.engine import HERE, Died, Engine, Part, Work
from probex_jax.errors import ProbexError
from probex_jax.experts import checkpoints
from probex_jax.experts.card import Card
from probex_jax.experts.committee import committee
from probex_jax.experts.evaluation import Answers, answers
from probex_jax.experts.expert import Expert
from probex_jax.files import layer_folder
from probex_jax.fitting.centre import FrozenLayer, Tree, is_centred, normalised, tree_of
from probex_jax.fitting.closed_form import (
    ClosedForm,
    Features,
    Linear,
    check_closed_form,
    features,
    is_reduced,
    n_parameters,
)
from probex_jax.fitting.moments import moments
from probex_jax.fitting.multiple_kernels import (
    Alone,
    Together,
    best,
    fit_alone,
    fit_together,
    merged,
)
from probex_jax.fitting.network import encoder_settings
from probex_jax.fitting.ridge import Regression, centred, enough_folds, folds
from probex_jax.fitting.standardised import Standardised
from probex_jax.fitting.strips import Strips
from probex_jax.sweeps import joint
from probex_jax.sweeps.kept import Kept, KeptKernels
from probex_jax.sweeps.left_out import leave_out, leave_out_dead, left_out, reasons
from probex_jax.sweeps.memory import free_bytes, free_on
from probex_jax.sweeps.select import finish
from probex_jax.sweeps.source import Source
from probex_jax.sweeps.train import expert_of

CROSS_VALIDATION = "cross-validation"
STATISTICS = "statistics of all layers"
# Largest matrices whose statistics are taken: of more entries, these tell more and a sort costs.
_MOST_ENTRIES = 2**16
# Fewest entries of a matrix that is standardised: of fewer that leaves next to nothing.
_FEWEST = 8
# Matrices that are read at a time, multiplied out; of the memory that is free what strips may take.
_BLOCK_BYTES = 16 * 2**20
_SHARE = 0.5

# Yields matrices of models in each call.
Blocks = Callable[[], Iterable[Any]]
# What `Kept.write` takes.
_Reduced = tuple[Features, Tree, np.ndarray | None]
_statistics = jax.jit(statistics)


@partial(jax.jit, static_argnames="encoder")
def _read(encoder: Linear, x: Any, tree: Tree) -> Any:
    """Matrices as an encoder reads them, once a tree is taken off."""
    return encoder.read(normalised(x, tree))


@dataclass(frozen=True)
class Kernels:
    """A sweep in closed form; fields as the arguments of `sweep`.

    Args:
      source: of all models that are read.
      asked: what is asked of them: of a joint expert attribute to its view and task, or "" to
        `source` itself.
      beside: how many processes share the memory of the machine.
    """

    source: Source
    workdir: Path
    card: Card
    recipe: ClosedForm
    asked: Mapping[str, Source]
    beside: int = 1
    engine: Engine = HERE
    on_progress: Callable[[str, int], None] = lambda layer, epochs: None

    needs = ("train",)
    epochs = 1

    @property
    def fitted(self) -> tuple[str, ...]:
        """The splits whose models it is fitted to; those that validate others train here, too."""
        return ("train", "val") if self.source.store.has("val") else ("train",)

    def kept(self, layer: str) -> Kept:
        """Where it is kept what a layer gives."""
        return Kept(layer_folder(self.workdir / "training" / "kernels", layer) / "kernel.npz")

    def train_all(self, names: Sequence[str]) -> None:
        """Computes the kernels that are missing, layer after layer, and keeps them."""
        ours = names if self.source.devices.writes else ()
        todo = [name for name in ours if not self._finished(name)]
        for name in names:
            if name not in todo:
                self.on_progress(name, self.epochs)
        make, parts = partial(self._reducing, names), [(name,) for name in todo]
        died: dict[str, str] = {}
        with closing(self.engine.map(make, parts, readers=1, ahead=0)) as results:
            for (layer,), (found,) in results:
                if isinstance(found, Died):
                    died[layer] = f"{self.source.store.path}: {layer}: {found}"
                elif isinstance(found, FrozenLayer):
                    leave_out(self.workdir, layer, str(found))
                else:
                    self.kept(layer).write(*found)
                self.on_progress(layer, self.epochs)
                del found  # before the next one is computed
        leave_out_dead(self.workdir, names, died)

    def __reduce__(self) -> Any:
        given = self.source, self.workdir, self.card, self.recipe, self.asked, self.beside
        return Kernels, given

    def _finished(self, layer: str) -> bool:
        return self.kept(layer).path.is_file() or left_out(self.workdir, layer).is_file()

    def _reducing(self, names: Sequence[str]) -> Work:
        """Reduces a layer to what it gives, or to the reason why that is nothing."""
        regression = joint.of_features(self._regressions(names), self._n_models)

        def compute(part: Part, _: object) -> Sequence[_Reduced | FrozenLayer]:
            (layer,) = part
            try:
                return [self._reduced(layer, regression)]
            except FrozenLayer as error:
                return [error]

        return Work(lambda layer: None, compute)

    def _reduced(self, layer: str, regression: Regression) -> _Reduced:
        """What a layer gives to the regression."""
        where, shape = f"{self.source.store.path}: {layer}", self.source.store.layers[layer]
        encoder, blocks = self._encoder(layer), self._blocks(layer)
        tree = self._tree(layer, blocks)
        strips = self._strips(layer, encoder, tree, blocks)
        kernel_NN = strips.kernel()
        statistics_NS = None
        if layer not in self.source.store.ranks and prod(shape) <= _MOST_ENTRIES:
            raw = np.concatenate([*blocks()])
            statistics_NS = np.asarray(_statistics(raw), np.float64)
        # Of a model that is too large no entry is finite; of others all but that.
        finite_N = np.isfinite(kernel_NN).any(axis=1)
        if statistics_NS is not None:
            finite_N &= np.isfinite(statistics_NS).all(axis=1)
        if not finite_N.all():
            models = [model for split in self.fitted for model in self.source.store.split(split)]
            odd = models[int(np.argmin(finite_N))].id
            raise ProbexError(f"{where}: {odd}: its weights are too large; remove the model")
        if not np.trace(centred(kernel_NN)) > 0:
            raise FrozenLayer(f"{where}: the training matrices are all the same")
        return features(strips, kernel_NN, encoder, shape, regression), tree, statistics_NS

    def _blocks(self, layer: str) -> Blocks:
        """The matrices of all models that are fitted to: at once, or in blocks from the store."""
        store = self.source.store
        if (
            4 * self._n_models * prod(store.layers[layer]) <= _BLOCK_BYTES
        ):  # one program for all of them
            parts = [store.matrices(layer, split) for split in self.fitted]
            whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
            return lambda: [whole]
        return lambda: chain.from_iterable(store.blocks(layer, split) for split in self.fitted)

    def _tree(self, layer: str, blocks: Blocks) -> Tree:
        """What is taken off them."""
        store, normalise = self.source.store, self.source.normalise
        if normalise == "none":
            return {}
        where, factors = f"{store.path}: {layer}", layer in store.ranks
        return tree_of(moments(blocks()), normalise, factors=factors, where=where)

    def _strips(self, layer: str, encoder: Linear, tree: Tree, blocks: Blocks) -> Strips:
        """They as the encoder reads them."""
        store = self.source.store
        shape = store.layers[layer]
        most = max(1, _BLOCK_BYTES // (4 * prod(shape)))

        def as_read() -> Iterator[Any]:
            for raw in blocks():
                for start in range(0, raw.shape[0], most):
                    yield _read(encoder, raw[start : start + most], dict(tree))

        return Strips(
            as_read,
            self._n_models,
            shape,
            factors=layer in store.ranks and not is_centred(tree),
            room=self._room(),
            devices=self.source.devices.local,
        )

    def _room(self) -> int:
        """Bytes that strips may take, here and on devices that have memory of their own."""
        devices = self.source.devices
        on_each = free_on(devices)
        on_devices = inf if on_each is None else on_each * max(1, len(devices.local))
        return int(_SHARE * min(free_bytes() / self.beside, on_devices))

    def _encoder(self, layer: str) -> Linear:
        """The encoder of a layer."""
        encoder = check_closed_form(self.source.network, self.source.task)
        is_small = prod(self.source.store.layers[layer]) < _FEWEST
        return encoder.clone(standardise=encoder.standardise and not is_small)

    @property
    def _n_models(self) -> int:
        return sum(len(self.source.store.split(split)) for split in self.fitted)

    def _regressions(self, layers: Sequence[str]) -> list[Regression]:
        """What is regressed on some layers, and by which models it is chosen."""
        store = self.source.store
        encoder = check_closed_form(self.source.network, self.source.task)
        reduced = any(is_reduced(encoder, store.layers[layer]) for layer in layers)
        if not self.card.attributes:
            return [self._regression(self.source, None, reduced)]
        places = [joint.places(store, each.store, self.fitted) for each in self.asked.values()]
        return [
            self._regression(each, None if len(place_N) == self._n_models else place_N, reduced)
            for each, place_N in zip(self.asked.values(), places, strict=True)
        ]

    def _regression(self, asked: Source, models: np.ndarray | None, reduced: bool) -> Regression:
        task, store = asked.task, asked.store
        splits = [split for split in self.fitted if store.has(split)]
        y = np.concatenate([asked.targets(split).y for split in splits])
        if not self.card.attributes:
            fold_N = folds(task, y)
        else:  # the same for all that are asked of the same models, and of features that all read
            n_models = self._n_models if reduced else len(y)
            fold_N = folds(joint.Columns(), np.zeros(n_models))
        if reduced:
            fold_N = enough_folds(fold_N)
            fold_N = fold_N if models is None else fold_N[models]
        targets_NY = task.regressed(y, len(store.classes))
        return Regression(task, y, targets_NY, self.recipe.penalties, fold_N, models=models)

    def select(self, names: Sequence[str], most: int | None) -> None:
        """Fits the layers together, whoever computed their kernels, and tests them once."""
        source, n_outputs = self.source, len(self.card.classes)
        missing = reasons(self.workdir, names)
        layers = [name for name in names if name not in missing]
        # Who asks for a few layers wants an expert that reads no others.
        statistics = self._statistics(layers) if most is None else {}
        kept = {name: self.kept(name) for name in layers}
        of_statistics = sum(each.values @ each.values.T for each in statistics.values())
        kernels = KeptKernels(kept, {STATISTICS: np.asarray(of_statistics)})
        regressions = self._regressions(names)
        alone = fit_alone(kernels, regressions)
        encoders = {name: each.encoder(self._encoder(name)) for name, each in kept.items()}
        shapes = source.store.layers
        sizes = {name: n_parameters(each, shapes[name]) for name, each in encoders.items()}
        sizes[STATISTICS] = N_STATISTICS * len(statistics) * n_outputs
        answering = best(alone, most, sizes, self.recipe.most_parameters)
        for name in layers if most is None else ():
            if name not in answering:
                missing[name] = (
                    f"{source.store.path}: {name}: tells less than layers that fill "
                    "recipe.most_parameters"
                )
        found = fit_together(kernels, answering, alone, regressions)
        chosen = [self._chosen(*each) for each in zip(regressions, found, alone, strict=True)]
        together = merged(found, regressions)
        members = sorted(self._members(together, statistics), key=lambda member: -member[1])
        expert = committee(*zip(*members, strict=True)).with_card(selected_on=CROSS_VALIDATION)
        if self.card.attributes:
            joint.finish(source, self.workdir, expert, self.asked, chosen, missing)
        else:
            self._finish(expert, *chosen[0], missing)
        checkpoints.remove(self.workdir / "training")

    def _chosen(
        self, regression: Regression, found: Together, alone: Alone
    ) -> tuple[Answers, dict[str, Any], dict[str, Any]]:
        """What was answered for the models that chose, and the figures of that and of layers."""
        task, y, asked_y = regression.task, regression.y, regression.y[regression.asked]
        accuracies = {
            name: float(np.mean(task.accuracies(chosen.logits, asked_y)))
            for name, chosen in alone.chosen.items()
        }
        metrics = {
            "committee_accuracy": float(np.mean(task.accuracies(found.chosen.logits, asked_y))),
            "val_loss": found.chosen.loss,
            "penalty": found.chosen.penalty,
            "factor": found.chosen.factor,
            "n_chosen_by": len(asked_y),
        }
        of_layers = {"val_accuracy_by_layer": accuracies, "val_chance": task.chance(y, asked_y)}
        return Answers(found.chosen.logits, asked_y), metrics, of_layers

    def _finish(
        self,
        expert: Expert,
        chosen: Answers,
        metrics: Mapping[str, Any],
        of_layers: Mapping[str, Any],
        missing: Mapping[str, str],
    ) -> None:
        expert = expert.with_card(metrics=metrics, n_train=self._n_models)
        told = {CROSS_VALIDATION: chosen, **answers(expert, self.source.store, ("test",))}
        kept = {"expert": expert}
        finish(self.source, self.workdir, kept, told, CROSS_VALIDATION, of_layers, missing)

    def _statistics(self, layers: Sequence[str]) -> dict[str, Standardised]:
        found = {layer: self.kept(layer).statistics for layer in layers}
        return {layer: Standardised.of(each) for layer, each in found.items() if each is not None}

    def _members(
        self, found: Together, statistics: Mapping[str, Standardised]
    ) -> Iterator[tuple[Expert, float]]:
        """The parts of the solution as networks on a layer each, with their weights."""
        for layer, weight in found.weights.items():
            solution_NY = found.solution[layer] / weight
            if layer == STATISTICS:
                for name, standardised in statistics.items():
                    # Its share of the sum, as if it were all.
                    params = standardised.linear(solution_NY * len(statistics), found.bias)
                    reading = Statistics(len(found.bias))
                    yield self._expert(name, reading, params, {}), weight / len(statistics)
                continue
            kept, encoder = self.kept(layer), self._encoder(layer)
            read, tree, strips = kept.features(encoder), kept.tree, None
            if read.bases is None:
                blocks = self._blocks(layer)
                tree = self._tree(layer, blocks)
                strips = self._strips(layer, encoder, tree, blocks)
            params = read.params(strips, solution_NY, found.bias)
            yield self._expert(layer, read.encoder, params, tree), weight

    def _expert(self, layer: str, encoder: nn.Module, params: Any, tree: Tree) -> Expert:
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
        (member,) = self.card.members
        shape = self.source.store.layers[layer]
        settings = {n: v for n, v in encoder_settings(encoder).items() if n != "rep_dim"}
        member = replace(
            member,
            encoder=settings,
            layer=layer,
            shape=shape,
            normalise=member.normalise if tree else "none",
            recipe=asdict(self.recipe),
        )
        card = replace(self.card, members=(member,))
        return expert_of(self.source, {"encoder": params}, tree, card)
