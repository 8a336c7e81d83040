"""Which layers an adapter's module is, in the names of diffusers and transformers.

Every trainer names modules in its own way: diffusers by the path in a pipeline, PEFT by the path in
one model, kohya and LyCORIS by either with underscores for dots, others as the authors of a model
do. `modules.txt` lists these names. A path is looked up with underscores for dots and without its
numbers, which then must agree.
"""

import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from itertools import accumulate, pairwise
from typing import NamedTuple

_MAX_CHARACTERS = 300
_NUMBER = re.compile(r"(?<![^._])(?:[0-9]+|\{\w\})(?![^._])")
_CHOICE = re.compile(r"\[(.*?)\]")
_WRAPPER = "_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module"
_WRAPPERS = re.compile(
    rf"\A(?:(?:base_model\.model|module|{_WRAPPER})\.)+|\.(?:base_layer|{_WRAPPER})(?=\.|\Z)"
)
_TEXT = "text"
_HOMES = ("unet", "transformer")
# The parts of the table that a path may be of whose prefix tells a part of the pipeline.
_PARTS = {"": ("", "unet", "transformer", "text_encoder"), _TEXT: (_TEXT, "text_encoder")}


@dataclass(frozen=True)
class Slice:
    """A layer, and which rows of a module's output are its rows.

    Args:
      layer: canonical name.
      begin, end: the rows, in shares; `end` is not included.
      of: how many equal shares the module's rows have.
      swapped: whether the two halves of the rows change places.

    Example:
      >>> Slice("transformer.proj_out")
      Slice(layer='transformer.proj_out', begin=0, end=1, of=1, swapped=False)
    """

    layer: str
    begin: int = 0
    end: int = 1
    of: int = 1
    swapped: bool = False


def slices(path: str, family: str = "", shape: tuple[int, int] = (0, 0)) -> tuple[Slice, ...]:
    """The layers that a module is, by its path in any dialect; most modules are one layer.

    Args:
      path: name of a factor without its ending.
      family: that of the file's modules, which tells apart two families' modules of one name.
      shape: rows and columns of the module's matrix, which tell apart modules of one family.

    Returns:
      Layers by diffusers' names, after their part of the pipeline, or by those of transformers. An
      unknown path stays as it is, without wrappers and after the part that its beginning tells.

    Example:
      >>> [each.layer for each in slices("lora_unet_input_blocks_4_1_proj_in")]
      ['unet.down_blocks.1.attentions.0.proj_in']
      >>> slices("diffusion_model.single_blocks.7.linear1")[3]
      Slice(layer='transformer.single_transformer_blocks.7.proj_mlp', begin=3, end=7, of=7,
            swapped=False)
      >>> [each.layer for each in slices("base_model.model.model.layers.0.self_attn.q_proj")]
      ['model.layers.0.self_attn.q_proj']
    """
    return _slices(path, family, *shape) if len(path) <= _MAX_CHARACTERS else (Slice(path),)


@functools.lru_cache(10_000)  # models of one kind have the same paths
def _slices(path: str, family: str, rows: int, columns: int) -> tuple[Slice, ...]:
    prefix, rest, entries = _read(path)
    parts = _table().prefixes[prefix]
    part = parts.get(family, parts[""])
    if entries:
        by_diffusers = "transformer" in prefix
        entry = min(
            entries,
            key=lambda each: (
                family not in entries[each],
                each.part != part,
                each.is_canonical is not by_diffusers,
                not each.has_shape(rows, columns),
                rows > 0 and each.slices[0].swapped is not (rows == 2 * columns),
            ),
        )
        return entry.filled(rest, part if part.startswith(_TEXT) else entry.part)
    if prefix.endswith("_") and "." not in rest:
        rest = _dotted(rest)
    first = rest.partition(".")[0]
    if not part.startswith(_TEXT) and (part or first not in _table().common):
        at_home = _table().homes.get(family, part) if part in _HOMES else part
        part = _table().parts.get(first, at_home)
    return (Slice(_joined(part, rest)),)


def family(shapes: Mapping[str, tuple[int, int]]) -> str:
    """The family of models in which most modules of a file have names; "" if none knows one.

    Args:
      shapes: path of each module to the rows and columns of its matrix.

    Example:
      >>> family({"lora_unet_img_in": (9, 4), "lora_unet_transformer_blocks_0_img_mod_1": (9, 9)})
      'Qwen-Image'
    """
    found: Counter[str] = Counter()
    for path, (rows, columns) in shapes.items():
        entries = _read(path)[2] if len(path) <= _MAX_CHARACTERS else {}
        fitting = (entries[each] for each in entries if each.has_shape(rows, columns))
        found.update(set().union(*fitting))
    order = _table().families
    return min(found, key=lambda each: (-found[each], order.index(each)), default="")


class _Entry(NamedTuple):
    """A name of a module; its numbers, and those of its layers' names, may be places as {i}."""

    part: str
    numbers: tuple[str, ...]
    slices: tuple[Slice, ...]
    is_canonical: bool

    def fits(self, numbers: list[str]) -> bool:
        pairs = zip(self.numbers, numbers, strict=False)
        return len(self.numbers) == len(numbers) and all(a[0] == "{" or a == b for a, b in pairs)

    def has_shape(self, rows: int, columns: int) -> bool:
        """False if the first of several layers, a query's, is not square."""
        first = self.slices[0]
        return len(self.slices) == 1 or rows * first.end == columns * first.of

    def filled(self, path: str, part: str) -> tuple[Slice, ...]:
        pairs = zip(self.numbers, _NUMBER.findall(path), strict=True)
        values = {place[1]: number for place, number in pairs if place[0] == "{"}
        return tuple(replace(s, layer=_joined(part, s.layer.format(**values))) for s in self.slices)


