"""The associative-memory scan: one signature, four ways to compute it."""

from gam_jax.ops.scan.diagonal import diagonal_scan
from gam_jax.ops.scan.memory import METHODS, RULES, memory_scan

__all__ = ["METHODS", "RULES", "diagonal_scan", "memory_scan"]
