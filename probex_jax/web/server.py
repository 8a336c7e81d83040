"""The server: the page, `/api` and their guard in one ASGI application."""

from __future__ import annotations

import gc
import socket
from collections.abc import Callable, Sequence
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.web.catalogue import Catalogue
from probex_jax.web.uploads import Uploads

_LOCAL = ("localhost", "127.0.0.1")
_LAST_REQUESTS_S, _IDLE_S = 5, 75


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
      ProbexError: if starlette or uvicorn is missing (extra `app`).
    """
    host, port = listening.getsockname()[:2]
    hosts = (*_LOCAL, host, *names) if host.startswith("127.") else names
    uploads = Uploads(file_bytes)
    try:
        app = _guarded(catalogue, uploads, hub=hub, hosts=hosts, proxies=names)
        catalogue.warm_up()
        # What stays is looked through no more: that stopped all answers for a fifth of a second.
        gc.collect()
        gc.freeze()
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


def _guarded(
    catalogue: Catalogue,
    uploads: Uploads,
    *,
    hub: bool,
    hosts: Sequence[str],
    proxies: Sequence[str],
) -> Any:
    try:
        import uvicorn  # noqa: F401

        from probex_jax.web.api import application
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        raise ProbexError(f"the page needs {missing}: pip install 'probex_jax[app]'") from None
    from probex_jax.web.guard import Guard
    from probex_jax.web.work import Work

    return Guard(application(catalogue, uploads, Work(), hub=hub), hosts, proxies)
