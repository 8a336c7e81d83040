"""The web page: describe a model, search for models, look at the forest."""

from probex_jax.web.catalogue import Catalogue
from probex_jax.web.server import serve

__all__ = ["Catalogue", "serve"]
