"""probex_jax: what a neural network is, told from its weights."""

from probex_jax import lineage
from probex_jax.encoders import Dense, MVProbe, ProbeX
from probex_jax.errors import ProbexError
from probex_jax.experts import Alignment, Card, Expert, TextCard, evaluate
from probex_jax.fitting import (
    Adam,
    ClosedForm,
    Devices,
    Fit,
    Number,
    OneClass,
    SeveralClasses,
    Split,
    Task,
    Texts,
    fit,
)
from probex_jax.forest import Description, Forest, grow
from probex_jax.heads import ClassHead, TextHead
from probex_jax.language import text_encoder
from probex_jax.layer_store import LayerStore, pack, pack_from_hub
from probex_jax.matrices import LowRank, contract, project, respond, stack
from probex_jax.model_files import (
    LayerInfo,
    Limits,
    ModelFile,
    Remote,
    Stated,
    open_model,
    open_params,
    read_stated,
    select_layers,
)
from probex_jax.reports import model_card
from probex_jax.search import Index, find_models
from probex_jax.sweeps import attribute_views, sweep, sweep_attributes
from probex_jax.zoo import miniature, scan
from probex_jax.zoo.model_j_table import read_table

__version__ = "0.1.0"

# Grouped, as a table of contents.
__all__ = [  # noqa: RUF022
    # Encoders and heads: init / apply, pure.
    "ClassHead",
    "Dense",
    "LowRank",
    "MVProbe",
    "ProbeX",
    "TextHead",
    # The products that encoders are written against.
    "contract",
    "project",
    "respond",
    "stack",
    # Fitting: arrays in, parameters out.
    "Adam",
    "ClosedForm",
    "Devices",
    "Fit",
    "Number",
    "OneClass",
    "SeveralClasses",
    "Split",
    "Task",
    "Texts",
    "fit",
    # Model files.
    "LayerInfo",
    "Limits",
    "ModelFile",
    "Remote",
    "Stated",
    "open_model",
    "open_params",
    "read_stated",
    "select_layers",
    # Many models: a zoo on disk or on the hub, packed into a store; one to try things with.
    "LayerStore",
    "miniature",
    "pack",
    "pack_from_hub",
    "read_table",
    "scan",
    # Experts, one by one or a store's; and the texts that some are aligned with.
    "Alignment",
    "Card",
    "Expert",
    "TextCard",
    "evaluate",
    "attribute_views",
    "sweep",
    "sweep_attributes",
    "text_encoder",
    # Forest: the trees that are known, and what is said of a model.
    "Description",
    "Forest",
    "grow",
    "model_card",
    # Who descends from whom: lineage.trace, lineage.compare.
    "lineage",
    # Search.
    "Index",
    "find_models",
    # What a user can mend.
    "ProbexError",
]  # fmt: skip
