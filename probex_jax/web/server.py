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
_LAST_REQUESTS_S = 5


def serve(
    catalogue: Catalogue,
    listening: socket.socket,
    *,
    file_bytes: int = 2**30,
    hub: bool = False,
    on_ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serves the page of a catalogue until the process is told to end.

    Args:
      catalogue: what is asked; closed in the end.
      listening: a bound socket. One that only this machine reaches is answered by no other name
        than `localhost`.
      file_bytes: the most that a file may have which somebody sends.
      hub: whether models of the hub are read.
      on_ready: called with the address as soon as requests are answered.

    Raises:
      ProbexError: if gradio is missing (extra `app`).
    """
    host, port = listening.getsockname()[:2]
    is_local = host.startswith("127.")
    uploads = Uploads(file_bytes)
    try:
        app = _application(catalogue, uploads, hub=hub, hosts=_LOCAL if is_local else ())
        catalogue.warm_up()
        _run(app, listening, lambda: on_ready(f"http://{'localhost' if is_local else host}:{port}"))
    finally:
        uploads.close()
        catalogue.close()


def _run(app: Any, listening: socket.socket, on_ready: Callable[[], None]) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            on_ready()

    Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=_LAST_REQUESTS_S)).run(
        [listening]
    )


def _application(catalogue: Catalogue, uploads: Uploads, *, hub: bool, hosts: Sequence[str]) -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(uploads.folder)
    try:
        import gradio as gr
        from fastapi import FastAPI
    except ImportError:
        raise ProbexError(
            "the page needs gradio: pip install 'gradio>=6.0' (extra `app`)"
        ) from None
    from probex_jax.web.api import routes
    from probex_jax.web.guard import Guard
    from probex_jax.web.page import Page
    from probex_jax.web.work import Work

    work = Work()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(routes(catalogue, uploads, work, hub=hub))
    # The fonts of the theme would be fetched from a server.
    theme = gr.themes.Base(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    gr.mount_gradio_app(
        app,
        Page(catalogue, uploads, work, hub=hub).blocks,
        "/",
        footer_links=[],
        run_history=False,
        max_file_size=uploads.file_bytes,
        ssr_mode=False,
        show_error=False,
        theme=theme,
        css_paths=[_ASSETS / "page.css"],
    )
    return Guard(app, uploads, hosts)
