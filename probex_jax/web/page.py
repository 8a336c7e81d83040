"""The page: three views, in Gradio."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.reports.attributes import number
from probex_jax.search import Filter, Hit, Snapshot
from probex_jax.search.attributes import Attribute
from probex_jax.web import views
from probex_jax.web.catalogue import MAX_K, MAX_QUERY, Catalogue, Described, told
from probex_jax.web.models import of_hub, sent
from probex_jax.web.uploads import MAX_FILES, Uploads
from probex_jax.web.work import Work

TITLE = "What is this model?"
_ABOUT = """# What is this model?
Drop the weights of a neural network to see which model it descends from and what it was
trained on, or find models by a sentence: from the weights alone, by
[probex_jax](https://arxiv.org/abs/2410.13569)."""
_TYPES = [".safetensors", ".json"]
_ANY = ""
_HOW_MANY = 12
# Maps per answer: each is a document of its own.
_MAPS = 3
_NO_MAP = f"Only the first {_MAPS} models are shown on a map; send this one alone to see its map."
# Gradio's preprocessing raises for odd values and copies files; its queue keeps answers that nobody
# fetches.
_EVENT: dict[str, Any] = {
    "api_visibility": "private",
    "concurrency_limit": None,
    "preprocess": False,
    "queue": False,
}
# After several questions in a row only the last one is answered.
_LAST: dict[str, Any] = _EVENT | {"trigger_mode": "always_last"}
# Every file is answered.
_EACH: dict[str, Any] = _EVENT | {"trigger_mode": "multiple"}


@dataclass(frozen=True, eq=False)
class _Example:
    """What to search for without a text: a model of an index, or an uploaded one."""

    id: str = ""
    tree: str = ""
    vector_T: np.ndarray | None = None
    name: str = ""
    fault: str = ""


class Page:
    """The page of a catalogue.

    Args:
      catalogue: the forest and indexes.
      uploads: keeps uploaded files.
      work: thread pools.
      hub: whether to read models from the hub.

    Attributes:
      blocks: for Gradio.
      events: number of each event to the maximal number of files in each value.
    """

    def __init__(self, catalogue: Catalogue, uploads: Uploads, work: Work, *, hub: bool):
        self._catalogue, self._uploads, self._work, self._hub = catalogue, uploads, work, hub
        self._files: list[gr.File] = []
        with gr.Blocks(title=TITLE, analytics_enabled=False) as self.blocks:
            gr.Markdown(_ABOUT, elem_classes="px-about")
            with gr.Tabs() as tabs:
                with gr.Tab("Describe", id="describe"):
                    self._describe_view()
                with gr.Tab("Search", id="search"):
                    opened = self._search_view()
                with gr.Tab("Forest", id="forest") as forest:
                    self._forest_view(forest)
                if catalogue.family_tree:
                    with gr.Tab("Family tree", id="lineage"):
                        gr.HTML(views.family_tree(), elem_id="px-lineage")
            self.blocks.load(self._opened, None, [tabs, *opened], **_EVENT)
        most = {id(one): MAX_FILES if one.file_count == "multiple" else 1 for one in self._files}
        self.events = {
            number: [most.get(id(component), 0) for component in event.inputs]
            for number, event in self.blocks.fns.items()
        }

    def _describe_view(self) -> None:
        limit = self._uploads.file_bytes / 2**20
        gr.Markdown(
            f"Safetensors files of at most {limit:,.0f} MiB each: whole models or LoRAs. Files "
            "dropped together with a `config.json`, an `adapter_config.json` or a shard index are "
            "one model. Files are deleted as soon as they have been read."
        )
        files = self._file_field(
            file_count="multiple",
            file_types=_TYPES,
            label="Models to describe",
            height=150,
            elem_id="px-files",
        )
        if self._hub:
            with gr.Row(equal_height=True):
                address = gr.Textbox(
                    label="Or a model on the hub", placeholder="org/name", scale=4, max_length=300
                )
                ask = gr.Button("Describe", scale=1)
        described = gr.HTML(elem_id="px-described")
        files.upload(self._describe, files, [files, described], **_EACH)
        if self._hub:
            gr.on([ask.click, address.submit], self._describe_of_hub, address, described, **_LAST)

    def _search_view(self) -> tuple[Any, ...]:
        snapshots = self._catalogue.snapshots
        texts = [one for one in snapshots.values() if one.knows_texts]
        sought, asked = gr.State(_Example()), gr.State()
        if not snapshots:
            gr.Markdown("This server has no index of models; start it with `--index`.")
        shown = bool(snapshots)
        with gr.Row(equal_height=True, visible=shown):
            query = gr.Textbox(
                label="What the model was trained on",
                placeholder="an inverted three" if texts else "no index can be searched by text",
                interactive=bool(texts),
                max_length=MAX_QUERY,
                scale=4,
                elem_id="px-query",
            )
            ask = gr.Button("Search", variant="primary", scale=1)
        example = self._file_field(
            file_types=[".safetensors"],
            label="Or an example: a model to find similar ones",
            height=140,
            visible=shown,
            elem_id="px-example",
        )
        with gr.Row(visible=shown):
            index = gr.Dropdown(
                [(f"{tree} ({len(one):,} models)", tree) for tree, one in snapshots.items()],
                value=texts[0].tree if texts else next(iter(snapshots), None),
                label="Index",
                visible=len(snapshots) > 1,
                min_width=120,
            )
            tree = _choice("Tree", snapshots.values(), "tree")
            split = _choice("Split", snapshots.values(), "split")
            words = gr.Textbox(
                label="Text contains", placeholder="any", max_length=MAX_QUERY, min_width=120
            )
            k = gr.Slider(1, MAX_K, _HOW_MANY, step=1, label="How many", min_width=120)
        attributes = {n: v for one in snapshots.values() for n, v in one.attributes.items()}
        with gr.Row(visible=bool(attributes)):
            written = gr.Textbox(
                label="Predicted attributes",
                placeholder=_example(attributes),
                max_length=MAX_QUERY,
                min_width=240,
                scale=2,
                elem_id="px-told",
            )
            sort = gr.Dropdown(_sorts(attributes), value=_ANY, label="Sorted by", min_width=240)
        found = gr.HTML(elem_id="px-found")
        self._may_repeat = {words._id, k._id, written._id}
        # One event that reads all controls, so that the newest values count.
        changes = [index.input, tree.input, split.input, words.submit, words.blur, k.change]
        changes += [written.submit, written.blur, sort.input]
        gr.on(
            [ask.click, query.submit, example.change, *changes],
            self._search,
            [query, index, sought, asked, tree, split, words, written, sort, k],
            [asked, index, found],
            show_progress="minimal",
            show_progress_on=found,
            **_LAST,
        )
        # A text takes precedence over an example, so an upload clears the text at once. When the
        # example has been read, its field is cleared and it is searched for.
        example.upload(self._no_text, None, query, show_progress="hidden", **_EVENT)
        example.upload(self._read_example, example, [example, sought, index], **_EACH)
        return query, index, sought, asked, found

    def _file_field(self, **settings: Any) -> gr.File:
        """A field for files; the guard accepts only uploaded ones."""
        self._files.append(gr.File(**settings))
        return self._files[-1]

    def _forest_view(self, tab: Any) -> None:
        snapshots = self._catalogue.snapshots
        indexed = {tree: len(one) for tree, one in snapshots.items()}
        gr.HTML(views.forest(self._catalogue.forest.trees, indexed), elem_id="px-forest")
        if snapshots:
            tree = gr.Dropdown(
                list(snapshots), value=next(iter(snapshots)), label="Map of the models of"
            )
            drawn = gr.HTML(elem_id="px-forest-map")
            gr.on([tab.select, tree.input], self._map, tree, drawn, **_LAST)

    async def _describe(self, files: Any) -> tuple[None, str]:
        paths = _paths(files)

        def found() -> list[Described]:
            with self._uploads.place() as folder:
                return self._catalogue.describe(sent(paths, folder))

        with self._uploads.used(paths):
            return None, await self._described(self._work.read, found)

    async def _describe_of_hub(self, address: Any) -> str:
        def found() -> list[Described]:
            return self._catalogue.describe([of_hub(_text(address), allowed=self._hub)])

        return await self._described(self._work.fetch, found)

    async def _described(
        self, work: Callable[..., Any], describe: Callable[[], list[Described]]
    ) -> str:
        try:
            return await self._work.draw(self._shown, await work(describe))
        except ProbexError as error:
            return views.error(self._catalogue.shown(error))

    def _shown(self, described: Sequence[Described]) -> str:
        parts, n_maps = [], 0
        for found in described:
            on_map, more = "", n_maps == _MAPS and found.vector_T is not None
            if found.vector_T is not None and not more:
                on_map = self._on_map(found)
                n_maps += bool(on_map)
            parts.append(views.described(found, on_map, _NO_MAP if more else ""))
        return "".join(parts)

    def _on_map(self, found: Described) -> str:
        try:
            return self._catalogue.map(found.tree, starred=found.name, vector_T=found.vector_T)
        except ProbexError:  # the rest of the description is worth showing
            return ""

    async def _no_text(self) -> str:
        return ""

    async def _read_example(self, file: Any) -> tuple[Any, ...]:
        paths = _paths(file)
        with self._uploads.used(paths):
            try:
                [model] = sent(paths, self._uploads.folder)
                tree, vector_T = await self._work.read(self._catalogue.vector_of, model)
            except ProbexError as error:
                return None, _Example(fault=self._catalogue.shown(error)), gr.skip()
        return None, _Example(tree=tree, vector_T=vector_T, name=model.name), tree

    async def _search(
        self,
        query: Any,
        index: Any,
        sought: _Example,
        asked: Any,
        tree: Any,
        split: Any,
        words: Any,
        written: Any,
        sort: Any,
        k: Any,
        event: gr.EventData,
    ) -> tuple[Any, ...]:
        """Answers an event; of controls that merely lost the focus, only a new question."""
        if getattr(event.target, "_id", None) not in self._may_repeat:
            asked = None  # a repeated question is answered again
        return await self._answer(query, index, sought, asked, tree, split, words, written, sort, k)

    async def _answer(
        self, query: Any, index: Any, sought: _Example, asked: Any, *filters: Any
    ) -> tuple[Any, ...]:
        """Answers the question of the controls, unless it was asked before.

        Returns:
          The question, the searched index, and the answer.
        """
        text, index = _text(query), _text(index)
        tree, split, words, written, sort = map(_text, filters[:5])
        k = _how_many(filters[5])
        try:
            where = Filter(tree, split, words, told(written), sort)
            is_listed = bool(where.attributes) and not (text or sought.id or sought.name)
            tree = self._index_for(text, index) if text else sought.tree
            tree = index if is_listed else tree
            question = (text, tree, sought, where, k)
            answer = gr.skip()
            if question != asked:
                tree, answer = await self._found(text, tree, sought, where, k)
        except ProbexError as error:
            return None, gr.skip(), views.error(self._catalogue.shown(error))
        return question, tree if tree not in ("", index) else gr.skip(), answer

    def _index_for(self, text: str, index: str) -> str:
        """The tree of the index to search by text: the chosen one, if possible."""
        chosen = self._catalogue.snapshot(index)
        return (chosen if chosen.knows_texts else self._catalogue.snapshot(for_texts=True)).tree

    async def _found(
        self, text: str, tree: str, sought: _Example, where: Filter, k: int
    ) -> tuple[str, str]:
        """The tree of the searched index, and the models found as HTML."""
        if sought.fault and not text:
            raise ProbexError(sought.fault)
        is_similar = text or sought.id or sought.vector_T is not None
        if not (is_similar or where.attributes):
            return "", ""
        tree, hits = await self._work.search(self._hits, text, tree, sought, where, k)
        of = sought.id or sought.name
        title = text or (f"Similar to {of}" if is_similar else "By predicted attributes")
        return tree, await self._work.draw(views.results, title, hits, tree, where.attributes)

    def _hits(
        self, text: str, tree: str, sought: _Example, where: Filter, k: int
    ) -> tuple[str, list[Hit]]:
        if text:
            return self._catalogue.search(text, tree, k, where)
        if sought.vector_T is not None:
            return tree, self._catalogue.like(tree, sought.vector_T, k, where)
        if sought.id:
            return self._catalogue.like_id(tree, sought.id, k, where)
        return self._catalogue.listed(tree, k, where)

    async def _map(self, tree: Any) -> str:
        tree = _text(tree)
        try:
            drawn = await self._work.draw(self._catalogue.map, tree)
        except ProbexError as error:
            return views.error(self._catalogue.shown(error))
        return views.framed(drawn, f"Map of the models of {tree}") if drawn else ""

    async def _opened(self, request: gr.Request) -> tuple[Any, ...]:
        """A link to a search: ?query=… or ?like=…&index=…"""
        asked = {
            name: str(request.query_params.get(name, "")) for name in ("query", "like", "index")
        }
        if not (asked["query"] or asked["like"]):
            return (gr.skip(),) * 6
        tree = asked["index"] if asked["index"] in self._catalogue.snapshots else ""
        sought = _Example(id=asked["like"], tree=tree)
        query = "" if sought.id else asked["query"]
        answer = await self._answer(query, tree, sought, None, *[""] * 5, _HOW_MANY)
        question, shown, found = answer
        shown = tree or gr.skip() if shown == gr.skip() else shown
        return gr.Tabs(selected="search"), query, shown, sought, question, found


def _choice(label: str, snapshots: Iterable[Snapshot], field: str) -> gr.Dropdown:
    """A filter by the values of a field, if an index has several."""
    found = [one.values(field) for one in snapshots]
    values = sorted({value for some in found for value in some})
    return gr.Dropdown(
        [("any", _ANY), *((value, value) for value in values)],
        value=_ANY,
        label=label,
        visible=any(len(some) > 1 for some in found),
        min_width=120,
    )


def _sorts(attributes: Mapping[str, Attribute]) -> list[tuple[str, str]]:
    """The orders that there are, by numbers."""
    names = [name for name, value in sorted(attributes.items()) if isinstance(value, float)]
    return [("similarity", _ANY)] + [
        (f"{name}, {which} first", f"{sign}{name}")
        for name in names
        for which, sign in (("largest", "-"), ("smallest", ""))
    ]


def _example(attributes: Mapping[str, Attribute]) -> str:
    """A condition on the first attribute."""
    for name, value in sorted(attributes.items(), key=lambda one: isinstance(one[1], tuple)):
        shown = f'"{name}"' if " " in name else name
        if isinstance(value, float):
            return f"{shown} > {number(value)}"
        return f"{shown} = {value if isinstance(value, str) else next(iter(value), 'x')}"
    return ""


def _paths(files: Any) -> list[Path]:
    return [Path(file["path"]) for file in (files if isinstance(files, list) else [files])]


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _how_many(value: Any) -> int:
    """The value of the slider, whose number box may be empty or hold any number."""
    if not isinstance(value, int | float) or value != value:
        return _HOW_MANY
    return int(min(max(value, 1), MAX_K))
