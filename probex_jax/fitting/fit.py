"""Fitting one network to arrays: matrices and targets in; variables, figures, answers out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.errors import FlaxError
from jax.typing import ArrayLike

from probex_jax.encoders import Dense, ProbeX
from probex_jax.errors import ProbexError
from probex_jax.fitting import inference
from probex_jax.fitting.calibration import calibration_error
from probex_jax.fitting.centre import Tree, centre_rank, normalised, tree_of
from probex_jax.fitting.closed_form import ClosedForm, fit_closed_form
from probex_jax.fitting.data import Split, check_finite, check_splits
from probex_jax.fitting.group import Group, select
from probex_jax.fitting.loop import Loss, State
from probex_jax.fitting.moments import moments
from probex_jax.fitting.network import NORMALISATIONS, Network, exact, network_of
from probex_jax.fitting.recipe import Adam, Rates
from probex_jax.fitting.sharding import ONE, Devices
from probex_jax.fitting.task import SeveralClasses, Task
from probex_jax.matrices import LowRank, Matrices

# Without validation models, the share of the training models that Adam sets aside.
_ASIDE = 0.2


@dataclass(frozen=True)
class Fit:
    """A network that was fitted, and how good it is.

    Args:
      network: encoder and head, reading matrices as they are in files.
      variables: its Linen variables.
      task: what it tells.
      recipe: how it was fitted, as JSON values; "own" for a loss or optimiser that was passed in.
      temperature: what makes its logits calibrated predictions.
      shape: (H, W) of the matrices.
      figures: of the models that chose, `accuracy` and its 95 % `interval`, `chance`, `loss`,
        `calibration_error`; `n_models` by split; `penalty` or `best_epoch`.
      texts: [Y, D], of the task `Texts` the embeddings that were the candidates in training.

    Example:
      >>> x = np.random.default_rng(0).normal(size=(40, 3, 2)).astype(np.float32)
      >>> found = fit(Dense(rep_dim=1), x, x[:, :1, 0] > 0)
      >>> sorted(found.figures)
      ['accuracy', 'calibration_error', 'chance', 'interval', 'loss', 'n_models', 'penalty']
      >>> found.predictions(x[:3]).shape
      (3, 1)
    """

    network: Network
    variables: Mapping[str, Any]
    task: Task
    recipe: Mapping[str, Any]
    temperature: float
    shape: tuple[int, int]
    figures: Mapping[str, Any]
    texts: Any = None

    def logits(self, x: Matrices, texts: ArrayLike | None = None) -> jax.Array:
        """Logits [N, Y] of models.

        Args:
          x: [N, H, W] float, or `LowRank` of that shape.
          texts: of the task `Texts`, embeddings [Y, D] of candidates; None for those of training.

        Raises:
          ProbexError: if the matrices are of another shape than in training.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise ProbexError(
                f"x has shape {x.shape}, expected [N, {self.shape[0]}, {self.shape[1]}]"
            )
        texts = self.texts if texts is None else jnp.asarray(texts)
        return inference.logits(self.network, self.variables, x, texts)

    def predictions(self, x: Matrices, texts: ArrayLike | None = None) -> jax.Array:
        """Calibrated answers, as the task has them; arguments and errors as of `logits`."""
        return self.task.predictions(self.logits(x, texts), self.temperature)

    def encode(self, x: Matrices) -> jax.Array:
        """Representations [N, T] of models; x as `logits` takes it."""
        return inference.representations(self.network, self.variables, x)


