r"""Searches an index of models by a sentence or by an example.

Give --query or --like. Sentences need an index made by an expert that was aligned with text
(configs/align.py).

Example:
  python -m experiments.search --index=out/index --query="an inverted three"
  python -m experiments.search --index=out/index --like=model.safetensors \
    --filter="split = 'test'"
"""

import dataclasses
import json

from absl import flags

import probex_jax as px
from experiments import cli
from probex_jax.search import Indexes
from probex_jax.search.searching import MAX_K

_INDEX = flags.DEFINE_list(
    "index", None, "Index made by index, or several of one expert, searched as one.", required=True
)
_QUERY = flags.DEFINE_string("query", None, "What to look for, in words.")
_LIKE = flags.DEFINE_string(
    "like", None, "A model to find others like it: a file, folder or address."
)
_K = flags.DEFINE_integer("k", 10, "How many models to list.", lower_bound=1, upper_bound=MAX_K)
_FILTER = flags.DEFINE_string(
    "filter",
    None,
    "SQL condition on id, path, tree, split, labels or text, such as \"array_has(labels, 'cat')\".",
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON document instead of a table.")


def main() -> None:
    if (_QUERY.value is None) == (_LIKE.value is None):
        raise px.ProbexError("give --query or --like, one of the two")
    index = Indexes.open(*_INDEX.value)
    hits = index.search(query=_QUERY.value, like=_LIKE.value, k=_K.value, where=_FILTER.value)
    ranked = [{"rank": n, **dataclasses.asdict(hit)} for n, hit in enumerate(hits, start=1)]
    if _JSON.value:
        sought = {"query": _QUERY.value, "like": _LIKE.value, "filter": _FILTER.value}
        print(json.dumps({**sought, "index": index.name, "hits": ranked}))
    elif ranked:
        shown = ("rank", "similarity", "id", "tree", "split", "text")
        print(cli.table([{name: hit[name] for name in shown} for hit in ranked]))
    else:
        print("no model found")


if __name__ == "__main__":
    cli.run(main)
