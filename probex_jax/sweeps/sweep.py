"""Experts on the layers of a tree, chosen without the test models, tested once; resumable.

A work directory holds

    config.json                     what is trained, and the hash of the store
    training/<job>/                 the state of experts that are being trained together
    training/kernels/<layer>/       in closed form, the inner products of a layer's matrices
    layers/<layer>/expert/          the finished expert of a layer, validation metrics on its card;
                                    in the end of those layers that were not chosen
    layers/<layer>/<variant>/...    the same, where several variants of the recipe are tried
    layers/<layer>/left_out.json    why a layer has none
    expert/                         the chosen expert or committee, test metrics on its card
    predictions.safetensors         its answers for the test models (`Predictions`)
    metrics.json                    the table of layers, the choice, its test accuracy
    attributes/<attribute>/         of a joint expert, `predictions.safetensors` of each attribute

Where a store has held-out classes, an expert aligned with text is kept as it was best on models of
seen classes (`expert`, on `val`), and as it was best on held-out ones (`expert_val_holdout`).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from flax import linen as nn

from probex_jax.bucket_paths import as_path
from probex_jax.claims import claim
from probex_jax.engine import HERE, Engine
from probex_jax.errors import ProbexError
from probex_jax.experts.alignment import Alignment
from probex_jax.experts.card_parts import task_json
from probex_jax.files import one_writer
from probex_jax.fitting.closed_form import ClosedForm, check_closed_form
from probex_jax.fitting.network import NO_MORE, build_network, encoder_settings
from probex_jax.fitting.recipe import Adam, variants
from probex_jax.fitting.sharding import ONE, Devices
from probex_jax.fitting.task import SeveralClasses, Task
from probex_jax.layer_store import LayerStore
from probex_jax.sweeps import joint
from probex_jax.sweeps.descent import Descent
from probex_jax.sweeps.kernels import Kernels
from probex_jax.sweeps.select import SweepResult, result
from probex_jax.sweeps.settings import (
    card_before_training,
    check_settings,
    config_of,
    default_layers,
    told_task,
)
from probex_jax.sweeps.source import Source
from probex_jax.sweeps.stopping import Stop


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
    committee: int | None = 1,
    layers: Sequence[str] | None = None,
    stream: bool = False,
    devices: Devices = ONE,
    engine: Engine = HERE,
    save_every_s: float = 1.0,
    stop: Stop | None = None,
    encoders: Mapping[str, type[nn.Module]] = NO_MORE,
    on_progress: Callable[[str, int], None] = lambda layer, epochs: None,
) -> SweepResult:
    """Trains experts on layers; what is finished is kept, and an interrupted sweep resumes.

    By gradient descent each layer has an expert, the best of which answer together. Layers of one
    shape, and variants of the recipe, are trained side by side, as many as memory allows
    (`jobs.plan`). In closed form one regression is fitted to all layers, and to validation models
    as well: it chooses by cross-validation (`multiple_kernels`).

    Args:
      store: the tree's matrices and labels.
      workdir: where everything goes; must be new, or of the same settings and store.
      encoder, head: settings, as `build_network` takes them; or an encoder.
      recipe: how each expert is trained; `ClosedForm` for a linear encoder, all layers together.
      task: what is asked of a model; None for the texts of `alignment`, or what the labels ask: one
        class where every model has exactly one, else several.
      grid: values of some of the recipe's fields to try (`variants`); of each layer what is best on
        validation is kept.
      alignment: of the head "text", what it is aligned with.
      normalise: "centre" to subtract from all matrices the mean of the training ones, and to divide
        by the standard deviation of what is left of these, which the expert keeps; "scale" to
        divide alone; "none" to take them as they are.
      committee: the most layers that answer together; 1 for the best alone, None for all of them.
        By gradient descent how many do is chosen on validation (`best_committee`).
      layers: which layers; None for all of the store, by `Adam` for all that are no vectors.
      stream: whether the batches of all layers are read from the store as they are needed, and not
        only of those that do not fit the devices.
      devices: what every expert is trained on. Of several processes all run the same sweep at once,
        see the same work directory, and train the same expert together.
      engine: who trains: threads of this process, or the workers of a cluster, each a few layers of
        one shape at a time on its own devices (then `devices` is not asked). All must see the store
        and the work directory under one path, for the state of what is trained; experts and
        metrics are written by this process.
      save_every_s: what is being trained is saved at the first evaluation so many seconds after the
        last save, or later where saving takes long; 0 saves at each.
      stop: whoever is told that the process must end has it save the last evaluation.
      encoders: encoders by name that are not ours.
      on_progress: called with a layer's name and the number of epochs done since the last call.

    Returns:
      The accuracy of each layer where it was chosen, the expert, and its accuracy on the test
      split. Layers that are normalised and the same in all training models are left out, with the
      reason in `metrics`.

    Raises:
      ProbexError: if a setting is wrong, all models are of one class, a split is empty, the texts
        do not tell the classes apart (`Alignment.candidates`), all layers are frozen, the work
        directory belongs to another config or is being written by another process, a checkpoint is
        damaged, or there are processes that train an expert together beside a cluster.

    Example:
      >>> import tempfile
      >>> import numpy as np
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
    workdir = as_path(workdir)
    if isinstance(encoder, nn.Module):
        encoder = encoder_settings(encoder, encoders)
    names = tuple(layers if layers is not None else default_layers(store, recipe))
    task = task or (told_task(store) if alignment is None else alignment.task)
    check_settings(store, names, committee, save_every_s, head, task, alignment)
    if devices.processes > 1 and not engine.is_here:
        raise ProbexError(
            "engine: processes that train together are not a cluster; give one of both"
        )
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
    reading = network.clone(normalise="none")
    source = Source(store, task, candidates, normalise, reading, devices, encoders)
    job: Kernels | Descent
    if isinstance(recipe, ClosedForm):
        check_closed_form(network, task)
        if grid:
            raise ProbexError("grid: the closed form tries its penalties itself")
        beside = engine.size().beside
        job = Kernels(source, workdir, card, recipe, {"": source}, beside, engine, on_progress)
    else:
        recipes, stop = variants(recipe, grid or {}), stop or Stop()
        job = Descent(
            source, workdir, card, recipes, engine, save_every_s, stop, on_progress, stream
        )
    _ = [store.split(split) for split in (*job.needs, "test")]  # none is empty
    config = config_of(card, task, recipe, names, committee, grid)
    return _run(job, workdir, config, names, committee, devices)


