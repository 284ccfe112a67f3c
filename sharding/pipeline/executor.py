"""Runs any table of a pipeline inside `jax.shard_map(check_vma=True)`; it knows no model.

All devices run one program: in a tick in which any stage goes forward all do, and what a stage
without a task computes, from whatever lies there, is masked. A `ppermute` in a branch that only
some stages take would wait for ever where a rendezvous is of all devices, so only the two ends of
the way, which a stage may leave out, stand in a branch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from sharding import collectives, zero
from sharding.pipeline.buffers import plan_of
from sharding.pipeline.tables import Table

State = Any
"""A tree of float arrays that a stage hands on."""
Shared = Any
"""Parameters that every stage has."""
Layers = Any
"""Parameters of layers: this stage's chunks, [turns, ...] each; or of one chunk, [...]."""


@dataclasses.dataclass(frozen=True)
class Program:
    """What the stages do with a part of the batch. Parts and places are traced numbers.

    Attributes:
      first: (shared, part) -> the state that enters the first chunk.
      chunk: (shared, layers of the chunk, state, part, place of the chunk) -> state.
      last: (shared, state, part) -> what is differentiated, a scalar, and a tree of sums.
    """

    first: Callable[[Shared, Array], State]
    chunk: Callable[[Shared, Layers, State, Array, Array], State]
    last: Callable[[Shared, State, Array], tuple[Array, Any]]


def run(
    table: Table, axis: str, program: Program, shared: Shared, layers: Layers, fill: float = 0.0
) -> tuple[Any, tuple[Shared, Layers]]:
    """All parts of a batch forward and backward.

    A forward task stores the input of its chunk. A backward task runs the chunk again from there,
    adds to the gradients of the parameters, and sends that of the input to the stage before.

    Args:
      table: who does what when.
      axis: the mesh axis of stages.
      program: what is done.
      shared: typed as varying over `axis`, so that nothing is summed over stages in a tick.
      layers: likewise.
      fill: what buffers hold before anything is sent. No result depends on it.

    Returns:
      The sums of all parts, on every stage; and each stage's own gradients of its parameters, of
      shards by what `zero.differentiated` says: those of `shared` are still to be summed over
      `axis`.
    """
    stages = _Stages(table, axis, program)
    plan = plan_of(table)
    state, none = stages.state_types(shared, layers), jnp.int32(0)
    _, (_, sums) = jax.eval_shape(
        lambda: stages.through(shared, stages.of_turn(layers, 0), _zeros(state), none, none, state)
    )
    start = _Running(
        inputs=_buffers(state, plan.inputs, fill),
        gradients=_buffers(state, plan.gradients, fill),
        sent=_filled(state, fill),
        returned=_filled(state, fill),
        grads=jax.tree.map(jnp.zeros_like, zero.differentiated((shared, layers))),
        sums=_zeros(sums),
    )
    running = start
    first = 0
    for (forward, backward), ticks in groupby(table.kinds):
        end = first + len(list(ticks))
        rows = {name: jnp.asarray(column[first:end]) for name, column in plan.columns.items()}

        def tick(
            running: _Running, row: Mapping[str, Array], f: bool = forward, b: bool = backward
        ) -> tuple[_Running, None]:
            return stages.tick(running, row, state, shared, layers, f, b), None

        running, _ = lax.scan(tick, running, rows)
        first = end
    return jax.tree.map(lambda x: collectives.psum(x, axis), running.sums), running.grads


