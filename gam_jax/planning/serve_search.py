"""Every way to serve a model on a cluster, simulated; and why some are none.

Source of the question: APEX (arXiv 2411.17651), which simulates batching for each plan. Its plans
share blocks of a model as no program here does; those here are what `gam serve` runs.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np

from gam_jax.models.language import LanguageModel
from gam_jax.planning.batching import Outcome, simulate
from gam_jax.planning.cluster import Cluster
from gam_jax.planning.cost import Cost, cost
from gam_jax.planning.overlap import chains
from gam_jax.planning.requests import Asked
from gam_jax.planning.search import divisors, splits
from gam_jax.planning.serving import Traced, check_drawn, trace
from gam_jax.serve.executor import Sizes
from sharding.errors import UserError
from sharding.mesh import AXIS_NAMES, in_words

SHARE = 0.95
"""Of the requests, those that a bound must hold for."""
STEPS = 6
"""Halvings of the range in which the highest rate is sought."""
RANGE = 64.0
"""The highest rate over the lowest that is tried."""

REFUSED = "the model is not served on these devices"
MEMORY = "a device has too little memory for one text"
SLOW = "the bounds are not kept at any rate"
LATE = "the bounds are not kept"
UNSAID = "the cluster has no figure for what it does"
REASONS = (REFUSED, MEMORY, UNSAID, SLOW, LATE)
"""Why a way is none, in the order in which that is asked."""


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to serve.

    Attributes:
      replicas: of the model, each with rows of its own; requests are dealt to them in turn.
      mesh: of each, sizes of all axes, the outermost first.
      rows: of each, texts in progress at once.
      budget: tokens of prompts that are read in one turn, at most.
    """

    replicas: int
    mesh: tuple[tuple[str, int], ...]
    rows: int
    budget: int

    @property
    def shown(self) -> str:
        """In words."""
        return f"{self.replicas} x {in_words(dict(self.mesh))}, {self.rows} rows"


