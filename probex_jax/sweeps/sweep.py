"""One expert per layer of a tree, the best chosen on validation, tested once; resumable.

A work directory holds

    config.json                     what is trained, and the hash of the store
    training/<job>/                 the state of experts that are being trained together
    layers/<layer>/expert/          the finished expert of a layer, validation metrics on its card
    layers/<layer>/<variant>/...    the same, where several variants of the recipe are tried
    layers/<layer>/left_out.json    why a layer has none
    expert/                         the chosen expert or committee, test metrics on its card
    predictions.safetensors         its answers for the test models (`Predictions`)
    metrics.json                    the table of layers, the choice, its test accuracy

Where a store has held-out classes, an expert aligned with text is kept as it was best on models of
seen classes (`expert`, on `val`), and as it was best on held-out ones (`expert_val_holdout`).
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from probex_jax.errors import ProbexError
from probex_jax.experts import checkpoints
from probex_jax.experts.alignment import Alignment
from probex_jax.experts.card import Card
from probex_jax.experts.evaluation import HOLDOUT
from probex_jax.files import (
    alone,
    claim,
    layer_folder,
    one_writer,
    read_json,
    sharing_writers,
    write_json,
)
from probex_jax.fitting.centre import FrozenLayer
from probex_jax.fitting.closed_form import ClosedForm, check_closed_form
from probex_jax.fitting.loop import State
from probex_jax.fitting.network import NO_MORE, build_network, encoder_settings
from probex_jax.fitting.recipe import VARIED, Adam, variants
from probex_jax.fitting.sharding import ONE, Devices
from probex_jax.fitting.task import SeveralClasses, Task
from probex_jax.layer_store import LayerStore
from probex_jax.prefetch import prefetch
from probex_jax.sweeps.jobs import IN_FLIGHT, Job, Room, plan
from probex_jax.sweeps.processes import divided
from probex_jax.sweeps.resume import Saver
from probex_jax.sweeps.select import SweepResult, result, select
from probex_jax.sweeps.settings import (
    card_before_training,
    check_settings,
    config_of,
    default_layers,
)
from probex_jax.sweeps.source import Source
from probex_jax.sweeps.stopping import Stop
from probex_jax.sweeps.train import (
    Programs,
    Ready,
    TooLarge,
    expert_of,
    figures,
    read,
    solve,
    train,
)


def sweep(
    store: LayerStore,
    workdir: str | Path,
    *,
    encoder: nn.Module | Mapping[str, Any],
    head: str,
    recipe: Adam | ClosedForm,
    task: Task | None = None,
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
    encoders: Mapping[str, type[nn.Module]] = NO_MORE,
    on_progress: Callable[[str, int], None] = lambda layer, epochs: None,
) -> SweepResult:
    """Trains one expert per layer; finished layers are kept, an interrupted one resumes.

    Layers of one shape, and variants of the recipe, are trained side by side, as many as memory
    allows (`jobs.plan`).

    Args:
      store: the tree's matrices and labels.
      workdir: where everything goes; must be new, or of the same settings and store.
      encoder, head: settings, as `build_network` takes them; or an encoder.
      recipe: how each expert is trained; `ClosedForm` for a dense one.
      task: what is asked of a model; None for the texts of `alignment`, or else several classes.
      grid: values of some of the recipe's fields to try (`variants`); of each layer what is best on
        validation is kept.
      alignment: of the head "text", what it is aligned with.
      normalise: "centre" to subtract from all matrices the mean of the training ones, and to divide
        by the standard deviation of what is left of these, which the expert keeps; "scale" to
        divide alone; "none" to take them as they are.
      committee: the most layers whose experts answer together; how many do is chosen on validation
        (`best_committee`). 1 for the best layer alone.
      layers: which layers; None for all of the store, by `Adam` for all that are no vectors.
      stream: whether the batches of all layers are read from the store as they are needed, and not
        only of those that do not fit the devices.
      devices: what every expert is trained on. Of several processes all run the same sweep at once,
        see the same work directory, and train the same expert together.
      share: (p, P): this is one of P processes that divide the layers among themselves; each begins
        with its own and goes on with what others have left. Alone, one process does it all.
      save_every_s: what is being trained is saved at the first evaluation so many seconds after the
        last save, or later where saving takes long; 0 saves at each.
      stop: whoever is told that the process must end has it save the last evaluation.
      encoders: encoders by name that are not ours.
      on_progress: called with a layer's name and the number of epochs done since the last call.

    Returns:
      Validation accuracy by layer, the best expert, and its accuracy on the test split. Layers that
      are normalised and the same in all training models are left out, with the reason in `metrics`.

    Raises:
      ProbexError: if a setting is wrong, a split is empty, the texts do not tell the classes apart
        (`Alignment.candidates`), all layers are frozen, the work directory belongs to another
        config or is being written by a process that does not divide the layers with this one, or a
        checkpoint is damaged.

    Example:
      >>> import tempfile
      >>> from safetensors.numpy import save_file
      >>> from probex_jax import pack, scan
      >>> folder, rng = Path(tempfile.mkdtemp()), np.random.default_rng(0)
      >>> for split, count in {"train": 12, "val": 4, "test": 4}.items():
      ...     for number in range(count):
      ...         name = folder / "Pets" / split / f"{split}{number}"
      ...         name.mkdir(parents=True)
      ...         pet = ("cat", "dog")[number % 2]
      ...         body = rng.normal(size=(8, 8)) + 2 * (pet == "cat")
      ...         save_file({"body.weight": body.astype("f4")}, name / "model.safetensors",
      ...                   {"dataset_chosen_targets": f"['{pet}']"})
      >>> store = pack(scan(folder / "Pets"), folder / "store").store
      >>> found = sweep(store, folder / "trained", encoder={"name": "dense"}, head="none",
      ...               recipe=ClosedForm(), normalise="centre")
      >>> found.expert, found.test.value
      (Expert(tree='Pets', reading='body.weight'), 1.0)
    """
    workdir = Path(workdir)
    if isinstance(encoder, nn.Module):
        encoder = encoder_settings(encoder, encoders)
    names = tuple(layers if layers is not None else default_layers(store, recipe))
    task = task or (SeveralClasses() if alignment is None else alignment.task)
    check_settings(store, names, committee, save_every_s, share, head, task, alignment)
    if grid and isinstance(recipe, ClosedForm):
        raise ProbexError("grid: the closed form tries its penalties itself")
    recipes = (recipe,) if isinstance(recipe, ClosedForm) else variants(recipe, grid or {})
    card = card_before_training(store, encoder, head, normalise, task, alignment)
    candidates = None if alignment is None else alignment.candidates(store)

    network = build_network(
        encoder,
        head,
        len(card.classes),
        logit_scale=task.logit_scale,
        normalise=normalise,
        encoders=encoders,
    )
    if isinstance(recipe, ClosedForm):
        check_closed_form(network, task)
    reading = network.clone(normalise="none")
    source = Source(store, task, candidates, normalise, reading, devices, encoders)
    _ = [store.split(split) for split in ("train", "val", "test")]  # none is empty
    config = config_of(card, task, recipe, names, committee, grid)
    writers = sharing_writers if share[1] > 1 else one_writer
    with writers(workdir) if devices.writes else nullcontext():
        if devices.writes:
            claim(workdir, config)
        devices.wait("claimed")
        stop = stop or Stop()
        job = _Sweep(source, workdir, card, recipes, share, save_every_s, stop, on_progress)
        (done,) = devices.agree([(workdir / "metrics.json").exists()])
        if done:
            for name in names:
                on_progress(name, sum(recipe.epochs for recipe in recipes))
            return result(workdir, encoders)
        job.train_all(names, stream)
        if devices.writes:
            with alone(workdir / ".lock", needed=share[1] > 1):
                if not (workdir / "metrics.json").exists():
                    job.select(names, committee)
        devices.wait("chosen")
        return result(workdir, encoders)


@dataclass(frozen=True)
class _Sweep:
    """One process's part of a sweep; fields as the arguments of `sweep`."""

    source: Source
    workdir: Path
    card: Card
    recipes: tuple[Any, ...]
    share: tuple[int, int]
    save_every_s: float
    stop: Stop
    on_progress: Callable[[str, int], None]
    programs: Programs = field(default_factory=Programs)

    def card_of(self, layer: str, recipe: Adam | ClosedForm) -> Card:
        """The card of a layer's expert before it is trained."""
        (member,) = self.card.members
        shape = self.source.store.layers[layer]
        member = replace(member, layer=layer, shape=shape, recipe=asdict(recipe))
        return replace(self.card, members=(member,))

    def folder(self, layer: str, recipe: Adam | ClosedForm) -> Path:
        """Where the expert of a layer goes."""
        folder = layer_folder(self.workdir / "layers", layer)
        if len(self.recipes) == 1:
            return folder
        differing = [name for name in VARIED if len({getattr(r, name) for r in self.recipes}) > 1]
        return folder / ",".join(f"{name}={getattr(recipe, name)}" for name in differing)

    def left_out(self, layer: str) -> Path:
        """Where the reason why a layer has no expert goes."""
        return layer_folder(self.workdir / "layers", layer) / "left_out.json"

    def finished(self, job: Job) -> bool:
        """Whether all experts of a job are there."""
        return all(
            self.left_out(layer).exists() or (self.folder(layer, recipe) / "expert").exists()
            for layer in job.layers
            for recipe in job.recipes
        )

    def train_all(self, names: Sequence[str], stream: bool) -> None:
        """Trains what is not finished, here or in another process."""
        devices, processes = self.source.devices, self.share[1]
        if isinstance(self.recipes[0], ClosedForm):
            return self._run([Job((name,), self.recipes) for name in names], self._solve)
        room = Room.here(devices)
        while True:
            jobs = plan(self.source, names, self.recipes, room, processes, stream=stream)
            try:
                return self._run(jobs, self._train_each)
            except TooLarge:
                room = room.less(jobs)

    def _run(self, jobs: Sequence[Job], finish: Callable[[Iterator[Job]], None]) -> None:
        """Has the jobs finished that are not, each by one process."""
        devices = self.source.devices
        done = devices.agree([self.finished(job) for job in jobs])
        for job in itertools.compress(jobs, done):
            self._count(job)
        todo = [job for job, is_done in zip(jobs, done, strict=True) if not is_done]
        if self.share[1] == 1:
            return finish(iter(todo))
        locks = self.workdir / "training"
        return divided(todo, locks, self.share, self.finished, finish, self._count)

    def _count(self, job: Job) -> None:
        """All epochs of a job that is finished."""
        for layer in dict.fromkeys(job.layers):
            self._progress_of(job, layer, self.recipes[0].epochs)

    def _progress_of(self, job: Job, layer: str, epochs: int) -> None:
        self.on_progress(layer, epochs * len(dict.fromkeys(job.recipes)))

    def _train_each(self, jobs: Iterator[Job]) -> None:
        """Trains jobs, reading and compiling for the next ones while one is trained."""
        prepare = partial(read, self.source, programs=self.programs)
        if self.share[1] > 1 or self.source.devices.processes > 1:
            # What waits here another process could do; or processes must do all in one order.
            readied = ((job, prepare(job)) for job in jobs)
        else:
            readied = prefetch(prepare, jobs, workers=IN_FLIGHT - 1, beyond=IN_FLIGHT - 1)
        for job, ready in readied:
            self._train(job, ready)

    def _train(self, job: Job, ready: Ready) -> None:
        """Trains a job to its end, from where it was, and keeps its experts."""
        devices = self.source.devices
        for layer, reason in ready.frozen.items():
            if devices.writes:
                self._leave_out(layer, reason)
            self._progress_of(job, layer, self.recipes[0].epochs)
        if not ready.trees:
            return

        def on_epochs(count: int) -> None:
            for layer in ready.trees:
                self._progress_of(job, layer, count)

        folder = self.workdir / "training" / job.key
        saver = Saver(folder, self.save_every_s, devices, on_epochs)
        with self.stop.saves(saver.save):
            state = train(self.source, ready, saver)
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
            if layer not in ready.trees or (folder / "expert").exists():
                continue
            mine, losses = jax.tree.map(lambda leaf: leaf[place, number], (best, loss_E))  # noqa: B023
            card = replace(self.card_of(layer, recipe), metrics=figures(mine, losses))
            for name in reversed(mine):  # "val" last
                expert = expert_of(self.source, mine[name].params, ready.trees[layer], card)
                where = folder / ("expert" if name == "val" else HOLDOUT)
                expert.with_card(selected_on=name).save(where)

    def _solve(self, jobs: Iterator[Job]) -> None:
        """Fits the experts of jobs in closed form."""
        for job in jobs:
            (layer,), recipe = job.layers, self.recipes[0]
            try:
                expert = solve(self.source, layer, self.card_of(layer, recipe), recipe)
            except FrozenLayer as error:
                self._leave_out(layer, str(error))
            else:
                expert.save(self.folder(layer, recipe) / "expert")
            self._count(job)

    def _leave_out(self, layer: str, reason: str) -> None:
        path = self.left_out(layer)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, reason)

    def select(self, names: Sequence[str], committee: int) -> None:
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
        select(self.source, self.workdir, folders, committee, left_out)
        checkpoints.remove(self.workdir / "training")
