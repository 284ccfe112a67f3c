"""What one step asks of one device: products, memory and messages, for any mesh of a class."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp

from gam_jax.optimizer import OptimizerConfig
from gam_jax.planning.traces import Class, Run, Traced, abstract_layout, class_of
from gam_jax.traffic import has_formula, state_bytes, step_traffic
from gam_jax.traffic.memory import StateBytes
from gam_jax.traffic.sizes import FLOAT
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import in_words
from sharding.messages import Message


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
      idle: seconds that it waits for other stages of a pipeline.
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
    """

    mesh: tuple[tuple[str, int], ...]
    preset: str
    accumulate: int
    remat: bool

    @property
    def sizes(self) -> dict[str, int]:
        """The mesh."""
        return dict(self.mesh)

    @property
    def layout(self) -> Layout:
        """The mesh, of no devices."""
        return abstract_layout(self.sizes, self.preset)

    @property
    def kind(self) -> Class:
        """The class of its program."""
        return class_of(self.preset, self.remat, self.sizes)

    @property
    def flags(self) -> str:
        """What `gam train` is told."""
        axes = ",".join(f"{name}={size}" for name, size in self.mesh if size > 1) or "data=1"
        return (
            f"--mesh={axes} --config.parallel.preset={self.preset} "
            f"--config.train.accumulate={self.accumulate} "
            f"--config.model.remat={str(self.remat).lower()}"
        )

    @property
    def shown(self) -> str:
        """In words."""
        remat = ", remat" if self.remat else ""
        return f"{in_words(self.sizes)} {self.preset}, accumulate {self.accumulate}{remat}"


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
      UserError: there are no formulas for what the model sends.
    """
    layout, parts = candidate.layout, candidate.accumulate
    model = run.with_remat(candidate.remat)
    if not has_formula(model, layout):
        raise UserError(f"{type(model).__name__} has no formulas for what it sends")
    messages = step_traffic(model, layout, run.batch, run.window, parts)
    state = state_of(run, candidate) if state is None else state
    rows = run.batch / parts / layout.row_parts
    scale = traced.scale(rows, candidate.sizes)
    gradients = gradient_bytes(state, run.optimizer)
    held = state.total + float(traced.peak.at(scale).max(initial=0.0))
    if parts > 1:  # what earlier parts have found, beside what this one finds
        held += gradients
    return Work(
        candidate.sizes,
        {dtype: parts * float(terms.at(scale)) for dtype, terms in traced.flops.items()},
        parts * float(traced.operands.at(scale)),
        parts * float(traced.moved.at(scale)) + 2 * state.total + gradients,
        tuple(messages),
        held,
    )


def state_of(run: Run, candidate: Candidate) -> StateBytes:
    """Bytes of parameters and optimizer's state on each device."""
    return state_bytes(run.model, run.optimizer, candidate.layout)


def gradient_bytes(state: StateBytes, optimizer: OptimizerConfig) -> int:
    """Of the float32 gradients that lie as the optimizer's averages do."""
    return state.moments // 2 // jnp.dtype(optimizer.moments).itemsize * FLOAT
