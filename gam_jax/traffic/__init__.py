"""What a training step sends between devices, by formula."""

from gam_jax.traffic.step import step_traffic

__all__ = ["step_traffic"]
