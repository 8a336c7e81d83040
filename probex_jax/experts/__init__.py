"""Tree Experts: fit one on a layer, sweep the layers of a tree, save and load."""

from probex_jax.experts.alignment import Alignment, ZeroShot, zero_shot
from probex_jax.experts.answered import Answered
from probex_jax.experts.baseline import run_statnn, statnn
from probex_jax.experts.batches import Read, batch_size, in_batches
from probex_jax.experts.committee import best_committee, committee
from probex_jax.experts.devices import Devices
from probex_jax.experts.evaluation import calibrated, evaluate, load_experts
from probex_jax.experts.expert import Expert, versions
from probex_jax.experts.metrics import Score, accuracy, mean_score, share, top_accuracy
from probex_jax.experts.network import Network, build_network
from probex_jax.experts.objective import Split
from probex_jax.experts.pytorch_format import from_torch, to_torch
from probex_jax.experts.recipe import Recipe
from probex_jax.experts.ridge import Ridge, fit_ridge
from probex_jax.experts.state import State
from probex_jax.experts.sweeps import SweepResult, sweep
from probex_jax.experts.training import fit

__all__ = [
    "Alignment",
    "Answered",
    "Devices",
    "Expert",
    "Network",
    "Read",
    "Recipe",
    "Ridge",
    "Score",
    "Split",
    "State",
    "SweepResult",
    "ZeroShot",
    "accuracy",
    "batch_size",
    "best_committee",
    "build_network",
    "calibrated",
    "committee",
    "evaluate",
    "fit",
    "fit_ridge",
    "from_torch",
    "in_batches",
    "load_experts",
    "mean_score",
    "run_statnn",
    "share",
    "statnn",
    "sweep",
    "to_torch",
    "top_accuracy",
    "versions",
    "zero_shot",
]
