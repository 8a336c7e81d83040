"""Checks text from strangers: JSON, names, lists of class names; nothing is executed."""

import ast
import json
import re
import reprlib
import threading
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError

MAX_LITERAL_CHARACTERS = 64 * 1024
MAX_DEPTH = 64
# Python 3.11 counts the depth of what several threads parse together (CPython issue 106905).
_PARSING = threading.Lock()
# In Python, an empty object takes 64 bytes and one with a single field 200.
MAX_VALUES = 2_000_000

# Exactly what Python's repr writes for a list of strings: no nesting, prefixes or other escapes.
# literal_eval never sees anything deep or odd.
_ESCAPE = r"\\(?:[\\'\"nrt]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})"
_STRING = rf"(?:'(?:[^'\\\n\r\0]|{_ESCAPE})*'|\"(?:[^\"\\\n\r\0]|{_ESCAPE})*\")"
# Linear in time without possessive groups, of which Python 3.11.2 gives back too little.
_LIST_OF_STRINGS = re.compile(rf"\[\s*(?:{_STRING}\s*,\s*)*(?:{_STRING}\s*)?\]")

# One path component: no separator, no leading dot (so no `..`), no colon, no control character.
_PLAIN_NAME = re.compile(r"\w[\w.+ -]{0,199}")

# A name that leads out as a path: `..` between separators, a separator at the beginning, or NUL.
_LEADS_OUT = re.compile(r"\0|\A[/\\]|(?:\A|[/\\])\.\.(?:[/\\]|\Z)")


# Control characters, which terminals obey, except tabs and ends of lines.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

# Of a long list, only the beginning is written out.
_BRIEFLY = reprlib.Repr()
_BRIEFLY.maxlevel = 4
_BRIEFLY.maxlist = _BRIEFLY.maxtuple = _BRIEFLY.maxdict = 40
_BRIEFLY.maxstring = _BRIEFLY.maxlong = _BRIEFLY.maxother = 200


class _DuplicateKeyError(ValueError):
    pass


def quoted(text: object, limit: int = 100) -> str:
    """The text as a one-line message may hold it: escaped, and cut if long."""
    if isinstance(text, str):
        return repr(text) if len(text) <= limit else repr(text[:limit]) + "…"
    shown = _BRIEFLY.repr(text)
    return shown if len(shown) <= limit else shown[:limit] + "…"


