"""The steps of a harvest: what models of a folder state, and a zoo for each of their trees."""

import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments import cli, label_steps
from probex_jax.engine import HERE, Engine
from probex_jax.errors import ProbexError
from probex_jax.files import disk_errors, one_writer, write_json, write_text
from probex_jax.forest import discover
from probex_jax.forest.discovery import FoundTree
from probex_jax.model_files.architecture import base_key
from probex_jax.search import FoundModel
from probex_jax.zoo.splitting import make_split, make_text_split
from probex_jax.zoo.stated_labels import (
    CLASSES,
    TAGS,
    TEXT,
    Said,
    TagRules,
    columns_of,
    numbers_of,
    read_said,
)
from probex_jax.zoo.tables import Tables

Row = dict[str, object]

# Of one training, or of one model in versions: epochs and steps as kohya, ai-toolkit and diffusers
# number them, precisions, and `_v2`.
_VERSION = re.compile(
    r"(?:-\d{6}|_\d{9}|(?:^|[/_-])checkpoint-\d+|[-_](?:e|epoch|step)[-_]?\d+"
    r"|[-_](?:fp16|bf16|pruned)|[-_ ]v\d+(?:\.\d+)?)+$",
    re.IGNORECASE,
)
_MOST_TAGS, _SHOWN_TAGS = 200, 5


@dataclass(frozen=True)
class Harvest:
    """What a folder states.

    Args:
      trees: the trees, the largest first.
      failed: id of every model that cannot be read to the reason.
      sources: source to the number of models that it documents.
      undocumented: the readable models that say nothing of what they were trained on.
    """

    trees: Sequence["HarvestedTree"]
    failed: Mapping[str, str]
    sources: Mapping[str, int]
    undocumented: Sequence[str]


@dataclass(frozen=True)
class HarvestedTree:
    """One tree of a harvest.

    Args:
      name: of its base and the fingerprint of its architecture; the folder of its zoo.
      found: the tree as it was discovered.
      models: ids of its models.
      documented: how many of them say what they were trained on.
      tables: label columns and splits of those that are in its zoo; empty without a zoo.
      tags: to the number of models that state them, the most frequent first.
    """

    name: str
    found: FoundTree
    models: Sequence[str]
    documented: int
    tables: Tables = field(default_factory=Tables)
    tags: Mapping[str, int] = field(default_factory=dict)

    @property
    def labelled(self) -> list[str]:
        """The models of its zoo: those in a split."""
        known = {m for parts in self.tables.splits.values() for ms in parts.values() for m in ms}
        return [model for model in self.models if model in known]


def harvest(
    models: Sequence[FoundModel],
    sources: Sequence[str],
    rules: TagRules,
    seed: int,
    *,
    by_base: bool = True,
    engine: Engine = HERE,
) -> Harvest:
    """Reads what models state, and finds their trees; what cannot be read is told on stderr."""
    failed = {model.id: model.fault for model in models if model.fault}
    whole = [model for model in models if not model.fault]
    with cli.progress(len(whole), "reading headers", "model") as bar:

        def read(fault: str) -> None:  # finding trees tells what cannot be read
            bar.update()

        named = ((model.id, model.path) for model in whole)
        said = read_said(named, sources, read, engine)
    with cli.progress(len(whole), "finding trees", "model") as bar:

        def seen(fault: str) -> None:
            bar.update()
            if fault:
                bar.write(cli.one_line(f"failed {fault}"), file=sys.stderr)

        paths = (model.path for model in whole)
        found = discover(paths, by_base=by_base, engine=engine, on_model=seen)
    failed |= {whole[number].id: reason for number, reason in found.failed.items()}
    contents = {whole[number].id: content for number, content in found.contents.items()}
    documented = {id: one for id, one in said.items() if one.columns.keys() & set(CLASSES)}
    names: Counter[str] = Counter()
    trees = []
    for tree in found.trees:
        names[name := _name_of(tree)] += 1
        ids = [whole[number].id for number in tree.members]
        of_tree = {id: documented[id] for id in ids if id in documented}
        tags = Counter(tag for one in of_tree.values() for tag in one.columns.get(TAGS, ()))
        trees.append(
            HarvestedTree(
                name if names[name] == 1 else f"{name}-{names[name]}",
                tree,
                ids,
                len(of_tree),
                _tables(of_tree, series_of(of_tree, contents), rules, seed),
                dict(tags.most_common(_MOST_TAGS)),
            )
        )
    counts = Counter(
        next(one.sources[column] for column in CLASSES if column in one.sources)
        for one in documented.values()
    )
    undocumented = [model.id for model in whole if model.id in contents.keys() - documented.keys()]
    return Harvest(trees, failed, {s: counts[s] for s in sources if counts[s]}, undocumented)


