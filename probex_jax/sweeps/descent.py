"""A sweep by gradient descent: an expert per layer, the best on validation together."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from probex_jax.experts import checkpoints
from probex_jax.experts.card import Card
from probex_jax.experts.evaluation import HOLDOUT
from probex_jax.files import layer_folder
from probex_jax.fitting.loop import State
from probex_jax.fitting.recipe import VARIED, Adam
from probex_jax.prefetch import prefetch
from probex_jax.sweeps.jobs import IN_FLIGHT, Job, Room, plan
from probex_jax.sweeps.left_out import leave_out, left_out, reasons
from probex_jax.sweeps.processes import run
from probex_jax.sweeps.resume import Saver
from probex_jax.sweeps.select import select
from probex_jax.sweeps.source import Source
from probex_jax.sweeps.stopping import Stop
from probex_jax.sweeps.train import Programs, Ready, TooLarge, expert_of, figures, read, train


@dataclass(frozen=True)
class Descent:
    """One process's part of a sweep by gradient descent; fields as the arguments of `sweep`."""

    source: Source
    workdir: Path
    card: Card
    recipes: tuple[Adam, ...]
    share: tuple[int, int]
    save_every_s: float
    stop: Stop
    on_progress: Callable[[str, int], None]
    stream: bool = False
    programs: Programs = field(default_factory=Programs)

    needs = ("train", "val")

    @property
    def epochs(self) -> int:
        """Those of a layer, of all variants of the recipe together."""
        return sum(recipe.epochs for recipe in self.recipes)

    def card_of(self, layer: str, recipe: Adam) -> Card:
        """The card of a layer's expert before it is trained."""
        (member,) = self.card.members
        shape = self.source.store.layers[layer]
        member = replace(member, layer=layer, shape=shape, recipe=asdict(recipe))
        return replace(self.card, members=(member,))

    def folder(self, layer: str, recipe: Adam) -> Path:
        """Where the expert of a layer goes."""
        folder = layer_folder(self.workdir / "layers", layer)
        if len(self.recipes) == 1:
            return folder
        differing = [name for name in VARIED if len({getattr(r, name) for r in self.recipes}) > 1]
        return folder / ",".join(f"{name}={getattr(recipe, name)}" for name in differing)

    def finished(self, job: Job) -> bool:
        """Whether all experts of a job are there, or the sweep is finished and some were chosen."""
        # In this order: another process may be choosing.
        return (
            all(
                left_out(self.workdir, layer).is_file()
                or checkpoints.is_there(self.folder(layer, recipe) / "expert")
                for layer in job.layers
                for recipe in job.recipes
            )
            or (self.workdir / "metrics.json").exists()
        )

    def train_all(self, names: Sequence[str]) -> None:
        """Trains what is not finished, here or in another process."""
        devices, processes = self.source.devices, self.share[1]
        room = Room.here(devices)
        while True:
            jobs = plan(self.source, names, self.recipes, room, processes, stream=self.stream)
            # What waits here another process could do; or processes must do all in one order.
            alone = processes > 1 or devices.processes > 1 or any(job.alone for job in jobs)
            try:
                return self._run(jobs, partial(self._train_each, room, not alone))
            except TooLarge:
                room = room.less(jobs)

    def _run(self, jobs: Sequence[Job], finish: Callable[[Iterator[Job]], None]) -> None:
        locks, devices = self.workdir / "training", self.source.devices
        run(jobs, locks, self.share, devices, self.finished, finish, self._count)

    def _count(self, job: Job) -> None:
        """All epochs of a job that is finished."""
        for layer in dict.fromkeys(job.layers):
            self._progress_of(job, layer, self.recipes[0].epochs)

    def _progress_of(self, job: Job, layer: str, epochs: int) -> None:
        self.on_progress(layer, epochs * len(dict.fromkeys(job.recipes)))

    def _train_each(self, room: Room, ahead: bool, jobs: Iterator[Job]) -> None:
        """Trains jobs, perhaps reading and compiling for the next ones while one is trained."""
        prepare = partial(read, self.source, programs=self.programs, room=room)
        if ahead:
            readied = prefetch(prepare, jobs, workers=IN_FLIGHT - 1, beyond=IN_FLIGHT - 1)
        else:
            readied = ((job, prepare(job)) for job in jobs)
        for job, ready in readied:
            self._train(job, ready, room)

    def _train(self, job: Job, ready: Ready, room: Room) -> None:
        """Trains a job to its end, from where it was, and keeps its experts."""
        devices = self.source.devices
        for layer, reason in ready.frozen.items():
            if devices.writes:
                leave_out(self.workdir, layer, reason)
            self._progress_of(job, layer, self.recipes[0].epochs)
        if not ready.trees:
            return

        def on_epochs(count: int) -> None:
            for layer in ready.trees:
                self._progress_of(job, layer, count)

        folder = self.workdir / "training" / job.key
        saver = Saver(folder, self.save_every_s, devices, on_epochs)
        with self.stop.saves(saver.save):
            state = train(self.source, ready, saver, room)
            if devices.writes:
                self._keep(job, ready, state)
        if devices.writes:
            checkpoints.remove(folder)

    def _keep(self, job: Job, ready: Ready, state: State) -> None:
        """Saves the experts of a job; one counts as finished once its `expert` is there."""
        best, loss_E = jax.tree.map(np.asarray, (state.best, state.loss_E))
        for (place, layer), (number, recipe) in itertools.product(
            enumerate(job.layers), enumerate(job.recipes)
        ):
            folder = self.folder(layer, recipe)
            if layer not in ready.trees or checkpoints.is_there(folder / "expert"):
                continue
            mine, losses = jax.tree.map(lambda leaf: leaf[place, number], (best, loss_E))  # noqa: B023
            card = replace(self.card_of(layer, recipe), metrics=figures(mine, losses))
            for name in reversed(mine):  # "val" last
                expert = expert_of(self.source, mine[name].params, ready.trees[layer], card)
                where = folder / ("expert" if name == "val" else HOLDOUT)
                expert.with_card(selected_on=name).save(where)

    def select(self, names: Sequence[str], committee: int | None) -> None:
        """Chooses among the experts of all layers, whoever trained them."""
        missing = reasons(self.workdir, names)
        folders = {
            name: [self.folder(name, recipe) for recipe in self.recipes]
            for name in names
            if name not in missing
        }
        select(self.source, self.workdir, folders, committee or len(names), missing)
        checkpoints.remove(self.workdir / "training")
