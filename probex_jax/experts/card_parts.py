"""What stands on an expert's card beside what it is itself, and how fields are read from JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.experts.tag_cut import TagCut
from probex_jax.fitting import TASKS, SeveralClasses, Task, Texts
from probex_jax.fitting.conformal import Conformal
from probex_jax.model_files.untrusted_text import is_unicode

# How a member reads its layer's matrices: as they are, or re-read by `reference_matrix`.
LAYOUTS = ("canonical", "reference")


@dataclass(frozen=True)
class TextCard:
    """The text that an expert was aligned with.

    Args:
      encoder: how `text_encoder` finds the text encoder again; "" if it cannot.
      name, dim: of the text encoder.
      template: the sentence of a class, with `{class}` where its words stand.
      logit_scale: scale of the cosines.
      texts: the words for classes whose names are none.
      seen_offset: what is taken off the logits of the classes trained on where others are
        candidates, too (`fitting.calibration.seen_offset`); None for nothing.
      tags: which tags it shows; None for none.

    Example:
      >>> TextCard("hashing", "hashing-512", 512, "a {class}", 20.0, {"n02": "big dog"}).dim
      512
    """

    encoder: str
    name: str
    dim: int
    template: str
    logit_scale: float
    texts: Mapping[str, str]
    seen_offset: float | None = None
    tags: TagCut | None = None


@dataclass(frozen=True)
class Calibration:
    """What makes logits calibrated.

    Args:
      temperature: what they are divided by.
      split: the models that chose it.
      before, after: expected calibration errors by split, at temperature 1 and at this one.
    """

    temperature: float
    split: str | None = None
    before: Mapping[str, float] | None = None
    after: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Attribute:
    """One of several things that an expert was asked at once.

    Args:
      name: the attribute's.
      classes: what its outputs are called; of a number the name alone.
      task: what is asked.
      calibration, conformal: as of a `Card`.
      told: whether the weights tell it: whether answers were better than its prior.
      n_train: number of its training models.
      metrics: figures of its training and test, as JSON.
    """

    name: str
    classes: tuple[str, ...]
    task: Task
    calibration: Calibration | None = None
    conformal: Conformal | None = None
    told: bool = True
    n_train: int | None = None
    metrics: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, name: str, card: Any) -> Attribute:
        """What stands on the `Card` of a part."""
        fields = (field.name for field in dataclasses.fields(cls) if field.name != "name")
        return cls(name, **{field: getattr(card, field) for field in fields})

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **known(dataclasses.asdict(self)),
            "classes": list(self.classes),
            "task": task_json(self.task),
        }

    @classmethod
    def from_json(cls, read: Reader, where: object) -> Attribute:
        """What `to_json` made; errors as of `Card.from_json`."""
        name, classes = read.take("name", str), read_names(read, where)
        return cls(
            name,
            classes,
            read_task(read.take("task", dict), "none", None, where),
            read_calibration(read, where),
            read_conformal(read, where),
            read.take("told", bool),
            read.take("n_train", int, None),
            read.take("metrics", dict, None),
        )


@dataclass(frozen=True)
class MemberCard:
    """One network of an expert.

    Args:
      encoder: name and settings, as `build_network` takes them.
      layer: name of the layer that it reads.
      shape: (H, W) of that layer's matrices.
      weight: of its logits among those of the other members; all add up to one.
      normalise, centre_rank: as `Network` has them; None, as on some JSON, for its defaults.
      layout: one of `LAYOUTS`.
      recipe: how it was fitted.
      metrics: figures of its fitting.
    """

    encoder: Mapping[str, Any]
    layer: str
    shape: tuple[int, int]
    weight: float = 1.0
    normalise: str | None = None
    centre_rank: int | None = None
    layout: str = "canonical"
    recipe: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] | None = None


class Reader:
    """Takes fields of a JSON object, each once; the rest stays in `value`."""

    def __init__(self, value: Any, where: str, prefix: str):
        if not isinstance(value, Mapping):
            raise ProbexError(f"{where}: its card has no {prefix.rstrip('.') or 'fields'} (dict)")
        self.value, self.prefix, self._where = dict(value), prefix, where

    def take(self, name: str, kind: type, *default: Any) -> Any:
        """A field of a type; the default where it is absent and there is one."""
        if name not in self.value and default:
            return default[0]
        found = self.value.pop(name, None)
        kinds = (int, float) if kind is float else kind
        odd = (
            isinstance(found, bool) if kind in (int, float) else kind is str and not _is_text(found)
        )
        if odd or not isinstance(found, kinds):
            field = f"{self.prefix}{name} ({kind.__name__})"
            raise ProbexError(f"{self._where}: its card has no {field}")
        return found

    def part(self, name: str, of: type, *, required: bool = False) -> Any:
        """An object with the fields of a dataclass; None where it is absent and not required."""
        if not required and self.value.get(name) is None:
            self.value.pop(name, None)
            return None
        inner = Reader(self.value.pop(name, None), self._where, f"{self.prefix}{name}.")
        kinds = {"str": str, "int": int, "float": float}
        found = {}
        for each in dataclasses.fields(of):
            kind = kinds.get(str(each.type).removesuffix(" | None"), dict)
            absent = () if each.default is dataclasses.MISSING else (each.default,)
            if absent and inner.value.get(each.name) is None:
                inner.value.pop(each.name, None)
            found[each.name] = inner.take(each.name, kind, *absent)
        return of(**found)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and is_unicode(value)


def read_names(read: Reader, where: object) -> tuple[str, ...]:
    """The classes of a card, or of an attribute."""
    names = tuple(read.take("classes", list))
    if not all(map(_is_text, names)):
        raise ProbexError(f"{where}: classes on the card are not all names")
    return names


def read_calibration(read: Reader, where: object) -> Calibration | None:
    """The calibration of a card, or of an attribute; None where there is none."""
    found = read.part("calibration", Calibration)
    if found and not 0 < found.temperature < float("inf"):
        raise ProbexError(f"{where}: calibration.temperature on the card is not > 0")
    return found


def read_conformal(read: Reader, where: object) -> Conformal | None:
    """What intervals or sets are made by; None where there is nothing."""
    found = read.part("conformal", Conformal)
    if found and not (
        0 < found.coverage < 1 and all(map(_is_finite, [found.score, *found.by_class.values()]))
    ):
        raise ProbexError(f"{where}: conformal on the card is not of finite numbers")
    return found


def read_member(read: Reader, where: object, *, alone: bool = False) -> MemberCard:
    """A member; that of an expert on one layer has all of the card but the metrics of its own."""
    encoder, layer = read.take("encoder", dict), read.take("layer", str)
    shape = read.take("shape", list)
    if len(shape) != 2 or not all(type(n) is int and n > 0 for n in shape):
        raise ProbexError(f"{where}: shape on the card is {shape}, expected rows, columns")
    if (layout := read.take("layout", str, "canonical")) not in LAYOUTS:
        raise ProbexError(f"{where}: layout on the card is {layout!r}: not {' or '.join(LAYOUTS)}")
    weight = 1.0 if alone else read.take("weight", float)
    if not 0 < weight < float("inf"):
        raise ProbexError(f"{where}: {read.prefix}weight on the card is {weight}, expected > 0")
    return MemberCard(
        encoder,
        layer,
        (shape[0], shape[1]),
        weight,
        read.take("normalise", str, None),
        read.take("centre_rank", int, None),
        layout,
        read.take("recipe", dict, None),
        None if alone else read.take("metrics", dict, None),
    )


def implied_task(head: str, text: TextCard | None) -> Task:
    """The task of a card that names none."""
    return Texts(logit_scale=text.logit_scale) if head == "text" and text else SeveralClasses()


def read_task(
    value: Mapping[str, Any] | None, head: str, text: TextCard | None, where: object
) -> Task:
    """The task of a card; of one that names none, what its head implies."""
    if value is None:
        return implied_task(head, text)
    fields = dict(value)
    try:
        task = TASKS[fields.pop("name")](**fields)
        if task.head == ("class" if head == "none" else head) and all(
            _is_setting(n, v) for n, v in fields.items()
        ):
            return task
    except (KeyError, TypeError):
        pass
    raise ProbexError(f"{where}: task on the card is {dict(value)!r}: none of a {head} head")


def _is_setting(name: str, value: Any) -> bool:
    """Whether it is a value of a field of a task."""
    if value is None:
        return name in ("n_classes", "least", "most")
    return type(value) is bool if name == "log" else _is_finite(value)


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < float("inf")


def task_json(task: Task) -> dict[str, Any]:
    """A task as `read_task` reads it."""
    return {"name": task.name, **dataclasses.asdict(task)}


def known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without the fields that are None."""
    return {name: value for name, value in values.items() if value is not None}
