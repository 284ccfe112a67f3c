"""Architectures side by side: equal parameters, equal tokens, the same training."""