def run_forward(
    table: Table, axis: str, program: Program, shared: Shared, layers: Layers, fill: float = 0.0
) -> Any:
    """All parts of a batch forward alone; nothing is kept.

    Args:
      table: of forward tasks, see `tables.one_way`.
      axis: the mesh axis of stages.
      program: what is done; what its `last` would have differentiated is left out.
      shared: see `run`.
      layers: likewise.
      fill: likewise.

    Returns:
      The sums of all parts, on every stage.
    """
    stages, me = _Stages(table, axis, program), lax.axis_index(axis)
    state, none = stages.state_types(shared, layers), jnp.int32(0)

    def through(sent: State, part: Any, turn: Any) -> tuple[State, Any]:
        own = stages.of_turn(layers, turn)
        after, (_, sums) = stages.through(shared, own, sent, part, turn, state)
        return after, sums

    def tick(carry: tuple[State, Any], row: Array) -> tuple[tuple[State, Any], None]:
        (sent, sums), (part, turn) = carry, row[me]
        sent, more = through(sent, jnp.maximum(part, 0), jnp.maximum(turn, 0))
        return (stages.permuted(sent), _added(sums, more, part >= 0)), None

    tasks = [[task or (-1, -1) for task in row] for row in table.forward]
    _, sums = jax.eval_shape(lambda: through(_zeros(state), none, none))
    start = _filled(state, fill), _zeros(sums)
    (_, sums), _ = lax.scan(tick, start, jnp.asarray(tasks, jnp.int32))
    return jax.tree.map(lambda x: collectives.psum(x, axis), sums)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Running:
    """What a tick hands to the next.

    Attributes:
      inputs: [slots, ...] of states that are kept for their backward task.
      gradients: [slots, ...] of gradients by states that wait for theirs.
      sent: the state that this stage was sent in the tick before.
      returned: the gradient that it was sent.
      grads: of shared parameters and layers, so far.
      sums: so far.
    """

    inputs: Any
    gradients: Any
    sent: State
    returned: State
    grads: tuple[Shared, Layers]
    sums: Any


@dataclasses.dataclass(frozen=True)
class _Stages:
    table: Table
    axis: str
    program: Program

    @property
    def _ring(self) -> list[tuple[int, int]]:
        """Who sends to whom; with several turns the last stage sends to the first."""
        stages = self.table.stages
        count = stages if self.table.turns > 1 else stages - 1
        return [(i, (i + 1) % stages) for i in range(count)]

    def of_turn(self, layers: Layers, turn: Any) -> Layers:
        """The layers of one of this stage's chunks."""
        return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, turn, 0, keepdims=False), layers)

    def state_types(self, shared: Shared, layers: Layers) -> State:
        """Shapes and types of the state: alike at the door of every chunk."""
        types = jax.eval_shape(lambda: self.program.first(shared, jnp.int32(0)))
        for _ in range(2):  # what a chunk makes of it varies over at least as many axes
            types = _also(types, types, self.axis)
            after = jax.eval_shape(
                lambda types=types: self.program.chunk(
                    shared, self.of_turn(layers, 0), _zeros(types), jnp.int32(0), jnp.int32(0)
                )
            )
            types = _also(types, after, self.axis)
        return types

    def forward(
        self, shared: Shared, own: Layers, state: State, part: Any, turn: Any, types: State
    ) -> State:
        """A part through a chunk; the first one makes its input itself."""
        place = turn * self.table.stages + lax.axis_index(self.axis)
        state = lax.cond(
            place == 0,
            lambda: _as(self.program.first(shared, part), types),
            lambda: _as(state, types),
        )
        return _as(self.program.chunk(shared, own, state, part, place), types)

    def through(
        self, shared: Shared, own: Layers, state: State, part: Any, turn: Any, types: State
    ) -> tuple[State, tuple[Array, Any]]:
        """`forward`, and what the last chunk's output is for; zeros after other chunks."""
        state = self.forward(shared, own, state, part, turn, types)

        def last() -> Any:
            found = self.program.last(shared, state, part)
            return jax.tree.map(lambda x: collectives.as_varying(x, self.axis), found)

        return state, lax.cond(
            self._ends(turn), last, lambda found=jax.eval_shape(last): _zeros(found)
        )

    def _ends(self, turn: Any) -> Array:
        place = turn * self.table.stages + lax.axis_index(self.axis)
        return place == self.table.stages * self.table.turns - 1

    def tick(
        self,
        running: _Running,
        row: Mapping[str, Array],
        types: State,
        shared: Shared,
        layers: Layers,
        forward: bool,
        backward: bool,
    ) -> _Running:
        """One tick of this stage: what has arrived is put away, then its tasks are done."""
        me = lax.axis_index(self.axis)
        own = {name: column[me] for name, column in row.items()}
        inputs = _put(running.inputs, running.sent, own["input_arrives"])
        gradients = _put(running.gradients, running.returned, own["gradient_arrives"])
        changes: dict[str, Any] = {"inputs": inputs, "gradients": gradients}
        if forward:
            part, turn = (jnp.maximum(own[f"forward_{name}"], 0) for name in ("part", "turn"))
            state = _take(inputs, own["forward_slot"], types)
            state = self.forward(shared, self.of_turn(layers, turn), state, part, turn, types)
            changes["sent"] = self.permuted(state)
        if backward:
            grads, sums, gradient = self._backward(own, inputs, gradients, types, shared, layers)
            changes["returned"] = self.permuted(gradient, back=True)
            there, turn = own["backward_part"] >= 0, jnp.maximum(own["backward_turn"], 0)
            changes["grads"] = (
                _added(running.grads[0], grads[0], there),
                _added_at(running.grads[1], grads[1], there, turn),
            )
            changes["sums"] = _added(running.sums, sums, there)
        return dataclasses.replace(running, **changes)

    def _backward(
        self,
        own: Mapping[str, Array],
        inputs: Any,
        gradients: Any,
        types: State,
        shared: Shared,
        layers: Layers,
    ) -> tuple[tuple[Shared, Layers], Any, State]:
        """Gradients of the parameters, sums, and the gradient of the chunk's input."""
        part, turn = (jnp.maximum(own[f"backward_{name}"], 0) for name in ("part", "turn"))
        state = _take(inputs, own["backward_slot"], types)

        both = shared, self.of_turn(layers, turn)

        def through(shared: Shared, chunk: Layers, state: State) -> Any:
            all_, own = zero.put(both, (shared, chunk))
            after, (objective, sums) = self.through(all_, own, state, part, turn, types)
            return (after, objective), sums

        given = *zero.differentiated(both), state
        (_, objective), pull, sums = jax.vjp(through, *given, has_aux=True)
        gradient = _take(gradients, own["gradient_slot"], types)
        ends = self._ends(turn)
        gradient = jax.tree.map(lambda x: jnp.where(ends, jnp.zeros_like(x), x), gradient)
        of_shared, of_chunk, of_state = pull((gradient, jnp.ones_like(objective)))
        return (of_shared, of_chunk), sums, of_state

    def permuted(self, tree: State, back: bool = False) -> State:
        """What the stage before has sent; the one after, on the way back."""
        pairs = [(to, of) for of, to in self._ring] if back else self._ring
        return jax.tree.map(lambda x: lax.ppermute(x, self.axis, pairs), tree)


