"""Collections of models with known labels."""
