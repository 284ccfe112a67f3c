"""Meshes, logical axes, collectives and checkpoints. This package knows no model."""

from sharding.axes import Axes
from sharding.errors import UserError
from sharding.layout import Layout, Parallel
from sharding.mesh import make_mesh

__all__ = ["Axes", "Layout", "Parallel", "UserError", "make_mesh"]
