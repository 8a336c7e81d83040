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
# As in the reports' figures.
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
    """Serves the page of a catalogue until the process is told to end.

    Args:
      catalogue: what is asked.
      listening: a bound socket.
      names: by which the server may be asked. One that only this machine reaches is asked by
        `localhost` as well, and by no others; one that others reach by all, if none is given.
      file_bytes: the most that a file may have which somebody sends.
      hub: whether models of the hub are read.
      on_start: called just before signals are the server's.
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

    # Of the parsers of HTTP that uvicorn knows, h11 has a limit for headers.
    config = uvicorn.Config(
        app,
        http="h11",
        log_level="error",
        # Longer than clients keep a connection: one that is closed as it is used again fails.
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

    from probex_jax.web.api import no_value, routes
    from probex_jax.web.forms import form_routes
    from probex_jax.web.guard import Guard
    from probex_jax.web.page import Page
    from probex_jax.web.work import Work

    work = Work()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(RequestValidationError, no_value)
    app.include_router(routes(catalogue, uploads, work, hub=hub))
    app.include_router(form_routes(uploads, catalogue.shown))
    page = Page(catalogue, uploads, work, hub=hub)
    blocks = page.blocks
    # Of each visit Gradio keeps 50 KB, what it was asked, and what it answered: maps, pictures. The
    # last two are for links to visits, which this page has not.
    blocks.state_session_capacity = _VISITS
    SessionState._update_value_in_config = lambda *_: None  # type: ignore[method-assign]
    # As if it had started it itself: only then Gradio checks by itself whose files it reads.
    blocks.has_launched = True
    # The fonts of the theme would be fetched from a server, and its blue is too pale to read.
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
