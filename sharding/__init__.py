"""Meshes, logical axes, collectives and checkpoints. This package knows no model."""

from sharding import plugins

plugins.load()

from sharding.axes import Axes  # noqa: E402
from sharding.errors import UserError  # noqa: E402
from sharding.layout import Layout, Parallel  # noqa: E402
from sharding.mesh import make_mesh  # noqa: E402

__all__ = ["Axes", "Layout", "Parallel", "UserError", "make_mesh"]
