"""Checkpoints of global arrays by name, free of mesh and processes; see docs/checkpoints.md.

gam checkpoint --help   looks into them, compares them, moves parameters in and out
"""

from sharding.checkpoint.failures import CannotSave, Damaged, NotFinite
from sharding.checkpoint.keep import CheckpointConfig
from sharding.checkpoint.store import Checkpoints

__all__ = ["CannotSave", "CheckpointConfig", "Checkpoints", "Damaged", "NotFinite"]
