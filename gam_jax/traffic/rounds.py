"""What a round of workers that meet now and then should send, by formula."""

from __future__ import annotations

from gam_jax.local import Local
from gam_jax.models.base import Model
from gam_jax.traffic.models import leaves_of
from gam_jax.traffic.step import step_traffic
from sharding.layout import Layout
from sharding.messages import Message


def round_traffic(
    model: Model, layout: Layout, local: Local, rows: int, tokens: int, accumulate: int = 1
) -> list[Message]:
    """What each device sends in a round: the steps of its workers, and each parameter once.

    Args:
      model: fitted to its data.
      layout: the mesh, under the default table of rules.
      local: the workers; without any a round is a step.
      rows: of the whole batch of a step, all workers together.
      tokens: of each row.
      accumulate: parts that it is taken in.

    Raises:
      TypeError: see `step_traffic`.
    """
    step = step_traffic(model, layout, rows // local.workers, tokens, accumulate)
    if not local.on:
        return step
    mesh, axis = layout.mesh.shape, layout.shard_axis
    turns = local.every * local.workers // mesh["worker"]
    found = [message.times(turns) for message in step]
    for leaf in leaves_of(model, layout):
        zero = axis if leaf.dim else None
        part = leaf.size // (mesh[zero] if zero else 1)
        found.append(Message("all_reduce", ("worker",), mesh["worker"], part))
        if zero and not layout.shards_params:  # ZeRO stage 1: what all go on from, to all
            found.append(Message("all_gather", (zero,), mesh[zero], part))
    return found
