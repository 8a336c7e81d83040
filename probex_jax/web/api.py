"""The same questions for programs: `/api`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from probex_jax.errors import ProbexError
from probex_jax.reports import model_card
from probex_jax.search import Filter, Hit
from probex_jax.web.catalogue import Catalogue, as_json
from probex_jax.web.models import Model, of_hub, plain_name
from probex_jax.web.uploads import Full, TooLarge, Uploads
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


def routes(catalogue: Catalogue, uploads: Uploads, work: Work, *, hub: bool) -> APIRouter:
    """The routes of `/api`.

    Args:
      catalogue: what is asked.
      uploads: where bodies go.
      work: who does it.
      hub: whether models of the hub are read.
    """
    router = APIRouter(prefix="/api")

    @router.get("")
    async def about() -> dict[str, str]:
        return _ABOUT

    @router.get("/forest")
    async def forest() -> JSONResponse:
        return JSONResponse(await work.search(_forest, catalogue))

    @router.get("/search")
    async def search(
        query: str = "",
        like: str = "",
        index: str = "",
        k: int = 10,
        tree: str = "",
        split: str = "",
        text: str = "",
    ) -> JSONResponse:
        where = Filter(tree, split, text)

        def found() -> dict[str, Any]:
            if bool(query.strip()) == bool(like):
                raise ProbexError("give query or like, one of the two")
            if like:
                return _hits(*catalogue.like_id(index, like, k, where))
            return _hits(*catalogue.search(query, index, k, where))

        return await _answer(work.search, found)

    @router.post("/search")
    async def search_by_example(
        request: Request,
        name: str = "model.safetensors",
        index: str = "",
        k: int = 10,
        tree: str = "",
        split: str = "",
        text: str = "",
    ) -> JSONResponse:
        where = Filter(tree, split, text)

        def found(model: Model) -> dict[str, Any]:
            of, vector_T = catalogue.vector_of(model, index)
            return _hits(of, catalogue.like(of, vector_T, k, where))

        return await _received(request, name, found)

    @router.api_route("/describe", methods=["POST", "PUT"])
    async def describe(request: Request, name: str = "model.safetensors") -> JSONResponse:
        return await _received(request, name, lambda model: _described(catalogue, model))

    @router.get("/describe")
    async def describe_of_hub(model: str = "") -> JSONResponse:
        def found() -> dict[str, Any]:
            return _described(catalogue, of_hub(model, allowed=hub))

        return await _answer(work.read, found)

    async def _received(
        request: Request, name: str, found: Callable[[Model], dict[str, Any]]
    ) -> JSONResponse:
        name = plain_name(name)
        length = request.headers.get("content-length", "")
        try:
            size = int(length) if length.isdigit() else uploads.file_bytes
            uploads.check_size(size, name)
            with uploads.place() as folder:
                path = folder / "model.safetensors"
                with uploads.coming(size):
                    await uploads.receive(request.stream(), path, name)
                return await _answer(work.read, lambda: found(Model(name, path)))
        except ClientDisconnect:
            return _error(400, "gone before the file was whole")
        except ProbexError as error:
            status = {TooLarge: 413, Full: 503}.get(type(error), 507)
            return _error(status, catalogue.shown(error))

    async def _answer(
        work: Callable[..., Any], found: Callable[[], dict[str, Any]]
    ) -> JSONResponse:
        try:
            answer = await work(found)
        except ProbexError as error:
            return _error(422, catalogue.shown(error))
        return JSONResponse(answer, 422 if "error" in answer else 200)

    return router


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
            "classes": tree.expert.card["classes"],
        }
    if snapshot is not None:
        about["index"] = {"models": len(snapshot), "texts": snapshot.knows_texts}
    return about