def ways(
    devices: int, axes: Sequence[str], rows: Sequence[int], budgets: Sequence[int]
) -> Iterator[Way]:
    """Every way to use all devices: replicas, and meshes of each over these axes."""
    for replicas in divisors(devices):
        for sizes in splits(devices // replicas, len(axes)):
            own = dict(zip(axes, sizes, strict=True))
            mesh = tuple((name, own.get(name, 1)) for name in AXIS_NAMES)
            for count in rows:
                for budget in budgets:
                    yield Way(replicas, mesh, count, budget)


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What most requests must keep.

    Attributes:
      first: seconds to the first token.
      between: seconds between two tokens, in the mean of a request.
    """

    first: float = math.inf
    between: float = math.inf


@dataclasses.dataclass(frozen=True)
class Served:
    """A way, and what comes of it.

    Attributes:
      way: the way.
      sizes: of each replica's executor.
      rate: requests a second, all replicas together; infinite where all came at once.
      tokens: that are written a second.
      first: seconds to the first token, the median and what `SHARE` of the requests keep.
      between: seconds between tokens, likewise.
      busy: share of the time in which devices work.
      left: texts that had to leave their row for want of pages, and how often.
      held: bytes on a device, all its pages with it.
      capacity: bytes that programs can use.
      step: what a step costs where the longest text has read half of what a row holds.
    """

    way: Way
    sizes: Sizes
    rate: float
    tokens: float
    first: tuple[float, float]
    between: tuple[float, float]
    busy: float
    left: int
    held: float
    capacity: float
    step: Cost

    @property
    def middle(self) -> int:
        """Tokens of a text that has read half of what a row holds."""
        return _middle(self.sizes)

    def keeps(self, bounds: Bounds) -> bool:
        """Whether it keeps the bounds."""
        return self.first[1] <= bounds.first and self.between[1] <= bounds.between


Key = tuple[tuple[tuple[str, int], ...], int]
"""A mesh, and rows."""
Known = Mapping[Key, Traced | str]
"""The programs of a way, or why there are none."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was found.

    Attributes:
      served: the ways that can be, the most tokens a second first.
      refused: the others, with the reason and a line about it.
      programs: of each mesh and number of rows; why there are none where there are not.
    """

    served: tuple[Served, ...]
    refused: tuple[tuple[Way, str, str], ...]
    programs: Known

    @property
    def traces(self) -> int:
        """How many programs were traced."""
        return sum(each.traces for each in self.programs.values() if isinstance(each, Traced))

    @property
    def reasons(self) -> dict[str, int]:
        """How many were refused, by reason."""
        counts = collections.Counter(reason for _, reason, _ in self.refused)
        return {reason: counts[reason] for reason in REASONS if counts[reason]}


Arriving = Callable[[float], Sequence[Asked]]
"""Requests that come at so many a second; all at once where that is infinite."""


def plan(
    model: LanguageModel,
    cluster: Cluster,
    candidates: Collection[Way],
    arriving: Arriving,
    rate: float = math.inf,
    bounds: Bounds = Bounds(),
    margin: float = 1.0,
    host: float = 0.0,
    known: Known | None = None,
) -> Plan:
    """Serves the requests in every way, and ranks them.

    With bounds and an infinite rate, each way is taken at the highest rate at which it keeps them.

    Args:
      model: that is served.
      cluster: of all replicas together.
      candidates: see `ways`.
      arriving: the requests.
      rate: at which they come.
      bounds: that a way must keep.
      margin: what is held besides pages counts so many times.
      host: seconds that the host takes to begin a program.
      known: programs that an earlier plan of the same model and requests has traced.

    Raises:
      UserError: every way that has memory asks for a figure that nobody has said; a request longer
        than the model can take; a model that draws an option, see `check_drawn`.
    """
    check_drawn(model)
    longest = max(asked.reads + asked.writes for asked in arriving(math.inf))
    if model.limit and longest > model.limit:
        raise UserError(
            f"a request reads and writes {longest} tokens, and the model takes {model.limit}"
        )
    programs = dict(known or {})
    served, refused = [], []
    for way in candidates:
        program = _program(model, cluster, way, longest, programs)
        if isinstance(program, str):
            refused.append((way, REFUSED, program))
            continue
        free = cluster.profile.memory.capacity - margin * program.least
        pages = _pages(program, free)
        if free < 0 or (program.sizes.page and pages <= program.sizes.row_pages):
            need = margin * program.least + program.sizes.row_pages * program.held.page
            why = f"needs {need:,.0f} bytes of {cluster.profile.memory.capacity:,.0f}"
            refused.append((way, MEMORY, why))
            continue
        one = _One(program, cluster, way, dataclasses.replace(program.sizes, pages=pages), host)
        try:
            found = one.best(arriving, rate, bounds)
        except UserError as error:  # a figure of what this way does, such as to park a text
            refused.append((way, UNSAID, str(error)))
            continue
        if isinstance(found, str):
            refused.append((way, found, ""))
        else:
            served.append(found)
    served.sort(key=lambda each: (-each.tokens, each.first[1], each.between[1]))
    found = Plan(tuple(served), tuple(refused), programs)
    if not served and UNSAID in found.reasons and not {SLOW, LATE} & set(found.reasons):
        raise UserError(next(why for _, reason, why in refused if reason == UNSAID))
    return found


def in_halves(model: LanguageModel, cluster: Cluster, served: Served, known: Known) -> float | None:
    """Seconds of a step whose rows are taken in two halves that run beside each other.

    Each half reads all parameters. Nothing here runs so: it is what NanoFlow's schedule would give.

    Args:
      model: that is served.
      cluster: of all replicas together.
      served: a way.
      known: the programs of its plan.

    Returns:
      None for an odd number of rows, which has no halves.
    """
    way, blocks = served.way, model.depth
    whole = known[way.mesh, way.rows]
    if way.rows % 2 or isinstance(whole, str):
        return None
    limit, backend = whole.sizes.limit, cluster.profile.backend
    half = trace(model, dict(way.mesh), way.rows // 2, limit, backend, like=whole)
    work = half.work("step 1", served.middle)
    took = cost(work, cluster)
    rates = {dtype: cluster.profile.flops(dtype) for dtype in work.flops}
    arithmetic = sum(count / rates[dtype] for dtype, count in work.flops.items())
    reads = work.product_bytes / cluster.profile.bandwidth > arithmetic
    resources = (
        ("memory" if reads else "compute", took.products / blocks),
        ("memory", took.memory / blocks),
        ("network", sum(took.messages.values()) / blocks),
    )
    return chains(resources, 2, blocks)


def _program(
    model: LanguageModel,
    cluster: Cluster,
    way: Way,
    limit: int,
    known: dict[Key, Traced | str],
) -> Traced | str:
    """The programs of a way; why there are none."""
    key = way.mesh, way.rows
    if key not in known:
        same = (each for (mesh, _), each in known.items() if mesh == way.mesh)
        like = next((each for each in same if isinstance(each, Traced)), None)
        backend = cluster.profile.backend
        try:
            known[key] = trace(model, dict(way.mesh), way.rows, limit, backend, like=like)
        except (ValueError, ArithmeticError) as error:  # a UserError is a ValueError
            known[key] = str(error).splitlines()[0]
    return known[key]


def _pages(program: Traced, free: float) -> int:
    """As many as there is memory for, and no more than all rows can fill; page 0 is nobody's."""
    sizes = program.sizes
    if not sizes.page:
        return 0
    return min(1 + sizes.rows * sizes.row_pages, math.floor(max(free, 0) / program.held.page))


class _One:
    """One way, at any rate."""

    def __init__(
        self, program: Traced, cluster: Cluster, way: Way, sizes: Sizes, host: float
    ) -> None:
        self._program, self._cluster, self._way, self._sizes = program, cluster, way, sizes
        self._host = host
        self._price = functools.cache(self._seconds)

    def best(self, arriving: Arriving, rate: float, bounds: Bounds) -> Served | str:
        """At the rate that is given, or the highest one that keeps the bounds."""
        found = self.at(arriving, rate)
        if found.keeps(bounds):
            return found
        requests = arriving(math.inf)
        if math.isfinite(rate) or tuple(arriving(1.0)) == tuple(requests):  # at once at any rate
            return LATE
        high = len(requests) * found.tokens / sum(asked.writes for asked in requests)
        low, kept = high / RANGE, None
        for step in range(STEPS + 1):
            tried = low if not step else math.sqrt(low * high)
            found = self.at(arriving, tried)
            if found.keeps(bounds):
                low, kept = tried, found
            elif not step:
                return SLOW
            else:
                high = tried
        assert kept is not None  # the lowest rate has kept them
        return kept

    def at(self, arriving: Arriving, rate: float) -> Served:
        """At one rate."""
        way, requests = self._way, arriving(rate)
        shares = [requests[i :: way.replicas] for i in range(way.replicas)]
        held = self._program.held
        given = self._sizes, self._price, (held.row, held.page), self._copy, way.budget, self._host
        outcomes = [simulate(share, *given) for share in shares if share]
        return self._told(outcomes, rate)

    def _seconds(self, name: str, tokens: int) -> float:
        return self._program.seconds(self._cluster, name, tokens)

    def _copy(self, size: float) -> float:
        return size / self._cluster.profile.value("memory.host.dma")

    def _told(self, outcomes: list[Outcome], rate: float) -> Served:
        told = [each for outcome in outcomes for each in outcome.told]
        seconds = max(outcome.seconds for outcome in outcomes)
        program, capacity = self._program, self._cluster.profile.memory.capacity
        busy = sum(sum(outcome.busy.values()) for outcome in outcomes)
        parked = sum(outcome.calls.get("save", 0) for outcome in outcomes)
        return Served(
            self._way,
            self._sizes,
            rate,
            sum(each.written for each in told) / seconds,
            _quantiles([each.waited for each in told]),
            _quantiles([each.between for each in told if each.written > 1] or [0.0]),
            busy / (seconds * self._way.replicas),
            parked,
            program.least + self._sizes.pages * program.held.page,
            capacity,
            cost(program.work("step 1", _middle(self._sizes)), self._cluster),
        )


def _middle(sizes: Sizes) -> int:
    return sizes.row_pages * sizes.page // 2


def _quantiles(values: list[float]) -> tuple[float, float]:
    half, most = np.quantile(values, (0.5, SHARE), method="inverted_cdf")
    return float(half), float(most)


def told_flags(served: Served) -> str:
    """What `gam serve` is told, of each replica: texts no longer than those it was planned for."""
    sizes = {name: size for name, size in served.way.mesh if size > 1}
    mesh = ",".join(f"{name}={size}" for name, size in sizes.items()) or "data=1"
    tokens = (served.sizes.pages - 1) * served.sizes.page
    cache = f" --cache_tokens={tokens}" if served.sizes.page else ""
    return (
        f"--mesh={mesh} --rows={served.way.rows} --limit={served.sizes.limit} "
        f"--prefill_budget={served.way.budget}{cache} --snapshots=0"
    )
