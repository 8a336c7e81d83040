"""`/api`: what the page and programs ask, answered in HTML or JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from probex_jax.errors import ProbexError
from probex_jax.forest import Tree
from probex_jax.search import Filter, Hit
from probex_jax.web import views
from probex_jax.web.catalogue import Catalogue, Described, as_json, told
from probex_jax.web.forms import read_form
from probex_jax.web.guard import FRAMED
from probex_jax.web.models import Model, of_hub, plain_name, sent
from probex_jax.web.page import asset, page_html
from probex_jax.web.uploads import Refused, TooLarge, Uploads
from probex_jax.web.work import Work

_T = TypeVar("_T")

_ABOUT = {
    "GET /api/forest": "the trees, their experts and indexes",
    "GET /api/search?query=TEXT": "the models that match a text; index, k, tree, split, text and "
    "filter, such as accuracy > .9, narrow the search; sort=-accuracy sorts those found",
    "GET /api/search?filter=CONDITION&sort=ATTRIBUTE": "the first models of all, by an attribute",
    "GET /api/search?like=ID": "models similar to one in an index",
    "POST /api/search": "models similar to that in the body, a safetensors file",
    "POST /api/describe?name=NAME": "the description of the model in the body, a safetensors "
    "file, with its card in Markdown; of the files of a form a list of descriptions",
    "GET /api/describe?id=ID&index=TREE": "the description of a model of an index",
    "GET /api/describe?model=ORG/NAME": "the description of a hub model, if the server allows it",
    "GET /api/lineage?model=ID": "the parents of a model of the lineage, and those with the same "
    "weights",
}
# Size of a form: in files of the largest size, and without its files.
_AT_ONCE, _FORM_BYTES = 8, 2**20


@dataclass(frozen=True)
class _Search:
    """What a search asks."""

    query: str = ""
    like: str = ""
    index: str = ""
    k: int = 10
    tree: str = ""
    split: str = ""
    text: str = ""
    filter: str = ""
    sort: str = ""

    @classmethod
    def of(cls, params: QueryParams) -> _Search:
        given: dict[str, Any] = {f.name: params[f.name] for f in fields(cls) if f.name in params}
        try:
            return cls(**given | {"k": int(given.get("k", cls.k))})
        except ValueError:
            raise ProbexError(f"k: {given['k'][:20]!r} is not a whole number") from None

    @property
    def where(self) -> Filter:
        return Filter(self.tree, self.split, self.text, told(self.filter), self.sort)


@dataclass(frozen=True)
class _Found:
    """The models that a search found in the index of a tree."""

    title: str
    tree: str
    hits: list[Hit]
    where: Filter
    similar: bool = True

    def as_json(self) -> dict[str, Any]:
        similarity = ("similarity",) if self.similar else ()
        names = (*similarity, "id", "tree", "split", "labels", "text", "attributes")
        ranked = [
            {"rank": rank, **{name: getattr(hit, name) for name in names}}
            for rank, hit in enumerate(self.hits, start=1)
        ]
        return {"index": self.tree, "hits": ranked}

    def as_html(self) -> str:
        return views.results(self.title, self.hits, self.tree, self.where.attributes)


def application(catalogue: Catalogue, uploads: Uploads, work: Work, *, hub: bool) -> Starlette:
    """The page and `/api`, unguarded.

    Args:
      catalogue: the forest and indexes.
      uploads: keeps bodies.
      work: thread pools.
      hub: whether to read models from the hub.
    """
    api = _Api(catalogue, uploads, work, hub=hub)
    document = page_html(catalogue, file_bytes=uploads.file_bytes, hub=hub)
    routes = [
        _static("/", document, "text/html"),
        _static("/page.css", asset("page.css"), "text/css"),
        _static("/page.js", asset("page.js"), "text/javascript"),
        Route("/api", api.about),
        Route("/api/forest", api.forest),
        Route("/api/search", api.search),
        Route("/api/search", api.search_by_example, methods=["POST"]),
        Route("/api/describe", api.describe_known),
        Route("/api/describe", api.describe, methods=["POST", "PUT"]),
        Route("/api/lineage", api.lineage),
        Route("/map", api.map),
        *([Route("/lineage", api.family_tree)] if catalogue.family_tree else ()),
    ]
    failed: Any = api.failed
    return Starlette(routes=routes, exception_handlers={ProbexError: failed})


def _static(path: str, text: str, kind: str) -> Route:
    async def answer(request: Request) -> Response:
        return Response(text, media_type=kind)

    return Route(path, answer)


class _Api:
    """The endpoints; an error is one line without paths of this machine."""

    def __init__(self, catalogue: Catalogue, uploads: Uploads, work: Work, *, hub: bool):
        self._catalogue, self._uploads, self._work, self._hub = catalogue, uploads, work, hub

    async def failed(self, request: Request, error: ProbexError) -> Response:
        status = error.status if isinstance(error, Refused) else 422
        line = self._catalogue.shown(error)
        if _for_page(request):
            return HTMLResponse(views.error(line), status)
        return JSONResponse({"error": line}, status)

    async def about(self, request: Request) -> Response:
        return JSONResponse(_ABOUT)

    async def forest(self, request: Request) -> Response:
        trees = self._catalogue.forest.trees
        about = await self._work.search(lambda: [_tree(self._catalogue, name) for name in trees])
        return JSONResponse({"trees": about})

    async def search(self, request: Request) -> Response:
        asked = _Search.of(request.query_params)
        return await self._answer(
            request, self._work.search, lambda: self._found(asked), _Found.as_json, _Found.as_html
        )

    def _found(self, asked: _Search) -> _Found:
        query, like, where = asked.query.strip(), asked.like, asked.where
        if not (query or like) and (where.conditions or where.sort):
            listed = self._catalogue.listed(asked.index, asked.k, where)
            return _Found("By predicted attributes", *listed, where, similar=False)
        if bool(query) == bool(like):
            raise ProbexError("give query or like, or neither with filter or sort")
        if like:
            near = self._catalogue.like_id(asked.index, like, asked.k, where)
            return _Found(f"Similar to {like}", *near, where)
        return _Found(query, *self._catalogue.search(query, asked.index, asked.k, where), where)

    async def search_by_example(self, request: Request) -> Response:
        asked = _Search.of(request.query_params)
        where = asked.where
        if asked.query or asked.like:
            raise ProbexError("a file is searched by itself: leave out query and like")
        self._catalogue.check(asked.index, asked.k, where)  # before the file is read

        def found() -> _Found:
            [model, *others] = models()
            if others:
                raise ProbexError("expected one model to search by")
            tree, vector_T = self._catalogue.vector_of(model, asked.index)
            hits = self._catalogue.like(tree, vector_T, asked.k, where)
            return _Found(
                f"Similar to {model.name.removesuffix('.safetensors')}", tree, hits, where
            )

        async with self._received(request) as models:
            return await self._answer(
                request, self._work.read, found, _Found.as_json, _Found.as_html
            )

    async def describe(self, request: Request) -> Response:
        several = _is_form(request)
        async with self._received(request) as models:
            return await self._described(request, self._work.read, models, several=several)

    async def describe_known(self, request: Request) -> Response:
        """Describes a model of an index or of the hub."""
        id, index, address = (request.query_params.get(n, "") for n in ("id", "index", "model"))
        if id:
            return await self._described(
                request, self._work.read, lambda: [self._catalogue.model(id, index)]
            )
        if not address:
            raise ProbexError("give id or model, or send a file")
        return await self._described(
            request, self._work.fetch, lambda: [of_hub(address, allowed=self._hub)]
        )

    async def _described(
        self,
        request: Request,
        work: Callable[..., Any],
        models: Callable[[], list[Model]],
        *,
        several: bool = False,
    ) -> Response:
        def in_json(found: list[Described]) -> Any:
            answers = [as_json(one) for one in found]
            return answers if several else answers[0]

        def in_html(found: list[Described]) -> str:
            return "".join(map(views.described, found))

        return await self._answer(
            request, work, lambda: self._catalogue.describe(models()), in_json, in_html
        )

    async def lineage(self, request: Request) -> Response:
        id = request.query_params.get("model", "")
        return JSONResponse({"id": id, **asdict(self._catalogue.relatives(id))})

    async def family_tree(self, request: Request) -> Response:
        return HTMLResponse(
            self._catalogue.family_tree, headers={"content-security-policy": FRAMED}
        )

    async def map(self, request: Request) -> Response:
        """The map of an index as a document, with a star at x, y for another model."""
        asked = request.query_params
        try:
            star = (float(asked["x"]), float(asked["y"])) if "x" in asked and "y" in asked else None
        except ValueError:
            raise ProbexError("x and y: expected numbers") from None
        index, name = asked.get("index", ""), asked.get("name", "")
        drawn = await self._work.draw(self._catalogue.map, index, name, star)
        return HTMLResponse(views.map_document(drawn), headers={"content-security-policy": FRAMED})

    @asynccontextmanager
    async def _received(self, request: Request) -> AsyncIterator[Callable[[], list[Model]]]:
        """Gives the models in the body: a file itself, or the files of a form."""
        uploads, kind = self._uploads, request.headers.get("content-type", "")
        is_form, length = _is_form(request), request.headers.get("content-length", "")
        name = plain_name(request.query_params.get("name", "model.safetensors"))
        most = _AT_ONCE * uploads.file_bytes + _FORM_BYTES if is_form else uploads.file_bytes
        size = int(length) if length.isdecimal() else most
        if is_form and size > most:
            raise TooLarge("the form is too large; send fewer files at once")
        if not is_form:
            uploads.check_size(size, name)
        try:
            with uploads.coming(size) as arrival:
                if is_form:
                    await read_form(kind, request.stream(), arrival)
                else:
                    await arrival.receive(request.stream(), name, "model.safetensors")
        except ClientDisconnect:
            raise Refused("the client disconnected") from None
        with uploads.used(arrival.paths):
            if not is_form:
                yield lambda: [Model(name, arrival.paths[0])]
                return
            with uploads.place() as folder:
                yield lambda: sent(arrival.paths, folder)

    async def _answer(
        self,
        request: Request,
        work: Callable[..., Any],
        find: Callable[[], _T],
        in_json: Callable[[_T], Any],
        in_html: Callable[[_T], str],
    ) -> Response:
        """What is found, in the form that was asked for."""
        if _for_page(request):
            return HTMLResponse(await self._work.draw(in_html, await work(find)))
        answer = await work(lambda: in_json(find()))
        return JSONResponse(answer, 422 if "error" in answer else 200)


def _for_page(request: Request) -> bool:
    """Whether the page asks, which takes nothing else; who opens an address takes many types."""
    return request.headers.get("accept") == "text/html"


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/")


def _tree(catalogue: Catalogue, name: str) -> dict[str, Any]:
    tree, snapshot = catalogue.forest.trees[name], catalogue.snapshots.get(name)
    about: dict[str, Any] = {
        "tree": name,
        "root": tree.router.root or tree.router.stated_root,
        "models": tree.router.n_models,
        "index": None,
    }
    about["experts"] = [_expert(tree, label_set) for label_set in tree.entries]
    about["expert"] = next(iter(about["experts"]), None)
    if snapshot is not None:
        about["index"] = {"models": len(snapshot), "texts": snapshot.knows_texts}
    return about


def _expert(tree: Tree, label_set: str) -> dict[str, Any]:
    facts = tree.facts(label_set)
    return {
        "label_set": label_set,
        "hash": facts.hash,
        "layers": facts.layers,
        "accuracy": facts.accuracy,
        "classes": list(tree.entries[label_set].classes),
        "attributes": [
            {"attribute": name, "accuracy": asked.facts.accuracy, "coverage": asked.facts.coverage}
            for name, asked in tree.asked(label_set).items()
        ],
    }
