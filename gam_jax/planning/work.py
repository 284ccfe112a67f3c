"""What one step asks of one device: products, memory and messages, for any mesh of a class."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gam_jax.models import Model
from gam_jax.models.base import on_stages
from gam_jax.optimizer import OptimizerConfig
from gam_jax.params import Param, param_specs, shardings, stored_specs
from gam_jax.planning.live import tiles
from gam_jax.planning.traces import Class, Levels, Run, Traced, abstract_layout, class_of, trace
from gam_jax.traffic import has_formula, state_bytes, step_traffic
from gam_jax.traffic.memory import StateBytes, step_bytes
from gam_jax.traffic.sizes import FLOAT
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import in_levels, in_words
from sharding.messages import Message
from sharding.pipeline.tables import make_table


@dataclasses.dataclass(frozen=True)
class Work:
    """Of one step, on one device.

    Attributes:
      mesh: sizes of all axes, the outermost first.
      flops: operations in products, by the dtype of their factors.
      product_bytes: that products read and write.
      other_bytes: that everything else reads and writes.
      messages: that the device sends.
      held: bytes at most.
      idle: seconds that it waits for other stages of a pipeline, as a share of those in which it
        computes.
    """

    mesh: Mapping[str, int]
    flops: Mapping[str, float]
    product_bytes: float
    other_bytes: float
    messages: tuple[Message, ...]
    held: float
    idle: float = 0.0


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to run an experiment.

    Attributes:
      mesh: sizes of all axes, the outermost first.
      preset: what the axes are used for, see `sharding.layout.Parallel`.
      accumulate: parts of a batch.
      remat: whether blocks are computed again in the backward pass.
      schedule: of stages, see `sharding.layout.Parallel`.
      turns: likewise.
      use: of `data`, where it is in levels.
    """

    mesh: tuple[tuple[str, int], ...]
    preset: str
    accumulate: int
    remat: bool
    schedule: str = "1f1b"
    turns: int = 1
    use: Levels = Levels()

    @property
    def sizes(self) -> dict[str, int]:
        """The mesh."""
        return dict(self.mesh)

    @property
    def layout(self) -> Layout:
        """The mesh, of no devices."""
        return abstract_layout(self.sizes, self.preset, self.schedule, self.turns, use=self.use)

    @property
    def in_levels(self) -> dict[str, int]:
        """The mesh, its axis of data in the levels that it has."""
        return in_levels(self.sizes, self.use.sizes)

    @property
    def kind(self) -> Class:
        """The class of its program."""
        return class_of(self.preset, self.remat, self.sizes, self.use)

    @property
    def flags(self) -> str:
        """What `gam train` is told."""
        shards = f" --config.parallel.shards={self.use.shards}" if self.use.shards else ""
        return (
            f"--mesh={self.axes} --config.parallel.preset={self.preset} "
            f"--config.train.accumulate={self.accumulate} "
            f"--config.model.remat={str(self.remat).lower()}{self._stages}{shards}"
        )

    @property
    def axes(self) -> str:
        """The axes of several devices, as `--mesh` takes them."""
        words = dict(self.mesh) | {"data": "x".join(map(str, self.use.sizes)) or self.sizes["data"]}
        return ",".join(f"{name}={words[name]}" for name, size in self.mesh if size > 1) or "data=1"

    @property
    def _stages(self) -> str:
        if self.sizes["pipe"] == 1:
            return ""
        turns = f" --config.parallel.turns={self.turns}" if self.turns > 1 else ""
        return f" --config.parallel.schedule={self.schedule}{turns}"

    @property
    def shown(self) -> str:
        """In words."""
        remat = ", remat" if self.remat else ""
        shards = f" {self.use.shards}" if self.use.shards else ""
        mesh = in_words(self.in_levels)
        return f"{mesh} {self.preset}{shards}, accumulate {self.accumulate}{remat}"


def has_plan(model: Model, layout: Layout) -> bool:
    """Whether plans know what a model sends."""
    return has_formula(model, layout)


