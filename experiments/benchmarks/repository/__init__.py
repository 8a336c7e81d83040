"""A whole repository of models: a simulated hub, and what indexing and searching it takes."""
