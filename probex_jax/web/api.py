"""The same questions for programs: `/api`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from probex_jax.errors import ProbexError
from probex_jax.reports import model_card
from probex_jax.search import Filter, Hit
from probex_jax.web.catalogue import Catalogue, as_json
from probex_jax.web.models import Model, of_hub, plain_name
from probex_jax.web.uploads import Refused, Uploads
from probex_jax.web.work import Work

_ABOUT = {
    "GET /api/forest": "the trees, their experts and indexes",
    "GET /api/search?query=TEXT": "the models that a text is about; index, k, tree, split and text "
    "narrow it down",
    "GET /api/search?like=ID": "the models like one of an index",
    "POST /api/search": "the models like one whose safetensors file is the body",
    "POST /api/describe?name=NAME": "a description of the model whose safetensors file is the "
    "body, with its card in Markdown",
    "GET /api/describe?model=ORG/NAME": "of a model of the hub, where the server allows it",
}


@dataclass(frozen=True)
class _Narrowed:
    """What every search may say beside what it is for."""

    index: str = ""
    k: int = 10
    tree: str = ""
    split: str = ""
    text: str = ""

    @property
    def where(self) -> Filter:
        return Filter(self.tree, self.split, self.text)


_Narrowing = Annotated[_Narrowed, Depends()]


def routes(catalogue: Catalogue, uploads: Uploads, work: Work, *, hub: bool) -> APIRouter:
    """The routes of `/api`.

    Args:
      catalogue: what is asked.
      uploads: where bodies go.
      work: who does it.
      hub: whether models of the hub are read.
    """
    router, answers = APIRouter(prefix="/api"), _Answers(catalogue, uploads, work)

    @router.get("")
    async def about() -> dict[str, str]:
        return _ABOUT

    @router.get("/forest")
    async def forest() -> JSONResponse:
        return await answers.of(work.search, lambda: _forest(catalogue))

    @router.get("/search")
    async def search(narrowed: _Narrowing, query: str = "", like: str = "") -> JSONResponse:
        def found() -> dict[str, Any]:
            if bool(query.strip()) == bool(like):
                raise ProbexError("give query or like, one of the two")
            if like:
                return _hits(*catalogue.like_id(narrowed.index, like, narrowed.k, narrowed.where))
            return _hits(*catalogue.search(query, narrowed.index, narrowed.k, narrowed.where))

        return await answers.of(work.search, found)

    @router.post("/search")
    async def search_by_example(
        request: Request, narrowed: _Narrowing, name: str = "model.safetensors"
    ) -> JSONResponse:
        def found(model: Model) -> dict[str, Any]:
            tree, vector_T = catalogue.vector_of(model, narrowed.index)
            return _hits(tree, catalogue.like(tree, vector_T, narrowed.k, narrowed.where))

        def check() -> None:
            catalogue.check(narrowed.index, narrowed.k, narrowed.where)

        return await answers.about_a_file(request, name, found, check)

    @router.api_route("/describe", methods=["POST", "PUT"])
    async def describe(request: Request, name: str = "model.safetensors") -> JSONResponse:
        return await answers.about_a_file(request, name, lambda m: _described(catalogue, m))

    @router.get("/describe")
    async def describe_of_hub(model: str = "") -> JSONResponse:
        return await answers.of(
            work.fetch, lambda: _described(catalogue, of_hub(model, allowed=hub))
        )

    return router


class _Answers:
    """How questions are answered: a mistake is one line, and holds no path of this machine."""

    def __init__(self, catalogue: Catalogue, uploads: Uploads, work: Work):
        self._catalogue, self._uploads, self._work = catalogue, uploads, work

    async def of(
        self, work: Callable[..., Any], found: Callable[[], dict[str, Any]]
    ) -> JSONResponse:
        try:
            answer = await work(found)
        except ProbexError as error:
            return self._mistake(error)
        return JSONResponse(answer, 422 if "error" in answer else 200)

    async def about_a_file(
        self,
        request: Request,
        name: str,
        found: Callable[[Model], dict[str, Any]],
        check: Callable[[], None] = lambda: None,
    ) -> JSONResponse:
        """The answer about the file that is the body of a request; `check` comes before that."""
        name, uploads = plain_name(name), self._uploads
        length = request.headers.get("content-length", "")
        try:
            check()
            if request.headers.get("content-type", "").startswith("multipart/"):
                raise ProbexError("send the file itself as the body, as curl -T does; not a form")
            size = int(length) if length.isdigit() else uploads.file_bytes
            uploads.check_size(size, name)
            with uploads.coming(size) as arrival:
                path = await arrival.receive(request.stream(), name, "model.safetensors")
        except ClientDisconnect:
            return _error(400, "gone before the file was whole")
        except ProbexError as error:
            return self._mistake(error)
        with uploads.used([path]):
            return await self.of(self._work.read, lambda: found(Model(name, path)))

    def _mistake(self, error: ProbexError) -> JSONResponse:
        status = error.status if isinstance(error, Refused) else 422
        return _error(status, self._catalogue.shown(error))


async def no_value(request: Request, error: Exception) -> JSONResponse:
    """The answer to a field whose value is none, such as k=many."""
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
    fields = ("similarity", "id", "tree", "split", "labels", "text")
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
        "expert": None,
        "index": None,
    }
    if tree.expert is not None:
        facts = tree.facts()
        about["expert"] = {
            "hash": facts.hash,
            "layers": facts.layers,
            "accuracy": facts.accuracy,
            "classes": list(tree.expert.card.classes),
        }
    if snapshot is not None:
        about["index"] = {"models": len(snapshot), "texts": snapshot.knows_texts}
    return about
