"""Where the data of a sweep comes from."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax import linen as nn
from jax.experimental import multihost_utils

from probex_jax.experts.alignment import Candidates
from probex_jax.experts.chance import targets
from probex_jax.fitting.centre import Tree, normalised, tree_of
from probex_jax.fitting.data import Split
from probex_jax.fitting.moments import Moments
from probex_jax.fitting.network import NO_MORE, Network
from probex_jax.fitting.sharding import ONE, Devices
from probex_jax.fitting.task import Task
from probex_jax.layer_store import LayerStore


@dataclass(frozen=True)
class Source:
    """Where the data of a sweep comes from, and what is trained on it.

    Args:
      store: the tree's matrices and labels.
      task: what is asked of a model.
      candidates: of experts aligned with text, the texts; else None.
      normalise: as `sweep` takes it.
      network: what is trained on each layer, reading what is normalised already.
      devices: where.
      encoders: encoders by name that are not ours.
    """

    store: LayerStore
    task: Task
    candidates: Candidates | None
    normalise: str
    network: Network
    devices: Devices
    encoders: Mapping[str, type[nn.Module]] = NO_MORE

    def __reduce__(self) -> Any:
        """Pickled without devices: another process has its own. Who trains asks no text encoder."""
        candidates = self.candidates and replace(self.candidates, encoder=None)
        given = self.store, self.task, candidates, self.normalise, self.network
        return _on_local_devices, (*given, ONE, self.encoders)

    @property
    def splits(self) -> tuple[str, ...]:
        """What is trained and evaluated on."""
        held_out = self.candidates is not None and self.store.has("val_holdout")
        return ("train", "val", "val_holdout") if held_out else ("train", "val")

    def counts(self) -> dict[str, int]:
        """Models of each split."""
        return {name: len(self.store.split(name)) for name in self.splits}

    def tree(self, layer: str) -> Tree:
        """What is taken off a layer before an expert reads it.

        Raises:
          FrozenLayer: if the training matrices are all the same.
        """
        if self.normalise == "none":
            return {}
        where = f"{self.store.path}: {layer}"
        factors = layer in self.store.ranks
        return tree_of(self._moments(layer), self.normalise, factors=factors, where=where)

    def _moments(self, layer: str) -> Moments:
        """Of the training models; of several processes each reads its share."""
        n_models, processes = len(self.store.split("train")), self.devices.processes
        if processes == 1 or n_models < processes:
            return self.store.moments(layer, "train")
        shares = np.array_split(np.arange(n_models), processes)
        ours = self.store.moments(layer, "train", shares[jax.process_index()])
        # As bits, since JAX would make float32 of it.
        packed = np.concatenate([[ours.n_models, ours.squares], ours.mean.ravel()]).view(np.uint32)
        gathered = np.asarray(multihost_utils.process_allgather(packed))
        parts = np.ascontiguousarray(gathered, np.uint32).view(np.float64)
        shape = ours.mean.shape
        each = [Moments(int(part[0]), part[2:].reshape(shape), float(part[1])) for part in parts]
        return reduce(operator.add, each)

    def targets(self, split: str) -> Split:
        """What all models of a split are, and are compared with; without matrices."""
        if self.candidates is not None:
            return self.candidates.targets(split)
        y = targets(self.task, self.store, split, self.store.classes)
        return Split(None, y)  # type: ignore[arg-type]

    def parameter_bytes(self, layer: str) -> int:
        """What the parameters of the network that reads a layer take, in float32."""
        x = jax.ShapeDtypeStruct((1, *self.store.layers[layer]), np.float32)
        texts = self.targets("train").texts
        variables = jax.eval_shape(self.network.init, jax.random.key(0), x, texts)
        return sum(4 * leaf.size for leaf in jax.tree.leaves(variables))

    def matrices(
        self,
        layer: str,
        tree: Tree,
        split: str,
        models: np.ndarray | None = None,
        storage: str = "float32",
    ) -> Any:
        """Some matrices of a layer, or all of a split, as they are trained on, in host memory."""
        x: Any = normalised(self.store.matrices(layer, split, models), tree)  # type: ignore[arg-type]
        if storage == "bfloat16":
            return jax.tree.map(lambda leaf: np.asarray(leaf).astype(ml_dtypes.bfloat16), x)
        return x


def _on_local_devices(*given: Any) -> Source:
    return replace(Source(*given), devices=Devices.of(jax.local_devices()))
