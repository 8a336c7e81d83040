"""The server: the page, `/api` and their guard in one ASGI application."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.web.catalogue import Catalogue
from probex_jax.web.uploads import Uploads

_LOCAL = ("localhost", "127.0.0.1", "[::1]")
_ASSETS = Path(__file__).parent


@contextmanager
def application(
    catalogue: Catalogue,
    *,
    file_bytes: int = 2**30,
    hub: bool = False,
    hosts: Sequence[str] = _LOCAL,
) -> Iterator[Any]:
    """The ASGI application of a catalogue; what was sent to it is removed in the end.

    Args:
      catalogue: what is asked.
      file_bytes: the most that a file may have that somebody sends.
      hub: whether models of the hub are read.
      hosts: names by which it may be asked; none for all.

    Raises:
      ProbexError: if gradio is missing (extra `app`).
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    uploads = Uploads(file_bytes)
    os.environ["GRADIO_TEMP_DIR"] = str(uploads.folder)
    try:
        yield _assembled(catalogue, uploads, hub=hub, hosts=hosts)
    finally:
        uploads.close()


def _assembled(catalogue: Catalogue, uploads: Uploads, *, hub: bool, hosts: Sequence[str]) -> Any:
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
