"""Work on many models or layers: in threads of this process, or on a Ray cluster."""

from probex_jax.engine.cluster import Cluster, engine_of
from probex_jax.engine.compiled import keep_compiled
from probex_jax.engine.here import HERE, Here
from probex_jax.engine.work import Died, Engine, Part, Size, Work, flattened, in_parts

__all__ = [
    "HERE",
    "Cluster",
    "Died",
    "Engine",
    "Here",
    "Part",
    "Size",
    "Work",
    "engine_of",
    "flattened",
    "in_parts",
    "keep_compiled",
]
