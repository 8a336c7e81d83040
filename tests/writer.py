"""A process that writes a folder: `python -m tests.writer WHAT STOPS ARGUMENTS…`.

With STOPS it stops itself in the middle, where it has read what there is and goes on to write. What
it writes is one of the functions below; a ProbexError ends it as it ends a command.
"""

import os
import signal
import sys

import probex_jax as px
from probex_jax import bucket_locks
from probex_jax.bucket_paths import as_path
from probex_jax.fitting import Adam
from probex_jax.forest import grow
from probex_jax.search import Index, find_models
from probex_jax.sweeps import sweep
from tests.search.conftest import make_expert

SETTINGS = {
    "encoder": {"name": "probex", "n_probes": 4, "proj_dim": 4, "rep_dim": 8},
    "head": "class",
    "recipe": Adam(epochs=6, batch_size=8, eval_every=2),
}


def pack(stop, zoo, store):
    """Packs a zoo."""
    px.pack(px.scan(zoo), store, on_models=lambda total: stop())


def pack_a_block(stop, zoo, store):
    """Packs a zoo; stops after a block."""
    px.pack(px.scan(zoo), store, on_packed=lambda models: stop())


def index(stop, models, path):
    """Indexes models."""
    made = Index.create_or_open(path, make_expert())
    made.add_models(find_models(models), on_model=lambda fault: stop())


def forest(stop, store, path):
    """Grows a forest by a tree."""
    store = px.LayerStore.open(store)
    split = store.split
    store.split = lambda name: (stop(), split(name))[1]
    grow(path, store)


def train(stop, store, workdir, reports=1):
    """Trains an expert on each layer; stops at the nth report."""
    store = px.LayerStore.open(store)
    left = [lambda: None] * (int(reports) - 1) + [stop]
    progress = lambda layer, epochs: left.pop(0)() if left else None  # noqa: E731
    sweep(store, as_path(workdir), **SETTINGS, save_every_s=0, on_progress=progress)


def main(what, stops, *arguments):
    """Runs one of them."""
    bucket_locks.STALE_S = float(os.environ.get("STALE_S", bucket_locks.STALE_S))
    left = [stops == "True"]

    def stop():
        if left.pop() if left else False:
            os.kill(os.getpid(), signal.SIGSTOP)

    try:
        globals()[what](stop, *arguments)
    except px.ProbexError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(*sys.argv[1:])
