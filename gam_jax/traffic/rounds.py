"""What a round of workers that meet now and then should send, by formula."""

from __future__ import annotations

import math

from gam_jax.local import Local
from gam_jax.models.base import Model
from gam_jax.traffic.levels import gathers
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
    mesh, state, weights = layout.mesh.shape, layout.state_axes, layout.weight_axes
    turns = local.every * local.workers // mesh["worker"]
    found = [message.times(turns) for message in step]
    for leaf in leaves_of(model, layout):
        split = math.prod(mesh[name] for name in state) if leaf.dim else 1
        found.append(Message("all_reduce", ("worker",), mesh["worker"], leaf.size // split))
        if leaf.dim:  # what all go on from, to all
            kept = leaf.size // math.prod(mesh[name] for name in weights)
            found += gathers(kept, state[len(weights) :], mesh)
    return found
