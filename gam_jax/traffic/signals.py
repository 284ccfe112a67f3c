"""What models of sounds should send in a part of a batch, by formula."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gam_jax.layers.branches import swapped_bytes
from gam_jax.models import BandExtender, Enhancer
from gam_jax.ops.spectrum import frames_of
from gam_jax.traffic.models import gathered_in_parts
from gam_jax.traffic.sizes import FLOAT
from sharding.layout import Layout
from sharding.messages import Message


def extender(model: BandExtender, layout: Layout, rows: int, samples: int) -> list[Message]:
    """Streams that are swapped once a round, forward and backward, and gathered once."""
    found = list(_sums(layout, 3, 2))  # the loss and two measures; weights of these two
    if layout.mesh.shape["stream"] > 1:
        frames = frames_of(samples, model.size, model.hop)
        stream = swapped_bytes(rows // layout.row_parts * frames * model.width)
        if model.coupled:
            found.append(Message("permute", ("stream",), 2, stream, 2 * model.rounds))
        found.append(Message("all_gather", ("stream",), 2, stream))
    return [*found, *gathered_in_parts(model, layout)]


def enhancer(model: Enhancer, layout: Layout, rows: int, samples: int) -> list[Message]:
    """Frames for bins and bins for frames, twice a block but once, forward and backward."""
    found = list(_sums(layout, 3, 2))
    seq = layout.mesh.shape["seq"]
    if seq > 1:
        frames, bins = frames_of(samples, model.size, model.hop), model.size // 4 + 1
        most_frames, most_bins = (-(-n // seq) * seq for n in (frames, bins))
        numbers = rows // layout.row_parts * model.width * FLOAT

        def moved(count: int, bytes_: int) -> Message:
            return Message("all_to_all", ("seq",), seq, bytes_, count)

        # Before an exchange to bins all frames are there, and are filled up; and so backwards,
        # where zeros take the place of what was cut.
        whole = numbers * most_frames * most_bins // seq
        found.append(moved(2 * (2 * model.blocks - 1), whole))
        found.append(Message("all_gather", ("seq",), seq, whole // most_bins * bins))
        found.append(Message("reduce_scatter", ("seq",), seq, numbers * most_frames * bins))
    return [*found, *gathered_in_parts(model, layout)]


def _sums(layout: Layout, over_all: int, over_rows: int) -> Iterator[Message]:
    """Numbers that are summed at the end: over all devices of a batch, and over those of rows."""
    mesh = layout.mesh.shape
    for axes, count in ((layout.axes.batch, over_all), (layout.axes.rows, over_rows)):
        devices = math.prod(mesh[name] for name in axes)
        yield Message("all_reduce", axes, devices, FLOAT, count)
