"""What an expert is, as JSON on disk and as checked fields here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.experts.tag_cut import TagCut
from probex_jax.fitting import TASKS, SeveralClasses, Task, Texts
from probex_jax.fitting.network import HEADS

# How a member reads its layer's matrices: as they are, or re-read by `reference_matrix`.
LAYOUTS = ("canonical", "reference")
# Of a committee, what stands on its card where all members agree.
_AGREED = ("encoder", "recipe", "normalise")


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


@dataclass(frozen=True, eq=False)
class Card:
    """What an expert is.

    Args:
      tree: name of its tree.
      classes: what its outputs are called, in their order; of `Texts` the classes trained on.
      members: its networks, each on another layer.
      head: one of `HEADS`.
      task: what is asked.
      text: of `Texts`, the text.
      calibration: None until the expert is calibrated.
      store_hash: of the store that it was trained on.
      n_train: number of its training models.
      selected_on: the split whose best parameters these are.
      metrics: figures of its training and test, as JSON.
      versions: of what shaped it.
      more: what else the JSON says; kept as it is.

    Example:
      >>> card = Card.from_json({
      ...     "encoder": {"name": "dense"}, "head": "none", "layer": "fc.weight", "shape": [6, 5],
      ...     "tree": "Mini", "classes": ["one", "two"]})
      >>> card.members[0].shape, card.task
      ((6, 5), SeveralClasses())
    """

    tree: str
    classes: tuple[str, ...]
    members: tuple[MemberCard, ...]
    head: str = "class"
    task: Task = field(default_factory=SeveralClasses)
    text: TextCard | None = None
    calibration: Calibration | None = None
    store_hash: str | None = None
    n_train: int | None = None
    selected_on: str | None = None
    metrics: Mapping[str, Any] | None = None
    versions: Mapping[str, str] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        # The task itself, too: one of a user's own may answer otherwise under the same name.
        if not isinstance(other, Card):
            return False
        return self._text == other._text and self.task == other.task

    def __hash__(self) -> int:
        return hash(self._text)

    @cached_property
    def _text(self) -> str:
        return json.dumps(self.to_json(), sort_keys=True)

    @property
    def figures(self) -> Mapping[str, Any]:
        """`metrics`, empty where there are none."""
        return self.metrics or {}

    @property
    def words(self) -> Mapping[str, str]:
        """Words for classes whose names are none."""
        return self.text.texts if self.text else {}

    @property
    def temperature(self) -> float:
        """What logits are divided by before they become predictions; 1 until calibrated."""
        return self.calibration.temperature if self.calibration else 1.0

    def common(self, name: str) -> Any:
        """What all members have in a field, or None where they differ."""
        values = [getattr(member, name) for member in self.members]
        return values[0] if all(value == values[0] for value in values) else None

    def to_json(self) -> dict[str, Any]:
        """As JSON values; `from_json` of it is the same card."""
        whole: dict[str, Any] = {**self.more, "tree": self.tree, "classes": list(self.classes)}
        whole["head"] = self.head
        if self.task != _implied(self.head, self.text):
            whole["task"] = {"name": self.task.name, **dataclasses.asdict(self.task)}
        for name in ("text", "calibration"):
            if (part := getattr(self, name)) is not None:
                whole[name] = _known(dataclasses.asdict(part))
        if self.text and self.text.tags:
            whole["text"]["tags"] = self.text.tags.as_json()
        whole |= _known(
            {name: getattr(self, name) for name in ("store_hash", "n_train", "selected_on")}
            | {"metrics": self.metrics, "versions": self.versions}
        )
        members = [_known(dataclasses.asdict(member)) for member in self.members]
        for member in members:
            member["shape"] = list(member["shape"])
            if member["layout"] == "canonical":
                del member["layout"]
        if len(members) == 1:
            (member,) = members
            del member["weight"]
            return member | whole
        # Whoever looks for the recipe or the encoder of the whole finds what its members agree on.
        for name in _AGREED:
            if (agreed := self.common(name)) is not None:
                whole[name] = agreed
        return whole | {"members": members}

    @classmethod
    def from_json(cls, value: Any, where: object = "card") -> Card:
        """The card of JSON values, whatever they hold.

        Args:
          value: what was read.
          where: its file, for messages.

        Raises:
          ProbexError: if something is missing or wrong; the message names the field.
        """
        read = _Reader(value, f"{where}: no expert", "")
        head = read.take("head", str)
        if head not in HEADS:
            raise ProbexError(f"{where}: head on the card is {head!r}: not {' or '.join(HEADS)}")
        tree, classes = read.take("tree", str), tuple(read.take("classes", list))
        if not all(isinstance(name, str) for name in classes):
            raise ProbexError(f"{where}: classes on the card are not all names")
        text = read.part("text", TextCard, required=head == "text")
        if text and not abs(text.seen_offset or 0.0) < float("inf"):
            raise ProbexError(f"{where}: text.seen_offset on the card is not finite")
        if text and text.tags:
            text = dataclasses.replace(text, tags=TagCut.from_json(text.tags, where))
        calibration = read.part("calibration", Calibration)
        if calibration and not 0 < calibration.temperature < float("inf"):
            raise ProbexError(f"{where}: calibration.temperature on the card is not > 0")
        if "members" in read.value:
            listed = read.take("members", list)
            if not listed:
                raise ProbexError(f"{where}: no expert: its card has no members (list)")
            members = tuple(
                _member(_Reader(each, f"{where}: no expert", f"members.{number}."), where)
                for number, each in enumerate(listed)
            )
            for name in _AGREED:
                read.take(name, object, None)
        else:
            members = (_member(read, where, alone=True),)
        if len({(member.layer, str(member.encoder.get("name"))) for member in members}) < len(
            members
        ):
            raise ProbexError(f"{where}: no expert: two of its members read the same layer alike")
        task = _task(read.take("task", dict, None), head, text, where)
        return cls(
            tree,
            classes,
            members,
            head,
            task,
            text,
            calibration,
            store_hash=read.take("store_hash", str, None),
            n_train=read.take("n_train", int, None),
            selected_on=read.take("selected_on", str, None),
            metrics=read.take("metrics", dict, None),
            versions=read.take("versions", dict, None),
            more=read.value,
        )


class _Reader:
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
        if not isinstance(found, kinds) or (kind in (int, float) and isinstance(found, bool)):
            field = f"{self.prefix}{name} ({kind.__name__})"
            raise ProbexError(f"{self._where}: its card has no {field}")
        return found

    def part(self, name: str, of: type, *, required: bool = False) -> Any:
        """An object with the fields of a dataclass; None where it is absent and not required."""
        if not required and self.value.get(name) is None:
            self.value.pop(name, None)
            return None
        inner = _Reader(self.value.pop(name, None), self._where, f"{self.prefix}{name}.")
        kinds = {"str": str, "int": int, "float": float}
        found = {}
        for each in dataclasses.fields(of):
            kind = kinds.get(str(each.type).removesuffix(" | None"), dict)
            absent = () if each.default is dataclasses.MISSING else (each.default,)
            if absent and inner.value.get(each.name) is None:
                inner.value.pop(each.name, None)
            found[each.name] = inner.take(each.name, kind, *absent)
        return of(**found)


def _member(read: _Reader, where: object, *, alone: bool = False) -> MemberCard:
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


def _implied(head: str, text: TextCard | None) -> Task:
    """The task of a card that names none."""
    return Texts(logit_scale=text.logit_scale) if head == "text" and text else SeveralClasses()


def _task(value: Mapping[str, Any] | None, head: str, text: TextCard | None, where: object) -> Task:
    if value is None:
        return _implied(head, text)
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
    if name == "log" or (value is None and name == "n_classes"):
        return value is None or type(value) is bool
    return type(value) in (int, float) and abs(value) < float("inf")


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def versions() -> dict[str, str]:
    """Versions of what shaped a result, for cards and metrics.

    Returns:
      Names of packages to versions.
    """
    found = {}
    for package in ("probex_jax", "jax", "flax", "optax", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def named_task(task: Task) -> Task:
    """The task as a card names it; one of a user's own may differ from ours in its loss alone.

    Raises:
      ProbexError: if it is none of `TASKS`, or answers otherwise.
    """
    ours, own = TASKS.get(task.name), vars(type(task))
    defined = {name for name in own if not name.startswith("_")} - {"loss", "name"}
    if ours is None or not (type(task) is ours or (type(task).__base__ is ours and not defined)):
        raise ProbexError(
            f"task: {type(task).__name__} is none of {', '.join(TASKS)}, or answers otherwise; a "
            "card can name these alone, of which a subclass may change the loss"
        )
    return ours(**{field.name: getattr(task, field.name) for field in dataclasses.fields(ours)})
