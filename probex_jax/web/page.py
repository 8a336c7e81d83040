"""The page: three views, in Gradio."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.search import Filter, Hit, Snapshot
from probex_jax.web import views
from probex_jax.web.catalogue import MAX_K, MAX_QUERY, Catalogue, Described
from probex_jax.web.models import of_hub, sent
from probex_jax.web.uploads import Uploads
from probex_jax.web.work import Work

TITLE = "What is this model?"
_ABOUT = """# What is this model?
Drop the weights of a neural network, and read which model it descends from and what it was
trained on; or find models by a sentence. Told from the weights alone, by
[probex_jax](https://arxiv.org/abs/2410.13569)."""
_TYPES = [".safetensors", ".json"]
_ANY = ""
# Described models that are shown with their map; of more, each would be a document of its own.
_MAPS = 3
_PRIVATE: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None}
# What is answered in an instant: one request, where a place in the queue takes two.
_AT_ONCE: dict[str, Any] = _PRIVATE | {"queue": False}


@dataclass(frozen=True)
class _Sought:
    """What a search is for: a text, a model of the index or one that was sent."""

    query: str = ""
    id: str = ""
    tree: str = ""
    vector_T: np.ndarray | None = None
    name: str = ""


class Page:
    """The page of a catalogue.

    Args:
      catalogue: what is asked.
      uploads: where files lie that somebody sent.
      work: who does it.
      hub: whether models of the hub are read.

    Attributes:
      blocks: what Gradio serves.
    """

    def __init__(self, catalogue: Catalogue, uploads: Uploads, work: Work, *, hub: bool):
        self._catalogue, self._uploads, self._work, self._hub = catalogue, uploads, work, hub
        with gr.Blocks(title=TITLE, analytics_enabled=False) as self.blocks:
            gr.Markdown(_ABOUT, elem_classes="px-about")
            with gr.Tabs() as tabs:
                with gr.Tab("Describe", id="describe"):
                    self._describe_view()
                with gr.Tab("Search", id="search"):
                    query, index, sought, found = self._search_view()
                with gr.Tab("Forest", id="forest") as forest:
                    self._forest_view(forest)
            self.blocks.load(self._opened, None, [tabs, query, index, sought, found], **_AT_ONCE)

    def _describe_view(self) -> None:
        limit = self._uploads.file_bytes / 2**20
        gr.Markdown(
            f"Safetensors files of at most {limit:,.0f} MiB each: whole models or LoRAs. Files "
            "dropped together with a `config.json`, `adapter_config.json` or an index of shards "
            "are one model. They are removed as soon as they have been read."
        )
        files = _files(
            file_count="multiple",
            file_types=_TYPES,
            label="Models to describe",
            height=150,
            elem_id="px-files",
        )
        if self._hub:
            with gr.Row(equal_height=True):
                address = gr.Textbox(
                    label="Or a model of the hub", placeholder="org/name", scale=4, max_length=300
                )
                ask = gr.Button("Describe", scale=1)
        described = gr.HTML(elem_id="px-described")
        files.upload(self._describe, files, [files, described], **_PRIVATE)
        if self._hub:
            gr.on(
                [ask.click, address.submit], self._describe_of_hub, address, described, **_PRIVATE
            )

    def _search_view(self) -> tuple[Any, ...]:
        snapshots = self._catalogue.snapshots
        texts = [one for one in snapshots.values() if one.knows_texts]
        sought = gr.State(_Sought())
        if not snapshots:
            gr.Markdown("This server has no index of models: start it with `--index`.")
        shown = bool(snapshots)
        with gr.Row(equal_height=True, visible=shown):
            query = gr.Textbox(
                label="What the model was trained on",
                placeholder="an inverted three" if texts else "no index here knows texts",
                interactive=bool(texts),
                max_length=MAX_QUERY,
                scale=4,
                elem_id="px-query",
            )
            ask = gr.Button("Search", variant="primary", scale=1)
        example = _files(
            file_types=[".safetensors"],
            label="Or an example: a model to find others like it",
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
                label="Its text holds", placeholder="any", max_length=MAX_QUERY, min_width=120
            )
            k = gr.Slider(1, MAX_K, 12, step=1, label="How many", min_width=120)
        found = gr.HTML(elem_id="px-found")
        filters = [tree, split, words, k]
        for_text = {
            "fn": self._search,
            "inputs": [query, index, *filters],
            "outputs": [sought, found],
        }
        gr.on([ask.click, query.submit], **for_text, **_AT_ONCE)
        example.upload(
            self._search_by_example,
            [example, *filters],
            [example, sought, index, found],
            **_PRIVATE,
        )
        changes = [tree.input, split.input, words.submit, words.blur, k.release]
        gr.on(changes, self._found, [sought, *filters], found, show_progress="hidden", **_AT_ONCE)
        return query, index, sought, found

    def _forest_view(self, tab: Any) -> None:
        snapshots = self._catalogue.snapshots
        indexed = {tree: len(one) for tree, one in snapshots.items()}
        gr.HTML(views.forest(self._catalogue.forest.trees, indexed), elem_id="px-forest")
        if snapshots:
            tree = gr.Dropdown(
                list(snapshots), value=next(iter(snapshots)), label="Map of the models of"
            )
            drawn = gr.HTML(elem_id="px-forest-map")
            gr.on([tab.select, tree.input], self._map, tree, drawn, **_AT_ONCE)

    async def _describe(self, files: Sequence[str]) -> tuple[None, str]:
        paths = [Path(file) for file in files]
        self._uploads.touch(paths)

        def found() -> list[Described]:
            with self._uploads.place() as folder:
                return self._catalogue.describe(sent(paths, folder))

        try:
            return None, await self._described(found)
        finally:
            self._uploads.remove(paths)

    async def _describe_of_hub(self, address: str) -> str:
        def found() -> list[Described]:
            return self._catalogue.describe([of_hub(address, allowed=self._hub)])

        return await self._described(found)

    async def _described(self, describe: Callable[[], list[Described]]) -> str:
        try:
            described = await self._work.read(describe)
            return await self._work.search(self._shown, described)
        except ProbexError as error:
            return views.error(self._catalogue.shown(error))

    def _shown(self, described: Sequence[Described]) -> str:
        parts: list[str] = []
        for found in described:
            on_map = ""
            if found.vector_T is not None and len(parts) < _MAPS:
                on_map = self._catalogue.map(
                    found.tree, starred=found.name, vector_T=found.vector_T
                )
            parts.append(views.described(found, on_map))
        return "".join(parts)

    async def _search(self, query: str, index: str, *filters: Any) -> tuple[_Sought, str]:
        sought = _Sought(query=query or "", tree=index or "")
        return sought, await self._found(sought, *filters)

    async def _search_by_example(self, files: Sequence[str], *filters: Any) -> tuple[Any, ...]:
        paths = [Path(file) for file in files[:1]]
        self._uploads.touch(paths)
        try:
            [model] = sent(paths, self._uploads.folder)
            tree, vector_T = await self._work.read(self._catalogue.vector_of, model)
        except ProbexError as error:
            shown = views.error(self._catalogue.shown(error))
            return None, _Sought(), gr.skip(), shown
        finally:
            self._uploads.remove(paths)
        sought = _Sought(tree=tree, vector_T=vector_T, name=model.name)
        return None, sought, tree, await self._found(sought, *filters)

    async def _found(self, sought: _Sought, tree: str, split: str, words: str, k: int) -> str:
        where = Filter(tree or "", split or "", (words or "").strip())
        try:
            return await self._work.search(self._gallery, sought, where, int(k))
        except ProbexError as error:
            return views.error(self._catalogue.shown(error))

    def _gallery(self, sought: _Sought, where: Filter, k: int) -> str:
        hits: list[Hit]
        tree = sought.tree
        if sought.vector_T is not None:
            hits = self._catalogue.like(tree, sought.vector_T, k, where)
            title = f"Like {sought.name}"
        elif sought.id:
            tree, hits = self._catalogue.like_id(tree, sought.id, k, where)
            title = f"Like {sought.id}"
        elif sought.query.strip():
            tree, hits = self._catalogue.search(sought.query, tree, k, where)
            title = sought.query
        else:
            return ""
        return views.results(title, hits, tree)

    async def _map(self, tree: str) -> str:
        try:
            drawn = await self._work.search(self._catalogue.map, tree)
        except ProbexError as error:
            return views.error(self._catalogue.shown(error))
        return views.framed(drawn, f"Map of the models of {tree}") if drawn else ""

    async def _opened(self, request: gr.Request) -> tuple[Any, ...]:
        """A link to a search: ?query=… or ?like=…&index=…"""
        asked = {
            name: str(request.query_params.get(name, "")) for name in ("query", "like", "index")
        }
        if not (asked["query"] or asked["like"]):
            return (gr.skip(),) * 5
        tree = asked["index"] if asked["index"] in self._catalogue.snapshots else ""
        sought = _Sought(asked["query"], asked["like"], tree)
        found = await self._found(sought, "", "", "", 12)
        shown = tree or gr.skip()
        return gr.Tabs(selected="search"), asked["query"], shown, sought, found


def _choice(label: str, snapshots: Iterable[Snapshot], field: str) -> gr.Dropdown:
    """A filter by one of the values of a field, where an index has several."""
    found = [one.values(field) for one in snapshots]
    values = sorted({value for some in found for value in some})
    return gr.Dropdown(
        [("any", _ANY), *((value, value) for value in values)],
        value=_ANY,
        label=label,
        visible=any(len(some) > 1 for some in found),
        min_width=120,
    )


def _files(**settings: Any) -> gr.File:
    """Where files are dropped; the guard has seen to it that they were sent here."""
    component = gr.File(**settings)

    def paths(payload: Any) -> list[str]:
        files = getattr(payload, "root", payload) or []
        return [file.path for file in (files if isinstance(files, list) else [files])]

    # Gradio's own leaves an empty file behind for each.
    setattr(component, "preprocess", paths)  # noqa: B010
    return component
