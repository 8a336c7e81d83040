"""A program for tests: sweeps on one device and on three, resident and streamed."""

import json
import sys
from pathlib import Path

import jax

import probex_jax as px
from probex_jax.fitting import Adam, Devices
from tests.sweeps.of_layers import of_layer

ENCODER = {"name": "mvprobe", "n_probes": 4, "proj_dim": 4, "rep_dim": 8}
# So small a learning rate that Adam makes little of rounding.
RECIPE = Adam(epochs=6, eval_every=3, batch_size=16, learning_rate=1e-3)
GRID = {"seed": [0, 1, 2]}
WAYS = {
    "one": (1, {}),
    "three": (3, {}),
    "three, streamed": (3, {"stream": True}),
}


def main(store, folder):
    jax.config.update("jax_num_cpu_devices", 3)
    found = {}
    for compute in ("float32", "bfloat16"):
        recipe = Adam(**{**vars(RECIPE), "compute": compute})
        for name, (count, settings) in WAYS.items():
            result = px.sweep(
                px.LayerStore.open(store),
                Path(folder) / f"{name}, {compute}",
                encoder=ENCODER,
                head="class",
                recipe=recipe,
                grid=GRID,
                normalise="centre",
                devices=Devices.of(jax.devices()[:count]),
                **settings,
            )
            losses = {}
            workdir = Path(folder) / f"{name}, {compute}"
            for path in sorted(workdir.glob("layers/*/*")):
                metrics = of_layer(workdir, *path.parts[-2:]).card.figures
                losses["/".join(path.parts[-2:])] = metrics["losses"]
            found[f"{name}, {compute}"] = {"losses": losses, "test": result.test.value}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