def fit(
    encoder: nn.Module,
    x: Matrices,
    y: ArrayLike,
    *,
    val: tuple[Matrices, ArrayLike] | Split | None = None,
    task: Task = SeveralClasses(),  # noqa: B008, frozen
    recipe: Adam | ClosedForm | None = None,
    key: jax.Array | None = None,
    normalise: str = "centre",
    texts: ArrayLike | None = None,
    loss: Loss | None = None,
    optimiser: optax.GradientTransformation | None = None,
    devices: Devices = ONE,
    on_evaluation: Callable[[State], None] | None = None,
) -> Fit:
    """Fits an encoder and a head to the matrices of one layer.

    Args:
      encoder: a Linen module with parameters alone, [N, H, W] matrices -> [N, rep_dim]. On `Dense`,
        and on `ProbeX` without ReLU, with one output a logit there is no head.
      x: [N, H, W] float, the layer of the training models; or `LowRank` of that shape.
      y: their targets, as the task takes them.
      val: x and y of the models that settings, the best epoch and calibration are chosen by; a
        `Split` if the candidates of the task `Texts` are others there. None to choose among the
        training models: the closed form by cross-validation, after which it is fitted to all of
        them; Adam by a fifth of them, which it sets aside.
      task: what is to be told; `SeveralClasses`, `OneClass`, `Texts`, `Number`, or your own.
      recipe: `Adam`, or for `Dense` and for `ProbeX` without ReLU, the default there, `ClosedForm`.
        It takes the encoder's probes and projections as the most there may be; matrices of fewer
        entries than responses it reads whole, by `Dense`.
      key: of Adam's initialisation, order and models set aside; None for the recipe's seed.
      normalise: "centre" to subtract the mean of the training matrices and divide by the spread of
        what is left, which the network does itself when it is asked; "scale" to divide alone;
        "none".
      texts: of the task `Texts`, embeddings [Y, D] of the candidates in training.
      loss: of each model [N], of logits [N, Y] and targets; None for the task's.
      optimiser: of Optax, instead of Adam, whose learning rate and L2 term are then not used.
      devices: what it is fitted on.
      on_evaluation: called with the network's state after each of Adam's evaluations, the one
        before training included.

    Returns:
      What was fitted.

    Raises:
      ProbexError: before anything is fitted, if an array does not fit the others, the task or the
        network, matrices are not finite or all the same, or an argument is of a wrong type.

    Example:
      >>> import jax
      >>> from probex_jax import Adam, ProbeX, fit
      >>> x = jax.random.normal(jax.random.key(0), [60, 6, 5])
      >>> y = (x[:, :1, 0] > 0).astype(int)
      >>> found = fit(ProbeX(4, 4, 8), x[:40], y[:40], val=(x[40:], y[40:]),
      ...             recipe=Adam(learning_rate=0.01, epochs=100))
      >>> found.figures["accuracy"] > found.figures["chance"]
      True
      >>> found.predictions(x[:3]).shape
      (3, 1)
    """
    _check_arguments(encoder, task, recipe, key, val)
    solves = task.head != "text" and (
        isinstance(encoder, Dense) or (isinstance(encoder, ProbeX) and not encoder.relu)
    )
    recipe = recipe or (ClosedForm() if solves else Adam())
    if isinstance(recipe, ClosedForm) and not (loss is None and optimiser is None):
        raise ProbexError("loss, optimiser: the closed form has its own; give recipe=Adam()")
    if normalise not in NORMALISATIONS:
        raise ProbexError(f"normalise: {normalise!r} is not one of {', '.join(NORMALISATIONS)}")
    texts = None if texts is None else np.asarray(texts)
    splits = {"train": _on_host("train", Split(x, y, texts))}
    if val is not None:
        given = val if isinstance(val, Split) else Split(val[0], val[1], texts)
        splits["val"] = _on_host("val", given)
    n_outputs = None if task.head == "text" else task.n_outputs(splits["train"].y)
    check_splits(task, n_outputs, splits)
    check_finite(splits)
    if val is None and isinstance(recipe, Adam):
        key_of_order = jax.random.key(recipe.seed) if key is None else key
        splits = _set_aside(splits["train"], jax.random.fold_in(key_of_order, 2))
    train, chosen_by = splits["train"], splits.get("val", splits["train"])
    task = task.fitted(train.y)
    tree = _tree(train.x, normalise)
    is_linear = solves and encoder.rep_dim == n_outputs
    head = "none" if isinstance(recipe, ClosedForm) or is_linear else task.head
    reading = network_of(encoder, head, n_outputs or 0, logit_scale=task.logit_scale)
    # What was trained in other precisions answers in float32, as an expert will.
    answering = reading.clone(encoder=exact(encoder))
    about = dataclasses.asdict(recipe)
    if isinstance(recipe, ClosedForm):
        val = splits.get("val")
        found = fit_closed_form(answering, task, recipe, train, val, tree=tree, devices=devices)
        answering, params, logits_MY = found.network, found.params, found.logits
        chosen_by = chosen_by._replace(y=chosen_by.y[found.models])
        more = {"penalty": found.penalty}
    else:
        splits = {n: split._replace(x=normalised(split.x, tree)) for n, split in splits.items()}
        group = Group(
            reading,
            task,
            (recipe,),
            1,
            {name: split.x.shape[0] for name, split in splits.items()},
            devices,
            keys=None if key is None else [key],
            loss=loss,
            optimiser=optimiser,
        )
        _check_network(group, splits["train"])
        best = _trained(group, splits, on_evaluation)
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), best.params)
        more = {"best_epoch": int(best.epoch)}
        if optimiser is not None:
            about = {n: v for n, v in about.items() if n not in ("learning_rate", "l2")}
            about["optimiser"] = "own"
        if loss is not None:
            about["loss"] = "own"
        asked = splits["val"]
        logits_MY = np.asarray(
            inference.logits(answering, {"params": params}, asked.x, asked.texts)
        )
    network = answering.clone(normalise=normalise, centre_rank=centre_rank(tree))
    variables = {"params": params} | ({"tree": dict(tree)} if tree else {})
    asked_y = chosen_by.y
    temperature = task.best_temperature(logits_MY, asked_y)
    predictions = np.asarray(task.predictions(jnp.asarray(logits_MY), temperature))
    score = task.score(logits_MY, asked_y)
    figures = {
        "accuracy": score.value,
        "interval": (score.low, score.high),
        "chance": _chance(task, train, chosen_by),
        "loss": task.mean_loss(logits_MY, asked_y),
        "calibration_error": calibration_error(*task.promises(predictions, asked_y)),
        "n_models": {name: split.x.shape[0] for name, split in splits.items()},
        **more,
    }
    shape = (x.shape[1], x.shape[2])
    return Fit(network, variables, task, about, temperature, shape, figures, texts)


