"""One expert per layer of a tree, the best chosen on validation, tested once; resumable.

A work directory holds

    config.json                     what is trained, and the hash of the store
    training/<unit>/                the state of experts that are being trained together
    layers/<layer>/expert/          the finished expert of a layer, validation metrics on its card
    layers/<layer>/<variant>/...    the same, where several variants of the recipe are tried
    layers/<layer>/left_out.json    why a layer has none
    expert/                         the chosen expert or committee, test metrics on its card
    answered.safetensors              its answers for the test models (`Answered`)
    metrics.json                    the table of layers, the choice, its test accuracy

Where a store has held-out classes, an expert aligned with text is kept as it was best on models of
seen classes (`expert`, on `val`), and as it was best on held-out ones (`expert_val_holdout`).

Several processes may run the same sweep in the same work directory: what one of them is training it
holds a lock on, which the system takes back when it dies, and the last one makes the table.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.experts import checkpoints
from probex_jax.experts.alignment import Alignment, Candidates
from probex_jax.experts.centring import FrozenLayer
from probex_jax.experts.choosing import SweepResult, choose, result
from probex_jax.experts.closed_form import solve
from probex_jax.experts.devices import ONE, Devices
from probex_jax.experts.evaluation import HOLDOUT
from probex_jax.experts.expert import versions
from probex_jax.experts.network import Network, build_network
from probex_jax.experts.recipe import VARIED, Recipe, variants
from probex_jax.experts.ridge import Ridge, check_fitted
from probex_jax.experts.saving import Saver
from probex_jax.experts.side_by_side import (
    Programs,
    Ready,
    TooLarge,
    figures,
    read,
    train,
    train_streamed,
)
from probex_jax.experts.source import Source, expert_of
from probex_jax.experts.state import State
from probex_jax.experts.stopping import Stop
from probex_jax.experts.units import IN_FLIGHT, Room, Unit, plan
from probex_jax.files import (
    alone,
    claim,
    layer_folder,
    one_writer,
    read_json,
    sharing_writers,
    write_json,
)
from probex_jax.layer_store import LayerStore
from probex_jax.prefetch import prefetch


def sweep(
    store: LayerStore,
    workdir: Path,
    *,
    encoder: Mapping[str, Any],
    head: str,
    recipe: Recipe | Ridge,
    grid: Mapping[str, Sequence[Any]] | None = None,
    alignment: Alignment | None = None,
    normalise: str = "none",
    committee: int = 1,
    layers: Sequence[str] | None = None,
    stream: bool = False,
    devices: Devices = ONE,
    share: tuple[int, int] = (0, 1),
    save_every_s: float = 1.0,
    stop: Stop | None = None,
    on_progress: Callable[[str, int], None] = lambda layer, epochs: None,
) -> SweepResult:
    """Trains one expert per layer; finished layers are kept, an interrupted one goes on.

    Layers of one shape, and variants of the recipe, are trained side by side, as many as memory
    allows (`units.plan`).

    Args:
      store: the tree's matrices and labels.
      workdir: where everything goes; must be new, or of the same settings and store.
      encoder, head: settings, as `build_network` takes them.
      recipe: how each expert is trained; `Ridge` for a dense one in closed form.
      grid: values of some of the recipe's fields to try (`variants`); of each layer what is best on
        validation is kept.
      alignment: of the head "text", what it is aligned with.
      normalise: "centre" to subtract from all matrices the mean of the training ones, and to divide
        by the standard deviation of what is left of these, which the expert keeps; "scale" to
        divide alone; "none" to take them as they are.
      committee: the most layers whose experts answer together; how many do is chosen on validation
        (`best_committee`). 1 for the best layer alone.
      layers: which layers; None for all of the store.
      stream: whether the batches of all layers are read from the store as they are needed, and not
        only of those that do not fit the devices.
      devices: what every expert is trained on. Of several processes all run the same sweep at once,
        see the same work directory, and train the same expert together.
      share: (p, P): this is one of P processes that divide the layers among themselves; each begins
        with its own and goes on with what others have left. Alone, one process does it all.
      save_every_s: what is being trained is saved at the first evaluation so many seconds after the
        last save; 0 saves at each.
      stop: whoever is told that the process must end has it save the last evaluation.
      on_progress: called with a layer's name and the number of epochs done since the last call.

    Returns:
      Validation accuracy by layer, the best expert, and its accuracy on the test split. Layers that
      are normalised and the same in all training models are left out, with the reason in `metrics`.

    Raises:
      ProbexError: if a setting is wrong, a split is empty, the texts do not tell the classes apart
        (`Alignment.candidates`), all layers are frozen, the work directory belongs to another
        config or is being written by a process that does not divide the layers with this one, or a
        checkpoint is damaged.
    """
    names = tuple(layers if layers is not None else store.layers)
    settings = _settings(store, encoder, head, recipe, alignment, normalise)
    if grid and isinstance(recipe, Ridge):
        raise ProbexError('grid: recipe "ridge" tries its penalties itself')
    recipes = (recipe,) if isinstance(recipe, Ridge) else variants(recipe, grid or {})
    if type(committee) is not int or committee < 1:
        raise ProbexError(f"committee: {committee!r} is not a whole number >= 1")
    if not names:
        raise ProbexError("layers: none given; expected one or more")
    if type(save_every_s) not in (int, float) or not save_every_s >= 0:
        raise ProbexError(f"save_every_s: {save_every_s!r} is not a number of seconds >= 0")
    if not 0 <= share[0] < share[1]:
        raise ProbexError(f"process {share[0]} of {share[1]}: expected 0 to {share[1] - 1}")
    candidates = None if alignment is None else alignment.candidates(store)
    config = settings | {"layers": list(names), "committee": committee}
    if grid:
        config["grid"] = {name: list(values) for name, values in grid.items()}
    writers = sharing_writers if share[1] > 1 else one_writer
    with writers(workdir) if devices.writes else nullcontext():
        if devices.writes:
            claim(workdir, config)
        devices.wait("claimed")
        job = _Sweep(
            store=store,
            workdir=workdir,
            settings=settings,
            recipes=recipes,
            candidates=candidates,
            devices=devices,
            share=share,
            save_every_s=save_every_s,
            stop=stop or Stop(),
            on_progress=on_progress,
        )
        (done,) = devices.agree([(workdir / "metrics.json").exists()])
        if done:
            for name in names:
                on_progress(name, job.epochs)
            return result(workdir)
        job.train_all(names, stream)
        if devices.writes:
            with alone(workdir / ".lock", needed=share[1] > 1):
                if not (workdir / "metrics.json").exists():
                    job.choose(names, committee)
        devices.wait("chosen")
        return result(workdir)


def _settings(
    store: LayerStore,
    encoder: Mapping[str, Any],
    head: str,
    recipe: Recipe | Ridge,
    alignment: Alignment | None,
    normalise: str,
) -> dict[str, Any]:
    """All that the experts of a sweep depend on, checked, as their cards say it."""
    if (head == "text") != (alignment is not None):
        raise ProbexError('head: "text" and settings of the text belong together')
    logit_scale = 1.0 if alignment is None else alignment.logit_scale
    n_classes = len(store.classes)
    network = build_network(encoder, head, n_classes, logit_scale=logit_scale, normalise=normalise)
    if isinstance(recipe, Ridge):
        check_fitted(network)
    for split in ("train", "val", "test"):
        store.split(split)
    return {
        "encoder": dict(encoder),
        "head": head,
        "normalise": normalise,
        "recipe": dataclasses.asdict(recipe),
        "tree": store.tree,
        "store_hash": store.hash,
        **({} if alignment is None else {"text": alignment.card(store)}),
    }


@dataclass(frozen=True)
class _Sweep:
    """One process's part of a sweep; fields as the arguments of `sweep`."""

    store: LayerStore
    workdir: Path
    settings: Mapping[str, Any]
    recipes: tuple[Any, ...]
    candidates: Candidates | None
    devices: Devices
    share: tuple[int, int]
    save_every_s: float
    stop: Stop
    on_progress: Callable[[str, int], None]
    programs: Programs = field(default_factory=Programs)

    @property
    def epochs(self) -> int:
        """Of one layer, all variants."""
        return sum(recipe.epochs for recipe in self.recipes)

    @cached_property
    def source(self) -> Source:
        """The data."""
        normalise = self.settings["normalise"]
        return Source(self.store, self.candidates, normalise, self.network, self.devices)

    def network(self, layer: str) -> Network:
        """What is trained on a layer, reading what is normalised already."""
        text = self.settings.get("text")
        scale = text["logit_scale"] if text else 1.0
        card = self.card(layer, self.recipes[0])
        return build_network(card["encoder"], card["head"], len(card["classes"]), logit_scale=scale)

    def card(self, layer: str, recipe: Recipe | Ridge) -> dict[str, Any]:
        """What the card of a layer's expert says before it is trained."""
        seen = self.candidates is not None
        return {
            **self.settings,
            "recipe": dataclasses.asdict(recipe),
            "layer": layer,
            "shape": list(self.store.layers[layer]),
            "classes": list(self.store.seen_classes if seen else self.store.classes),
            "n_train": len(self.store.split("train")),
            "versions": versions(),
        }

    def folder(self, layer: str, recipe: Recipe | Ridge) -> Path:
        """Where the expert of a layer goes."""
        folder = layer_folder(self.workdir / "layers", layer)
        if len(self.recipes) == 1:
            return folder
        differing = [name for name in VARIED if len({getattr(r, name) for r in self.recipes}) > 1]
        return folder / ",".join(f"{name}={getattr(recipe, name)}" for name in differing)

    def left_out(self, layer: str) -> Path:
        """Where the reason why a layer has no expert goes."""
        return layer_folder(self.workdir / "layers", layer) / "left_out.json"

    def finished(self, unit: Unit) -> bool:
        """Whether all experts of a unit are there."""
        return all(
            self.left_out(layer).exists() or (self.folder(layer, recipe) / "expert").exists()
            for layer in unit.layers
            for recipe in unit.recipes
        )

    def train_all(self, names: Sequence[str], stream: bool) -> None:
        """Trains what is not finished, here or in another process."""
        if isinstance(self.recipes[0], Ridge):
            return self._run([Unit((name,), self.recipes) for name in names], self._solve_units)
        room = Room.here(self.devices)
        while True:
            units = plan(self.source, names, self.recipes, room, self.share[1], stream=stream)
            try:
                return self._run(units, self._train_units)
            except TooLarge:
                # What was computed from sizes alone was too little: fewer at a time.
                room = room.half()

    def _run(self, units: Sequence[Unit], finish: Callable[[Iterator[Unit]], None]) -> None:
        """Has the units finished that are not, each by one process."""
        done = self.devices.agree([self.finished(unit) for unit in units])
        for unit in itertools.compress(units, done):
            self._count(unit)
        todo = [unit for unit, is_done in zip(units, done, strict=True) if not is_done]
        if self.devices.processes > 1:
            return finish(iter(todo))
        place, processes = self.share
        first = place * len(todo) // processes
        others: list[Unit] = []
        finish(self._free(todo[first:] + todo[:first], others))
        for unit in others:  # whoever works on it finishes it, or dies
            if self.finished(unit):
                self._count(unit)
            else:
                with alone(self._lock(unit)):
                    finish(self._unfinished(unit))

    def _free(self, units: Sequence[Unit], others: list[Unit]) -> Iterator[Unit]:
        """The units that nobody else works on, each locked until the next; others are listed."""
        for unit in units:
            with alone(self._lock(unit), wait=False, needed=self.share[1] > 1) as ours:
                if ours:
                    yield from self._unfinished(unit)
                else:
                    others.append(unit)

    def _unfinished(self, unit: Unit) -> Iterator[Unit]:
        """The unit, or nothing if it was finished by another process meanwhile."""
        if self.finished(unit):
            self._count(unit)
        else:
            yield unit

    def _lock(self, unit: Unit) -> Path:
        folder = self.workdir / "training"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{unit.key}.lock"

    def _count(self, unit: Unit) -> None:
        """All epochs of a unit that is finished."""
        for layer in dict.fromkeys(unit.layers):
            self._progress_of(unit, layer, self.recipes[0].epochs)

    def _progress_of(self, unit: Unit, layer: str, epochs: int) -> None:
        self.on_progress(layer, epochs * len(dict.fromkeys(unit.recipes)))

    def _train_units(self, units: Iterator[Unit]) -> None:
        """Trains units, reading and compiling for the next ones while one is trained."""
        prepare = partial(read, self.source, programs=self.programs)
        if self.share[1] > 1 or self.devices.processes > 1:
            # What waits here another process could do; or processes must do all in one order.
            readied = ((unit, prepare(unit)) for unit in units)
        else:
            readied = prefetch(prepare, units, workers=IN_FLIGHT - 1, beyond=IN_FLIGHT - 1)
        for unit, ready in readied:
            self._train(unit, ready)

    def _train(self, unit: Unit, ready: Ready) -> None:
        """Trains a unit to its end, from where it was, and keeps its experts."""
        for layer, reason in ready.frozen.items():
            if self.devices.writes:
                self._leave_out(layer, reason)
            self._progress_of(unit, layer, self.recipes[0].epochs)
        if not ready.trees:
            return

        def on_epochs(count: int) -> None:
            for layer in ready.trees:
                self._progress_of(unit, layer, count)

        folder = self.workdir / "training" / unit.key
        saver = Saver(folder, self.save_every_s, on_epochs, writes=self.devices.writes)
        with self.stop.saves(saver.save):
            state = (train_streamed if unit.streamed else train)(self.source, ready, saver)
            saver.close()
            if self.devices.writes:
                self._keep(unit, ready, state)
        if self.devices.writes:
            checkpoints.remove(folder)

    def _keep(self, unit: Unit, ready: Ready, state: State) -> None:
        """Saves the experts of a unit; one counts as finished once its `expert` is there."""
        best, loss_E = jax.tree.map(np.asarray, (state.best, state.loss_E))
        for (place, layer), (number, recipe) in itertools.product(
            enumerate(unit.layers), enumerate(unit.recipes)
        ):
            folder = self.folder(layer, recipe)
            if layer not in ready.trees or (folder / "expert").exists():
                continue
            mine, losses = jax.tree.map(lambda leaf: leaf[place, number], (best, loss_E))  # noqa: B023
            card = {**self.card(layer, recipe), "metrics": figures(mine, losses)}
            for name in reversed(mine):  # "val" last
                about = {**card, "selected_on": name}
                expert = expert_of(mine[name].params, ready.trees[layer], about)
                expert.save(folder / ("expert" if name == "val" else HOLDOUT))

    def _solve_units(self, units: Iterator[Unit]) -> None:
        """Fits the experts of units in closed form."""
        for unit in units:
            (layer,), recipe = unit.layers, self.recipes[0]
            try:
                expert = solve(self.source, layer, self.card(layer, recipe), recipe)
            except FrozenLayer as error:
                self._leave_out(layer, str(error))
                self._count(unit)
                continue
            self._count(unit)
            expert.save(self.folder(layer, recipe) / "expert")

    def _leave_out(self, layer: str, reason: str) -> None:
        path = self.left_out(layer)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, reason)

    def choose(self, names: Sequence[str], committee: int) -> None:
        """Chooses among the experts of all layers, whoever trained them."""
        left_out = {
            name: read_json(self.left_out(name)) for name in names if self.left_out(name).exists()
        }
        if len(left_out) == len(names):
            raise ProbexError(f"no layer to train on; the first: {next(iter(left_out.values()))}")
        folders = {
            name: [self.folder(name, recipe) for recipe in self.recipes]
            for name in names
            if name not in left_out
        }
        choose(self.store, self.workdir, folders, self.candidates, committee, left_out)
        checkpoints.remove(self.workdir / "training")