def sweep_attributes(
    stores: Mapping[str, LayerStore],
    workdir: str | Path,
    *,
    encoder: nn.Module | Mapping[str, Any],
    recipe: ClosedForm,
    normalise: str = "none",
    committee: int | None = None,
    layers: Sequence[str] | None = None,
    devices: Devices = ONE,
    engine: Engine = HERE,
    on_progress: Callable[[str, int], None] = lambda layer, epochs: None,
) -> SweepResult:
    """Fits one expert to several attributes of a tree's models, in closed form; resumable.

    Layers are read once, and one factorisation serves all attributes that the same models have.
    Each attribute has its own penalty, weights of layers, calibration and conformal prediction.

    Args:
      stores: attribute to its view of one store, as `attribute_views` finds them.
      workdir, encoder, recipe, normalise, committee, layers, devices, engine, on_progress: as
        `sweep` takes them.

    Returns:
      The joint expert, whose `part(name)` is that of one attribute; `metrics["attributes"]` has
      what there is to say of each, and whether the weights tell it.

    Raises:
      ProbexError: as `sweep`.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> from safetensors.numpy import save_file
      >>> from probex_jax import pack, scan
      >>> folder, rng = Path(tempfile.mkdtemp()), np.random.default_rng(0)
      >>> rows = ["model,rate,kind"]
      >>> for number, rate in enumerate(np.geomspace(0.1, 10.0, 40)):
      ...     name = folder / "Mini" / ("train", "test")[number % 2] / f"m{number}"
      ...     name.mkdir(parents=True)
      ...     body = np.log(rate) + 0.1 * rng.normal(size=(3, 3))
      ...     save_file({"body.weight": body.astype("f4")}, name / "model.safetensors")
      ...     rows.append(f"m{number},{rate:.3f},{('low', 'high')[int(rate > 1)]}")
      >>> _ = (folder / "Mini" / "labels.csv").write_text(chr(10).join(rows))
      >>> from probex_jax.sweeps import attribute_views, sweep_attributes
      >>> stores, _ = attribute_views(pack(scan(folder / "Mini"), folder / "store").store)
      >>> found = sweep_attributes(
      ...     stores, folder / "trained", encoder={"name": "dense"}, recipe=ClosedForm()
      ... )
      >>> found.attributes["rate"].value > 0.9, found.expert.part("kind").card.classes
      (True, ('high', 'low'))
    """
    workdir, store = as_path(workdir), joint.joint_store(stores)
    if isinstance(encoder, nn.Module):
        encoder = encoder_settings(encoder)
    names = tuple(layers if layers is not None else default_layers(store, recipe))
    nominal = SeveralClasses()  # each attribute has its own
    check_settings(store, names, committee, 0.0, "none", nominal, None)
    card = card_before_training(store, encoder, "none", normalise, nominal, None)
    n_outputs = sum(len(view.classes) for view in stores.values())
    network = build_network(encoder, "none", n_outputs, normalise=normalise)
    check_closed_form(network, nominal)
    source = Source(store, nominal, None, normalise, network.clone(normalise="none"), devices)
    asked = {
        name: dataclasses.replace(source, store=view, task=told_task(view))
        for name, view in stores.items()
    }
    card = joint.joint_card(card, asked)
    beside = engine.size().beside
    job = Kernels(source, workdir, card, recipe, asked, beside, engine, on_progress)
    config = config_of(card, nominal, recipe, names, committee, None)
    config["attributes"] = {name: task_json(each.task) for name, each in asked.items()}
    return _run(job, workdir, config, names, committee, devices)


def _run(
    job: Kernels | Descent,
    workdir: Path,
    config: Mapping[str, Any],
    names: Sequence[str],
    committee: int | None,
    devices: Devices,
) -> SweepResult:
    """Trains what is missing in a work directory of this config, and chooses."""
    with one_writer(workdir) if devices.writes else nullcontext():
        if devices.writes:
            claim(workdir, config)
        devices.wait("claimed")
        (done,) = devices.agree([(workdir / "metrics.json").exists()])
        if done:
            for name in names:
                job.on_progress(name, job.epochs)
            return result(workdir, job.source.encoders)
        job.train_all(names)
        if devices.writes:
            job.select(names, committee)
        devices.wait("chosen")
        return result(workdir, job.source.encoders)
