"""Random matrices and factors, and the networks that the suites `encoder` and `train` run."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import probex_jax as px
from probex_jax.fitting import (
    Adam,
    Network,
    SeveralClasses,
    Split,
    Task,
    Texts,
    build_network,
    loop,
)
from probex_jax.fitting.group import Group, select

N_CLASSES = 100
N_TEXTS, TEXT_DIM = 150, 768


@dataclass(frozen=True)
class Case:
    """A network and the models that it reads.

    Args:
      encoder: its name.
      dim: rows and columns of a matrix.
      rank: of factors; 0 for dense matrices.
      models: how many.
      rep_dim: size of the representation.
      units: probes, and columns of the projection.
    """

    encoder: str
    dim: int
    rank: int
    models: int
    rep_dim: int
    units: int = 128

    @property
    def name(self) -> str:
        """As the figures call it."""
        title = {"probex": "ProbeX", "mvprobe": "MVProbe"}[self.encoder]
        size = f"{self.dim}x{self.dim}" + (f" of rank {self.rank}" if self.rank else "")
        return f"{title}, {self.models} of {size}"

    def network(self, head: str = "class") -> Network:
        """The network, new."""
        sizes = {"n_probes": self.units, "proj_dim": self.units, "rep_dim": self.rep_dim}
        return build_network({"name": self.encoder, **sizes}, head, N_CLASSES)

    def matrices(self, key: jax.Array, dtype: Any = jnp.float32) -> Any:
        """[N, H, W], dense or `LowRank`."""
        n, dim, rank = self.models, self.dim, self.rank
        if not rank:
            return 0.02 * jax.random.normal(key, [n, dim, dim], dtype)
        up, down = jax.random.split(key)
        return px.LowRank(
            jax.random.normal(up, [n, dim, rank], dtype),
            0.02 * jax.random.normal(down, [n, rank, dim], dtype),
        )

    def split(self, *, with_text: bool) -> Split:
        """Models with their classes, or with the text of each among candidates."""
        keys = jax.random.split(jax.random.key(1), 3)
        x = self.matrices(keys[0])
        if with_text:
            texts_YD = jax.random.normal(keys[2], [N_TEXTS, TEXT_DIM])
            return Split(x, jax.random.randint(keys[1], [self.models], 0, N_TEXTS), texts_YD)
        y_NY = jax.random.bernoulli(keys[1], shape=[self.models, N_CLASSES])
        return Split(x, y_NY.astype(jnp.float32))


def epoch_of(
    network: Network, recipe: Adam, split: Split
) -> tuple[Callable[..., Any], tuple[Any, Split, Any, Any]]:
    """An epoch of training one network, and what it is called with.

    Returns:
      A function of rates, data, carry and batches, not compiled; and these.
    """
    task: Task = SeveralClasses() if split.texts is None else Texts()
    n_models = split.x.shape[0]
    group = Group(network, task, (recipe,), 1, {"train": n_models, "val": n_models})
    stacked = split._replace(x=jax.tree.map(lambda leaf: leaf[None], split.x))
    given = group.prepared(stacked)
    given = given._replace(x=jax.tree.map(lambda leaf: leaf[0], given.x))
    state = select(jax.device_put(group.initial(stacked)), 0, 0)
    rates = jax.tree.map(lambda rate: rate[0], group.rates())
    batches = jax.tree.map(lambda leaf: leaf[0, 0], group.batches(0))
    carry = state.params, state.opt_state
    return partial(loop.epoch, group.program, None), (rates, given, carry, batches)
