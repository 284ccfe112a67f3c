"""Unlike blocks in any order, with as few programs as their order allows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gam_jax.layers.base import WHOLE, Carry, Layer, inherit
from gam_jax.layers.in_order import InTurn
from gam_jax.layers.stack import Stack
from gam_jax.params import Params, Table
from gam_jax.units import UnitTable, joined, within
from sharding.axes import Axes
from sharding.bounds import Count, Rate, Size, check_bounds


class Run(NamedTuple):
    """Layers that repeat as one.

    Attributes:
      period: which layer stands at each place of one turn.
      turns: how often it repeats.
    """

    period: tuple[int, ...]
    turns: int

    @property
    def covers(self) -> int:
        """How many layers it is."""
        return len(self.period) * self.turns


@dataclasses.dataclass(frozen=True)
class Pattern(Layer):
    """Unlike blocks in a given order: windows and full attention in turn, or a hybrid's mixers.

    A model of eight blocks, each fourth of which sees everything, is
    `LanguageModel(Pattern((near, far), (0, 0, 0, 1) * 2), width, depth=1)`. What repeats is one
    `lax.scan` over its turns, so that a deep model compiles about as soon as one of its turns;
    `runs` says which. The parameters of a run are `runs/<its number>/<place in a turn>`, with a
    leading axis of turns.

    Attributes:
      layers: the unlike blocks.
      order: which of them each layer is, from the first to the last.
      width, dropout: given to the layers within where they leave them None.
      remat: recompute a turn's insides in the backward pass, see `Stack`.
      unroll: turns in one step of the scan, see `Stack`.
    """

    layers: tuple[Layer, ...]
    order: tuple[Count, ...]
    width: Size | None = None
    dropout: Rate | None = None
    remat: bool = False
    unroll: Size = 1
    gathers = True

    computed: ClassVar[tuple[str, ...]] = ("remat", "unroll")

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.order or set(self.order) != set(range(len(self.layers))):
            raise ValueError(
                f"Pattern.order={self.order} must name each of its {len(self.layers)} layers, "
                f"as numbers from 0"
            )
        layers = (inherit(x, width=self.width, dropout=self.dropout) for x in self.layers)
        object.__setattr__(self, "layers", tuple(layers))

    @property
    def loops(self) -> bool:
        """A loop for each run."""
        return True

    @property
    def runs(self) -> InTurn:
        """The runs as one layer."""
        return InTurn(tuple(self._stack(run) for run in runs_of(self.order)))

    def _stack(self, run: Run) -> Stack:
        turn = tuple(self.layers[kind] for kind in run.period)
        block = turn[0] if len(turn) == 1 else InTurn(turn)
        return Stack(block, run.turns, self.remat, self.unroll)

    def places(self) -> list[tuple[str, ...]]:
        """Of each layer, where its parameters are: the names that lead there, and its turn."""
        found = []
        for number, run in enumerate(runs_of(self.order)):
            inside = [()] if len(run.period) == 1 else [(str(i),) for i in range(len(run.period))]
            for turn in range(run.turns):
                found += [(str(number), *names, str(turn)) for names in inside]
        return found

    def of_layer(self, params: Params, number: int) -> Params:
        """The parameters of one layer, the first being 0; likewise of a tree in their shape."""
        *names, turn = self.places()[number]
        for name in names:
            params = params[name]
        return jax.tree.map(lambda x: x[int(turn)], params)

    def of_layers(self, each: Sequence[Params]) -> Params:
        """The parameters of all layers, from the first to the last, as the pattern has them."""
        turns: dict[tuple[str, ...], list[Params]] = {}
        for (*names, _), own in zip(self.places(), each, strict=True):
            turns.setdefault(tuple(names), []).append(own)
        found: dict[str, Any] = {}
        for (run, *place), own in turns.items():
            stacked = jax.tree.map(lambda *x: jnp.stack(x), *own)
            if place:
                found.setdefault(run, {})[place[0]] = stacked
            else:
                found[run] = stacked
        return found

    def table(self) -> Table:
        """That of each run, by its number."""
        return self.runs.table()

    def unit_table(self) -> UnitTable:
        """Those of each of the unlike layers, cut alike wherever it stands."""
        found = []
        for number, run in enumerate(runs_of(self.order)):
            for place, kind in enumerate(run.period):
                prefix = f"{number}/{place}" if len(run.period) > 1 else str(number)
                units = self.layers[kind].unit_table()
                found.append(within(prefix, 1, units, f"layers.{kind}"))
        return joined(*found)

    def carry_table(self, batch: int) -> Any:
        """That of each run, by its number."""
        return self.runs.carry_table(batch)

    def apart(self, carry: Carry, part: Any) -> Carry:
        """That of each layer by itself."""
        return self.runs.apart(carry, part)

    def experts_apart(self, params: Params, take: Any) -> Params:
        """As the layers do."""
        return self.runs.experts_apart(params, take)

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        carry: Carry | None = None,
        axes: Axes = WHOLE,
        *,
        key: Array | None = None,
        starts: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Carry]:
        """One layer after the other."""
        return self.runs(params, x, carry, axes, key=key, starts=starts)


@functools.lru_cache(maxsize=256)
def runs_of(order: tuple[int, ...]) -> tuple[Run, ...]:
    """The runs that compile the fewest layers; of those the fewest runs, long ones first.

    For (0, 0, 0, 1, 0, 0, 0, 1, 0): (0, 0, 0, 1) twice, then (0).
    """
    best: dict[int, tuple[Run, ...]] = {len(order): ()}
    for start in reversed(range(len(order))):
        found = [(run, *best[start + run.covers]) for run in _runs_at(order, start)]
        best[start] = min(found, key=_cost)
    return best[0]


def _runs_at(order: tuple[int, ...], start: int) -> Iterator[Run]:
    """What may begin there: one layer once or more often, several twice or more often."""
    for size in range(1, len(order) - start + 1):
        period, turns = order[start : start + size], 0
        while order[start + turns * size :][:size] == period:
            turns += 1
            if turns > 1 or size == 1:
                yield Run(period, turns)


def _cost(runs: tuple[Run, ...]) -> tuple[int, int, int]:
    return sum(len(run.period) for run in runs), len(runs), -runs[0].covers
