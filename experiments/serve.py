"""Serves the web page: describe a model, search for models, view the forest.

Programs use its /api (docs/page.md). Only this machine can reach it unless --host says otherwise.

Example:
  probex serve --forest=out/demo/forest --index=out/demo/indexes
"""

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterable
from pathlib import Path

from absl import flags

import probex_jax as px
from experiments import cli
from probex_jax.bucket_paths import as_path
from probex_jax.forest import Forest
from probex_jax.lineage import load_lineage
from probex_jax.search import Index
from probex_jax.web import Catalogue, serve

_FOREST = flags.DEFINE_string("forest", None, "Forest made by grow_forest.", required=True)
_INDEX = flags.DEFINE_list(
    "index", [], "Indexes made by index, at most one for each tree, or a folder of them."
)
_LINEAGE = flags.DEFINE_string(
    "lineage", None, "Folder made by lineage: the page then shows its family tree."
)
_HOST = flags.DEFINE_string("host", "localhost", "Address to listen on; 0.0.0.0 lets everyone in.")
_PORT = flags.DEFINE_integer(
    "port", 7860, "Port to listen on; 0 for any free one.", lower_bound=0, upper_bound=65535
)
_MAX_MB = flags.DEFINE_integer("max_mb", 1024, "Largest upload, in MiB.", lower_bound=1)
_NAMES = flags.DEFINE_list("names", [], "Host names that a proxy may use for the page.")
_HUB = flags.DEFINE_bool(
    "hub", False, "Also describe models of the Hugging Face hub, by their ids."
)


def _indexes(paths: Iterable[Path]) -> list[Index]:
    """The indexes at the paths, or in the folders that these are."""
    found = []
    for path in paths:
        inside = sorted(path.glob("*/index.json")) if not (path / "index.json").exists() else []
        found += [Index.open(index.parent) for index in inside] or [Index.open(path)]
    return found


def _hand_over_signals() -> None:
    """The server ends by itself on SIGTERM, and removes what was sent to it."""
    signal.set_wakeup_fd(-1)


def main() -> None:
    print("loading the forest, its experts and maps", file=sys.stderr)
    forest, indexes = Forest.load(_FOREST.value), _indexes(map(as_path, _INDEX.value))
    lineage = load_lineage(_LINEAGE.value) if _LINEAGE.value else None
    try:
        listening = socket.create_server((_HOST.value, _PORT.value), backlog=512)
    except OSError as error:
        where = f"{_HOST.value}:{_PORT.value}"
        raise px.ProbexError(f"{where}: cannot listen there: {error.strerror}") from None
    host = socket.gethostname() if _HOST.value in ("0.0.0.0", "") else _HOST.value
    # Models of the hub are read as a stranger: whoever asks is one.
    os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
    with listening, contextlib.suppress(KeyboardInterrupt):
        serve(
            Catalogue(forest, indexes, lineage),
            listening,
            names=_NAMES.value,
            file_bytes=_MAX_MB.value * 2**20,
            hub=_HUB.value,
            on_start=_hand_over_signals,
            on_ready=lambda port: print(f"http://{host}:{port}  (Ctrl-C ends it)", flush=True),
        )


if __name__ == "__main__":
    cli.run(main)
