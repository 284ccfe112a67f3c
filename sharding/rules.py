"""Logical axes of parameters mapped to mesh axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from jax.sharding import Mesh, PartitionSpec

from sharding.errors import UserError

Rules = Mapping[str, str | None]

DEFAULT_RULES: Rules = MappingProxyType(
    {
        "batch": None,
        "vocab": "tensor",
        "slot": "tensor",
        "channel": "tensor",
        "heads": "tensor",
        "ffn": "tensor",
        "expert": "expert",
        "stream": "stream",
        "embed": None,
        "latent": None,
        "position": None,
        "token": None,
        "layer": "pipe",
    }
)
"""Tensor parallelism as the layers are written for it; a mesh whose tensor axis is 1 splits
nothing. `embed` is the width of the residual stream, `channel` the width inside a mixer, `latent` a
narrow width between two matrices, `layer` the layers of a stack."""


def partition_spec(
    name: str,
    shape: Sequence[int],
    axes: Sequence[str | None],
    mesh: Mesh,
    rules: Rules = DEFAULT_RULES,
) -> PartitionSpec:
    """The PartitionSpec of one parameter.

    Where two dimensions have the same mesh axis, as the layers of a stack inside a stack, it
    splits the first.

    Args:
      name: the parameter's path, for the error message.
      shape: its global shape.
      axes: the logical axis of each dimension; None is never split.
      mesh: the mesh that the program runs on.
      rules: logical axis -> mesh axis (None: replicated).

    Raises:
      UserError: a logical axis without a rule, or a dimension that its mesh axis does not divide.
    """
    entries: list[str | None] = []
    for size, axis in zip(shape, axes, strict=True):
        if axis is not None and axis not in rules:
            raise UserError(f"parameter {name}: logical axis '{axis}' has no rule; add one")
        mesh_axis = None if axis is None or rules[axis] in entries else rules[axis]
        if mesh_axis is not None and size % mesh.shape[mesh_axis]:
            raise UserError(
                f"parameter {name} of shape {tuple(shape)}: '{axis}' = {size} is not divisible "
                f"by mesh axis {mesh_axis}={mesh.shape[mesh_axis]}; change the one or the other"
            )
        entries.append(mesh_axis if mesh_axis and mesh.shape[mesh_axis] > 1 else None)
    return PartitionSpec(*entries)
