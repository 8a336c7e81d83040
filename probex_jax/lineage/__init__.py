"""Lineage: which models descend from which, and which are the same weights."""
