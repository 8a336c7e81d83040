"""A sweep in closed form: the kernel of each layer, and one ridge regression on all of them.

Training and validation models are read twice: for the kernels, which are kept in the work directory
until the sweep is finished, and for the weights of the layers that answer. Where all layers answer,
the statistics of the small ones are one more layer: what is the same in any order of the entries
is hard to tell from these, and easily from their statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from probex_jax.encoders import N_STATISTICS, Dense, Statistics, statistics
from probex_jax.errors import ProbexError
from probex_jax.experts import checkpoints
from probex_jax.experts.card import Card
from probex_jax.experts.committee import committee
from probex_jax.experts.evaluation import Answers, answers
from probex_jax.experts.expert import Expert
from probex_jax.files import layer_folder, write_bytes
from probex_jax.fitting.centre import FrozenLayer, Tree, normalised, tree_of
from probex_jax.fitting.closed_form import ClosedForm, check_closed_form
from probex_jax.fitting.moments import moments
from probex_jax.fitting.multiple_kernels import Together, fit_alone, fit_together
from probex_jax.fitting.network import encoder_settings
from probex_jax.fitting.ridge import centred, folds
from probex_jax.matrices import LowRank, Matrices, combination, gram
from probex_jax.sweeps.jobs import Job
from probex_jax.sweeps.left_out import leave_out, left_out, reasons
from probex_jax.sweeps.processes import run
from probex_jax.sweeps.select import finish
from probex_jax.sweeps.source import Source
from probex_jax.sweeps.train import expert_of

CROSS_VALIDATION = "cross-validation"
STATISTICS = "statistics of all layers"
# Largest matrices whose statistics are taken: of more entries, these tell more and a sort costs.
_MOST_ENTRIES = 2**16
# Fewest entries of a matrix that is standardised: of fewer that leaves next to nothing.
_FEWEST = 8
# Spread of a statistic over the models, in units of its size, below which it is rounding.
_CONSTANT = 1e-6


_statistics = jax.jit(statistics)


@partial(jax.jit, static_argnames="encoder")
def _kernel(encoder: Dense, x: Matrices) -> jax.Array:
    """[N, N]: inner products of what the encoder takes of [N, H, W] matrices."""
    read = encoder.read(x)
    return gram(read, read)


@partial(jax.jit, static_argnames="encoder")
def _weight(encoder: Dense, x: Matrices, solution_NY: jax.Array) -> jax.Array:
    """[H, W, Y]: the encoder's, of the coefficients of the models."""
    return combination(encoder.read(x), solution_NY)


