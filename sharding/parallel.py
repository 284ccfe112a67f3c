"""What each mesh axis is used for: the words, degrees and schedules of `parallel` in a config."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from sharding.bounds import Size, check_bounds
from sharding.degrees import TABLE, Degrees
from sharding.degrees import parsed as parsed_degrees
from sharding.errors import UserError, unknown
from sharding.host_memory import share
from sharding.overlap import OVERLAPS
from sharding.pipeline.balance import parsed
from sharding.pipeline.tables import ONE_F_ONE_B, check_schedule
from sharding.quantised import parsed as parsed_bits
from sharding.rules import DEFAULT_RULES, Rules

WORDS = {
    **dict.fromkeys(TABLE, "data"),
    "sequence": "seq",
    "tensor": "tensor",
    "tensor_tokens": "tensor",
}
"""Word of a preset -> the mesh axis that it gives work to."""

OWN_WORK = frozenset({"stream", "expert", "pipe", "worker"})
"""Mesh axes with one use only, which a model has or has not; no word asks for it."""


@dataclasses.dataclass(frozen=True)
class Parallel:
    """What each mesh axis is used for. It changes where numbers are, not what they are.

    Attributes:
      preset: words joined by "+", at most one for each mesh axis.
        data: every device holds all parameters and the optimizer's state;
        zero1: the optimizer's state and arithmetic are split over `data` (ZeRO stage 1);
        zero2: gradients too, as soon as a layer has them (ZeRO stage 2);
        fully_sharded: parameters too, gathered layer by layer (ZeRO stage 3);
        mics: all of them over the inner levels of `data` alone (MiCS);
        hpz: `fully_sharded`, layers gathered from a second copy over the inner levels (ZeRO++);
        sequence: tokens are split over `seq`;
        tensor: slots, heads, channels, hidden units and vocabulary are split over `tensor`;
        tensor_tokens: likewise, and between layers tokens are split over `tensor` as well.
      rules: changes to the table of `sharding.rules`, as "ffn=none,slot=tensor".
      schedule: in which order the stages of the mesh axis `pipe` take the parts of a batch: gpipe,
        1f1b or interleaved, see `sharding.pipeline.tables`.
      turns: chunks of layers that each stage of an interleaved schedule holds.
      stages: layers of each stage, as "5,3", or of each chunk, those of the first turn first; empty
        for as many on each.
      speeds: of each stage, as "197,160": the layers are dealt out so that the slowest stage is as
        fast as can be, see `sharding.pipeline.balance`; empty for equal ones.
      overlap: beside tensor_tokens, how the products at the ends of a layer go along with the
        messages over `tensor`: none, one after the other; ring, in steps of a ring; two_way, in two
        rings, each with half of the tokens; see `sharding.overlap`.
      bits: in how many bits, 8 or 4, weights are gathered and gradients scattered over `data`, as
        "weights:8,gradients:4"; as they are if empty. It changes what a run computes, see
        `sharding.quantised`.
      shards: over how many devices of `data` weights, gradients and the optimizer's state are
        split, as "weights:2,gradients:4,state:8,secondary:1", in the place of what a word says;
        see `sharding.degrees`.
      offload: which share of the optimizer's moments lies in the host's memory between steps: "all"
        or a number, as "0.5"; empty for none; see `sharding.host_memory`.
    """

    preset: str = "data+sequence+tensor"
    rules: str = ""
    schedule: str = ONE_F_ONE_B
    turns: Size = 1
    stages: str = ""
    speeds: str = ""
    overlap: str = OVERLAPS[0]
    shards: str = ""
    bits: str = ""
    offload: str = ""

    def __post_init__(self) -> None:
        check_bounds(self, "parallel")
        check_schedule(self.schedule, self.turns)
        given = [name for name in ("stages", "speeds") if getattr(self, name)]
        if len(given) > 1:
            raise UserError("parallel.stages and parallel.speeds both deal out layers: give one")
        parsed(self.stages, "parallel.stages", int)
        parsed(self.speeds, "parallel.speeds", float)
        used: dict[str, str] = {}
        for word in self.words:
            if word not in WORDS:
                raise UserError(f"parallel.preset={self.preset}: {unknown(word, WORDS)}")
            if WORDS[word] in used:
                raise UserError(
                    f"parallel.preset={self.preset}: '{used[WORDS[word]]}' and '{word}' both "
                    f"decide what the {WORDS[word]} axis does: keep one"
                )
            used[WORDS[word]] = word
        self._check_overlap()
        parsed_bits(self.bits)
        share(self.offload)
        if self.shards:
            parsed_degrees(self.shards)
            if (word := used.get("data", "data")) != "data":
                raise UserError(
                    f"parallel.shards={self.shards} and '{word}' in parallel.preset both say how "
                    f"state is split: give one"
                )
        _ = self.table

    def _check_overlap(self) -> None:
        if self.overlap not in OVERLAPS:
            raise UserError(f"parallel.overlap={self.overlap}: {unknown(self.overlap, OVERLAPS)}")
        if self.overlap != OVERLAPS[0] and "tensor_tokens" not in self.words:
            raise UserError(
                f"parallel.overlap={self.overlap} needs messages that it can overlap with: put "
                f"tensor_tokens into parallel.preset={self.preset}"
            )

    @property
    def words(self) -> tuple[str, ...]:
        """The preset's words."""
        return tuple(self.preset.split("+")) if self.preset else ()

    def degrees(self, levels: Sequence[int]) -> Degrees:
        """How state is split over a data axis in these levels, the outermost first."""
        devices = math.prod(levels)
        if devices == 1:
            return Degrees()
        if self.shards:
            return parsed_degrees(self.shards)
        word = next((word for word in self.words if word in TABLE), "data")
        return TABLE[word](devices, math.prod(levels[1:]))

    @property
    def exact(self) -> Parallel:
        """The same, every number sent as it is."""
        return dataclasses.replace(self, bits="")

    @property
    def whole(self) -> Parallel:
        """The same without ZeRO, split residual streams or turns, as for decoding."""
        plain = dict.fromkeys(TABLE, "data") | {"tensor_tokens": "tensor"}
        preset = "+".join(plain.get(word, word) for word in self.words)
        return dataclasses.replace(
            self.in_order, preset=preset, shards="", bits="", overlap=OVERLAPS[0]
        )

    @property
    def in_order(self) -> Parallel:
        """The same, each stage with layers that follow one another."""
        return dataclasses.replace(self, schedule=ONE_F_ONE_B, turns=1, stages="", speeds="")

    @property
    def mesh_axes(self) -> set[str]:
        """The mesh axes that have work."""
        return {WORDS[word] for word in self.words} | OWN_WORK

    @property
    def table(self) -> Rules:
        """Logical axis -> mesh axis."""
        table = {
            logical: axis if axis in self.mesh_axes else None
            for logical, axis in DEFAULT_RULES.items()
        }
        for entry in filter(None, self.rules.split(",")):
            logical, _, axis = entry.partition("=")
            if logical not in table:
                raise UserError(f"parallel.rules={self.rules}: {unknown(logical, table)}")
            if axis not in ("none", "tensor"):
                raise UserError(
                    f"parallel.rules={self.rules}: '{logical}' can go to 'tensor' or 'none', not "
                    f"to '{axis}'"
                )
            table[logical] = None if axis == "none" else axis
        return table
