"""A sweep by gradient descent: an expert per layer, the best on validation together."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import jax

from probex_jax.engine import Died, Engine, Part, Size, Work
from probex_jax.errors import ProbexError
from probex_jax.experts import checkpoints
from probex_jax.experts.card import Card
from probex_jax.experts.evaluation import HOLDOUT
from probex_jax.files import layer_folder
from probex_jax.fitting.recipe import VARIED, Adam
from probex_jax.sweeps.jobs import IN_FLIGHT, Job, Room, plan
from probex_jax.sweeps.left_out import leave_out, leave_out_dead, left_out, reasons
from probex_jax.sweeps.select import select
from probex_jax.sweeps.source import Source
from probex_jax.sweeps.stopping import Stop
from probex_jax.sweeps.train import TooLarge, Trained, Trainer, expert_of, figures


@dataclass(frozen=True)
class Descent:
    """A sweep by gradient descent; fields as the arguments of `sweep`."""

    source: Source
    workdir: Path
    card: Card
    recipes: tuple[Adam, ...]
    engine: Engine
    save_every_s: float
    stop: Stop
    on_progress: Callable[[str, int], None]
    stream: bool = False

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
        """Whether all experts of a job are there."""
        return all(
            left_out(self.workdir, layer).is_file()
            or checkpoints.is_there(self.folder(layer, recipe) / "expert")
            for layer in job.layers
            for recipe in job.recipes
        )

    def train_all(self, names: Sequence[str]) -> None:
        """Trains what is not finished."""
        room, jobs = self._planned(names)
        while True:
            try:
                return self._train_each(names, jobs, room)
            except TooLarge:
                room, jobs = self._planned(names, room.less(jobs))

    def _planned(self, names: Sequence[str], room: Room | None = None) -> tuple[Room, list[Job]]:
        """Jobs for some room; for None, for what is free where they will be trained."""
        size = self.engine.size()
        make = partial(_planning, self.source, names, self.recipes, self.stream, size)
        with closing(self.engine.map(make, [(room,)], readers=1, ahead=0)) as results:
            ((_, (found,)),) = results
        if isinstance(found, Died):
            raise ProbexError(f"{self.source.store.path}: {found}")
        return found

    def _train_each(self, names: Sequence[str], jobs: Sequence[Job], room: Room) -> None:
        devices, is_here = self.source.devices, self.engine.is_here
        done = devices.agree([self.finished(job) for job in jobs])
        for job in itertools.compress(jobs, done):
            self._count(job, job.layers)
        parts = [(job,) for job, is_done in zip(jobs, done, strict=True) if not is_done]
        # Jobs that are read before their turn: of a worker one, since another may be free sooner.
        ahead = IN_FLIGHT - 1 if is_here else 1
        if devices.processes > 1 or any(job.alone for job in jobs):
            ahead = 0  # all processes must do all in one order, or there is no room
        given = self.source, self.workdir, self.save_every_s, room
        trainer = Trainer(*given, stop=self.stop, on_epochs=self._progress_of)
        died: dict[str, str] = {}
        found_by = self.engine.map(trainer.work, parts, readers=max(1, ahead), ahead=ahead)
        with closing(found_by) as results:
            for (job,), (found,) in results:
                if isinstance(found, Died):
                    where = self.source.store.path
                    died |= {layer: f"{where}: {layer}: {found}" for layer in job.layers}
                    self._count(job, job.layers)
                    continue
                if devices.writes:
                    self._keep(job, found)
                trainer.saving.close()
                if devices.writes:
                    checkpoints.remove(trainer.folder(job))
                self._count(job, found.frozen if is_here else job.layers)
                del found  # before the next one is trained
        leave_out_dead(self.workdir, names, died)

    def _count(self, job: Job, layers: Iterable[str]) -> None:
        """All epochs of layers of a job."""
        for layer in dict.fromkeys(layers):
            self._progress_of(job, layer, self.recipes[0].epochs)

    def _progress_of(self, job: Job, layer: str, epochs: int) -> None:
        self.on_progress(layer, epochs * len(dict.fromkeys(job.recipes)))

    def _keep(self, job: Job, found: Trained) -> None:
        """Saves the experts of a job; one counts as finished once its `expert` is there."""
        for layer, reason in found.frozen.items():
            leave_out(self.workdir, layer, reason)
        for (place, layer), (number, recipe) in itertools.product(
            enumerate(job.layers), enumerate(job.recipes)
        ):
            folder = self.folder(layer, recipe)
            if layer not in found.trees or checkpoints.is_there(folder / "expert"):
                continue
            given = found.best, found.loss_E
            mine, losses = jax.tree.map(lambda leaf: leaf[place, number], given)  # noqa: B023
            card = replace(self.card_of(layer, recipe), metrics=figures(mine, losses))
            for name in reversed(mine):  # "val" last
                expert = expert_of(self.source, mine[name].params, found.trees[layer], card)
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


def _planning(
    source: Source, names: Sequence[str], recipes: Sequence[Adam], stream: bool, size: Size
) -> Work:
    """Plans jobs on the devices that are to train them."""

    def compute(part: Part, _: object) -> Sequence[tuple[Room, list[Job]]]:
        (room,) = part
        if room is None:
            room = Room.here(source.devices).among(size.beside, source.devices)
        return [(room, plan(source, names, recipes, room, size.workers, stream=stream))]

    return Work(lambda room: None, compute)
