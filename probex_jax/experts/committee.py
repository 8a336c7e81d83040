"""Committees: experts on several layers of one tree that answer as one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.experts.expert import Expert
from probex_jax.fitting import Task

# What the members of a committee must have in common.
_COMMON = ("tree", "classes", "head", "task", "text", "store_hash")


def committee(experts: Sequence[Expert], weights: Sequence[float] | None = None) -> Expert:
    """One expert of several, its logits the weighted mean of theirs.

    Args:
      experts: of one tree, with the same classes and the same kind of head, each on another layer.
      weights: of their logits, positive; scaled to add up to one. None for equal ones.

    Returns:
      An expert that reads all of their layers, without metrics and calibration of its own; of one
      expert, that expert.

    Raises:
      ProbexError: if there are none, two read the same layer, they differ in tree, classes, head,
        text or store, or a weight is not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from probex_jax.fitting import build_network
      >>> encoder = {"name": "dense"}
      >>> network = build_network(encoder, head="none", n_outputs=2)
      >>> x = {"a": jnp.ones([3, 6, 5]), "b": jnp.ones([3, 4, 4])}
      >>> experts = [
      ...     Expert(network.init(jax.random.key(0), x[layer]), {
      ...         "encoder": encoder, "head": "none", "layer": layer, "tree": "Mini",
      ...         "shape": list(x[layer].shape[1:]), "classes": ["one", "two"]})
      ...     for layer in ("a", "b")]
      >>> both = committee(experts, weights=[3, 1])
      >>> both.layers
      {'a': (6, 5), 'b': (4, 4)}
      >>> logits = [expert.logits(x) for expert in experts]
      >>> bool(jnp.allclose(both.logits(x), 0.75 * logits[0] + 0.25 * logits[1]))
      True
    """
    weights = [1.0] * len(experts) if weights is None else list(weights)
    if len(experts) > 1:
        experts = [_without_offset(expert) for expert in experts]
    _check(experts, weights)
    if len(experts) == 1:
        return experts[0]
    members = [
        replace(
            expert.card.members[0], weight=float(weight / sum(weights)), metrics=expert.card.metrics
        )
        for expert, weight in zip(experts, weights, strict=True)
    ]
    card = replace(experts[0].card, members=tuple(members), metrics=None, calibration=None)
    variables = {str(number): expert.variables for number, expert in enumerate(experts)}
    return replace(experts[0], variables=variables, card=card)


def best_committee(
    logits: Mapping[str, np.ndarray], y: np.ndarray, most: int, task: Task
) -> tuple[str, ...]:
    """The layers whose experts answer best together, with equal weights.

    Layers are ordered by accuracy, of equal accuracies by loss; the committee is the first k of
    them, k being that of the lowest loss, which says more on few models than the accuracy does.
    Losses are those of logits stretched by the best factor: disagreement shrinks the mean logits.

    Args:
      logits: layer to the logits [N, Y] of its expert on validation models.
      y: the targets of these models.
      most: largest k.
      task: what is asked.

    Returns:
      The layers, the best first.

    Example:
      >>> y = np.array([[1.0, 0.0, 0.0]])
      >>> logits = {"a": np.array([[3.0, -2, 1]]), "b": np.array([[1.0, 1, -2]]),
      ...           "c": np.array([[-9.0, 9, 9]])}
      >>> from probex_jax.fitting import SeveralClasses
      >>> best_committee(logits, y, most=3, task=SeveralClasses())
      ('a', 'b')
    """

    def merit(logits_NY: np.ndarray) -> tuple[float, float]:
        # Where all is correct the best factor is large and the loss is nothing: the margin of the
        # logits as they are decides.
        loss = round(task.best_factor(logits_NY, y)[1], 6)
        return loss, task.mean_loss(logits_NY, y)

    def rank(layer: str) -> tuple[float, float, float]:
        # Rounded: equal accuracies are sums in another order.
        accuracy = round(float(np.mean(task.accuracies(logits[layer], y))), 9)
        return -accuracy, *merit(logits[layer])

    order = sorted(logits, key=rank)[:most]
    totals = np.cumsum([logits[layer] for layer in order], axis=0)
    together = [merit(total / (index + 1)) for index, total in enumerate(totals)]
    return tuple(order[: 1 + together.index(min(together))])


def _without_offset(expert: Expert) -> Expert:
    """An expert as others are with it: the offset is that of its own logits."""
    text = expert.card.text
    if text is None or text.seen_offset is None:
        return expert
    return replace(expert, card=replace(expert.card, text=replace(text, seen_offset=None)))


def _check(experts: Sequence[Expert], weights: Sequence[float]) -> None:
    if not experts:
        raise ProbexError("committee: no experts")
    if len(weights) != len(experts) or not all(0 < w < float("inf") for w in weights):
        raise ProbexError(f"committee: {len(experts)} experts need as many weights > 0")
    layers = [layer for expert in experts for layer in expert.layers]
    read = {(member.layer, member.encoder["name"]) for e in experts for member in e.card.members}
    if len(read) < len(experts) or any(len(expert.card.members) > 1 for expert in experts):
        raise ProbexError("committee: each expert must read one layer, otherwise than the others")
    for expert in experts[1:]:
        for key in _COMMON:
            if getattr(expert.card, key) != getattr(experts[0].card, key):
                raise ProbexError(
                    f"committee: the experts of {layers[0]} and {', '.join(expert.layers)} differ "
                    f"in {key}"
                )