def is_unicode(text: str) -> bool:
    """False for lone surrogates, which JSON can spell but no file or terminal can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_text(value: object) -> bool:
    r"""Whether a value is a text that files, terminals and tables can hold as a name.

    Example:
      >>> [is_text(value) for value in ("Größe 模", "", "\ud800", "a\0", "a\nb", "\x1b[2J", 7)]
      [True, True, False, False, True, False, False]
    """
    return isinstance(value, str) and is_unicode(value) and not _CONTROL.search(value)


def json_object(
    data: bytes, where: str, *, depth: int = MAX_DEPTH, values: int = MAX_VALUES
) -> dict[str, Any]:
    """Parses one JSON object; anything else, or a duplicate key, is a ProbexError.

    Text that is nested too deeply or would take too much memory is refused before it is parsed.

    Args:
      data: UTF-8 text.
      where: what the error calls it, for example `"model.safetensors: header"`.
      depth: greatest nesting of objects and lists.
      values: greatest number of objects, lists and their elements.
    """
    return _parsed(data, where, dict, "an object", depth, values)


def json_list(data: bytes, where: str) -> list[Any]:
    """Parses one JSON list, as `json_object` does an object."""
    return _parsed(data, where, list, "a list", MAX_DEPTH, MAX_VALUES)


def _parsed(data: bytes, where: str, kind: type, expected: str, depth: int, values: int) -> Any:
    _check_structure(data, where, depth, values)

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise _DuplicateKeyError(twice)
        return result

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=without_duplicates)
    except UnicodeDecodeError as error:
        raise ProbexError(f"{where} is not UTF-8 text (byte {error.start})") from error
    except _DuplicateKeyError as error:
        raise ProbexError(f"{where} has the key {quoted(error.args[0])} twice") from error
    except RecursionError as error:
        raise ProbexError(f"{where} is nested too deeply") from error
    except ValueError as error:
        # Or a number of thousands of digits, which int refuses.
        raise ProbexError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(value, kind):
        raise ProbexError(f"{where} is a JSON {type(value).__name__}, expected {expected}")
    return value


def _check_structure(data: bytes, where: str, depth: int, values: int) -> None:
    """Counts brackets and commas outside of strings, without parsing."""
    if len(data) <= values and data.count(b"[") + data.count(b"{") <= depth:
        return  # too short to exceed either limit
    unescaped = data.replace(rb"\\", b"").replace(rb"\"", b"")
    byte = np.frombuffer(unescaped, np.uint8)
    byte = byte[~np.logical_xor.accumulate(byte == ord('"'))]
    opens = (byte == ord("[")) | (byte == ord("{"))
    count = np.count_nonzero(opens) + np.count_nonzero(byte == ord(","))
    if count > values:
        raise ProbexError(f"{where} holds {count} values, the limit is {values}")
    closes = (byte == ord("]")) | (byte == ord("}"))
    steps = (opens.astype(np.int8) - closes)[opens | closes]
    if steps.size and np.cumsum(steps, dtype=np.int32).max() > depth:
        raise ProbexError(f"{where} is nested too deeply, the limit is {depth}")


def is_plain_path(text: str) -> bool:
    """Whether a text is one or more plain path components separated by slashes.

    Example:
      >>> is_plain_path("unet/model.safetensors"), is_plain_path("../model.safetensors")
      (True, False)
    """
    return all(_PLAIN_NAME.fullmatch(part) for part in text.split("/"))


def plain_name(text: str, where: str) -> str:
    """Returns a text that is one plain path component; else raises a ProbexError."""
    if not _PLAIN_NAME.fullmatch(text):
        raise ProbexError(
            f"{where}: {quoted(text)} is not a plain name (letters, digits, `_.+- `; "
            "no separators, at most 200 characters)"
        )
    return text


def leads_out(name: str) -> bool:
    """Whether a name, taken as a path, may lead out of a folder, or holds NUL.

    Example:
      >>> [leads_out(name) for name in ("../a", "a/../b", "/a", "a/b..c", "a...b")]
      [True, True, True, False, False]
    """
    return _LEADS_OUT.search(name) is not None


def literal_strings(text: str, what: str) -> list[str]:
    r"""Reads a list of strings, written as a Python list literal or as JSON.

    Model-J's `dataset_chosen_targets` is such a literal. Nothing is executed: a text that is not a
    flat list of string literals is refused.

    Args:
      text: at most 65,536 characters.
      what: what the error calls it; name the file and the field.

    Returns:
      The strings, in order.

    Raises:
      ProbexError: if the text is too long or is anything but a flat list of strings.

    Example:
      >>> literal_strings("['apple', \"sea's edge\"]", "m.safetensors: dataset_chosen_targets")
      ['apple', "sea's edge"]
      >>> literal_strings("__import__('os')", "m.safetensors: dataset_chosen_targets")
      Traceback (most recent call last):
        ...
      probex_jax.errors.ProbexError: m.safetensors: dataset_chosen_targets: expected a list of
      strings, got "__import__('os')"

    References:
      docs/formats.md, "A zoo".
    """
    if len(text) > MAX_LITERAL_CHARACTERS:
        raise ProbexError(
            f"{what}: {len(text)} characters, expected a list of strings of at most "
            f"{MAX_LITERAL_CHARACTERS}"
        )
    text = text.strip()
    value = _parse_list(text)
    if not (isinstance(value, list) and all(isinstance(x, str) and is_unicode(x) for x in value)):
        raise ProbexError(f"{what}: expected a list of strings, got {quoted(text)}")
    return value


def _parse_list(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if not _LIST_OF_STRINGS.fullmatch(text):
        return None
    try:
        with _PARSING:
            return ast.literal_eval(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None  # an escape such as \U00110000, beyond Unicode
