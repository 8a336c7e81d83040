"""Conditions on predicted attributes as strangers may write them: no SQL, but NAME > NUMBER."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.search.attributes import Attribute, known

_MOST = 20
_ORDERS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "!=": operator.ne,
}
_CONDITION = re.compile(
    r"""\s*(?:"(?P<named>[^"]+)"|(?P<name>[^\W\d][\w.-]*))
    \s*(?P<order><=|>=|!=|<|>|=)
    \s*(?:"(?P<text>[^"]*)"|'(?P<quoted>[^']*)'|(?P<bare>[^\s,"']+))\s*""",
    re.VERBOSE,
)
_AND = re.compile(r",|and\b", re.IGNORECASE)


@dataclass(frozen=True)
class Condition:
    """A condition on one attribute.

    Args:
      name: of the attribute.
      order: "<", "<=", ">", ">=", "=" or "!=".
      value: a number or a class, as text.
    """

    name: str
    order: str
    value: str

    def check(self, values: Mapping[str, Attribute]) -> None:
        """Raises a ProbexError unless the condition fits the attributes.

        Args:
          values: an example of each attribute that there is.
        """
        if self.name not in values:
            raise ProbexError(f"filter: no attribute {self.name!r}; there are {known(values)}")
        if isinstance(values[self.name], float):
            try:
                float(self.value)
            except ValueError:
                raise ProbexError(
                    f"filter: {self.name!r} is a number, found {self.value!r}"
                ) from None
        elif self.order not in ("=", "!="):
            raise ProbexError(f"filter: {self.name!r} holds classes, which = and != compare")

    def holds(self, attributes: Mapping[str, Attribute]) -> bool:
        """Whether a model of these attributes meets it; one without the attribute does not.

        Example:
          >>> Condition("accuracy", ">", ".9").holds({"accuracy": 0.95})
          True
        """
        found = attributes.get(self.name)
        if found is None:
            return False
        if isinstance(found, tuple):
            return (self.value in found) == (self.order == "=")
        return _ORDERS[self.order](found, type(found)(self.value))

    def sql(self, value: Attribute) -> str:
        """The condition for `Index.search`.

        Args:
          value: an example of the attribute.
        """
        name = '"' + self.name.replace('"', '""') + '"'
        if isinstance(value, float):
            return f"{name} {self.order} {float(self.value)!r}"
        quoted = "'" + self.value.replace("'", "''") + "'"
        if not isinstance(value, tuple):
            return f"{name} {self.order} {quoted}"
        return f"{'' if self.order == '=' else 'NOT '}array_has({name}, {quoted})"


def conditions(text: str) -> tuple[Condition, ...]:
    """The conditions of a text, all of which are to hold.

    Args:
      text: such as `accuracy > .9 and optimiser = adamw`; names and classes that are no words
        stand in quotes.

    Raises:
      ProbexError: if it is none.

    Example:
      >>> conditions('accuracy>.9, "seed group" != "a b"')[1]
      Condition(name='seed group', order='!=', value='a b')
    """
    found: list[Condition] = []
    place, text = 0, text.strip()
    while place < len(text):
        one = _CONDITION.match(text, place)
        if one is None or len(found) == _MOST:
            what = "NAME > NUMBER or NAME = CLASS" if one is None else f"at most {_MOST} conditions"
            raise ProbexError(f"filter {text[place : place + 40]!r}: expected {what}")
        value = next(one[key] for key in ("text", "quoted", "bare") if one[key] is not None)
        found.append(Condition(one["named"] or one["name"], one["order"], value))
        place = one.end()
        between = _AND.match(text, place)
        if place < len(text) and between is None:
            raise ProbexError(f"filter {text[place : place + 40]!r}: expected 'and' before it")
        if between is not None:
            place = between.end()
            if not text[place:].strip():
                raise ProbexError(f"filter {text[-40:]!r}: expected a condition at its end")
    return tuple(found)
