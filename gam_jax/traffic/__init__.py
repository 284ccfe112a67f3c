"""What a training step sends between devices, by formula."""

from gam_jax.traffic.step import has_formula, step_traffic

__all__ = ["has_formula", "step_traffic"]
