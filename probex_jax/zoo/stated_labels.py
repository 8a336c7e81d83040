"""Columns out of what files say of themselves: tags, trigger words, base, how they were trained.

Of the tags of a model's images, those become its classes that many of its images have and few of
the other models. A tag in a share s of the images, and in n of N models that state tags, weighs
s log2(N / n): what nearly all models have ("1girl", "solo") weighs next to nothing.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import log2

from probex_jax.engine import HERE, Engine, Work, flattened, in_parts
from probex_jax.errors import ProbexError
from probex_jax.model_files import Stated, open_model, read_stated
from probex_jax.model_files.architecture import base_key
from probex_jax.model_files.stated import HEADERS
from probex_jax.model_files.stated import SOURCES as FILES
from probex_jax.model_files.untrusted_text import quoted
from probex_jax.zoo.tables import LABEL_FILES

FOLDERS = "folders"
# What `scan` takes as labels: files of labels, and what models say themselves.
SOURCES = (*LABEL_FILES, *FILES, FOLDERS)
LABELS, TAGS, TRIGGER, TEXT = "labels", "tags", "trigger", "text"
NONE = "none of these"
# Columns of what a model was trained on.
CLASSES = (LABELS, TAGS, TRIGGER)
# Columns in which a model has one class at most.
_SINGLE = ("base", "architecture", "folder", "optimiser")
# Columns of numbers, as `Stated` calls them.
NUMBERS = ("images", "steps", "epochs", "batch_size", "learning_rate", "rank", "alpha")

_BACKSLASH = re.compile(r"\\(?=[()\[\]])")  # booru's tags escape brackets
# What kohya writes around the class of an optimiser: modules, and its arguments.
_CLASS = re.compile(r"^(?:\w+\.)+|\(.*")
# Names of folders that say nothing of what is in them.
_NO_CONCEPT = re.compile(r"(?:img|images?|data(?:set)?|train(?:ing)?|input|concept|lora|\d+)s?\d*")


@dataclass(frozen=True)
class TagRules:
    """Which tags become classes.

    Args:
      share: of a model's images that must have a tag.
      weight: the least that a tag must weigh in a model.
      models: with which a class is learnable; rarer ones are none.
      words: of the tags that most images have, at most so many are the text of a model.
    """

    share: float = 0.3
    weight: float = 0.5
    models: int = 5
    words: int = 2


RULES = TagRules()


@dataclass(frozen=True)
class Said:
    """What one model says that may become labels.

    Args:
      columns: column to tag to its share of the images, 1 where there are no shares.
      numbers: column of numbers to its number.
      sources: column to the source that it is from.
      commonest: the share of its images that have the commonest of their tags, without trigger
        words and names of folders. Of images with a sentence each it is small: a tag that they lack
        may be in them nevertheless.
      author: as stated.
      runs: what it has in common with others of the same training: session and checksum.
    """

    columns: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    commonest: float = 0.0
    author: str = ""
    runs: tuple[str, ...] = ()


def label_sources(labels: str | Sequence[str]) -> tuple[str, ...]:
    """The sources named, in order, as "labels.json,headers" or one by one.

    Raises:
      ProbexError: if one is none of `SOURCES`.
    """
    named = labels.split(",") if isinstance(labels, str) else labels
    for source in named:
        if source not in SOURCES:
            raise ProbexError(f"labels: {quoted(source)} is not one of {', '.join(SOURCES)}")
    return tuple(dict.fromkeys(named))


def read_said(
    models: Iterable[tuple[str, object]],
    sources: Sequence[str] = SOURCES,
    on_model: Callable[[str], None] = lambda reason: None,
    engine: Engine = HERE,
) -> dict[str, Said]:
    """Reads what models say of themselves.

    Args:
      models: id and path of each; the folders of an id are its folders.
      sources: whom to ask, the first one first; files of labels are not read.
      on_model: called after each with the reason why it could not be read, or "".
      engine: who reads them.

    Returns:
      Id to what the model says; without models that cannot be read.
    """
    found: dict[str, Said] = {}
    read = engine.map(partial(_work, tuple(sources)), in_parts(models), computes=False)
    for (id, _), said in flattened(read):
        if isinstance(said, Said):
            found[id] = said
        on_model("" if isinstance(said, Said) else str(said))
    return found


def _work(sources: Sequence[str]) -> Work:
    def read(model: tuple[str, object]) -> Said | ProbexError:
        try:
            return _said(*model, sources)
        except ProbexError as error:
            return error

    return Work(read, lambda part, said: said)


def _said(id: str, path: object, sources: Sequence[str]) -> Said:
    columns: dict[str, dict[str, float]] = {}
    stands: dict[str, str] = {}
    with open_model(str(path)) as model:
        facts = {source: read_stated(model, (source,)) for source in sources if source in FILES}
    raw = {source: _columns(said) for source, said in facts.items()}
    folder = _tag(id.rpartition("/")[0].rpartition("/")[2])
    raw[FOLDERS] = {"folder": {folder: 1.0} if folder else {}}
    for source in sources:
        for name, tags in raw.get(source, {}).items():
            if tags and name not in columns:
                columns[name], stands[name] = tags, source
    numbers: dict[str, float] = {}
    for source, stated in facts.items():
        for name in NUMBERS:
            if name not in numbers and (number := getattr(stated, name)):
                numbers[name], stands[name] = float(number), source
    folders = {tag: 1.0 for said in facts.values() for tag in map(_tag, said.folders) if tag}
    if folders and TRIGGER not in columns:  # of the training images: called as what they show
        columns[TRIGGER], stands[TRIGGER] = folders, HEADERS
    calls = {_tag(name) for said in facts.values() for name in said.triggers} | folders.keys()
    by = facts.get(stands.get(TAGS, ""), Stated())
    return Said(
        columns,
        numbers,
        stands,
        commonest=max((by.shares[tag] for tag in by.tags if _tag(tag) not in calls), default=0.0),
        author=next((said.author for said in facts.values() if said.author), ""),
        runs=tuple(run for said in facts.values() for run in (said.session, said.checksum) if run),
    )


def _columns(said: Stated) -> dict[str, dict[str, float]]:
    tags: dict[str, float] = {}
    for name, share in said.shares.items():
        if tag := _tag(name):
            tags[tag] = max(share, tags.get(tag, 0.0))
    single = {
        "base": base_key(said.base),
        "architecture": said.architecture or said.base_version,
        "optimiser": _CLASS.sub("", said.optimiser).casefold(),
    }
    return {
        LABELS: dict.fromkeys(said.labels, 1.0),
        TAGS: tags,
        TRIGGER: {tag: 1.0 for tag in map(_tag, said.triggers) if tag},
        **{name: {value: 1.0} if value else {} for name, value in single.items()},
    }


def _tag(text: str) -> str:
    """A tag as most write it; "" for a folder that has no name of its own."""
    tag = _BACKSLASH.sub("", text.casefold())
    tag = tag.replace("_", " ") if len(tag) > 3 else tag  # not in ^_^
    return "" if _NO_CONCEPT.fullmatch(tag := " ".join(tag.split())) else tag


def columns_of(
    said: Mapping[str, Said], rules: TagRules = RULES
) -> dict[str, dict[str, tuple[str, ...]]]:
    """The label columns of a zoo.

    Args:
      said: what its models say, by id.
      rules: which tags become classes.

    Returns:
      Column to model to its classes, those of most images first: "labels", "tags" and "trigger", of
      which a model may have several; "base", "architecture" and "folder", one each; and "text", the
      first tags as words, as many as enough models share. A model without tags that many of its
      images have is in no column of tags; one whose tags are all too common or rare has none of the
      classes, (), or "none of these", where the others have one each. A column whose models all
      have one label is left out.

    Example:
      >>> said = {
      ...     f"m{n}": Said({"tags": {"1girl": 0.9, ("cat", "dog")[n % 2]: 0.6}}, commonest=0.9)
      ...     for n in range(10)
      ... }
      >>> columns_of(said)["tags"]["m0"], columns_of(said)["text"]["m1"]
      (('cat',), ('dog',))
    """
    found = {
        name: _learnable(
            {id: s.columns[name] for id, s in said.items() if name in s.columns}, rules
        )
        for name in CLASSES
    }
    found[TEXT] = _texts(found[TAGS], rules)
    for name, column in found.items():
        # What lacks a trigger word has another one; of what has no tags, or a sentence for each
        # image, nobody knows what it shows.
        tagged = {id for id in column if 0 < said[id].commonest >= rules.share}
        known = {LABELS: column.keys(), TAGS: tagged}.get(name, set())
        without = [id for id in column if id in known and not column[id]]
        some = {id: tags for id, tags in column.items() if tags}
        # Where the others have one class each, so have these.
        one_each = all(len(tags) == 1 for tags in some.values())
        none = (NONE,) if one_each else ()
        enough = not one_each or len(without) >= rules.models
        found[name] = some | (dict.fromkeys(without, none) if enough else {})
    for name in _SINGLE:
        each = {id: tuple(s.columns[name]) for id, s in said.items() if name in s.columns}
        alike = Counter(each.values())
        found[name] = {id: one for id, one in each.items() if alike[one] >= rules.models}
    return {name: column for name, column in found.items() if len(set(column.values())) > 1}


def numbers_of(said: Mapping[str, Said], rules: TagRules = RULES) -> dict[str, dict[str, float]]:
    """The columns of numbers of a zoo: those of `NUMBERS` that enough models state, and not alike.

    Args:
      said: what its models say, by id.
      rules: with how many models a column is learnable.

    Returns:
      Column to model to number.
    """
    found = {
        name: {id: s.numbers[name] for id, s in said.items() if name in s.numbers}
        for name in NUMBERS
    }
    return {
        name: column
        for name, column in found.items()
        if len(column) >= rules.models and len(set(column.values())) > 1
    }


def _texts(tags: Mapping[str, tuple[str, ...]], rules: TagRules) -> dict[str, tuple[str, ...]]:
    """The first tags of each model as one text: one, or so many that enough models share it."""
    texts: dict[str, tuple[str, ...]] = {}
    for words in range(rules.words, 0, -1):
        left = {
            id: (", ".join(sorted(named[:words])),)
            for id, named in tags.items()
            if named and id not in texts
        }
        alike = Counter(left.values())
        texts |= {
            id: text for id, text in left.items() if words == 1 or alike[text] >= rules.models
        }
    return texts


def _learnable(
    tags: Mapping[str, Mapping[str, float]], rules: TagRules
) -> dict[str, tuple[str, ...]]:
    """The tags that weigh enough in a model and in enough models; those of most images first."""
    models = Counter(tag for of_model in tags.values() for tag in of_model)
    rarity = {tag: log2(len(tags) / count) for tag, count in models.items()}
    kept = {
        id: [
            (-share, -rarity[tag], tag)
            for tag, share in of_model.items()
            if share >= rules.share and share * rarity[tag] >= rules.weight
        ]
        for id, of_model in tags.items()
    }
    counts = Counter(tag for found in kept.values() for *_, tag in found)
    return {
        id: tuple(tag for *_, tag in sorted(found) if counts[tag] >= rules.models)
        for id, found in kept.items()
    }
