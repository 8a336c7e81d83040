r"""Searches an index by a sentence, an example, or predicted attributes.

Give --query or --like, or neither with --filter or --sort to list models. Sentences need an index
made by an expert that was aligned with text (configs/align.py), attributes one made with --forest.

Example:
  probex search --index=out/index --query="an inverted three"
  probex search --index=out/index --like=model.safetensors \
    --filter="split = 'test' AND accuracy > .9" --sort=-accuracy
"""

import dataclasses
import json
from typing import Any

from absl import flags

import probex_jax as px
from experiments import cli
from probex_jax.reports.attributes import value
from probex_jax.search import Hit, Indexes
from probex_jax.search.attributes import names_in, order
from probex_jax.search.searching import MAX_K

_INDEX = flags.DEFINE_list(
    "index", None, "Index made by index, or several of one expert, searched as one.", required=True
)
_QUERY = flags.DEFINE_string("query", None, "What to look for, as a sentence.")
_LIKE = flags.DEFINE_string(
    "like", None, "A model to find others like it: a file, folder or address."
)
_K = flags.DEFINE_integer("k", 10, "How many models to list.", lower_bound=1, upper_bound=MAX_K)
_FILTER = flags.DEFINE_string(
    "filter",
    None,
    "SQL condition on id, path, tree, split, labels, text or predicted attributes, such as "
    '"array_has(labels, \'cat\') AND accuracy > .9"; "learning rate" stands in double quotes.',
)
_SORT = flags.DEFINE_string(
    "sort", "", "Attribute by which the models found are listed; -NAME for the largest first."
)
_EXPORT = flags.DEFINE_string(
    "export",
    None,
    "Parquet file to write instead, for viewers of large maps: all models, or those of --filter, "
    "with their vectors.",
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON document instead of a table.")


def main() -> None:
    if _QUERY.value is not None and _LIKE.value is not None:
        raise px.ProbexError("give --query or --like, not both")
    if _EXPORT.value is not None:
        if _QUERY.value is not None or _LIKE.value is not None or _SORT.value:
            raise px.ProbexError("--export: leave out --query, --like and --sort")
        count = Indexes.open(*_INDEX.value).export(_EXPORT.value, _FILTER.value)
        print(f"{_EXPORT.value}: {count} models")
        return
    is_listed = _QUERY.value is None and _LIKE.value is None
    if is_listed and not (_FILTER.value or _SORT.value):
        raise px.ProbexError("give --query or --like, or --filter or --sort to list models")
    index = Indexes.open(*_INDEX.value)
    hits = index.search(
        query=_QUERY.value, like=_LIKE.value, k=_K.value, where=_FILTER.value, sort=_SORT.value
    )
    ranked = [_row(rank, hit, is_listed) for rank, hit in enumerate(hits, start=1)]
    if _JSON.value:
        sought = {"query": _QUERY.value, "like": _LIKE.value, "filter": _FILTER.value}
        found = {**sought, "sort": _SORT.value, "index": index.name, "hits": ranked}
        print(json.dumps(found))
    elif ranked:
        names = [name for name in names_in(_FILTER.value or "") if name in index.attributes]
        names += [order(_SORT.value, index.attributes)[0]] if _SORT.value else []
        shown = ["rank", *([] if is_listed else ["similarity"]), "id", "tree", "split", "text"]
        print(
            cli.table([{name: row[name] for name in shown} | _told(row, names) for row in ranked])
        )
    else:
        print("no model found")


def _row(rank: int, hit: Hit, is_listed: bool) -> dict[str, Any]:
    row = {"rank": rank, **dataclasses.asdict(hit)}
    if is_listed:  # nothing that it could be similar to
        del row["similarity"]
    return row


def _told(row: dict[str, Any], names: list[str]) -> dict[str, str]:
    """The attributes that were asked for, in a row of the table."""
    return {name: value(row["attributes"].get(name, "")) for name in dict.fromkeys(names)}


if __name__ == "__main__":
    cli.run(main)
