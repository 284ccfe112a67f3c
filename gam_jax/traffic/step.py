"""What a training step should send, by formula: layer by layer, from sizes alone.

Written from the design of each layer, not from its program, so that `experiments.audit` can hold
the one against the other. Collectives are those of the default rules, which split channels,
slots, hidden units and vocabulary alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gam_jax.layers import LayerNorm
from gam_jax.models import BandExtender, Enhancer, ImageClassifier, LanguageModel, Model
from gam_jax.models.base import TOKEN, on_stages
from gam_jax.traffic import signals
from gam_jax.traffic.documents import knows_starts, row_numbers
from gam_jax.traffic.layers import FLOAT, layer_traffic
from gam_jax.traffic.levels import as_sent, gathers, scatters
from gam_jax.traffic.models import (
    between_streams,
    gathered_in_parts,
    in_streams,
    leaves_of,
    mixing,
    outside,
    padded,
    reports,
    sizes_of,
)
from gam_jax.traffic.pipeline import staged
from sharding.layout import Layout
from sharding.messages import Message


def step_traffic(
    model: Model, layout: Layout, rows: int, tokens: int, accumulate: int = 1
) -> list[Message]:
    """What each device sends in one training step, but for the optimizer's own few scalars.

    Args:
      model: fitted to its data.
      layout: the mesh, under the default table of rules.
      rows: sequences, or images, in the whole batch.
      tokens: tokens of each sequence; those of an image are its patches, which the model knows.
      accumulate: parts that it is taken in.

    Raises:
      TypeError: there are no formulas for this kind of model, see `has_formula`.
    """
    spread = layout.axes.batch
    if TOKEN not in model.batch_axes()["weights"]:
        spread = layout.axes.rows
    devices = math.prod(layout.mesh.shape[axis] for axis in spread)
    summed = _summed(*on_stages(model, layout))
    once = [Message("all_reduce", spread, devices, FLOAT), *summed]
    if layout.stages > 1:
        return [*staged(model, layout, rows // accumulate, tokens, accumulate), *once]
    parts = MODEL_TRAFFIC[type(model)](model, layout, rows // accumulate, tokens)
    return [message.times(accumulate) for message in parts] + once  # once: weights, gradients


def has_formula(model: Model, layout: Layout) -> bool:
    """Whether `step_traffic` knows this kind of model.

    Where tokens of packed rows are split, every layer needs a formula in `documents` too. There is
    none for a game of two sides, nor for unlike branches on two devices.
    """
    branches = isinstance(model, Enhancer) and layout.mesh.shape["stream"] > 1
    if type(model) not in MODEL_TRAFFIC or model.rivals or branches:
        return False
    split = getattr(model, "packed", False) and layout.mesh.shape["seq"] > 1
    return not split or knows_starts(model.block)  # type: ignore[attr-defined]


def _language(model: LanguageModel, layout: Layout, rows: int, tokens: int) -> list[Message]:
    """A part of a batch of a language model."""
    mesh, sizes = layout.mesh.shape, sizes_of(model, layout, rows, tokens)
    trunk: Any = model.trunk.varied
    inside = in_streams(model, layout, sizes)
    most = model.loss_tokens(layout.axes.backend)
    parts = [*layer_traffic(trunk.stack, inside), *outside(model, sizes, most)]
    parts += padded(model, sizes)
    if model.packed and model.context:
        parts.append(row_numbers(sizes))  # of which documents begin, for learned positions
    parts += [*mixing(model, layout, sizes), *between_streams(model, layout)]
    parts += reports(trunk.stack, layout)
    batch = math.prod(mesh[axis] for axis in layout.axes.batch)
    parts += [Message("all_reduce", layout.axes.batch, batch, FLOAT)]  # the loss
    return [*parts, *gathered_in_parts(model, layout, trunk.stack, inside)]


def _classifier(model: ImageClassifier, layout: Layout, rows: int, _: int) -> list[Message]:
    """A part of a batch of an image classifier: everything but the blocks is on every device."""
    mesh, sizes = layout.mesh.shape, sizes_of(model, layout, rows, model.patches)
    parts = [*layer_traffic(model.stack, sizes), *reports(model.stack, layout)]
    devices = math.prod(mesh[axis] for axis in layout.axes.rows)
    # The loss, the images that are classified rightly, and the weights.
    parts += [Message("all_reduce", layout.axes.rows, devices, FLOAT, 3)]
    if sizes.split:
        whole = sizes.rows * model.patches * model.width * FLOAT
        parts += [sizes.over_tensor("all_reduce", whole)]  # the gradient by the patches
        parts += [sizes.over_tensor("all_reduce", sizes.rows * model.width * FLOAT)]  # the mean
        parts += layer_traffic(LayerNorm(model.width), sizes)
    return [*parts, *gathered_in_parts(model, layout, model.stack, sizes)]


MODEL_TRAFFIC: dict[type, Callable[[Any, Layout, int, int], list[Message]]] = {
    LanguageModel: _language,
    ImageClassifier: _classifier,
    BandExtender: signals.extender,
    Enhancer: signals.enhancer,
}
"""Kind of model -> what a device sends for one part of a batch, given rows and tokens of it."""


def _summed(model: Model, layout: Layout) -> Iterator[Message]:
    """What is sent once a step: sums of gradients, new parameters, second copies of parameters."""
    mesh, spread = layout.mesh.shape, layout.axes.batch
    if layout.stages > 1:
        spread = (*spread, "pipe")
    state, weights = layout.state_axes, layout.weight_axes
    summed, copied = len(layout.gradient_axes), len(layout.layer_axes)

    def total(over: Sequence[str], size: int) -> Message:
        devices = math.prod(mesh[name] for name in over)
        return Message("all_reduce", tuple(over), devices, size)

    def part(size: int, over: Sequence[str]) -> int:
        return size // math.prod(mesh[name] for name in over)

    for _, size, dim, split, _, itemsize, bits, coded in leaves_of(model, layout):
        axes = tuple(name for name in spread if name not in split)
        if not dim:
            yield total(axes, size)
            continue
        yield from scatters(part(size, state[:summed]), state[summed:], mesh, 1, bits.gradients)
        yield total([name for name in axes if name not in state], part(size, state))
        stored = size // FLOAT * itemsize
        yield from gathers(part(stored, weights), state[len(weights) :], mesh)
        if bits.weights:
            parts = math.prod(mesh[name] for name in weights)
            stored = coded * as_sent(size // FLOAT // coded, itemsize, bits.weights, parts)
        yield from gathers(part(stored, layout.layer_axes), weights[copied:], mesh)
