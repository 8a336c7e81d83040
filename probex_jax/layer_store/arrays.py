"""Matrices of one layer on disk: sharded, checksummed zarr3 arrays, through TensorStore.

A layer is one array, `matrices` [rows, H, W]; a LoRA's is two, `up` [rows, H, R] and `down`
[rows, R, W].
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from probex_jax.errors import ProbexError
from probex_jax.files import layer_folder

FULL = "no space left on the disk; free some and run the same command again"

_CHECKED = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]


def parts(shape: tuple[int, int], rank: int | None) -> dict[str, tuple[int, int]]:
    """The arrays that hold a layer, and the shape of a row of each.

    Example:
      >>> parts((6, 4), None), parts((6, 4), 2)
      ({'matrices': (6, 4)}, {'up': (6, 2), 'down': (2, 4)})
    """
    if rank is None:
        return {"matrices": shape}
    return {"up": (shape[0], rank), "down": (rank, shape[1])}


class LayerArray:
    """One array of a layer, [rows, a, b] float32, row by row."""

    def __init__(self, path: Path, array: Any):
        self._path = path
        self._array = array

    @classmethod
    def create(
        cls, store: Path, layer: str, part: str, shape: tuple[int, int], block: int
    ) -> "LayerArray":
        """Opens an array for writing, making it where there is none.

        Args:
          store: the store's folder.
          layer: name of the layer.
          part: which of its `parts`.
          shape: of a row.
          block: rows of one shard, which is one file.
        """
        metadata = {
            "shape": [0, *shape],
            "data_type": "float32",
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [block, *shape]},
            },
            "codecs": [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": [1, *shape],
                        "codecs": _CHECKED,
                        "index_codecs": _CHECKED,
                    },
                }
            ],
        }
        if (layer_folder(store / "layers", layer) / part / "zarr.json").exists():
            return cls.open(store, layer, part, shape)
        return cls._open(store, layer, part, {"metadata": metadata, "create": True})

    @classmethod
    def open(cls, store: Path, layer: str, part: str, shape: tuple[int, int]) -> "LayerArray":
        """Opens an array, whose rows must be of the shape given."""
        opened = cls._open(store, layer, part, {"open": True})
        if opened._array.shape[1:] != shape or opened._array.dtype.name != "float32":
            raise ProbexError(f"{opened._path}: not the matrices that store.json says")
        return opened

    @classmethod
    def _open(cls, store: Path, layer: str, part: str, options: dict[str, Any]) -> "LayerArray":
        path = layer_folder(store / "layers", layer)
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{path.resolve()}/{part}/"},
            "context": {"file_io_sync": False},  # as all that `writing` writes
            # A missing chunk would otherwise read as zeros, and one of zeros not be written.
            "fill_missing_data_reads": False,
            "store_data_equal_to_fill_value": True,
            **options,
        }
        with _one_line_errors(path):
            return cls(path, ts.open(spec).result())

    def ended(self, rows: int) -> Callable[[], None]:
        """Begins to end the array with so many rows; what waits until it is done."""
        future = self._array.resize(exclusive_max=[rows, None, None], expand_only=True)

        def wait() -> None:
            with _one_line_errors(self._path):
                self._array = future.result()

        return wait

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Reads rows [n] as [n, a, b] float32, in the order given."""
        with _one_line_errors(self._path):
            contiguous = len(rows) > 0 and np.array_equal(rows, rows[0] + np.arange(len(rows)))
            index = slice(int(rows[0]), int(rows[-1]) + 1) if contiguous else rows
            return np.asarray(self._array[index].read().result())


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Turns TensorStore's errors into one line; its many kinds are told apart by text alone."""
    try:
        yield
    except (ValueError, RuntimeError, IndexError, KeyError) as error:
        text = str(error)
        if "No space left" in text or "quota exceeded" in text.lower():
            reason = FULL
        elif "NOT_FOUND" in text:
            reason = "a part of the store is missing; pack it again"
        elif "DATA_LOSS" in text or "CRC" in text or "FAILED_PRECONDITION" in text:
            reason = f"the store is damaged; pack it again ({text[:200]})"
        else:
            reason = f"cannot be read or written: {text[:200]}"
        raise ProbexError(f"{path}: {reason}") from error
