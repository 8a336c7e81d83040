"""Training jobs: their data read, their programs compiled, their states on disk."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import jax
import numpy as np

from probex_jax.engine import Part, Work
from probex_jax.errors import ProbexError
from probex_jax.experts.card import Card
from probex_jax.experts.expert import Expert
from probex_jax.files import writer_of
from probex_jax.fitting.centre import FrozenLayer, Tree, centre_rank
from probex_jax.fitting.data import Split
from probex_jax.fitting.group import Group
from probex_jax.fitting.loop import Best, State, advance
from probex_jax.fitting.recipe import Adam
from probex_jax.matrices import Centred, LowRank, dense
from probex_jax.sweeps.jobs import Job, Room
from probex_jax.sweeps.resume import Saver
from probex_jax.sweeps.source import Source
from probex_jax.sweeps.stopping import Stop
from probex_jax.sweeps.stream import LayerStream


class Ready(NamedTuple):
    """A job whose data is in host memory.

    Args:
      job: which.
      trees: layer to its tree variables; a layer that cannot be trained on is not there.
      frozen: layer to the reason why not.
      splits: x [L, N, H, W] of this process's models; none left once they are on the devices.
      program: `loop.advance`, compiled; None where that is done later.
    """

    job: Job
    trees: Mapping[str, Tree]
    frozen: Mapping[str, str]
    splits: dict[str, Split]
    program: Callable[..., State] | None = None


class Trained(NamedTuple):
    """What the training of a job gives.

    Args:
      trees, frozen: as of `Ready`.
      best, loss_E: as of `State`, in host memory; None if no layer can be trained on, or another
        process writes.
    """

    trees: Mapping[str, Tree]
    frozen: Mapping[str, str]
    best: Any = None
    loss_E: Any = None


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


class TooLarge(Exception):
    """A program needs more memory than there is."""


def read(source: Source, job: Job, programs: Programs, room: Room) -> Ready:
    """Reads the data of a job, and compiles its program, if that can be done ahead."""
    trees, frozen = {}, {}
    for layer in dict.fromkeys(job.layers):
        try:
            trees[layer] = source.tree(layer)
        except FrozenLayer as error:
            frozen[layer] = str(error)
    if not trees or job.streamed:
        return Ready(job, trees, frozen, {})
    # A layer that cannot be trained on is filled up with one that can.
    layers = [layer if layer in trees else next(iter(trees)) for layer in job.layers]
    splits = {name: _split(source, trees, layers, name, job.recipes[0]) for name in source.splits}
    if source.devices.mesh is not None:
        return Ready(job, trees, frozen, splits)
    group = _group(source, job)
    given = jax.eval_shape(group.prepared, splits["train"])
    evaluated = {split: splits[split] for split in group.evaluated}
    leaves, structure = jax.tree.flatten(splits)
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    key = group.program, group.recipe.n_evaluations, len(job.recipes), structure, shapes
    program = programs.get(key, partial(compiled, group, given, evaluated, room.limit(job)))
    return Ready(job, trees, frozen, splits, program)


def _group(source: Source, job: Job) -> Group:
    """The networks of a job."""
    return Group(
        source.network,
        source.task,
        job.recipes,
        len(job.layers),
        source.counts(),
        source.devices,
        one_order=job.one_order,
    )


def _split(
    source: Source, trees: Mapping[str, Tree], layers: Sequence[str], name: str, recipe: Adam
) -> Split:
    """The models of a split that this process holds, x [L, n, H, W] of all layers of a job."""
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
    return targets._replace(x=x, y=source.task.encoded(targets.y[models]))


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


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise TooLarge from error
        raise


def compiled(
    group: Group, train: Split, evaluated: Mapping[str, Split], limit: float
) -> Callable[..., State]:
    """`loop.advance` for data of these shapes.

    Args:
      group: what is trained.
      train: from `Group.prepared`; on one device its shapes will do.
      evaluated: the other splits; likewise.
      limit: bytes that it may take on a device.

    Raises:
      TooLarge: if it needs more.
    """
    devices, left = group.devices, -1.0
    with suppress(TooLarge) if devices.processes > 1 else nullcontext(), _memory_errors():
        program = advance.lower(
            group.program,
            group.template(train),
            group.rates(),
            train,
            evaluated,
            group.batches(0),
            np.int32(0),
        ).compile()
        left = limit - _needed(program)
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


def train(source: Source, ready: Ready, saver: Saver, room: Room) -> State:
    """Trains the networks of a job, from where they were, to the end of their recipes.

    Nothing here holds on to the state that training begins with.

    Raises:
      TooLarge: if there is not enough memory.
    """
    group = _group(source, ready.job)
    if ready.job.streamed:
        (layer,) = ready.job.layers
        stream = LayerStream(group, source, layer, ready.trees[layer])
        one = stream.one()
        return group.train(_begun(group, one, saver), stream=stream, on_evaluation=saver)
    with _memory_errors():
        splits = {
            name: source.devices.put(ready.splits[name], count)
            for name, count in group.counts.items()
        }
        ready.splits.clear()
        # What it is made from is given back.
        given = group.prepared(splits.pop("train"))
        program = ready.program or compiled(group, given, splits, room.limit(ready.job))
        splits["train"] = given
        run = partial(group.train, program=program, on_evaluation=saver)
        return run(_begun(group, given, saver), splits)


@dataclass(frozen=True)
class Trainer:
    """Trains jobs to their ends, each from where it was.

    Args:
      source, workdir, save_every_s: as of `Descent`; all who train see one work directory.
      room: what trainings may take.
      writer: for whom another process trains (`files.writer_of`), who may keep results much later;
        None here.
      stop: saves the job that is trained, until `saving` is closed.
      on_epochs: called with a job, a layer and the epochs done since the last call.
      programs: those that are compiled.
      saving: closed once the results of a job are kept.
    """

    source: Source
    workdir: Path
    save_every_s: float
    room: Room
    writer: str | None = None
    stop: Stop = field(default_factory=Stop)
    on_epochs: Callable[[Job, str, int], None] = lambda job, layer, epochs: None
    programs: Programs = field(default_factory=Programs)
    saving: ExitStack = field(default_factory=ExitStack)

    def __reduce__(self) -> Any:
        given = self.source, self.workdir, self.save_every_s, self.room
        return Trainer, (*given, writer_of(self.workdir))

    def folder(self, job: Job) -> Path:
        """Where the state of a job is while it is trained."""
        return self.workdir / "training" / job.key

    def work(self) -> Work:
        """The work on jobs."""
        prepare = partial(read, self.source, programs=self.programs, room=self.room)
        return Work(prepare, self._compute, self.saving.close)

    def _check(self) -> None:
        """A worker may outlive its writer for a moment, and another one be there."""
        if self.writer and writer_of(self.workdir) != self.writer:
            raise ProbexError(f"{self.workdir}: another process is the writer by now")

    def _compute(self, part: Part, readied: Sequence[Ready]) -> Sequence[Trained]:
        (job,), (ready,) = part, readied
        found = Trained(ready.trees, ready.frozen)
        if not ready.trees:
            return [found]

        def on_epochs(count: int) -> None:
            for layer in ready.trees:
                self.on_epochs(job, layer, count)

        devices = self.source.devices
        saver = Saver(self.folder(job), self.save_every_s, devices, on_epochs, self._check)
        self.saving.enter_context(self.stop.saves(saver.save))
        state = train(self.source, ready, saver, self.room)
        if self.writer is not None:
            saver.save()
            self.saving.close()
        if not devices.writes:
            return [found]
        best, loss_E = jax.tree.map(np.asarray, (state.best, state.loss_E))
        return [found._replace(best=best, loss_E=loss_E)]


def _begun(group: Group, train: Split, saver: Saver) -> State:
    """What was saved last, or what training begins with; in host memory."""
    return saver.restored(group.template(train)) or group.initial(train)


def expert_of(source: Source, params: Any, tree: Tree, card: Card) -> Expert:
    """What was trained on matrices that were normalised by a tree: it reads them as they are."""
    variables = {"params": params, "tree": dict(tree)} if tree else {"params": params}
    (member,) = card.members
    member = dataclasses.replace(member, centre_rank=centre_rank(tree))
    return Expert(variables, card, source.encoders).with_card(members=(member,))


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
