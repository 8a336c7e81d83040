"""Tree Experts: fit one on a layer, sweep the layers of a tree, save and load."""

from probex_jax.experts.baseline import run_statnn, statnn
from probex_jax.experts.expert import Expert, probabilities, versions
from probex_jax.experts.metrics import Score, accuracy
from probex_jax.experts.network import Network, build_network
from probex_jax.experts.sweeps import SweepResult, evaluate, sweep
from probex_jax.experts.training import Recipe, Split, State, fit

__all__ = [
    "Expert",
    "Network",
    "Recipe",
    "Score",
    "Split",
    "State",
    "SweepResult",
    "accuracy",
    "build_network",
    "evaluate",
    "fit",
    "probabilities",
    "run_statnn",
    "statnn",
    "sweep",
    "versions",
]
