"""The page: `page.html`, filled in with what a catalogue knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import urlencode

from probex_jax.reports.attributes import number
from probex_jax.search import Snapshot
from probex_jax.search.attributes import Attribute
from probex_jax.web import views
from probex_jax.web.catalogue import Catalogue
from probex_jax.zoo.model_j import HELD_OUT_SPLITS

_FOLDER = Path(__file__).parent


def asset(name: str) -> str:
    """The page's style or script."""
    return (_FOLDER / name).read_text(encoding="utf-8")


def page_html(catalogue: Catalogue, *, file_bytes: int, hub: bool) -> str:
    """The document.

    Args:
      catalogue: the forest and indexes.
      file_bytes: maximal size of an uploaded file.
      hub: whether models are read from the hub.
    """
    snapshots = catalogue.snapshots
    attributes = {n: v for one in snapshots.values() for n, v in one.attributes.items()}
    texts = [hit.text for one in snapshots.values() if one.knows_texts for hit in one.models[-1:]]
    indexed = {tree: len(one) for tree, one in snapshots.items()}
    shown = {
        "hub": hub,
        "search": snapshots,
        "no_search": not snapshots,
        "indexes": len(snapshots) > 1,
        "trees": _differ(snapshots.values(), "tree"),
        "splits": _differ(snapshots.values(), "split"),
        "attributes": attributes,
        "map": snapshots,
        "lineage": catalogue.family_tree,
    }
    return Template(asset("page.html")).substitute(
        {f"{name}_hidden": "" if is_shown else "hidden" for name, is_shown in shown.items()},
        limit=file_bytes,
        limit_mib=f"{file_bytes / 2**20:,.0f}",
        examples=_examples(snapshots.values()),
        index_options=_options({tree: _about(one) for tree, one in snapshots.items()}),
        tree_options=_options(_values(snapshots.values(), "tree")),
        split_options=_options(_values(snapshots.values(), "split")),
        text=escape(next(iter(texts), "no index here has texts: use an example")),
        condition=escape(_condition(attributes)),
        sort_options=_options(_orders(attributes)),
        forest=views.forest(catalogue.forest.trees, indexed),
        map_options=_options({tree: tree for tree in snapshots}),
    )


def _examples(snapshots: Iterable[Snapshot]) -> str:
    """Links that show what the page does; models are held-out ones where there are some."""
    links: dict[str, str] = {}
    for one in snapshots:
        for hit in sorted(one.models, key=lambda hit: hit.split not in HELD_OUT_SPLITS)[:1]:
            if Path(hit.path).exists():
                asked = {"id": hit.id, "index": one.tree}
                links["describe"] = _link(f"Describe a model of {one.tree}", "describe", **asked)
            asked = {"like": hit.id, "index": one.tree}
            links.setdefault("like", _link(f"Models like one of {one.tree}", "search", **asked))
            if hit.text and one.knows_texts:
                links["query"] = _link(f"Search for “{hit.text}”", "search", query=hit.text)
    if not links:
        return ""
    return f'<p class="px-examples">Or try an example: {" ".join(links.values())}</p>'


def _link(text: str, view: str, **asked: str) -> str:
    return f'<a href="{escape("?" + urlencode({"view": view, **asked}))}">{escape(text)}</a>'


def _about(snapshot: Snapshot) -> str:
    texts = "" if snapshot.knows_texts else ", without texts"
    return f"{snapshot.tree} ({len(snapshot):,} models{texts})"


def _values(snapshots: Iterable[Snapshot], field: str) -> dict[str, str]:
    """The values of a field in all indexes."""
    return {value: value for value in sorted({v for one in snapshots for v in one.values(field)})}


def _differ(snapshots: Iterable[Snapshot], field: str) -> bool:
    """Whether a filter by a field makes a difference in an index."""
    return any(len(one.values(field)) > 1 for one in snapshots)


def _orders(attributes: Mapping[str, Attribute]) -> dict[str, str]:
    """The orders by numbers: what is asked to what is shown."""
    names = [name for name, value in sorted(attributes.items()) if isinstance(value, float)]
    return {
        f"{sign}{name}": f"{name}, {which} first"
        for name in names
        for which, sign in (("largest", "-"), ("smallest", ""))
    }


def _condition(attributes: Mapping[str, Attribute]) -> str:
    """An example: a condition on the first attribute, a number if there is one."""
    for name, value in sorted(attributes.items(), key=lambda one: isinstance(one[1], tuple)):
        shown = f'"{name}"' if " " in name else name
        if isinstance(value, float):
            return f"{shown} > {number(value)}"
        return f"{shown} = {value if isinstance(value, str) else next(iter(value), 'x')}"
    return ""


def _options(shown: Mapping[str, str]) -> str:
    return "".join(
        f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in shown.items()
    )
