"""Weights that a quantiser packed or scaled: dequantised where a page of code does it exactly.

Scales, zeros and codebooks are never layers, nor are weights that are not read, which are left out
with the method's name.
"""

from probex_jax.model_files.quantised.find import Packed, Quantised, find_quantised
from probex_jax.model_files.quantised.formats import Raw
from probex_jax.model_files.quantised.values import Config

__all__ = ["Config", "Packed", "Quantised", "Raw", "find_quantised"]
