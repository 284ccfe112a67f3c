"""Checkpoints of global arrays by name, free of mesh and processes; see docs/checkpoints.md.

python -m sharding.checkpoint --help   looks into them, compares them, moves parameters in and out
"""

from sharding.checkpoint.keep import CheckpointConfig
from sharding.checkpoint.store import CannotSave, Checkpoints, Damaged

__all__ = ["CannotSave", "CheckpointConfig", "Checkpoints", "Damaged"]
