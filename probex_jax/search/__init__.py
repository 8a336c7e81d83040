"""Neighbours of models in representation space, and an index to search them with."""