def work_of(
    run: Run, candidate: Candidate, traced: Traced, state: StateBytes | None = None
) -> Work:
    """What a step of a candidate asks of each device.

    Args:
      run: what is planned.
      candidate: that divides its batch.
      traced: of the candidate's class.
      state: `state_of` the candidate, where it is known already.

    Raises:
      UserError: there are no formulas for what the model sends; parts that cannot be halved where
        logits have their own.
    """
    layout = dataclasses.replace(candidate.layout, backend=run.backend)
    parts = candidate.accumulate
    if not has_plan(run.model, layout):
        raise UserError(
            f"{type(run.model).__name__} has no formulas for what it sends: it cannot be planned"
        )
    model = run.with_remat(candidate.remat)
    through = run.through(parts)
    messages = step_traffic(model, layout, run.batch, run.window, parts)
    state = state_of(run, candidate) if state is None else state
    rows = run.batch / parts / layout.row_parts
    scale = traced.scale(rows, candidate.sizes)
    gradients = gradient_bytes(state, run.optimizer)
    held = state.total + traced.held(scale, run.chip)
    if run.backend == "tpu":
        held += tile_bytes(state, model, layout)
    if through > 1:  # what earlier parts have found, beside what this one finds
        held += step_bytes(model, layout).gradients
    work = Work(
        candidate.in_levels,
        {dtype: through * float(terms.at(scale)) for dtype, terms in traced.flops.items()},
        through * float(traced.operands.at(scale)),
        through * float(traced.moved.at(scale)),
        tuple(messages),
        held,
    )
    if layout.stages > 1:
        work = _of_a_stage(work, run, candidate, rows, float(traced.stacked.at(scale)))
    return dataclasses.replace(work, other_bytes=work.other_bytes + 2 * state.total + gradients)


def own_trace(run: Run, candidate: Candidate) -> Traced:
    """The program of a candidate itself, of as many rows as it has.

    Args:
      run: what is planned.
      candidate: that divides its batch.

    Raises:
      ValueError: the model refuses these devices.
    """
    rows = run.batch // candidate.accumulate // candidate.layout.row_parts
    asked = {name: (size,) for name, size in candidate.mesh}
    return trace(run, candidate.kind, asked, rows)


def _of_a_stage(work: Work, run: Run, candidate: Candidate, rows: float, stacked: float) -> Work:
    """The work of one stage, from that of all layers.

    A stage goes forward again before it goes backward, and keeps of each part in flight the input
    of its layers alone. Embedding and head are computed on every stage.
    """
    layout, parts = candidate.layout, run.through(candidate.accumulate)
    stages, model = layout.stages, run.model
    table = make_table(candidate.schedule, stages, parts, candidate.turns)
    passes = 4 if candidate.remat else 3  # a forward one, one again, and two backward
    again = 1 + 1 / passes
    tokens = rows * max(run.window, 1) / candidate.sizes["seq"]
    vocab, width = (getattr(model, name, 0) or 0 for name in ("vocab", "width"))
    each = 10 if run.bilevel.on else 6  # logits of mixed layers need no gradient by the head
    head = parts * each * tokens * vocab * width / candidate.sizes["tensor"]
    whole = sum(work.flops.values())
    share = ((whole - head) / stages + head) / whole * again
    residual = getattr(model, "dtype", "float32")
    entering = tokens * width * jnp.dtype(residual).itemsize
    if layout.axes.residual is not None:
        entering /= candidate.sizes["tensor"]
    flight = min(stages * candidate.turns, parts)
    return dataclasses.replace(
        work,
        flops={dtype: share * count for dtype, count in work.flops.items()},
        product_bytes=share * work.product_bytes,
        other_bytes=share * work.other_bytes,
        held=work.held - stacked * (1 - 1 / stages) + flight * entering,
        idle=table.time(1, passes) / (parts * (1 + passes)) - 1,
    )


def state_of(run: Run, candidate: Candidate) -> StateBytes:
    """Bytes of parameters and optimizer's state on each device."""
    return state_bytes(run.model, run.optimizer, candidate.layout, bilevel=run.bilevel)


def tile_bytes(state: StateBytes, model: Model, layout: Layout) -> float:
    """What the state takes on a TPU besides its numbers, where these do not fill tiles."""
    kept, used = _unfilled(model, layout)
    return kept * state.parameters + used * (state.moments - state.host + state.master)


@functools.lru_cache(maxsize=256)
def _unfilled(model: Model, layout: Layout) -> tuple[float, float]:
    """By what part parameters, as they lie and as their averages do, are larger in tiles."""
    own, layout = on_stages(model, layout)
    table: Any = own.stored_table()
    params = jax.tree.leaves(table, is_leaf=lambda x: isinstance(x, Param))

    def part(specs: Any) -> float:
        placed = jax.tree.leaves(shardings(specs, layout))
        shapes = [at.shard_shape(one.shape) for at, one in zip(placed, params, strict=True)]
        return sum(math.prod(each) * tiles(each) for each in shapes) / sum(map(math.prod, shapes))

    return part(param_specs(table, layout)) - 1, part(stored_specs(table, layout)) - 1


def gradient_bytes(state: StateBytes, optimizer: OptimizerConfig) -> int:
    """Of the float32 gradients that lie as the optimizer's averages do."""
    return state.moments // 2 // jnp.dtype(optimizer.moments).itemsize * FLOAT
