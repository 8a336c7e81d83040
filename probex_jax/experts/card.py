"""What an expert is, as JSON on disk and as checked fields here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.experts.card_parts import (
    Attribute,
    Calibration,
    MemberCard,
    Reader,
    TextCard,
    implied_task,
    known,
    read_calibration,
    read_conformal,
    read_member,
    read_names,
    read_task,
    task_json,
)
from probex_jax.experts.tag_cut import TagCut
from probex_jax.fitting import TASKS, SeveralClasses, Task
from probex_jax.fitting.conformal import Conformal
from probex_jax.fitting.network import HEADS

# Of a committee, what stands on its card where all members agree.
_AGREED = ("encoder", "recipe", "normalise")


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
      conformal: what its intervals or sets are made by; None where too few models were left out.
      told: whether the weights tell what is asked: whether answers were better than its prior.
      attributes: of a joint expert what it was asked at once, in the order of its outputs; then
        `task`, `calibration`, `conformal` and `told` are those of each, and none here.
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
    conformal: Conformal | None = None
    told: bool = True
    attributes: tuple[Attribute, ...] = ()
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

    def outputs(self, name: str) -> slice:
        """The columns of an attribute in the logits; errors as of `Expert.part`."""
        start = 0
        for each in self.attributes:
            if each.name == name:
                return slice(start, start + len(each.classes))
            start += len(each.classes)
        known_names = ", ".join(each.name for each in self.attributes) or "none"
        raise ProbexError(f"no attribute {name!r} of tree {self.tree}; there are {known_names}")

    def part(self, name: str) -> Card:
        """The card of one attribute of a joint expert."""
        (found,) = (each for each in self.attributes if each.name == name)
        own = {
            field.name: getattr(found, field.name)
            for field in dataclasses.fields(found)
            if field.name != "name"
        }
        return replace(self, attributes=(), more={**self.more, "label_set": name}, **own)

    def to_json(self) -> dict[str, Any]:
        """As JSON values; `from_json` of it is the same card."""
        whole: dict[str, Any] = {**self.more, "tree": self.tree, "classes": list(self.classes)}
        whole["head"] = self.head
        if self.task != implied_task(self.head, self.text):
            whole["task"] = task_json(self.task)
        if not self.told:
            whole["told"] = False
        if self.attributes:
            whole["attributes"] = [each.to_json() for each in self.attributes]
        for name in ("text", "calibration", "conformal"):
            if (part := getattr(self, name)) is not None:
                whole[name] = known(dataclasses.asdict(part))
        if self.text and self.text.tags:
            whole["text"]["tags"] = self.text.tags.as_json()
        whole |= known(
            {name: getattr(self, name) for name in ("store_hash", "n_train", "selected_on")}
            | {"metrics": self.metrics, "versions": self.versions}
        )
        members = [known(dataclasses.asdict(member)) for member in self.members]
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
        read = Reader(value, f"{where}: no expert", "")
        head = read.take("head", str)
        if head not in HEADS:
            raise ProbexError(f"{where}: head on the card is {head!r}: not {' or '.join(HEADS)}")
        tree, classes = read.take("tree", str), read_names(read, where)
        text = read.part("text", TextCard, required=head == "text")
        if text and not abs(text.seen_offset or 0.0) < float("inf"):
            raise ProbexError(f"{where}: text.seen_offset on the card is not finite")
        if text and text.tags:
            text = replace(text, tags=TagCut.from_json(text.tags, where))
        calibration, conformal = read_calibration(read, where), read_conformal(read, where)
        attributes = tuple(
            Attribute.from_json(Reader(each, f"{where}: no expert", f"attributes.{n}."), where)
            for n, each in enumerate(read.take("attributes", list, []))
        )
        outputs = [name for each in attributes for name in each.classes]
        if attributes and len(outputs) != len(classes):
            raise ProbexError(
                f"{where}: the attributes on the card do not have its {len(classes)} outputs"
            )
        if "members" in read.value:
            listed = read.take("members", list)
            if not listed:
                raise ProbexError(f"{where}: no expert: its card has no members (list)")
            members = tuple(
                read_member(Reader(each, f"{where}: no expert", f"members.{number}."), where)
                for number, each in enumerate(listed)
            )
            for name in _AGREED:
                read.take(name, object, None)
        else:
            members = (read_member(read, where, alone=True),)
        if len({(member.layer, str(member.encoder.get("name"))) for member in members}) < len(
            members
        ):
            raise ProbexError(f"{where}: no expert: two of its members read the same layer alike")
        task = read_task(read.take("task", dict, None), head, text, where)
        return cls(
            tree,
            classes,
            members,
            head,
            task,
            text,
            calibration,
            conformal,
            read.take("told", bool, True),
            attributes,
            store_hash=read.take("store_hash", str, None),
            n_train=read.take("n_train", int, None),
            selected_on=read.take("selected_on", str, None),
            metrics=read.take("metrics", dict, None),
            versions=read.take("versions", dict, None),
            more=read.value,
        )


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