@dataclass(frozen=True)
class Kernels:
    """One process's part of a sweep in closed form; fields as the arguments of `sweep`."""

    source: Source
    workdir: Path
    card: Card
    recipe: ClosedForm
    share: tuple[int, int]
    on_progress: Callable[[str, int], None]

    needs = ("train",)
    epochs = 1

    @property
    def fitted(self) -> tuple[str, ...]:
        """The splits whose models it is fitted to; those that validate others train here, too."""
        return ("train", "val") if self.source.store.has("val") else ("train",)

    def path(self, layer: str) -> Path:
        """Where the kernel and the statistics of a layer are kept."""
        return layer_folder(self.workdir / "training" / "kernels", layer) / "kernel.npz"

    def train_all(self, names: Sequence[str]) -> None:
        """Computes the kernels that are missing, here or in another process."""
        jobs = [Job((name,), (self.recipe,)) for name in names]
        locks, devices = self.workdir / "training", self.source.devices
        run(jobs, locks, self.share, devices, self._finished, self._compute, self._count)

    def _finished(self, job: Job) -> bool:
        (layer,) = job.layers
        return self.path(layer).exists() or left_out(self.workdir, layer).exists()

    def _count(self, job: Job) -> None:
        self.on_progress(job.layers[0], self.epochs)

    def _compute(self, jobs: Iterator[Job]) -> None:
        for job in jobs:
            (layer,) = job.layers
            try:
                arrays = self._products(layer)
            except FrozenLayer as error:
                leave_out(self.workdir, layer, str(error))
            else:
                buffer = BytesIO()
                np.savez(buffer, **arrays)  # type: ignore[arg-type]
                self.path(layer).parent.mkdir(parents=True, exist_ok=True)
                write_bytes(self.path(layer), buffer.getvalue())
            self._count(job)

    def _products(self, layer: str) -> dict[str, np.ndarray]:
        """A layer's kernel [N, N] and, if it is small, its statistics [N, 7]; float64."""
        where = f"{self.source.store.path}: {layer}"
        raw, tree = self._read(layer)
        with np.errstate(over="ignore", invalid="ignore"):
            x = normalised(raw, tree)
        arrays = {"kernel": np.asarray(_kernel(self._encoder(layer), x), np.float64)}
        if not isinstance(raw, LowRank) and raw[0].size <= _MOST_ENTRIES:
            arrays["statistics"] = np.asarray(_statistics(raw), np.float64)
        # Of a model that is too large no entry is finite; of others all but that.
        finite_N = np.isfinite(arrays["kernel"]).any(axis=1)
        if "statistics" in arrays:
            finite_N &= np.isfinite(arrays["statistics"]).all(axis=1)
        if not finite_N.all():
            models = [model for split in self.fitted for model in self.source.store.split(split)]
            odd = models[int(np.argmin(finite_N))].id
            raise ProbexError(f"{where}: {odd}: its weights are too large; remove the model")
        if not np.trace(centred(arrays["kernel"])) > 0:
            raise FrozenLayer(f"{where}: the training matrices are all the same")
        return arrays

    def _read(self, layer: str) -> tuple[Any, Tree]:
        """The matrices of all models that are fitted to, and what is taken off them."""
        store, normalise = self.source.store, self.source.normalise
        parts = [store.matrices(layer, split) for split in self.fitted]
        where, factors = f"{store.path}: {layer}", layer in store.ranks
        tree = tree_of(moments(parts), normalise, factors=factors, where=where)
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts), tree

    def _encoder(self, layer: str) -> Dense:
        """The encoder of a layer."""
        encoder = check_closed_form(self.source.network, self.source.task)
        is_small = prod(self.source.store.layers[layer]) < _FEWEST
        return encoder.clone(standardise=encoder.standardise and not is_small)

    def select(self, names: Sequence[str], most: int | None) -> None:
        """Fits the layers together, whoever computed their kernels, and tests them once."""
        source, task, n_outputs = self.source, self.source.task, len(self.card.classes)
        missing = reasons(self.workdir, names)
        layers = [name for name in names if name not in missing]
        # Who asks for a few layers wants an expert that reads no others.
        statistics = self._statistics(layers) if most is None else {}
        kernels = _Kernels({name: self.path(name) for name in layers}, statistics)
        y = np.concatenate([source.targets(split).y for split in self.fitted])
        about = y, task, n_outputs, self.recipe.penalties, folds(task, y)
        alone = fit_alone(kernels, *about)
        sizes = {name: prod(source.store.layers[name]) * n_outputs for name in layers}
        sizes[STATISTICS] = N_STATISTICS * len(statistics) * n_outputs
        best = alone.best(most, sizes, self.recipe.most_parameters)
        for name in layers if most is None else ():
            if name not in best:
                missing[name] = (
                    f"{source.store.path}: {name}: tells less than layers that fill "
                    "recipe.most_parameters"
                )
        found = fit_together(kernels, best, *about)
        accuracies = {
            name: float(np.mean(task.accuracies(chosen.logits, y)))
            for name, chosen in alone.chosen.items()
        }
        metrics = {
            "committee_accuracy": float(np.mean(task.accuracies(found.chosen.logits, y))),
            "val_loss": found.chosen.loss,
            "penalty": found.chosen.penalty,
            "factor": found.chosen.factor,
        }
        members = sorted(self._members(found, statistics), key=lambda member: -member[1])
        expert = committee(*zip(*members, strict=True)).with_card(
            selected_on=CROSS_VALIDATION, metrics=metrics, n_train=len(y)
        )
        of_layers = {"val_accuracy_by_layer": accuracies, "val_chance": task.chance(y, y)}
        told = {
            CROSS_VALIDATION: Answers(found.chosen.logits, y),
            **answers(expert, source.store, ("test",)),
        }
        kept = {"expert": expert}
        finish(source, self.workdir, kept, told, CROSS_VALIDATION, of_layers, missing)
        checkpoints.remove(self.workdir / "training")

    def _statistics(self, layers: Sequence[str]) -> dict[str, Standardised]:
        found = {}
        for layer in layers:
            with np.load(self.path(layer), allow_pickle=False) as kept:
                if "statistics" in kept:
                    found[layer] = Standardised.of(kept["statistics"])
        return found

    def _members(
        self, found: Together, statistics: Mapping[str, Standardised]
    ) -> Iterator[tuple[Expert, float]]:
        """The parts of the solution as networks on a layer each, with their weights."""
        for layer, weight in found.weights.items():
            solution_NY = found.solution[layer] / weight
            if layer == STATISTICS:
                for name, features in statistics.items():
                    # Its share of the sum, as if it were all.
                    params = features.linear(solution_NY * len(statistics), found.bias)
                    reading = Statistics(len(found.bias))
                    yield self._expert(name, reading, params, {}), weight / len(statistics)
                continue
            raw, tree = self._read(layer)
            x, encoder = normalised(raw, tree), self._encoder(layer)
            weight_HWY = _weight(encoder, x, solution_NY.astype(np.float32))
            params = {"weight": weight_HWY, "bias": found.bias}
            yield self._expert(layer, encoder, params, tree), weight

    def _expert(self, layer: str, encoder: nn.Module, params: Any, tree: Tree) -> Expert:
        params = {name: np.asarray(value, np.float32) for name, value in params.items()}
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


