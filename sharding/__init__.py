"""Meshes, logical axes, collectives and checkpoints. This package knows no model."""

from sharding.axes import Axes
from sharding.errors import UserError
from sharding.mesh import make_mesh
from sharding.rules import DEFAULT_RULES, Rules, partition_spec

__all__ = ["DEFAULT_RULES", "Axes", "Rules", "UserError", "make_mesh", "partition_spec"]
