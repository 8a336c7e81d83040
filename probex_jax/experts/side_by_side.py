"""Training the experts of one unit: its data read, its program compiled, its state on disk."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

import jax
import numpy as np

from probex_jax.experts.advancing import advance, all_prepared
from probex_jax.experts.centring import FrozenLayer, Tree
from probex_jax.experts.devices import Batches
from probex_jax.experts.objective import Split
from probex_jax.experts.recipe import Recipe
from probex_jax.experts.saving import Saver
from probex_jax.experts.source import Source
from probex_jax.experts.state import Best, State
from probex_jax.experts.streaming import Stream, fit_streamed
from probex_jax.experts.training import Together, fit_together
from probex_jax.experts.units import Unit, memory
from probex_jax.matrices import Centred, LowRank, dense


class Ready(NamedTuple):
    """A unit whose data is in host memory.

    Args:
      unit: which.
      trees: layer to its tree variables; a layer that cannot be trained on is not there.
      frozen: layer to the reason why not.
      splits: x [L, N, H, W] of this process's models.
      program: `training.advance`, compiled; None where that is done later.
      state: what training begins with, in host memory; None likewise.
    """

    unit: Unit
    trees: Mapping[str, Tree]
    frozen: Mapping[str, str]
    splits: Mapping[str, Split]
    program: Callable[..., State] | None = None
    state: State | None = None


class Programs:
    """Compiled programs, made once each, by whichever thread needs one first."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._made: dict[Any, Future] = {}

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gave for this key."""
        with self._lock:
            first = key not in self._made
            future = self._made.setdefault(key, Future())
        if first:
            try:
                future.set_result(make())
            except BaseException as error:
                future.set_exception(error)
        return future.result()


def together(source: Source, unit: Unit) -> Together:
    """The experts of a unit."""
    network = source.network(unit.layers[0])
    return Together(network, unit.recipes, len(unit.layers), source.counts(), source.devices)


def read(source: Source, unit: Unit, programs: Programs) -> Ready:
    """Reads the data of a unit, and compiles its program, if that can be done ahead."""
    trees, frozen = {}, {}
    for layer in dict.fromkeys(unit.layers):
        try:
            trees[layer] = source.tree(layer)
        except FrozenLayer as error:
            frozen[layer] = str(error)
    if not trees or unit.streamed:
        return Ready(unit, trees, frozen, {})
    # A layer that cannot be trained on is filled up with one that can.
    layers = [layer if layer in trees else next(iter(trees)) for layer in unit.layers]
    splits = {name: _split(source, trees, layers, name, unit.recipes[0]) for name in source.splits}
    if source.devices.mesh is None:
        experts = together(source, unit)
        key = experts.network, experts.recipe, len(unit.recipes), _shapes(splits)
        program = programs.get(key, partial(compiled, experts, splits))
        state = jax.tree.map(np.asarray, experts.initial(splits))
        return Ready(unit, trees, frozen, splits, program, state)
    return Ready(unit, trees, frozen, splits)


def _split(
    source: Source, trees: Mapping[str, Tree], layers: Sequence[str], name: str, recipe: Recipe
) -> Split:
    """The models of a split that this process holds, of all layers of a unit."""
    models = source.devices.models(len(source.store.split(name)))
    each = {
        layer: source.matrices(layer, trees[layer], name, models, recipe.storage)
        for layer in dict.fromkeys(layers)
    }
    targets = source.targets(name)
    x = _stacked([each[layer] for layer in layers])
    return targets._replace(x=x, y=targets.y[models])


def _stacked(matrices: Sequence[Any]) -> Any:
    """[N, H, W] of several layers as [L, N, H, W]."""
    if isinstance(matrices[0], Centred):
        centres = [x.centre for x in matrices]
        if len({jax.tree.structure(centre) for centre in centres}) > 1:
            centres = [np.asarray(dense(centre)) for centre in centres]
        elif isinstance(centres[0], LowRank):
            rank = max(centre.up.shape[-1] for centre in centres)
            centres = [_of_rank(centre, rank) for centre in centres]
        matrices = [Centred(x.factors, centre) for x, centre in zip(matrices, centres, strict=True)]
    if len(matrices) == 1:  # no copy
        return jax.tree.map(lambda leaf: np.asarray(leaf)[None], matrices[0])
    return jax.tree.map(lambda *leaves: np.stack(leaves), *matrices)


def _of_rank(factors: LowRank, rank: int) -> LowRank:
    """Filled up with zeros."""
    missing = rank - factors.up.shape[-1]
    return LowRank(
        np.pad(factors.up, [(0, 0), (0, missing)]), np.pad(factors.down, [(0, missing), (0, 0)])
    )


def _shapes(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


class TooLarge(Exception):
    """A compiled program needs more memory than there is."""


def compiled(experts: Together, splits: Mapping[str, Any]) -> Callable[..., State]:
    """`training.advance` for data of these shapes, on the devices or, for one device, not yet.

    Raises:
      TooLarge: if it needs more memory than the devices have.
    """
    prepare = partial(all_prepared, experts.network, experts.recipe, experts.devices)
    train = splits["train"]
    train = prepare(train) if experts.devices.mesh is not None else jax.eval_shape(prepare, train)
    state = jax.eval_shape(partial(experts.initial, splits))
    batches: Batches = experts.batches(0, experts.width())
    program = advance.lower(
        experts.network,
        experts.recipe,
        experts.devices,
        state,
        experts.rates(),
        train,
        {name: splits[name] for name in experts.evaluated},
        batches,
        np.int32(0),
    ).compile()
    needed = program.memory_analysis()
    if needed is not None:
        total = needed.argument_size_in_bytes + needed.output_size_in_bytes
        total += needed.temp_size_in_bytes - needed.alias_size_in_bytes
        if total > memory(experts.devices):
            raise TooLarge
    return program


def train(source: Source, ready: Ready, saver: Saver) -> State:
    """Trains the experts of a unit, from where they were, to the end of their recipes."""
    experts = together(source, ready.unit)
    counts = experts.counts
    splits = {name: source.devices.put(split, counts[name]) for name, split in ready.splits.items()}
    program = ready.program or compiled(experts, splits)
    state = saver.restore(jax.eval_shape(partial(experts.initial, splits)))
    state = ready.state if state is None else state
    return fit_together(experts, splits, program=program, state=state, on_evaluation=saver)


def train_streamed(source: Source, ready: Ready, saver: Saver) -> State:
    """As `train`, of a unit whose batches are read from the store."""
    (layer,) = ready.unit.layers
    stream = Stream(together(source, ready.unit), source, layer, ready.trees[layer])
    state = saver.restore(jax.eval_shape(stream.initial))
    return fit_streamed(stream, state=state, on_evaluation=saver)


def figures(best: Mapping[str, Best], loss_E: Any) -> dict[str, Any]:
    """What the card of an expert says of its training; arguments of this expert alone."""
    of_splits = {
        f"{name}_{what}": value
        for name, found in best.items()
        for what, value in (
            ("accuracy", float(found.accuracy)),
            ("best_epoch", int(found.epoch)),
            ("accuracies", np.asarray(found.accuracy_E).tolist()),
        )
    }
    return {**of_splits, "losses": np.asarray(loss_E).tolist()}
