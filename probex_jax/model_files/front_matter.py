"""The front matter of READMEs, which strangers wrote."""

import re
from typing import Any

import yaml

_MAX_CHARACTERS = 2**16
_TOP = re.compile(r"\n(?=[\w\"'])")  # before a field
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def front_matter(data: bytes) -> dict[str, Any]:
    """The front matter of a README, all scalars as texts; field by field, if some are damaged.

    Args:
      data: the README.

    Returns:
      The fields that can be read; those of aliases are None.

    Example:
      >>> front_matter(b"---\\nlicense: mit\\nadded: 2026-13-45\\n---\\n# A model")
      {'added': '2026-13-45', 'license': 'mit'}
    """
    text = data[: _MAX_CHARACTERS + 8].decode("utf-8-sig", errors="replace")
    first, *lines = (line.rstrip() for line in text.split("\n"))
    if first != "---" or "---" not in lines:
        return {}
    whole = "\n".join(lines[: lines.index("---")])
    fields = (_mapping(field) for field in reversed(_TOP.split(whole)))
    return _mapping(whole) or {key: value for field in fields for key, value in field.items()}


def _mapping(text: str) -> dict[str, Any]:
    """A mapping in YAML, built of PyYAML's events: no aliases to expand, no tags, no recursion."""
    open_: list[tuple[bool, list[Any]]] = [(False, [])]
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            if isinstance(event, yaml.CollectionStartEvent):
                open_.append((isinstance(event, yaml.MappingStartEvent), []))
            elif isinstance(event, yaml.CollectionEndEvent):
                is_mapping, members = open_.pop()
                pairs = zip(members[::2], members[1::2], strict=False)
                # Of a field twice the first counts.
                mapped = {key: value for key, value in reversed([*pairs]) if isinstance(key, str)}
                open_[-1][1].append(mapped if is_mapping else members)
            elif isinstance(event, yaml.ScalarEvent | yaml.AliasEvent):
                open_[-1][1].append(getattr(event, "value", None))
    except yaml.YAMLError:
        return {}
    content = open_[0][1]
    return content[0] if content and isinstance(content[0], dict) else {}
