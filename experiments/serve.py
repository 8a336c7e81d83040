"""Serves the web page: describe a model, search for models, look at the forest.

For programs there is /api. The page is for this machine alone unless --host says otherwise.

Example:
  python -m experiments.serve --forest=out/demo/forest --index=out/demo/index
"""

import signal

import uvicorn
from absl import flags

import probex_jax as px
from experiments import cli
from probex_jax.forest import Forest
from probex_jax.search import Index
from probex_jax.web import Catalogue, application

_FOREST = flags.DEFINE_string("forest", None, "Folder of the forest.", required=True)
_INDEX = flags.DEFINE_list("index", [], "Indexes of documented models, at most one a tree.")
_HOST = flags.DEFINE_string("host", "localhost", "Address to listen at; 0.0.0.0 for everyone.")
_PORT = flags.DEFINE_integer("port", 7860, "Port to listen at.", lower_bound=0, upper_bound=65535)
_MAX_MB = flags.DEFINE_integer(
    "max_mb", 1024, "The most MiB of a file that is sent.", lower_bound=1
)
_HUB = flags.DEFINE_bool("hub", False, "Also read models of the Hugging Face hub, by their ids.")


def main() -> None:
    catalogue = Catalogue(Forest.load(_FOREST.value), [Index.open(path) for path in _INDEX.value])
    catalogue.warm_up()
    local = _HOST.value in ("localhost", "127.0.0.1")
    hosts = {} if local else {"hosts": ()}
    # The server ends by itself on SIGTERM, and empties the folder of uploads.
    signal.set_wakeup_fd(-1)
    with application(catalogue, file_bytes=_MAX_MB.value * 2**20, hub=_HUB.value, **hosts) as app:
        server = uvicorn.Server(
            uvicorn.Config(
                app, _HOST.value, _PORT.value, log_level="warning", timeout_graceful_shutdown=3
            )
        )
        print(f"http://{_HOST.value}:{_PORT.value}  (Ctrl-C ends it)", flush=True)
        server.run()
    catalogue.close()
    if not server.started:
        raise px.ProbexError(f"cannot listen at {_HOST.value}:{_PORT.value}; choose another --port")


if __name__ == "__main__":
    cli.run(main)
