"""Writes the small files of Keras in `data/`; Keras itself is there in `make parity` only.

KERAS_BACKEND=jax python -m tests.model_files.containers.keras_files
"""

import os
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data"


def small():
    """A model of few layers, named and not, that was trained for a step."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 3))
    x = layers.Conv1D(2, 2, name="stem")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Dense(2)(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(2, name="head")(x), name="small")


def main():
    DATA.mkdir(exist_ok=True)
    for name in ("small.weights.h5", "small.h5", "small.keras"):
        model = small()
        (model.save_weights if "weights" in name else model.save)(DATA / name)
    weights = {w.path: np.asarray(w.value) for w in small().weights}
    np.savez(DATA / "small.npz", **weights)


if __name__ == "__main__":
    main()