def _check_arguments(encoder: Any, task: Any, recipe: Any, key: Any, val: Any) -> None:
    for name, value, kind in (
        ("encoder", encoder, nn.Module),
        ("task", task, Task),
        ("recipe", recipe, Adam | ClosedForm | None),
    ):
        if not isinstance(value, kind):
            raise ProbexError(f"{name}: {value!r} is of a wrong type; give an instance")
    if type(getattr(encoder, "rep_dim", None)) is not int:
        raise ProbexError(f"encoder: {type(encoder).__name__} has no rep_dim, a whole number")
    if key is not None and not (
        isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    ):
        raise ProbexError(f"key: {key!r} is not a key; make one by jax.random.key(seed)")
    if not (val is None or isinstance(val, Split) or (isinstance(val, tuple) and len(val) == 2)):
        raise ProbexError("val: expected a pair of x and y, a Split, or None")


def _on_host(name: str, split: Split) -> Split:
    """A split as it is checked and centred, wherever its arrays are."""
    if split.weight is not None:
        raise ProbexError(f"{name}: weight is given, expected None: all models count")
    try:
        y = np.asarray(split.y)
    except ValueError as error:
        raise ProbexError(f"{name}: y is not an array ({error})") from None
    return split._replace(x=jax.device_get(split.x), y=y)


def _check_network(group: Group, train: Split) -> None:
    """Whether encoder and loss give what training needs, without computing anything."""
    x, texts = train.x[:1], train.texts
    try:
        shapes = jax.eval_shape(group.network.init, jax.random.key(0), x, texts)
        logits_1Y = jax.eval_shape(group.network.apply, shapes, x, texts)
        y = jnp.asarray(group.task.encoded(train.y[:1]))
        losses = jax.eval_shape(group.loss or group.task.loss, logits_1Y, y)
        optimiser = group.program.optimiser_at(Rates(0.0, 0.0))
        jax.eval_shape(lambda p: optimiser.update(p, optimiser.init(p), p), shapes["params"])
    except (TypeError, ValueError, FlaxError) as error:
        reason = str(error).splitlines()[0]
        raise ProbexError(f"the encoder, loss or optimiser fails on one model: {reason}") from error
    if set(shapes) != {"params"}:
        more = ", ".join(sorted(set(shapes) - {"params"}))
        raise ProbexError(f"encoder: it has variables {more}; expected parameters alone")
    if losses.shape != (1,):
        raise ProbexError(f"loss: of one model it has shape {losses.shape}, expected [N]")


def _set_aside(train: Split, key: jax.Array) -> dict[str, Split]:
    """The training models without some, and these as "val"."""
    n_models = len(train.y)
    order = np.asarray(jax.random.permutation(key, n_models))
    aside, rest = np.split(order, [max(1, round(_ASIDE * n_models))])
    if not len(rest):
        raise ProbexError("train: y of one model: none to set aside; give val")
    parts = {"train": rest, "val": aside}
    return {n: train._replace(x=train.x[part], y=train.y[part]) for n, part in parts.items()}


def _chance(task: Task, train: Split, asked: Split) -> float:
    """The chance of the models that choose; other texts are as likely as each other."""
    if train.texts is None or np.array_equal(train.texts, asked.texts):
        return task.chance(train.y, asked.y)
    return 1 / len(asked.texts)


def _tree(x: Any, normalise: str) -> Tree:
    if normalise == "none":
        return {}
    return tree_of(moments([jax.device_get(x)]), normalise, factors=isinstance(x, LowRank))


def _trained(
    group: Group, splits: Mapping[str, Split], on_evaluation: Callable[[State], None] | None
) -> Any:
    """The best on "val" of one network."""
    stacked = {}
    for name, split in splits.items():
        x = jax.tree.map(lambda leaf: leaf[None], split.x)
        if group.recipe.storage == "bfloat16":
            x = inference.as_read(x, "bfloat16")
        split = split._replace(x=x, y=group.task.encoded(split.y))
        stacked[name] = group.devices.put_all(split)
    stacked["train"] = group.prepared(stacked["train"])

    def evaluated(state: State) -> None:
        if on_evaluation is not None:
            on_evaluation(select(state, 0, 0))

    state = group.train(group.initial(stacked["train"]), stacked, on_evaluation=evaluated)
    return jax.device_get(select(state, 0, 0).best["val"])