def _name_of(tree: FoundTree) -> str:
    base = re.sub(r"[^\w.+-]+", "-", base_key(tree.base), flags=re.ASCII).strip("-.+")[:60]
    return f"{base or 'models'}-{tree.fingerprint[:8]}"


def _tables(
    said: Mapping[str, Said], series: Mapping[str, str], rules: TagRules, seed: int
) -> Tables:
    columns: dict[str, Mapping[str, tuple[str, ...]]] = dict(columns_of(said, rules))
    splits: dict[str, Mapping[str, tuple[str, ...]]] = {}
    for name in (*CLASSES, TEXT):
        make: Callable[..., dict[str, tuple[str, ...]]]
        make = make_text_split if name == TEXT else make_split
        for groups in (series, None):  # a tree of one series is divided nevertheless
            try:
                splits[name] = make(columns.get(name, {}), groups=groups, seed=seed)
                break
            except ProbexError:
                continue
    if not splits:
        return Tables()
    columns["series"] = {id: (one,) for id, one in series.items()}
    columns["author"] = {id: (one.author,) for id, one in said.items() if one.author}
    classes = {name: column for name, column in columns.items() if column}
    return Tables(classes, numbers_of(said, rules), splits)


def series_of(said: Mapping[str, Said], contents: Mapping[str, str]) -> dict[str, str]:
    """Model to its series: copies, versions, and what one training left; called as its first."""
    first: dict[str, str] = {}

    def root(id: str) -> str:
        while first.setdefault(id, id) != id:
            first[id] = id = first[first[id]]
        return id

    known: dict[str, str] = {}
    for id, one in said.items():
        for key in (_VERSION.sub("", id), f"content {contents.get(id, id)}", *one.runs):
            first[root(id)] = root(known.setdefault(key, id))
    return {id: root(id) for id in said}


def write_harvest(
    found: Harvest, models: Sequence[FoundModel], out: Path, *, overwrite: bool = False
) -> None:
    """Writes what was found, and the zoos, to a folder.

    Raises:
      ProbexError: if there are zoos of other models, which are not to be overwritten; then nothing
        was written.
    """
    paths = {model.id: model.path for model in models}
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with one_writer(out):
        tables = {out / tree.name: tree.tables for tree in found.trees}
        zoos = {
            out / tree.name: {id: paths[id] for id in tree.labelled}
            for tree in found.trees
            if tree.labelled
        }
        if not overwrite:
            label_steps.check_zoos(zoos, "choose another --out or --overwrite it")
        for zoo, members in zoos.items():
            label_steps.write_zoo(zoo, members, tables[zoo])
        lines = [str(paths[id].resolve()) for id in found.undocumented]
        write_text(out / "undocumented.txt", "".join(f"{line}\n" for line in lines))
        write_json(out / "harvest.json", _as_json(found))


def _as_json(found: Harvest) -> dict[str, Any]:
    trees = [
        {
            "tree": tree.name,
            "base": tree.found.base,
            "kind": tree.found.kind,
            "architecture": tree.found.fingerprint,
            "models": tree.models,
            "documented": tree.documented,
            "labelled": len(tree.labelled),
            "columns": {
                name: {
                    "models": len(column),
                    "classes": dict(Counter(c for said in column.values() for c in said)),
                }
                for name, column in tree.tables.columns.items()
                if name != "series"
            },
            "numbers": {
                name: {
                    "models": len(column),
                    "low": min(column.values()),
                    "high": max(column.values()),
                }
                for name, column in tree.tables.numbers.items()
            },
            "tags": tree.tags,
        }
        for tree in found.trees
    ]
    return {
        "trees": trees,
        "sources": found.sources,
        "failed": found.failed,
        "undocumented": found.undocumented,
    }


def harvest_rows(found: Harvest) -> list[Row]:
    """A row of each tree."""
    return [
        {
            "tree": tree.name,
            "kind": tree.found.kind,
            "models": len(tree.models),
            "documented": tree.documented,
            "in its zoo": len(tree.labelled),
            "splits": ", ".join(tree.tables.splits),
            "most frequent tags": ", ".join(
                f"{tag} {count}" for tag, count in list(tree.tags.items())[:_SHOWN_TAGS]
            ),
        }
        for tree in found.trees
    ]


def lines(found: Harvest, models: int) -> list[str]:
    """What is told of all trees together."""
    told = ", ".join(f"{count} by {source}" for source, count in found.sources.items())
    trees = "tree" if len(found.trees) == 1 else "trees"
    zoos = sum(bool(tree.labelled) for tree in found.trees)
    return [
        f"{models - len(found.failed)} of {models} models read, in {len(found.trees)} {trees}, "
        f"{zoos} with a zoo",
        f"documented: {told or 'none'}; undocumented: {len(found.undocumented)}",
    ]
