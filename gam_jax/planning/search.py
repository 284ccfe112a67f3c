"""Every way to run an experiment on a cluster, priced; and why some are none."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from gam_jax import search
from gam_jax.params import stored_specs
from gam_jax.planning.cluster import Cluster, strides
from gam_jax.planning.cost import PENALTY, Cost, cost
from gam_jax.planning.traces import SCALED, Class, Levels, Run, Traced, trace
from gam_jax.planning.work import Candidate, own_trace, state_of, work_of
from gam_jax.traffic.memory import StateBytes
from sharding.degrees import IN_LEVELS, in_words, legal
from sharding.errors import UserError
from sharding.mesh import AXIS_NAMES
from sharding.parallel import WORDS
from sharding.pipeline.tables import make_table

DATA_WORDS = ("data", "zero1", "fully_sharded")
LEVELS = "levels"
"""All degrees that the levels of a data axis allow."""
MORE_WORDS = ("zero2", *IN_LEVELS, LEVELS)
"""Further uses of `data`, each a program of its own; of levels, where a cluster has them."""

ROWS = "the batch does not divide"
PARAMETERS = "a parameter does not divide"
REFUSED = "the model refuses these devices"
MEMORY = "a device has too little memory"
STAGES = "the schedule does not take these parts"
REASONS = (ROWS, STAGES, PARAMETERS, REFUSED, MEMORY)
"""Why a candidate is none, in the order in which that is asked."""


Use = tuple[str, str]
"""Of `data`: a word, and with `LEVELS` the degrees of the parts of the state."""


@dataclasses.dataclass(frozen=True)
class Space:
    """Which candidates there are.

    Attributes:
      axes: of the mesh that may have several devices.
      data_words: uses of `data`: of `sharding.parallel.WORDS`, or `LEVELS`.
      tensor_word: the use of `tensor`.
      remats: whether blocks are computed again, each choice.
      parts: the most parts that a batch is taken in.
      schedules: of stages where there are several, and turns of each.
    """

    axes: tuple[str, ...] = ("data", "tensor")
    data_words: tuple[str, ...] = DATA_WORDS
    tensor_word: str = "tensor_tokens"
    remats: tuple[bool, ...] = (True,)
    parts: int = 64
    schedules: tuple[tuple[str, int], ...] = (("1f1b", 1), ("interleaved", 2))

    def space(self, devices: int, batch: int, cluster: Cluster | None = None) -> search.Space:
        """What is chosen: sizes of the mesh's axes, use of `data`, parts, remat, schedule.

        Args:
          devices: of the cluster.
          batch: rows of a step.
          cluster: whose links give the levels of `data`; None where these are not asked for.
        """
        meshes = set()
        for sizes in splits(devices, len(self.axes)):
            own = dict(zip(self.axes, sizes, strict=True))
            meshes.add(tuple(own.get(name, 1) for name in AXIS_NAMES))
        uses = {use for mesh in meshes for use in self._uses(mesh, cluster)}
        uses = uses or {("data", "")}  # which no mesh has either
        words = [*self.data_words, "data"]
        return search.Space.of(
            {
                "mesh": sorted(meshes),
                "use": sorted(uses, key=lambda use: (words.index(use[0]), use)),
                "parts": [n for n in divisors(batch) if n <= self.parts],
                "remat": list(self.remats),
                "schedule": list(self.schedules) if "pipe" in self.axes else [("1f1b", 1)],
            }
        )

    def candidate(self, values: Mapping[str, Any], cluster: Cluster | None = None) -> Candidate:
        """That of a point's values; what does nothing on its mesh is as if not chosen.

        Raises:
          UserError: the mesh has no levels for that use of `data`.
        """
        return _candidate(values, self._uses(values["mesh"], cluster))

    def candidates(
        self, devices: int, batch: int, cluster: Cluster | None = None
    ) -> tuple[Candidate, ...]:
        """All of them, whether they fit or not, each once; see `space`."""
        found = self.space(devices, batch, cluster)
        uses = {mesh: self._uses(mesh, cluster) for mesh in found.choices[0].values}
        made: dict[Candidate, None] = {}
        for point in found.points():
            values = found.values(point)
            with contextlib.suppress(UserError):  # of a use that this mesh has no levels for
                made[_candidate(values, uses[values["mesh"]])] = None
        return tuple(made)

    def _uses(self, mesh: Sequence[int], cluster: Cluster | None) -> dict[Use, tuple[str, Levels]]:
        """Uses of `data` on a mesh -> the preset, and its levels where those are used."""
        sizes: dict[str, int] = dict(zip(AXIS_NAMES, mesh, strict=True))
        inner = [word for word in ("sequence", self.tensor_word) if sizes[WORDS[word]] > 1]
        data = sizes["data"]
        crossed = cluster.crossed(strides(sizes)["data"], data) if cluster else []
        levels = tuple(members for members, _, _ in reversed(crossed))
        found: dict[Use, tuple[str, Levels]] = {}
        for word in self.data_words if data > 1 else ("data",):
            if word not in (*IN_LEVELS, LEVELS):
                found[word, ""] = "+".join((word, *inner)), Levels()
            elif len(levels) < 2 or math.prod(levels) != data:
                continue
            elif word in IN_LEVELS:
                found[word, ""] = "+".join((word, *inner)), Levels(levels)
            else:
                for text in map(in_words, legal(levels)):
                    found[word, text] = "+".join(("data", *inner)), Levels(levels, text)
        return found


def _candidate(values: Mapping[str, Any], uses: Mapping[Use, tuple[str, Levels]]) -> Candidate:
    sizes = dict(zip(AXIS_NAMES, values["mesh"], strict=True))
    use = values["use"] if sizes["data"] > 1 else ("data", "")
    if use not in uses:
        raise UserError(f"data={sizes['data']} has no levels for {' '.join(use)}")
    preset, levels = uses[use]
    schedule, turns = values["schedule"] if sizes["pipe"] > 1 else ("1f1b", 1)
    return Candidate(
        tuple(sizes.items()), preset, values["parts"], values["remat"], schedule, turns, levels
    )


@dataclasses.dataclass(frozen=True)
class Priced:
    """A candidate and what it costs."""

    candidate: Candidate
    cost: Cost


@dataclasses.dataclass(frozen=True)
class Refused:
    """A candidate that is none.

    Attributes:
      candidate: the candidate.
      reason: one of `REASONS`.
      why: in one line.
    """

    candidate: Candidate
    reason: str
    why: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was found.

    Attributes:
      priced: those that fit, the fastest first; those that were priced by their own programs
        before all others.
      refused: the others.
      traced: what is known of each class of programs.
      own: of candidates that were priced by their own programs, these.
    """

    priced: tuple[Priced, ...]
    refused: tuple[Refused, ...]
    traced: Mapping[Class, Traced]
    own: Mapping[Candidate, Traced] = dataclasses.field(default_factory=dict)

    @property
    def traces(self) -> int:
        """How many programs were traced."""
        return sum(each.traces for each in (*self.traced.values(), *self.own.values()))

    def program(self, candidate: Candidate) -> Traced:
        """What is known of a candidate's program."""
        return self.own.get(candidate) or self.traced[candidate.kind]

    @property
    def reasons(self) -> dict[str, int]:
        """How many were refused, by reason."""
        counts = collections.Counter(each.reason for each in self.refused)
        return {reason: counts[reason] for reason in REASONS if counts[reason]}


