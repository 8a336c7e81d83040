"""`/api`: the questions of the page for programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from probex_jax.errors import ProbexError
from probex_jax.forest import Tree
from probex_jax.reports import model_card
from probex_jax.search import Filter, Hit
from probex_jax.web.catalogue import Catalogue, as_json, told
from probex_jax.web.models import Model, of_hub, plain_name
from probex_jax.web.uploads import Refused, Uploads
from probex_jax.web.work import Work

_ABOUT = {
    "GET /api/forest": "the trees, their experts and indexes",
    "GET /api/search?query=TEXT": "the models that match a text; index, k, tree, split, text and "
    "filter, such as accuracy > .9, narrow the search; sort=-accuracy sorts those found",
    "GET /api/search?filter=CONDITION&sort=ATTRIBUTE": "the first models of all, by an attribute",
    "GET /api/search?like=ID": "models similar to one in an index",
    "POST /api/search": "models similar to that in the body, a safetensors file",
    "POST /api/describe?name=NAME": "the description of the model in the body, a safetensors "
    "file, with its card in Markdown",
    "GET /api/describe?model=ORG/NAME": "the description of a hub model, if the server allows it",
    "GET /api/lineage?model=ID": "the parents of a model of the lineage, and those with the same "
    "weights",
}


@dataclass(frozen=True)
class _Options:
    """Options of every search."""

    index: str = ""
    k: int = 10
    tree: str = ""
    split: str = ""
    text: str = ""
    filter: str = ""
    sort: str = ""

    @property
    def where(self) -> Filter:
        return Filter(self.tree, self.split, self.text, told(self.filter), self.sort)


_SearchOptions = Annotated[_Options, Depends()]


def routes(catalogue: Catalogue, uploads: Uploads, work: Work, *, hub: bool) -> APIRouter:
    """The routes of `/api`.

    Args:
      catalogue: the forest and indexes.
      uploads: keeps bodies.
      work: thread pools.
      hub: whether to read models from the hub.
    """
    router, answers = APIRouter(prefix="/api"), _Answers(catalogue, uploads, work)

    @router.get("")
    async def about() -> dict[str, str]:
        return _ABOUT

    @router.get("/forest")
    async def forest() -> JSONResponse:
        return await answers.of(work.search, lambda: _forest(catalogue))

    @router.get("/search")
    async def search(options: _SearchOptions, query: str = "", like: str = "") -> JSONResponse:
        def found() -> dict[str, Any]:
            if not (query.strip() or like) and (options.filter.strip() or options.sort):
                found = _hits(*catalogue.listed(options.index, options.k, options.where))
                for hit in found["hits"]:  # there is nothing that they could be similar to
                    del hit["similarity"]
                return found
            if bool(query.strip()) == bool(like):
                raise ProbexError("give query or like, or neither with filter or sort")
            if like:
                return _hits(*catalogue.like_id(options.index, like, options.k, options.where))
            return _hits(*catalogue.search(query, options.index, options.k, options.where))

        return await answers.of(work.search, found)

    @router.post("/search")
    async def search_by_example(
        request: Request, options: _SearchOptions, name: str = "model.safetensors"
    ) -> JSONResponse:
        def found(model: Model) -> dict[str, Any]:
            tree, vector_T = catalogue.vector_of(model, options.index)
            return _hits(tree, catalogue.like(tree, vector_T, options.k, options.where))

        def check() -> None:
            catalogue.check(options.index, options.k, options.where)

        return await answers.about_a_file(request, name, found, check)

    @router.api_route("/describe", methods=["POST", "PUT"])
    async def describe(request: Request, name: str = "model.safetensors") -> JSONResponse:
        return await answers.about_a_file(request, name, lambda m: _described(catalogue, m))

    @router.get("/describe")
    async def describe_of_hub(model: str = "") -> JSONResponse:
        return await answers.of(
            work.fetch, lambda: _described(catalogue, of_hub(model, allowed=hub))
        )

    @router.get("/lineage")
    async def relatives(model: str = "") -> JSONResponse:
        return await answers.of(
            work.search, lambda: {"id": model, **asdict(catalogue.relatives(model))}
        )

    return router


class _Answers:
    """Answers; an error is one line without paths of this machine."""

    def __init__(self, catalogue: Catalogue, uploads: Uploads, work: Work):
        self._catalogue, self._uploads, self._work = catalogue, uploads, work

    async def of(
        self, work: Callable[..., Any], found: Callable[[], dict[str, Any]]
    ) -> JSONResponse:
        try:
            answer = await work(found)
        except ProbexError as error:
            return self._failed(error)
        return JSONResponse(answer, 422 if "error" in answer else 200)

    async def about_a_file(
        self,
        request: Request,
        name: str,
        found: Callable[[Model], dict[str, Any]],
        check: Callable[[], None] = lambda: None,
    ) -> JSONResponse:
        """Answers a request whose body is a file; `check` runs before the file is read."""
        name, uploads = plain_name(name), self._uploads
        length = request.headers.get("content-length", "")
        try:
            check()
            if request.headers.get("content-type", "").startswith("multipart/"):
                raise ProbexError("send the file itself as the body, as curl -T does, not a form")
            size = int(length) if length.isdigit() else uploads.file_bytes
            uploads.check_size(size, name)
            with uploads.coming(size) as arrival:
                path = await arrival.receive(request.stream(), name, "model.safetensors")
        except ClientDisconnect:
            return _error(400, "the client disconnected")
        except ProbexError as error:
            return self._failed(error)
        with uploads.used([path]):
            return await self.of(self._work.read, lambda: found(Model(name, path)))

    def _failed(self, error: ProbexError) -> JSONResponse:
        status = error.status if isinstance(error, Refused) else 422
        return _error(status, self._catalogue.shown(error))


async def invalid_value(request: Request, error: Exception) -> JSONResponse:
    """The answer to an invalid value, such as k=many."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return _error(422, f"{first['loc'][-1]}: {first['msg'].lower()}")


def _error(status: int, error: object) -> JSONResponse:
    return JSONResponse({"error": str(error)}, status)


def _described(catalogue: Catalogue, model: Model) -> dict[str, Any]:
    [found] = catalogue.describe([model])
    card = "" if found.description is None else model_card(found.description)
    return as_json(found, card)


def _hits(tree: str, hits: list[Hit]) -> dict[str, Any]:
    fields = ("similarity", "id", "tree", "split", "labels", "text", "attributes")
    ranked = [
        {"rank": rank, **{name: getattr(hit, name) for name in fields}}
        for rank, hit in enumerate(hits, start=1)
    ]
    return {"index": tree, "hits": ranked}


def _forest(catalogue: Catalogue) -> dict[str, Any]:
    return {"trees": [_tree(catalogue, name) for name in catalogue.forest.trees]}


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
