"""Training the experts of one unit: its data read, its program compiled, its state on disk."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

import jax
import numpy as np

from probex_jax.experts.advancing import advance, all_prepared
from probex_jax.experts.centring import FrozenLayer, Tree
from probex_jax.experts.devices import Devices
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
      splits: x [L, N, H, W] of this process's models; none left once they are on the devices.
      program: `advancing.advance`, compiled; None where that is done later.
      state: what training begins with, in host memory; None likewise.
    """

    unit: Unit
    trees: Mapping[str, Tree]
    frozen: Mapping[str, str]
    splits: dict[str, Split]
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
    return Together(
        network,
        unit.recipes,
        len(unit.layers),
        source.counts(),
        source.devices,
        one_order=unit.one_order,
    )


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
        evaluated = {split: splits[split] for split in experts.evaluated}
        prepare = partial(all_prepared, experts.network, experts.recipe, experts.devices)
        given = jax.eval_shape(prepare, splits["train"])
        program = programs.get(key, partial(compiled, experts, given, evaluated))
        state = experts.initial(splits["train"])
        return Ready(unit, trees, frozen, splits, program, state)
    return Ready(unit, trees, frozen, splits)


def _split(
    source: Source, trees: Mapping[str, Tree], layers: Sequence[str], name: str, recipe: Recipe
) -> Split:
    """The models of a split that this process holds, x [L, n, H, W] of all layers of a unit."""
    models = source.devices.models(len(source.store.split(name)))
    targets = source.targets(name)
    stacks: list[np.ndarray] = []
    centres: list[Any] = []
    structure: Any = None
    for place, layer in enumerate(layers):
        if layer in layers[:place]:  # it fills up
            for stack in stacks:
                stack[place] = stack[layers.index(layer)]
            centres += centres and [centres[layers.index(layer)]]
            continue
        x = source.matrices(layer, trees[layer], name, models, recipe.storage)
        if isinstance(x, Centred):
            centres.append(x.centre)
            x = x.factors
        leaves, structure = jax.tree.flatten(x)
        if len(layers) == 1:  # no copy
            stacks = [np.asarray(leaf)[None] for leaf in leaves]
            break
        # Into its place one after the other, so that no layer is in memory twice.
        stacks = stacks or [np.empty((len(layers), *leaf.shape), leaf.dtype) for leaf in leaves]
        for stack, leaf in zip(stacks, leaves, strict=True):
            stack[place] = leaf
    x = jax.tree.unflatten(structure, stacks)
    if centres:
        x = Centred(x, jax.tree.map(lambda *each: np.stack(each), *_alike(centres)))
    return targets._replace(x=x, y=targets.y[models])


def _alike(centres: Sequence[Any]) -> Sequence[Any]:
    """The centres of several layers in one form."""
    if len({jax.tree.structure(centre) for centre in centres}) > 1:
        return [np.asarray(dense(centre)) for centre in centres]
    if isinstance(centres[0], LowRank):
        rank = max(centre.up.shape[-1] for centre in centres)
        return [_of_rank(centre, rank) for centre in centres]
    return centres


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
    """A program needs more memory than there is."""


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise TooLarge from error
        raise


def compiled(
    experts: Together, train: Split, evaluated: Mapping[str, Split]
) -> Callable[..., State]:
    """`advancing.advance` for data of these shapes.

    Args:
      experts: what is trained.
      train: from `all_prepared`; on one device its shapes will do.
      evaluated: the other splits; likewise.

    Raises:
      TooLarge: if it needs more memory than the devices have.
    """
    devices, left = experts.devices, -1.0
    with suppress(TooLarge) if devices.processes > 1 else nullcontext(), _memory_errors():
        program = advance.lower(
            experts.network,
            experts.recipe,
            devices,
            experts.template(train),
            experts.rates(),
            train,
            evaluated,
            experts.batches(0),
            np.int32(0),
        ).compile()
        left = memory(devices) - _needed(program)
    if devices.least(left) < 0:
        raise TooLarge
    return program


def _needed(program: Any) -> float:
    """Bytes that a compiled program takes on a device."""
    sizes = program.memory_analysis()
    if sizes is None:
        return 0.0
    total = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    return total + sizes.temp_size_in_bytes - sizes.alias_size_in_bytes


def train(source: Source, ready: Ready, saver: Saver) -> State:
    """Trains the experts of a unit, from where they were, to the end of their recipes."""
    experts = together(source, ready.unit)
    devices, counts = source.devices, experts.counts
    with _memory_errors():
        splits = {name: devices.put(ready.splits[name], counts[name]) for name in counts}
        ready.splits.clear()
        # What it is made from is given back.
        given = all_prepared(experts.network, experts.recipe, devices, splits.pop("train"))
        program = ready.program or compiled(experts, given, splits)
        state = restored(saver, devices, experts.template(given))
        state = ready.state if state is None else state
        return fit_together(
            experts, {"train": given, **splits}, program=program, state=state, on_evaluation=saver
        )


def restored(saver: Saver, devices: Devices, new: State) -> State | None:
    """The state that was saved last, the same in all processes, or None.

    Args:
      new: `Together.template`.
    """
    state = saver.restore(new) if devices.writes else None
    (found,) = devices.agree([state is not None])
    if not found:
        return None
    if state is None:
        state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), new)
    state = devices.shared(state)
    saver.begin(int(state.epoch))
    return state


def train_streamed(source: Source, ready: Ready, saver: Saver) -> State:
    """As `train`, of a unit whose batches are read from the store."""
    (layer,) = ready.unit.layers
    stream = Stream(together(source, ready.unit), source, layer, ready.trees[layer])
    state = restored(saver, source.devices, stream.template())
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