def plan(
    run: Run,
    cluster: Cluster,
    candidates: Collection[Candidate],
    overlap: str = "none",
    penalty: float = PENALTY,
    margin: float = 1.0,
    known: Mapping[Class, Traced] | None = None,
    own: int = 0,
) -> Plan:
    """Prices every candidate.

    Args:
      run: what is planned.
      cluster: that all candidates take.
      candidates: see `Space`.
      overlap: see `gam_jax.planning.cost.cost`.
      penalty: likewise.
      margin: what is held counts so many times.
      known: classes that an earlier plan of the same run has traced.
      own: how many of the best are priced by their own programs, and not by one of their class.

    Raises:
      UserError: a figure of the cluster that nobody has said, or no formulas for the model.
    """
    checked = _Checked(run)
    refused, kept = [], []
    for candidate in candidates:
        verdict = search.through(checked.gates, candidate)
        if verdict.refused:
            refused.append(Refused(candidate, verdict.refused, verdict.why))
        else:
            kept.append(candidate)
    traced = _traced(run, kept, known or {})
    priced: list[Priced] = []

    def price(candidate: Candidate, program: Traced | str) -> None:
        if isinstance(program, str):
            refused.append(Refused(candidate, REFUSED, program))
            return
        work = work_of(run, candidate, program, checked.state(candidate))
        found = cost(work, cluster, overlap, penalty)
        if found.held * margin > found.capacity:
            why = f"needs {found.held:,.0f} bytes of {found.capacity:,.0f}"
            refused.append(Refused(candidate, MEMORY, why))
        else:
            priced.append(Priced(candidate, found))

    for candidate in kept:
        price(candidate, traced[candidate.kind])
    scaled = sorted(priced, key=_rank)
    programs: dict[Candidate, Traced] = {}
    priced.clear()
    while scaled and len(priced) < own:
        candidate = scaled.pop(0).candidate
        program = _traced_or_why(lambda one=candidate: own_trace(run, one))
        if isinstance(program, Traced):
            programs[candidate] = program
        price(candidate, program)
    classes = {one: each for one, each in traced.items() if isinstance(each, Traced)}
    return Plan((*sorted(priced, key=_rank), *scaled), tuple(refused), classes, programs)


