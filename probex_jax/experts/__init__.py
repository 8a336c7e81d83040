"""Tree Experts: what they are, what they answer, how well, and how they are kept."""

from probex_jax.experts.alignment import Alignment, ZeroShot, zero_shot
from probex_jax.experts.batching import Read, batch_size, in_batches, sized
from probex_jax.experts.card import Calibration, Card, MemberCard, TextCard, versions
from probex_jax.experts.committee import best_committee, committee
from probex_jax.experts.evaluation import calibrated, evaluate, load_experts
from probex_jax.experts.expert import Expert
from probex_jax.experts.predictions import Predictions
from probex_jax.experts.torch_format import from_torch, to_torch
from probex_jax.experts.verify import verify_experts

__all__ = [
    "Alignment",
    "Calibration",
    "Card",
    "Expert",
    "MemberCard",
    "Predictions",
    "Read",
    "TextCard",
    "ZeroShot",
    "batch_size",
    "best_committee",
    "calibrated",
    "committee",
    "evaluate",
    "from_torch",
    "in_batches",
    "load_experts",
    "sized",
    "to_torch",
    "verify_experts",
    "versions",
    "zero_shot",
]
