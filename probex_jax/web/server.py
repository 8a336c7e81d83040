"""The server: the page, `/api` and their guard in one ASGI application."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.web.catalogue import Catalogue
from probex_jax.web.uploads import Uploads

_LOCAL = ("localhost", "127.0.0.1")
_ASSETS = Path(__file__).parent
_LAST_REQUESTS_S, _IDLE_S = 5, 75
_VISITS = 1000
# The colours of the reports.
_BLUE, _DARKER = "#0072b2", "#005c91"


def serve(
    catalogue: Catalogue,
    listening: socket.socket,
    *,
    names: Sequence[str] = (),
    file_bytes: int = 2**30,
    hub: bool = False,
    on_start: Callable[[], None] = lambda: None,
    on_ready: Callable[[int], None] = lambda port: None,
) -> None:
    """Serves the page of a catalogue until the process is stopped.

    Args:
      catalogue: the forest and indexes.
      listening: a bound socket.
      names: allowed host names. On a loopback address, `localhost` is allowed as well and nothing
        else; on other addresses all names are allowed if none is given.
      file_bytes: maximal size of an uploaded file.
      hub: whether to read models from the hub.
      on_start: called just before the server installs its signal handlers.
      on_ready: called with the port as soon as requests are answered.

    Raises:
      ProbexError: if gradio is missing (extra `app`).
    """
    host, port = listening.getsockname()[:2]
    hosts = (*_LOCAL, host, *names) if host.startswith("127.") else names
    uploads = Uploads(file_bytes)
    try:
        app = _application(catalogue, uploads, hub=hub, hosts=hosts, proxies=names)
        catalogue.warm_up()
        on_start()
        _run(app, listening, lambda: on_ready(port))
    finally:
        uploads.close()


def _run(app: Any, listening: socket.socket, on_ready: Callable[[], None]) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            on_ready()

    # Unlike uvicorn's other HTTP parser, h11 limits the size of headers.
    config = uvicorn.Config(
        app,
        http="h11",
        log_level="error",
        # Longer than clients keep connections: one that closes while it is reused fails.
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=_LAST_REQUESTS_S,
    )
    Server(config).run([listening])


def _application(
    catalogue: Catalogue,
    uploads: Uploads,
    *,
    hub: bool,
    hosts: Sequence[str],
    proxies: Sequence[str],
) -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(uploads.folder)
    try:
        import gradio as gr
        from fastapi import FastAPI
        from gradio.state_holder import SessionState
    except ImportError:
        raise ProbexError(
            "the page needs gradio: pip install 'gradio>=6.31' (extra `app`)"
        ) from None
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse

    from probex_jax.web.api import invalid_value, routes
    from probex_jax.web.forms import form_routes
    from probex_jax.web.guard import Guard
    from probex_jax.web.page import Page
    from probex_jax.web.work import Work

    work = Work()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(RequestValidationError, invalid_value)
    app.include_router(routes(catalogue, uploads, work, hub=hub))
    app.include_router(form_routes(uploads, catalogue.shown))
    if catalogue.family_tree:
        app.add_api_route("/lineage", lambda: HTMLResponse(catalogue.family_tree))
    page = Page(catalogue, uploads, work, hub=hub)
    blocks = page.blocks
    # Gradio keeps 50 KB per session, its questions, and its answers with all maps and pictures. The
    # last two are for links to sessions, which this page does not have.
    blocks.state_session_capacity = _VISITS
    SessionState._update_value_in_config = lambda *_: None  # type: ignore[method-assign]
    # As if launched by Gradio: only then does it check which files it reads.
    blocks.has_launched = True
    # The default theme fetches fonts from a server, and its blue is too pale to read.
    theme = gr.themes.Base(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ).set(
        color_accent=_BLUE,
        slider_color=_BLUE,
        button_primary_background_fill=_BLUE,
        button_primary_background_fill_hover=_DARKER,
    )
    gr.mount_gradio_app(
        app,
        blocks,
        "/",
        footer_links=[],
        run_history=False,
        max_file_size=uploads.file_bytes,
        ssr_mode=False,
        show_error=False,
        theme=theme,
        css_paths=[_ASSETS / "page.css"],
    )
    return Guard(app, uploads, page.events, hosts, proxies)
