"""The settings of a sweep: checked, and as its config and the cards of its experts have them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.experts.alignment import Alignment
from probex_jax.experts.card import Card, MemberCard, named_task, versions
from probex_jax.fitting import TASKS, Adam, ClosedForm, Number, OneClass, SeveralClasses, Task
from probex_jax.fitting.number import is_wide
from probex_jax.layer_store import LayerStore


def default_layers(store: LayerStore, recipe: Adam | ClosedForm) -> tuple[str, ...]:
    """The layers of a store that a sweep trains on unless it is told which.

    Args:
      store: the layers.
      recipe: how each is trained.

    Returns:
      In closed form all. By gradient descent, of encoders that probe rows and columns, the
      matrices; of a store without matrices, all as well.
    """
    matrices = tuple(name for name in store.layers if name not in store.vectors)
    return matrices if isinstance(recipe, Adam) and matrices else tuple(store.layers)


def check_settings(
    store: LayerStore,
    names: Sequence[str],
    committee: Any,
    save_every_s: Any,
    head: str,
    task: Task,
    alignment: Alignment | None,
) -> None:
    """Raises a ProbexError that names the setting unless all are usable; arguments of `sweep`."""
    if committee is not None and (type(committee) is not int or committee < 1):
        raise ProbexError(f"committee: {committee!r} is not a whole number >= 1, or None for all")
    if not names:
        raise ProbexError("layers: none given; expected one or more")
    for name in set(names) - set(store.layers):
        raise ProbexError(f"{store.path}: no layer {name!r}")
    if type(save_every_s) not in (int, float) or not save_every_s >= 0:
        raise ProbexError(f"save_every_s: {save_every_s!r} is not a number of seconds >= 0")
    if not isinstance(task, SeveralClasses | OneClass | Number) or task.name not in TASKS:
        raise ProbexError(f"task: {task.name!r} stores have no targets for it")
    if isinstance(task, Number) != store.is_number:
        what = "numbers" if store.is_number else "classes"
        raise ProbexError(f"task: {task.name!r}, but column {store.label_set!r} holds {what}")
    if len({head == "text", task.head == "text", alignment is not None}) > 1:
        raise ProbexError('head: "text" and settings of the text belong together')


def told_task(store: LayerStore) -> Task:
    """What the labels of a store ask: a number, or which one class if every model has exactly one.

    Numbers that are positive and wide are told on a logarithmic scale.

    Raises:
      ProbexError: if all training models are of one class, or some have none where others have one.
    """
    if store.is_number:
        y = store.values("train")
        return Number(log=is_wide(y)).fitted(y)
    if not store.exclusive:
        return SeveralClasses()
    if len(store.seen_classes) == 1:
        (name,) = store.seen_classes
        raise ProbexError(f"{store.path}: all training models are of one class, {name!r}")
    return OneClass()


def card_before_training(
    store: LayerStore,
    encoder: Mapping[str, Any],
    head: str,
    normalise: str,
    task: Task,
    alignment: Alignment | None,
) -> Card:
    """The card of an expert before it is trained; layer, shape and recipe are not those of one."""
    classes = store.classes if alignment is None else store.seen_classes
    return Card(
        store.tree,
        tuple(classes),
        (MemberCard(dict(encoder), "", (1, 1), normalise=normalise),),
        head,
        named_task(task),
        None if alignment is None else alignment.card_for(store),
        store_hash=store.hash,
        more={"label_set": store.label_set} if store.label_set else {},
        n_train=len(store.split("train")),
        versions=versions(),
    )


def config_of(
    card: Card,
    task: Task,
    recipe: Adam | ClosedForm,
    names: Sequence[str],
    committee: int | None,
    grid: Mapping[str, Sequence[Any]] | None,
) -> dict[str, Any]:
    """All that the experts of a sweep depend on."""
    said = card.to_json()
    of_card = ("encoder", "head", "normalise", "tree", "store_hash", "text", "task")
    return {
        **{name: said[name] for name in of_card if name in said},
        "recipe": asdict(recipe),
        "layers": list(names),
        "committee": committee,
        **({} if type(task) is type(card.task) else {"loss": f"of {type(task).__name__}"}),
        **({"grid": {name: list(values) for name, values in grid.items()}} if grid else {}),
    }
