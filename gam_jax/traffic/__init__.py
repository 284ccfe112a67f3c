"""What a training step sends between devices and its state holds, by formula."""

from gam_jax.traffic.memory import StateBytes, StepBytes, state_bytes, step_bytes
from gam_jax.traffic.step import has_formula, step_traffic

__all__ = [
    "StateBytes",
    "StepBytes",
    "has_formula",
    "state_bytes",
    "step_bytes",
    "step_traffic",
]