def _rank(priced: Priced) -> tuple[float, float]:
    return priced.cost.seconds, priced.cost.held


class _Checked:
    """Whether candidates divide; what many of them have in common is asked once."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._meshes: dict[tuple[object, str, int, Levels], str] = {}
        self._schedules: dict[tuple[str, int, int, int], str] = {}
        self._states: dict[tuple[object, str, Levels], StateBytes] = {}

    @property
    def gates(self) -> tuple[search.Gate, ...]:
        """What is asked before a program is traced, the cheapest first."""
        asked = {ROWS: self._rows, STAGES: self._schedule, PARAMETERS: self._parameters}
        return tuple(search.Gate(name, ask) for name, ask in asked.items())

    def _rows(self, candidate: Candidate) -> None:
        run, parts = self._run, candidate.accumulate
        if run.batch % parts:
            raise UserError(f"a batch of {run.batch} rows, in {parts} parts")
        run.through(parts)
        candidate.layout.check_batch(run.batch // parts, run.window or None)

    def _schedule(self, candidate: Candidate) -> None:
        stages, schedule = candidate.sizes["pipe"], candidate.schedule
        key = schedule, stages, self._run.through(candidate.accumulate), candidate.turns
        if stages > 1 and key not in self._schedules:
            self._schedules[key] = _said(lambda: make_table(*key))
        _refuse(self._schedules.get(key, ""))

    def _parameters(self, candidate: Candidate) -> None:
        model = self._run.model
        key = candidate.mesh, candidate.preset, candidate.turns, candidate.use
        if key not in self._meshes:
            layout = candidate.layout
            self._meshes[key] = _said(lambda: model.check_mesh(layout)) or _said(
                lambda: stored_specs(model.table(), layout)
            )
        _refuse(self._meshes[key])

    def state(self, candidate: Candidate) -> StateBytes:
        """`state_of` the candidate."""
        key = candidate.mesh, candidate.preset, candidate.use
        if key not in self._states:
            self._states[key] = state_of(self._run, candidate)
        return self._states[key]


def _refuse(why: str) -> None:
    if why:
        raise UserError(why)


def _said(check: Callable[[], object]) -> str:
    """What a check says no with; empty if it does not."""
    try:
        check()
    except UserError as error:
        return str(error)
    return ""


def _traced(
    run: Run, kept: Sequence[Candidate], known: Mapping[Class, Traced]
) -> dict[Class, Traced | str]:
    """What is known of each class; why its program cannot be where it cannot."""
    classes: dict[Class, list[Candidate]] = {}
    for candidate in kept:
        classes.setdefault(candidate.kind, []).append(candidate)
    found: dict[Class, Traced | str] = {}
    for one, members in classes.items():
        sizes = [candidate.sizes for candidate in members]
        asked = {name: {each[name] for each in sizes} for name in ("data", *SCALED)}
        found[one] = known.get(one) or _traced_or_why(lambda o=one, a=asked: trace(run, o, a))
    return found


def _traced_or_why(traced: Callable[[], Traced]) -> Traced | str:
    """What is known of a program; why it cannot be where it cannot."""
    try:
        return traced()
    except (ValueError, ArithmeticError) as error:  # a UserError is a ValueError
        return str(error).splitlines()[0]


def splits(devices: int, axes: int) -> Iterator[tuple[int, ...]]:
    """Every way to write a number of devices as a product of so many sizes."""
    if axes == 1:
        yield (devices,)
        return
    for inner in divisors(devices):
        for outer in splits(devices // inner, axes - 1):
            yield (*outer, inner)


def divisors(number: int) -> list[int]:
    """From 1 up."""
    return [n for n in range(1, number + 1) if number % n == 0]
