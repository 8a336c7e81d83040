"""How well lineage is found in families of known descent, beside other methods."""
