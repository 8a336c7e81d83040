"""Work on models of which some cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from probex_jax.errors import ProbexError


def or_error(function: Callable[[Any], Any], argument: Any) -> Any:
    """What a function returns, or the ProbexError that it raises: a worker goes on after it."""
    try:
        return function(argument)
    except ProbexError as error:
        return error
