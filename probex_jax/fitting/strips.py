"""One layer of many models, strip by strip of its rows, on one device or several.

All that a closed form takes of a layer are sums over its rows: inner products of models, Gram
matrices of weights, projections. A strip is [N, h, W], the same rows of all models. Strips lie on
the devices in turns, and what they give is added up on the host, in float64 and in their order: the
sums have the same bits on any number of devices. Strips that have room together are made once;
otherwise they are made again whenever they are asked for, as many in a pass over the models as have
room. A strip is one row of all models at least.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from probex_jax.matrices import LowRank, Matrices, dense, gram

# Size of a strip, multiplied out.
_STRIP_BYTES = 64 * 2**20

Blocks = Callable[[], Iterable[Matrices]]


class Strips:
    """The matrices of a layer, the longer side of which is divided.

    Args:
      blocks: called for each pass over the models, yields them in order, [n, H, W] float or
        `LowRank`, as an encoder reads them.
      n_models: N, of all blocks.
      shape: (H, W).
      factors: whether they are `LowRank`; those of all models are kept.
      strip_bytes: size of a strip, multiplied out, or of one row of all models if that is more.
      room: bytes that all strips may take together, on the host and on devices that share its
        memory; None for no limit. Those that need more are read again in every pass.
      devices: where strips lie in turns; none for the default device.

    Attributes:
      transposed: whether strips are columns of the matrices, of which there are more than rows.
      rows, columns: size of the side that is divided, and of the other.

    Example:
      >>> x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
      >>> strips = Strips(lambda: [x], 2, (3, 4))
      >>> strips.transposed, strips.rows, strips.columns
      (True, 4, 3)
      >>> bool((strips.kernel() == np.einsum("nhw,mhw->nm", x, x)).all())
      True
    """

    def __init__(
        self,
        blocks: Blocks,
        n_models: int,
        shape: tuple[int, int],
        *,
        factors: bool = False,
        strip_bytes: int = _STRIP_BYTES,
        room: int | None = None,
        devices: Sequence[jax.Device] = (),
    ):
        self.n_models = n_models
        self.transposed = shape[1] > shape[0]
        self.rows, self.columns = shape[::-1] if self.transposed else shape
        self._blocks, self._devices = blocks, devices
        size = 4 * n_models * self.rows * self.columns
        self._height = -(-self.rows // min(self.rows, -(-size // strip_bytes)))
        self._starts = range(0, self.rows, self._height)
        # Strips that are made in one pass.
        self._together = len(self._starts)
        if room is not None and size > room:
            self._together = max(1, room // (4 * n_models * self._height * self.columns))
        self._factors = self._all_factors() if factors else None
        resident = not factors and self._together >= len(self._starts)
        self._kept = self._read(range(len(self._starts))) if resident else None

    def _all_factors(self) -> LowRank:
        whole = jax.tree.map(lambda *parts: jnp.concatenate(parts), *self._blocks())
        return LowRank(whole.down.mT, whole.up.mT) if self.transposed else whole

    def _device(self, number: int) -> jax.Device | None:
        return self._devices[number % len(self._devices)] if self._devices else None

    def _padded(self, part: Any) -> Any:
        """Rows [..., h, W] of the last strip filled up with zeros, so that all have one shape."""
        missing = self._height - part.shape[-2]
        widths = [(0, 0)] * (part.ndim - 2) + [(0, missing), (0, 0)]
        return np.pad(part, widths) if missing else part

    def _read(self, numbers: Sequence[int]) -> list[jax.Array]:
        """Makes strips in one pass over the models, each on its device."""
        if len(self._starts) == 1:  # a small layer, of which there are many: no program of its own
            whole_NHW = np.concatenate([np.asarray(dense(block)) for block in self._blocks()])
            whole_NHW = whole_NHW.mT if self.transposed else whole_NHW
            whole_NHW = np.asarray(whole_NHW, np.float32)
            return [jax.device_put(whole_NHW, self._device(0))]
        shape = self.n_models, self._height, self.columns
        strips = [jnp.zeros(shape, device=self._device(number)) for number in numbers]
        model = 0
        for block in self._blocks():
            for place, number in enumerate(numbers):
                device, row = self._device(number), self._starts[number]
                there = block if device is None else jax.device_put(block, device)
                strips[place] = _with(strips[place], there, model, row, self.transposed)
            model += block.shape[0]
            jax.block_until_ready(strips)  # or blocks would wait in memory for their turn
        return strips

    def __iter__(self) -> Iterator[Any]:
        """The strips [N, h, W], or `LowRank` of them, each on its device."""
        numbers = range(len(self._starts))
        if self._kept is not None:
            yield from self._kept
        elif self._factors is None:
            for first in numbers[:: self._together]:
                yield from self._read(numbers[first : first + self._together])
        else:
            for number, start in enumerate(self._starts):
                up = self._padded(np.asarray(self._factors.up[:, start : start + self._height]))
                yield jax.device_put(LowRank(up, self._factors.down), self._device(number))

    def split(self, rows: np.ndarray) -> list[np.ndarray]:
        """[..., rows, K] as the strips divide it, the last part filled up with zeros."""
        return [self._padded(rows[..., start : start + self._height, :]) for start in self._starts]

    def joined(self, parts: Iterable[np.ndarray]) -> np.ndarray:
        """What `split` divided; of the parts one is in memory at a time."""
        whole = None
        for start, part in zip(self._starts, parts, strict=True):
            if whole is None:
                whole = np.empty((*part.shape[:-2], self.rows, part.shape[-1]), part.dtype)
            whole[..., start : start + self._height, :] = part[..., : self.rows - start, :]
        assert whole is not None
        return whole

    def map(self, function: Callable[..., Any], *split: Sequence[Any]) -> Iterator[np.ndarray]:
        """function(strip, its part of each of `split`) on the strips' devices, on the host."""
        busy: deque[Any] = deque()
        for strip, *parts in zip(self, *split, strict=True):
            busy.append(function(strip, *parts))
            if len(busy) > max(1, len(self._devices)):
                yield np.asarray(busy.popleft())
        yield from map(np.asarray, busy)

    def sum(
        self, function: Callable[..., Any], *split: Sequence[Any], dtype: Any = np.float64
    ) -> np.ndarray:
        """The sum of `map` over the strips, in the order of these."""
        parts = self.map(function, *split)
        total = np.array(next(parts), dtype)
        for part in parts:
            total += part
        return total

    def kernel(self) -> np.ndarray:
        """[N, N] float64: inner products of all models."""
        if self._factors is not None:
            return np.asarray(_kernel(self._factors), np.float64)
        return self.sum(_kernel)


@jax.jit
def _kernel(x: Matrices) -> jax.Array:
    return gram(x, x)


@partial(jax.jit, static_argnames="transposed", donate_argnums=0)
def _with(
    strip_NhW: jax.Array, block: Matrices, model: int, row: int, transposed: bool
) -> jax.Array:
    """A strip with its rows of a block of models, the first of which is its so many-th."""
    block_nHW = dense(block).mT if transposed else dense(block)
    _, height, columns = strip_NhW.shape
    missing = -block_nHW.shape[1] % height
    block_nHW = jnp.pad(block_nHW, [(0, 0), (0, missing), (0, 0)])
    sizes = block_nHW.shape[0], height, columns
    part_nhW = jax.lax.dynamic_slice(block_nHW, (0, row, 0), sizes)
    return jax.lax.dynamic_update_slice(strip_NhW, part_nhW.astype(strip_NhW.dtype), (model, 0, 0))
