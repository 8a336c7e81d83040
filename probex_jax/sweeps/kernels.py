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

from probex_jax.encoders import Rank, Size, Statistics, log_rank, log_size, statistics
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
from probex_jax.fitting.number import Number
from probex_jax.fitting.ridge import Regression, centred
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
STATISTICS, SIZES = "statistics of all layers", "sizes of all layers"
RANKS = "ranks of all layers"
_READS = {STATISTICS: Statistics, SIZES: Size, RANKS: Rank}
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
_Reduced = tuple[Features, Tree, Mapping[str, np.ndarray]]
_statistics = jax.jit(statistics)


@partial(jax.jit, static_argnames="encoder")
def _read(encoder: Linear, x: Any, tree: Tree) -> Any:
    """Matrices as an encoder reads them, once a tree is taken off."""
    return encoder.read(normalised(x, tree))


_log_rank = jax.jit(log_rank)


@jax.jit
def _log_size(x: Any, tree: Tree) -> Any:
    return log_size(normalised(x, tree))


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
        make, died = partial(self._reducing, names), dict[str, str]()
        parts = [(name,) for name in todo]
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
        measured = self._measured(layer, tree, blocks)
        # Of a model that is too large no entry is finite; of others all but that.
        finite_N = np.isfinite(kernel_NN).any(axis=1)
        for each_NF in measured.values():
            finite_N &= np.isfinite(each_NF).all(axis=1)
        if not finite_N.all():
            models = [model for split in self.fitted for model in self.source.store.split(split)]
            odd = models[int(np.argmin(finite_N))].id
            raise ProbexError(f"{where}: {odd}: its weights are too large; remove the model")
        if not np.trace(centred(kernel_NN)) > 0:
            raise FrozenLayer(f"{where}: the training matrices are all the same")
        return features(strips, kernel_NN, encoder, shape, regression), tree, measured

    def _measured(self, layer: str, tree: Tree, blocks: Blocks) -> dict[str, np.ndarray]:
        """What of a layer joins that of all others: its statistics if it is small, its size."""
        store, found = self.source.store, dict[str, np.ndarray]()
        if layer not in store.ranks and prod(store.layers[layer]) <= _MOST_ENTRIES:
            found["statistics"] = np.asarray(_statistics(np.concatenate([*blocks()])), np.float64)
        if self._asks_sizes:
            sizes = [np.asarray(_log_size(x, dict(tree)), np.float64) for x in blocks()]
            found["sizes"] = np.concatenate(sizes)
            if layer in store.ranks:
                ranks = [np.asarray(_log_rank(x), np.float64) for x in blocks()]
                found["ranks"] = np.concatenate(ranks)
        return found

    @property
    def _asks_sizes(self) -> bool:
        """Whether sizes of layers take part: they tell how a model was trained, not on what."""
        return bool(self.card.attributes) or isinstance(self.source.task, Number)

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
        encoder = check_closed_form(self.source.network, self.source.task)
        shapes = self.source.store.layers
        reduced = any(is_reduced(encoder, shapes[layer]) for layer in layers)
        penalties, sources = self.recipe.penalties, [*self.asked.values()]
        return joint.regressions(self.source.store, sources, self.fitted, penalties, reduced)

    def select(self, names: Sequence[str], most: int | None) -> None:
        """Fits the layers together, whoever computed their kernels, and tests them once."""
        source, n_outputs = self.source, len(self.card.classes)
        missing = reasons(self.workdir, names)
        layers = [name for name in names if name not in missing]
        # Who asks for a few layers wants an expert that reads no others.
        beside = self._beside(layers) if most is None else {}
        kept = {name: self.kept(name) for name in layers}
        more = {
            name: np.asarray(sum(each.values @ each.values.T for each in of.values()))
            for name, of in beside.items()
        }
        kernels = KeptKernels(kept, more)
        regressions = self._regressions(names)
        alone = fit_alone(kernels, regressions)
        encoders = {name: each.encoder(self._encoder(name)) for name, each in kept.items()}
        shapes = source.store.layers
        sizes = {name: n_parameters(each, shapes[name]) for name, each in encoders.items()}
        for name, of in beside.items():
            sizes[name] = sum(each.values.shape[1] for each in of.values()) * n_outputs
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
        members = sorted(self._members(together, beside), key=lambda member: -member[1])
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
        kept = {"expert": expert.with_card(metrics=metrics, n_train=self._n_models)}
        tested = answers(kept["expert"], self.source.store, ("test",))
        found = {CROSS_VALIDATION: chosen, **tested}
        finish(self.source, self.workdir, kept, found, CROSS_VALIDATION, of_layers, missing)

    def _beside(self, layers: Sequence[str]) -> dict[str, dict[str, Standardised]]:
        """What all layers give together: by name, layer to it, where it differs between models."""
        found: dict[str, dict[str, Standardised]] = {}
        for name, key in ((STATISTICS, "statistics"), (SIZES, "sizes"), (RANKS, "ranks")):
            of_layers = {layer: self.kept(layer).measured(key) for layer in layers}
            each = {n: Standardised.of(x) for n, x in of_layers.items() if x is not None}
            found[name] = {n: of for n, of in each.items() if of.values.any()}
        return {name: of for name, of in found.items() if of}

    def _members(
        self, found: Together, beside: Mapping[str, Mapping[str, Standardised]]
    ) -> Iterator[tuple[Expert, float]]:
        """The parts of the solution as networks on a layer each, with their weights."""
        n_outputs, trees = len(found.bias), dict[str, Tree]()
        for layer, weight in found.weights.items():
            solution_NY = found.solution[layer] / weight
            if layer in beside:
                for name, standardised in beside[layer].items():
                    # Its share of the sum, as if it were all.
                    params = standardised.linear(solution_NY * len(beside[layer]), found.bias)
                    if layer == SIZES and name not in trees:
                        trees[name] = self._tree(name, self._blocks(name))
                    tree = trees[name] if layer == SIZES else {}
                    reading = _READS[layer](n_outputs)
                    yield self._expert(name, reading, params, tree), weight / len(beside[layer])
                continue
            kept, encoder = self.kept(layer), self._encoder(layer)
            read, tree, strips = kept.features(encoder), kept.tree, None
            if read.bases is None:
                blocks = self._blocks(layer)
                tree = trees[layer] = trees.get(layer) or self._tree(layer, blocks)
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
