"""Lineages in files: `lineage.json`, sealed, and read strictly."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from probex_jax.bucket_paths import as_path
from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors, read_json, write_json
from probex_jax.integrity import noted, sealed, unsealed
from probex_jax.lineage.family_trees import family_trees
from probex_jax.lineage.lineage import KINDS, Copies, Edge, Lineage, Node
from probex_jax.model_files.untrusted_text import is_text

FILE = "lineage.json"
_ORIGINS = ("derived", "root", "unknown parent", "alone", "copy")


def save_lineage(lineage: Lineage, folder: str | Path) -> None:
    """Writes `lineage.json`.

    Args:
      lineage: what was found.
      folder: that exists.

    Raises:
      ProbexError: if the file cannot be written.
    """
    write_json(as_path(folder) / FILE, sealed(lineage.as_json()))


def load_lineage(path: str | Path) -> Lineage:
    """Reads a lineage.

    Args:
      path: a folder that the command `lineage` made, or its `lineage.json`.

    Returns:
      What was found.

    Raises:
      ProbexError: if there is none, or it is damaged; the message names the file and the field.

    Example:
      >>> import tempfile
      >>> folder = tempfile.mkdtemp()
      >>> save_lineage(Lineage((Node("a", "a.safetensors", "f0", "alone"),)), folder)
      >>> load_lineage(folder).nodes[0].id
      'a'
    """
    path = as_path(path)
    file = path if path.suffix == ".json" else path / FILE
    try:
        value = read_json(file)
    except (FileNotFoundError, NotADirectoryError):
        raise ProbexError(f"{file}: no lineage here; make one with probex lineage") from None
    return lineage_of(unsealed(value, file), str(file))


def verify_lineage(
    path: str | Path,
    *,
    on_total: Callable[[int], None] = lambda n: None,
    on_bytes: Callable[[int], None] = lambda n: None,
) -> Iterator[str]:
    """Checks the `lineage.json` of a folder; what else is there is made from it.

    Args:
      path: the folder.
      on_total: called with the number of bytes that will be read.
      on_bytes: called with the number of bytes that were read since the last call.

    Yields:
      A line for each damage, which begins with the path of the file.

    Raises:
      ProbexError: if there is no lineage.
    """
    file = as_path(path) / FILE
    with disk_errors(file):
        size = file.stat().st_size
    on_total(size)
    damages: list[str] = []
    with noted(damages):
        load_lineage(path)
    on_bytes(size)
    yield from damages


def lineage_of(value: Any, where: str) -> Lineage:
    """A lineage from its JSON values.

    Args:
      value: of `Lineage.as_json`.
      where: what errors name.

    Returns:
      The lineage.

    Raises:
      ProbexError: if a field is missing, unknown, or not what it should be; if ids are given twice
        or edges lead to no model; if a model descends from itself.

    Example:
      >>> lineage_of(Lineage(()).as_json(), "here")
      Lineage(nodes=(), edges=(), copies=(), failed={})
    """
    expected = Lineage(()).as_json()
    _check_fields(value, set(expected), where)
    if value["format"] != expected["format"]:
        raise ProbexError(f"{where}: format: expected {expected['format']!r}")
    failed = value["failed"]
    if not isinstance(failed, dict) or not all(map(is_text, failed)):
        raise ProbexError(f"{where}: failed: expected ids and reasons")
    if not all(isinstance(reason, str) for reason in failed.values()):
        raise ProbexError(f"{where}: failed: a reason is not a string")
    found = Lineage(
        tuple(_each(value["nodes"], Node, f"{where}: nodes")),
        tuple(_each(value["edges"], Edge, f"{where}: edges")),
        tuple(_each(value["copies"], Copies, f"{where}: copies")),
        failed,
    )
    _check(found, where)
    return found


def _check(found: Lineage, where: str) -> None:
    ids = {node.id for node in found.nodes}
    if len(ids) < len(found.nodes):
        raise ProbexError(f"{where}: nodes: two have the same id")
    for node in found.nodes:
        if node.origin not in _ORIGINS:
            raise ProbexError(f"{where}: nodes: origin {node.origin!r} is not one of {_ORIGINS}")
        if (node.origin == "copy") != bool(node.copy_of) or not {node.copy_of or node.id} <= ids:
            raise ProbexError(f"{where}: nodes: copy_of of {node.id!r} is not a model")
    pairs = set()
    for edge in found.edges:
        if edge.kind not in KINDS:
            raise ProbexError(f"{where}: edges: kind {edge.kind!r} is not one of {KINDS}")
        if not {edge.parent, edge.child} <= ids:
            raise ProbexError(f"{where}: edges: {edge.parent!r} to {edge.child!r}: no such model")
        pairs.add((edge.parent, edge.child))
    if len(pairs) < len(found.edges):
        raise ProbexError(f"{where}: edges: two join the same models")
    for group in found.copies:
        if len(group.models) < 2 or not set(group.models) <= ids:
            raise ProbexError(f"{where}: copies: expected two or more models")
    try:
        family_trees(found)
    except ProbexError as error:
        raise ProbexError(f"{where}: edges: {error}") from None


def _each(values: Any, kind: Callable[..., Any], where: str) -> list[Any]:
    if not isinstance(values, list | tuple):
        raise ProbexError(f"{where}: expected a list")
    types_of = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(typing.cast(Any, kind))]
    made = []
    for value in values:
        _check_fields(value, set(names), where)
        for name in names:
            if not _fits(value[name], types_of[name]):
                raise ProbexError(f"{where}: {name}: {str(value[name])[:60]!r} is not valid")
        made.append(kind(**{n: _frozen(value[n]) for n in names}))
    return made


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a field's type."""
    if isinstance(kind, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(kind))
    if kind is types.NoneType:
        return value is None
    if kind is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and math.isfinite(value)
    if kind is str:
        return value == "" or is_text(value)
    return isinstance(value, list | tuple) and all(map(is_text, value))  # tuple[str, ...]


def _check_fields(value: Any, names: set[str], where: str) -> None:
    if not isinstance(value, dict):
        raise ProbexError(f"{where}: expected an object")
    for name in sorted(names - value.keys()):
        raise ProbexError(f"{where}: {name} is missing")
    for name in sorted(value.keys() - names):
        raise ProbexError(f"{where}: unknown field {name[:60]!r}")
