"""What layers give to a regression on all of them, in files until it is solved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from probex_jax.encoders import Dense
from probex_jax.files import write_bytes
from probex_jax.fitting.centre import Tree
from probex_jax.fitting.closed_form import Features, Linear, all_entries
from probex_jax.fitting.ridge import Kernel
from probex_jax.fitting.tucker import Bases

_TREE = "tree/"


@dataclass(frozen=True)
class Kept:
    """A layer's file, of which each array is read when it is asked for.

    Args:
      path: where it is.
    """

    path: Path

    def write(self, found: Features, tree: Tree, measured: Mapping[str, np.ndarray]) -> None:
        """Writes it, whole or not at all.

        Args:
          found: what is regressed on.
          tree: what is taken off the matrices before; read again where they are, too.
          measured: "statistics" [N, 7] of small matrices, "sizes" [N, 1] and of factors
            "ranks" [N, 2] where they are asked for.
        """
        arrays: dict[str, Any] = {"whole": found.kernel.whole, **measured}
        if found.bases is not None:
            arrays["without"] = np.asarray(found.kernel.without, np.float32)
            arrays |= {"responses": found.responses, **found.bases._asdict()}
            arrays |= {_TREE + name: value for name, value in tree.items()}
        buffer = BytesIO()
        np.savez(buffer, **arrays)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self.path, buffer.getvalue())

    def _read(self, *names: str) -> list[Any]:
        with self.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return [arrays.get(name) for name in names]

    def measured(self, name: str) -> np.ndarray | None:
        """[N, F] float64 of what was `measured`; None where it was not."""
        return self._read(name)[0]

    @property
    def kernel(self) -> Kernel:
        """The inner products of the models."""
        return Kernel(*self._read("whole", "without"))

    @property
    def tree(self) -> Tree:
        """What was taken off matrices that are not read again."""
        with self.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            names = [name for name in arrays if name.startswith(_TREE)]
            return {name.removeprefix(_TREE): arrays[name] for name in names}

    def encoder(self, encoder: Linear) -> Linear:
        """What reads the layer, by an encoder or by fewer of its probes."""
        return _reader(encoder, *self._read("probes", "projection"))[0]

    def features(self, encoder: Linear) -> Features:
        """What is regressed on; the encoder as `encoder` takes it."""
        probes, projection, responses = self._read("probes", "projection", "responses")
        reader, bases = _reader(encoder, probes, projection)
        return Features(reader, self.kernel, bases, responses)


def _reader(encoder: Linear, probes: Any, projection: Any) -> tuple[Linear, Bases | None]:
    if isinstance(encoder, Dense) or probes is None:
        return all_entries(encoder), None
    bases = Bases(probes, projection)
    return bases.of(encoder), bases


class KeptKernels(Mapping[str, Kernel]):
    """Kernels of layers, of which one is in memory at a time, and one more that is.

    Args:
      kept: layer to its file.
      more: name of the one in memory to it; none if it is all zeros.
    """

    def __init__(self, kept: Mapping[str, Kept], more: Mapping[str, np.ndarray]):
        self._kept = kept
        self._more = {name: Kernel(each) for name, each in more.items() if each.any()}

    def __getitem__(self, layer: str) -> Kernel:
        return self._more[layer] if layer in self._more else self._kept[layer].kernel

    def __iter__(self) -> Iterator[str]:
        yield from self._kept
        yield from self._more

    def __len__(self) -> int:
        return len(self._kept) + len(self._more)
