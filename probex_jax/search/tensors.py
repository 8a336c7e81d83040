"""All tensors of a store's models at once: kernels and statistics, read a layer at a time."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from probex_jax.encoders import statistics
from probex_jax.layer_store import LayerStore
from probex_jax.matrices import LowRank, gram

# What rounding leaves of a layer that is the same in all models, beside its size.
_CONSTANT = 1e-12


class Kernel(NamedTuple):
    """Inner products of M models, of which the first N are known.

    Args:
      products: [M, M] float64, centred on the known models.
      n_known: N.
    """

    products: np.ndarray
    n_known: int

    def coordinates(self) -> np.ndarray:
        """[M, R] with these inner products, R at most N; known models have a mean square norm of 1.

        Whatever is fitted to known models with an L2 penalty lies in the span of their tensors (the
        representer theorem): on these coordinates it answers as on all entries of all tensors.
        """
        n = self.n_known
        values_N, vectors_NN = np.linalg.eigh(self.products[:n, :n])
        kept = values_N > 1e-7 * values_N.max(initial=0)
        place_MR = self.products[:, :n] @ vectors_NN[:, kept] / np.sqrt(values_N[kept])
        return place_MR * np.sqrt(n / max(values_N.sum(), np.finfo(float).tiny))

    def cosines(self) -> np.ndarray:
        """[M, M]: of the angles between models, as seen from the centre of the known ones."""
        length_M = np.sqrt(np.maximum(np.diag(self.products), np.finfo(float).tiny))
        return self.products / length_M[:, None] / length_M


class Tensors(NamedTuple):
    """What is read of all tensors.

    Args:
      matrices: kernel of the layers with two sides above 1.
      everything: kernel of all layers; the same one where there are no vectors.
      statistics: [M, 7 · layers], those of StatNN; None of a store of factors, whose entries have
        no quantiles that factors tell.
    """

    matrices: Kernel
    everything: Kernel
    statistics: np.ndarray | None


def read_tensors(store: LayerStore, known: Sequence[str], asked: str) -> Tensors:
    """Reads all layers once, one after another.

    Each is centred on the known models and divided by its spread over them, so that every entry of
    every tensor counts alike.

    Args:
      store: the models.
      known: the splits whose models come first.
      asked: the split of the others.

    Raises:
      ProbexError: as `LayerStore.matrices`.
    """
    splits = [*known, asked]
    n_known = sum(len(store.split(split)) for split in known)
    n_models = n_known + len(store.split(asked))
    matrices_MM, vectors_MM = np.zeros([2, n_models, n_models])
    measured, compiled = [], jax.jit(statistics)
    for name, shape in store.layers.items():
        x = _layer(store, name, splits, n_models)
        if not store.ranks:
            measured.append(np.asarray(compiled(x)))
        kernel_MM = vectors_MM if 1 in shape else matrices_MM
        kernel_MM += standardised_products(x, n_known)
    return Tensors(
        Kernel(matrices_MM, n_known),
        Kernel(matrices_MM + vectors_MM, n_known),
        np.concatenate(measured, axis=1) if measured else None,
    )


def standardised_products(x: np.ndarray | LowRank, n_known: int) -> np.ndarray:
    """Inner products of one layer, centred on its first models and over their spread.

    Args:
      x: [M, H, W] float; an array is centred in place, factors by their products.
      n_known: how many models are the first.

    Returns:
      [M, M] float64; zeros of a layer that is the same in all known models.
    """
    if isinstance(x, LowRank):
        products_MM = np.asarray(gram(x, x), np.float64)
        size = float(np.trace(products_MM[:n_known, :n_known]))
    else:
        size = float(np.sum(np.square(x[:n_known]), dtype=np.float64))
        x -= x[:n_known].mean(axis=0, dtype=np.float64).astype(x.dtype)
        products_MM = np.asarray(gram(jnp.asarray(x), jnp.asarray(x)), np.float64)
    to_centre_M = products_MM[:, :n_known].mean(axis=1)
    products_MM += to_centre_M[:n_known].mean() - to_centre_M[:, None] - to_centre_M
    spread = float(np.trace(products_MM[:n_known, :n_known]))
    if spread <= _CONSTANT * size:
        return np.zeros_like(products_MM)
    return products_MM * (n_known * x.shape[1] * x.shape[2] / spread)


def _layer(store: LayerStore, name: str, splits: Sequence[str], n_models: int) -> Any:
    if name in store.ranks:
        parts = [store.matrices(name, split) for split in splits]
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    x, at = np.empty((n_models, *store.layers[name]), np.float32), 0
    for split in splits:
        for block in store.blocks(name, split):
            x[at : at + len(block)] = block
            at += len(block)
    return x
