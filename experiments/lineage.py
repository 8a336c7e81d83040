"""Draws the family tree of models: parents, merges and copies.

MODEL is a file, a model's folder or a folder of models, on disk or in a bucket (s3://, gs://), or
hf://ORG/NAME or an https:// address. --out gets lineage.json, lineage.html (a page that needs no
network), lineage.mmd (Mermaid) and lineage.nwk (Newick). A model that cannot be read is reported
and the others go on; the exit code is then 1, or 2 if there is nothing to compare.

Example:
  probex lineage --models=downloads --out=out/lineage
"""

import dataclasses
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

from absl import flags

import probex_jax as px
from experiments import cli, engines
from experiments.models import Models
from probex_jax.bucket_paths import as_path
from probex_jax.files import disk_errors, one_writer, write_text
from probex_jax.lineage import FamilyTree, Lineage, family_trees, save_lineage, trace
from probex_jax.reports import family_tree_html, mermaid, newick

_MODELS = flags.DEFINE_list("models", [], "Folders of models, at any depth, beside arguments.")
_LIST = flags.DEFINE_string("list", None, "File with one model per line, as harvest writes.")
_OUT = flags.DEFINE_string("out", None, "Folder of the results.", required=True)
_TITLE = flags.DEFINE_string("title", "Family tree", "Title of the page.")
_READERS = engines.readers_flag(4)

# Families of which the table has a line.
_MOST = 20


def main(paths: Sequence[str]) -> int:
    given = [*_MODELS.value, *paths]
    if not (given or _LIST.value):
        raise px.ProbexError(
            "give models: files, or folders of them, with --models or as arguments"
        )
    engine = engines.engine()  # before anything takes a device
    models = list({str(m.path): m for m in Models(given, _LIST.value or "")}.values())
    whole = [model for model in models if not model.fault]
    failed = {model.id: model.fault for model in models if model.fault}
    if len(models) == 1 and whole:
        raise px.ProbexError(f"{whole[0].id}: one model: nothing to compare; give two or more")
    out = as_path(_OUT.value)
    with one_writer(out), cli.progress(len(whole), "reading", "model") as bar:
        stage, before = "reading", 0

        def seen(what: str, done: int, total: int) -> None:
            nonlocal stage, before
            if what != stage:
                stage, before = what, 0
                bar.reset(total)
                bar.set_description(what)
            bar.update(done - before)
            before = done

        found = trace(
            [model.path for model in whole],
            [model.id for model in whole],
            engine=engine,
            readers=_READERS.value,
            on_progress=seen,
        )
        found = dataclasses.replace(found, failed=failed | dict(found.failed))
        for id, reason in found.failed.items():
            bar.write(cli.one_line(f"failed {id}: {reason}"), file=sys.stderr)
        if not found.nodes:
            raise px.ProbexError("no model could be read")
        _write(found)
    if rows := _rows(found):
        print(cli.table(rows))
    copied = {group.models[0] for group in found.copies}
    counts = Counter(node.origin for node in found.nodes if node.id not in copied)
    print(
        f"{len(found.nodes)} models, {counts['unknown parent']} of unknown parent, "
        f"{counts['alone']} without kin; {out / 'lineage.html'}"
    )
    return 1 if found.failed else 0


def _write(found: Lineage) -> None:
    out = as_path(_OUT.value)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    write_text(out / "lineage.html", family_tree_html(found, _TITLE.value))
    write_text(out / "lineage.mmd", mermaid(found))
    write_text(out / "lineage.nwk", newick(found))
    save_lineage(found, out)  # the last one: with it the folder is valid


def _rows(found: Lineage) -> list[dict[str, object]]:
    """A row a family, the largest first."""
    origin = {node.id: node.origin for node in found.nodes}
    copies = {group.models[0]: len(group.models) - 1 for group in found.copies}
    each = [family for family in family_trees(found) if len(family.models) > 1]
    rows = [_row(number, family, origin, copies) for number, family in enumerate(each[:_MOST], 1)]
    if len(each) > _MOST:
        last: dict[str, object] = dict.fromkeys(rows[0], "")
        rows.append(last | {"family": "…", "root": f"and {len(each) - _MOST} more families"})
    return rows


def _row(
    number: int, family: FamilyTree, origin: Mapping[str, str], copies: Mapping[str, int]
) -> dict[str, object]:
    root, *others = family.roots
    return {
        "family": number,
        "root": f"{root} and {len(others)} more" if others else root,
        "models": len(family.models),
        "generations": family.generations,
        "merges": family.merges,
        "copies": sum(copies.get(model, 0) for model in family.models),
        "unknown parents": sum(origin[model] == "unknown parent" for model in family.models),
    }


if __name__ == "__main__":
    cli.run_with_arguments(main)
