"""Reads adapters: which layers of which update a file holds.

`spellings` tells what a tensor is by the ending of its name, `modules` which layers it belongs to
by the rest, `updates` computes an update from its factors, `scales` finds the number that it is
multiplied by, `find` puts them together, and `unread` names what is not read.
"""

from probex_jax.model_files.adapters.find import LayerUpdate, find_updates
from probex_jax.model_files.adapters.scales import Scales
from probex_jax.model_files.adapters.spellings import factor

__all__ = ["LayerUpdate", "Scales", "factor", "find_updates"]