def _also(types: State, more: State, axis: str) -> State:
    """The types, varying also over what `more` varies over, and over the axis of stages."""

    def one(x: Any, y: Any) -> Array:
        names = collectives.varying(x) | collectives.varying(y) | {axis}
        return collectives.as_varying(jnp.zeros(x.shape, x.dtype), sorted(names))

    return jax.eval_shape(lambda: jax.tree.map(one, types, more))


def _as(tree: State, types: State) -> State:
    return collectives.typed_as(tree, types)


def _filled(types: Any, fill: float) -> Any:
    whole = jax.tree.map(lambda x: jnp.full(x.shape, fill, x.dtype), types)
    return _as(whole, types)


def _zeros(types: Any) -> Any:
    return _filled(types, 0)


def _buffers(types: State, slots: int, fill: float) -> State:
    """[slots, ...] of states; one where none is needed."""
    shaped = jax.tree.map(lambda x: jnp.full((max(slots, 1), *x.shape), fill, x.dtype), types)
    return _as(shaped, types)


def _put(buffer: State, state: State, slot: Array) -> State:
    """The buffer with a state in a slot; as it was for slot -1."""
    place = jnp.maximum(slot, 0)

    def one(all_: Array, x: Array) -> Array:
        old = lax.dynamic_index_in_dim(all_, place, 0, keepdims=False)
        return lax.dynamic_update_index_in_dim(all_, jnp.where(slot >= 0, x, old), place, 0)

    return jax.tree.map(one, buffer, state)


def _take(buffer: State, slot: Array, types: State) -> State:
    place = jnp.maximum(slot, 0)
    return _as(jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, place, 0, False), buffer), types)


def _added(total: Any, more: Any, there: Array) -> Any:
    return jax.tree.map(lambda a, b: a + jnp.where(there, b, jnp.zeros_like(b)), total, more)


def _added_at(total: Layers, more: Layers, there: Array, turn: Array) -> Layers:
    def one(a: Array, b: Array) -> Array:
        old = lax.dynamic_index_in_dim(a, turn, 0, keepdims=False)
        new = old + jnp.where(there, b, jnp.zeros_like(b))
        return lax.dynamic_update_index_in_dim(a, new, turn, 0)

    return jax.tree.map(one, total, more)