@dataclass(frozen=True)
class _Table:
    """What `modules.txt` says.

    `entries` have their families, by the key of their name; `prefixes` their part of the pipeline,
    by family if that matters; `parts` is that of first modules, `homes` that of families. `common`
    are words of all models.
    """

    entries: dict[str, dict[_Entry, set[str]]] = field(default_factory=dict)
    families: list[str] = field(default_factory=list)
    prefixes: dict[str, dict[str, str]] = field(default_factory=lambda: {"": {"": ""}})
    parts: dict[str, str] = field(default_factory=dict)
    homes: dict[str, str] = field(default_factory=dict)
    words: set[str] = field(default_factory=set)
    common: set[str] = field(default_factory=set)

    def add(self, name: str, part: str, families: list[str], layers: tuple[Slice, ...]) -> None:
        entry = _Entry(part, tuple(_NUMBER.findall(name)), layers, layers == (Slice(name),))
        self.entries.setdefault(_key(name), {}).setdefault(entry, set()).update(families)
        self.words.update(word for word in name.split(".") if not _NUMBER.fullmatch(word))
        if part not in ("", _TEXT):
            self.parts.setdefault(name.partition(".")[0], part)


@functools.cache
def _table() -> _Table:
    table = _Table()
    text = resources.files(__package__).joinpath("modules.txt").read_text("utf-8")
    for section in text.split("\n== ")[1:]:
        head, *lines = (line for line in section.splitlines() if line and line[0] != "#")
        part, *families = head.removeprefix("none").split(" ")
        table.families.extend(each for each in families if each not in table.families)
        if part == "words":
            table.common.update(*map(str.split, lines))
        elif part == "prefixes":
            for its, *prefixes in (words for line in lines for words in _choices(line)):
                its, _, only = its.removeprefix("none").partition("/")
                for prefix in prefixes:
                    table.prefixes.setdefault(prefix, {})[only] = its
        else:
            table.homes.update((each, part) for each in families if part in _HOMES)
            for name, layers in _modules(lines):
                table.add(name, part, families, layers)
    table.words.update(table.common)
    return table


def _modules(lines: list[str]) -> Iterator[tuple[str, tuple[Slice, ...]]]:
    """The modules of a section, by the names that they have there and by their layers' own."""
    above, goes_on = {0: [("", "")]}, False  # by depth: the modules that lines there are inside
    for line, following in pairwise([*lines, ""]):
        depth = _depth(line)
        names = [
            (_joined(outer, name), inner, targets or [name])
            for outer, inner in above[depth]
            for name, *targets in _choices(line.removesuffix("+"))
        ]
        if line.endswith("+") or _depth(following) > depth:
            others = above[depth + 1] if goes_on else []
            above[depth + 1] = others + [(name, _joined(i, *targets)) for name, i, targets in names]
        else:
            for name, inner, targets in names:
                yield name, (layers := _layers(inner, targets))
                yield from ((each.layer, (Slice(each.layer),)) for each in layers)
        goes_on = line.endswith("+")


def _layers(inner: str, targets: list[str]) -> tuple[Slice, ...]:
    """The layers that share the rows of a module."""
    names, shares = zip(*((each.partition("*")[::2]) for each in targets), strict=True)
    ends = [0, *accumulate(int(share or 1) for share in shares)]
    return tuple(
        Slice(_joined(inner, name.removeprefix("~")), begin, end, ends[-1], name[0] == "~")
        for name, (begin, end) in zip(names, pairwise(ends), strict=True)
    )


def _choices(line: str) -> Iterator[list[str]]:
    """The words of a line, once for each choice in brackets."""
    pieces = _CHOICE.split(line)
    lists = [each.split(",") for each in pieces[1::2]]
    for chosen in zip(*lists, strict=True) if lists else [()]:
        pieces[1::2] = chosen
        yield "".join(pieces).split()


def _depth(line: str) -> int:
    return (len(line) - len(line.lstrip())) // 2


def _joined(*modules: str) -> str:
    return ".".join(filter(None, modules))


def _key(path: str) -> str:
    return _NUMBER.sub("#", path).replace(".", "_")


@functools.lru_cache(10_000)
def _read(path: str) -> tuple[str, str, dict[_Entry, set[str]]]:
    """The prefix of a path, what follows, and the entries that this may mean."""
    path = _WRAPPERS.sub("", path)
    prefix = max(filter(path.startswith, _table().prefixes), key=len)
    rest = _WRAPPERS.sub("", path[len(prefix) :])
    if prefix.endswith("_"):  # some write two underscores, or one behind
        rest = rest.strip("_")
    part = _table().prefixes[prefix][""]
    entries = _fitting(rest, _PARTS.get(part[:4], ("unet", "transformer")))
    if not entries and (whole := _fitting(path, _PARTS[""])):  # OpenCLIP's transformer.resblocks
        return "", path, whole
    return prefix, rest, entries


def _fitting(path: str, parts: tuple[str, ...]) -> dict[_Entry, set[str]]:
    numbers, entries = _NUMBER.findall(path), _table().entries.get(_key(path), {})
    return {each: entries[each] for each in entries if each.part in parts and each.fits(numbers)}


@functools.cache
def _word() -> re.Pattern[str]:
    words = sorted(map(re.escape, _table().words), key=len, reverse=True)
    return re.compile(rf"({'|'.join(words)}|[0-9]+)(?:_|\Z)")


def _dotted(text: str) -> str:
    """A path with dots between its words; as it is if it has others."""
    words, at = [], 0
    while at < len(text):
        word = _word().match(text, at)
        if word is None:
            return text
        words.append(word[1])
        at = word.end()
    return ".".join(words) or text
