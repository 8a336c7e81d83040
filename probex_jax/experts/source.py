"""Where the data of a sweep comes from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import ml_dtypes
import numpy as np

from probex_jax.experts.alignment import Candidates
from probex_jax.experts.centring import Tree, centre_rank, normalised, tree_variables
from probex_jax.experts.devices import Devices
from probex_jax.experts.expert import Expert
from probex_jax.experts.network import Network
from probex_jax.experts.objective import Split
from probex_jax.layer_store import LayerStore


@dataclass(frozen=True)
class Source:
    """Where the data of a sweep comes from, and what is trained on it.

    Args:
      store: the tree's matrices and labels.
      candidates: of experts aligned with text, the texts; else None.
      normalise: as `sweep` takes it.
      network: layer to what is trained on it.
      devices: where.
    """

    store: LayerStore
    candidates: Candidates | None
    normalise: str
    network: Callable[[str], Network]
    devices: Devices

    @property
    def splits(self) -> tuple[str, ...]:
        """What is trained and evaluated on."""
        held_out = self.candidates is not None and self.store.has("val_holdout")
        return ("train", "val", "val_holdout") if held_out else ("train", "val")

    def counts(self) -> dict[str, int]:
        """Models of each split."""
        return {name: len(self.store.split(name)) for name in self.splits}

    def tree(self, layer: str) -> Tree:
        """What is taken off a layer before an expert reads it."""
        return tree_variables(self.store, layer, self.normalise, self.devices)

    def targets(self, split: str) -> Split:
        """What all models of a split are, and are compared with; without matrices."""
        if self.candidates is None:
            return Split(None, self.store.targets(split))  # type: ignore[arg-type]
        return self.candidates.targets(split)

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


def expert_of(params: Any, tree: Tree, card: Mapping[str, Any]) -> Expert:
    """What was trained on matrices that were normalised by a tree: it reads them as they are."""
    variables = {"params": params, "tree": dict(tree)} if tree else {"params": params}
    return Expert(variables, {**card, "centre_rank": centre_rank(tree)})