class Standardised(NamedTuple):
    """Statistics of a layer in units of their spread over the models.

    Args:
      values: [N, 7] float64; 0 where all models have the same.
      mean, spread: [7] of what they were; the spread infinite there.
    """

    values: np.ndarray
    mean: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, statistics_NS: np.ndarray) -> Standardised:
        """Standardises [N, 7] statistics."""
        mean, spread = statistics_NS.mean(axis=0), statistics_NS.std(axis=0)
        spread = np.where(spread > _CONSTANT * np.abs(statistics_NS).max(axis=0), spread, np.inf)
        return cls((statistics_NS - mean) / spread, mean, spread)

    def linear(self, solution_NY: np.ndarray, bias_Y: np.ndarray) -> dict[str, np.ndarray]:
        """The map of statistics as they are, for coefficients of the models."""
        weight_SY = (self.values.T @ solution_NY) / self.spread[:, None]
        return {"weight": weight_SY, "bias": bias_Y - self.mean @ weight_SY}


class _Kernels(Mapping[str, np.ndarray]):
    """Kernels on disk, of which one is in memory at a time, and that of the statistics."""

    def __init__(self, paths: Mapping[str, Path], statistics: Mapping[str, Standardised]):
        self._paths = paths
        self._of_statistics = sum(each.values @ each.values.T for each in statistics.values())

    def __getitem__(self, layer: str) -> np.ndarray:
        if layer == STATISTICS:
            return np.asarray(self._of_statistics)
        with np.load(self._paths[layer], allow_pickle=False) as kept:
            return kept["kernel"]

    def __iter__(self) -> Iterator[str]:
        yield from self._paths
        if np.any(self._of_statistics):
            yield STATISTICS

    def __len__(self) -> int:
        return len([*self])
