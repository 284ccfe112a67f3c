"""Clusters that a slow network joins: which groups cross it, and what should be outermost.

Source: Holmes (arXiv 2312.03549): a pipeline across clusters sends activations, data parallelism
across them sends gradients.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp

from gam_jax.planning.cluster import Cluster, strides
from gam_jax.planning.cost import seconds_of
from gam_jax.planning.traces import Run
from gam_jax.planning.work import Candidate, Work


@dataclasses.dataclass(frozen=True)
class Between:
    """What a mesh sends from cluster to cluster.

    Attributes:
      crossing: the axes whose groups have devices of several clusters.
      data: seconds of the mesh's messages, where `data` is the outermost axis.
      pipe: seconds of activations and their gradients, where stages are outermost, a stage a
        cluster.
    """

    crossing: tuple[str, ...]
    data: float
    pipe: float

    @property
    def outermost(self) -> str:
        """The one that sends for less long."""
        return "pipe" if self.pipe < self.data else "data"


def between(run: Run, candidate: Candidate, work: Work, cluster: Cluster) -> Between:
    """What a candidate sends between the clusters of `clusters("A+B")`.

    A stage's boundary sends the residual stream of every row once forward and once backward; each
    device of it has its share of the rows and tokens.

    Args:
      run: what is planned.
      candidate: whose mesh takes all devices.
      work: of the candidate.
      cluster: of several parts.
    """
    apart, last = strides(candidate.sizes), cluster.levels[-1]
    crossing = tuple(
        name
        for name, size in candidate.sizes.items()
        if size > 1 and cluster.parts[0].devices % (apart[name] * size)
    )
    free = tuple(
        dataclasses.replace(level, bandwidth=math.inf, latency=0.0, shape=())
        for level in cluster.levels[:-1]
    )
    slow = dataclasses.replace(cluster, levels=(*free, last))
    messages = (each for each in work.messages if each.devices > 1)
    data = sum(seconds_of(message, slow, work.mesh) for message in messages)
    model, layout = run.model, candidate.layout
    width = getattr(model, "width", 0) * jnp.dtype(getattr(model, "dtype", "float32")).itemsize
    rows = run.batch / layout.row_parts * len(cluster.parts)  # a stage has all rows
    tokens = max(run.window, 1) / math.prod(layout.mesh.shape[name] for name in layout.axes.tokens)
    pipe = 2 * (rows * tokens * width / last.bandwidth + candidate.accumulate * last.latency)
    return Between(crossing, data, pipe)
