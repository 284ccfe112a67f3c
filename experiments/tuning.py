"""Ways to compute the same thing: which compile, which are right, which is the fastest here."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.benchmark.timing import Quantity, samples
from gam_jax.layers import GAM, Block, Pattern
from gam_jax.models import LanguageModel
from gam_jax.params import cast, init_params
from gam_jax.search import Gate, Verdict, through
from gam_jax.tuning.ops import Arrays, Op, Part, Settings
from gam_jax.tuning.table import BLOCKS, TUNABLE, blocks_of
from sharding.errors import UserError
from sharding.topology import REFUSALS, Topology, compiles

BUILDS, COMPILES, EQUAL = "builds", "compiles", "equals the plainest"
DRAWS = 2
"""How many times inputs are drawn."""
FINALISTS = 3
"""Ways that are timed a second time, at most: on a busy machine the first round misses some."""
SPREAD = "no other way is faster beyond the spread"
ALONE = "there is no other way on this machine"
REFUSED = "the default is refused, so there is nothing to beat"


@dataclasses.dataclass(frozen=True)
class Case:
    """One op at one shape, and ways to compute it.

    Attributes:
      op: what it is of.
      ways: the settings that are tried, each once; the default among them.
      default: those that the run has, or that are taken where nobody says anything.
      make: settings -> a function of the arrays: a result, and gradients.
      plainest: the same, in the plainest way.
      draw: seed -> arrays.
    """

    op: Op
    ways: tuple[Settings, ...]
    default: Settings
    make: Callable[[Settings], Callable[..., Any]]
    plainest: Callable[..., Any]
    draw: Callable[[int], Arrays]


@dataclasses.dataclass(frozen=True)
class Way:
    """What was found of a way.

    Attributes:
      settings: of it.
      verdict: of the gates.
      seconds: where it was timed.
    """

    settings: Settings
    verdict: Verdict
    seconds: Quantity | None = None


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What was found of a case.

    Attributes:
      ways: in the order of the case's.
      best: the settings to take.
      kept: why the default is, where nothing better was found; empty where nothing was run.
    """

    ways: tuple[Way, ...]
    best: Settings
    kept: str = ""

    def of(self, settings: Settings) -> Way:
        """What was found of these."""
        return next(way for way in self.ways if way.settings == settings)


def tune(case: Case, repeats: int, machine: Topology | None = None) -> Tuned:
    """Asks the gates of every way, and times those that pass, in turn.

    The `FINALISTS` of the least medians are timed again beside the default. One is taken if its
    quartiles lie below the default's, the least median of several; who has won by chance the first
    time loses here.

    Args:
      case: what is tuned.
      repeats: turns of what is timed.
      machine: compiles for it and runs nothing; None runs here.
    """
    programs: dict[int, Callable[[], Any]] = {}
    gates = _gates(case, machine, programs)
    ways = [Way(way, through(gates, number)) for number, way in enumerate(case.ways)]
    default = case.ways.index(case.default)
    if machine is not None:
        return Tuned(tuple(ways), case.default)
    if ways[default].verdict.refused:
        return Tuned(tuple(ways), case.default, REFUSED)
    passed = [number for number, way in enumerate(ways) if not way.verdict.refused]
    times = samples({number: programs[number] for number in passed}, repeats)
    seconds = {number: Quantity.of(values, "s") for number, values in times.items()}

    def median(number: int) -> float:
        return seconds[number].median

    ahead = [number for number in sorted(passed, key=median) if median(number) < median(default)]
    best = default
    if finalists := ahead[:FINALISTS]:
        again = samples({number: programs[number] for number in (default, *finalists)}, repeats)
        seconds |= {number: Quantity.of(values, "s") for number, values in again.items()}
        below = [number for number in finalists if seconds[number].high < seconds[default].low]
        best = min(below, key=median, default=default)
    for number, found in seconds.items():
        ways[number] = dataclasses.replace(ways[number], seconds=found)
    kept = ALONE if len(ways) == 1 else SPREAD
    return Tuned(tuple(ways), case.ways[best], kept if best == default else "")


def _gates(
    case: Case, machine: Topology | None, programs: dict[int, Callable[[], Any]]
) -> tuple[Gate, ...]:
    """Of the number of a way."""
    arrays = [case.draw(seed) for seed in range(DRAWS)]
    plainest = jax.jit(case.plainest)
    wanted = functools.cache(lambda: [plainest(*own) for own in arrays])

    def builds(number: int) -> None:
        _said(lambda: jax.eval_shape(case.make(case.ways[number]), *arrays[0]))

    def compiled(number: int) -> None:
        made = case.make(case.ways[number])
        if machine is not None:
            if why := compiles(made, arrays[0], machine):
                raise UserError(why)
            return
        program = _said(lambda: jax.jit(made).lower(*arrays[0]).compile())
        programs[number] = functools.partial(program, *arrays[0])

    def equal(number: int) -> dict[str, float]:
        if machine is not None:
            return {}
        program = programs[number].func  # type: ignore[attr-defined]
        off = max(
            difference(program(*own), right) for own, right in zip(arrays, wanted(), strict=True)
        )
        if not off <= tolerance(case.op.dtype):
            raise UserError(f"off by {off:.2g} of the largest value")
        return {"off": off}

    return Gate(BUILDS, builds), Gate(COMPILES, compiled), Gate(EQUAL, equal)


def tolerance(dtype: str) -> float:
    """Of a difference, as a share of the largest value."""
    return 1e-3 if dtype == "float32" else 5e-2


def difference(found: Any, wanted: Any) -> float:
    """The largest one of any array, as a share of that array's largest value; NaN is infinite."""
    off = [0.0]
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        size = np.abs(other).max(initial=0.0) or 1.0
        worst = np.abs(one - other).max(initial=0.0) / size
        off.append(float(worst) if np.isfinite(worst) else math.inf)
    return max(off)


def _said(call: Callable[[], Any]) -> Any:
    """The result; a refusal of a compiler, or of the op itself, as a UserError."""
    try:
        return call()
    except UserError:
        raise
    except (*REFUSALS, TypeError) as error:
        raise UserError(str(error)) from error


def with_gradient(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """The function with the gradients of a sum of squares, by its first `count` arguments."""

    def both(*arrays: Any) -> Any:
        def total(*own: Any) -> Any:
            found = function(*own)
            return jnp.sum(jnp.square(found.astype(jnp.float32))), found

        gradients, found = jax.grad(total, tuple(range(count)), has_aux=True)(*arrays)
        return found, gradients

    return both


def op_case(op: Op, backend: str | None = None, others: Sequence[Settings] = ()) -> Case:
    """The case of an op of layers.

    Args:
      op: its own settings are the default; those of the table where it has none.
      backend: where it will run; None for JAX's default.
      others: settings that other layers of a run have for an equal op.
    """
    of = TUNABLE[op.name]
    default = dict(op.own or of.default)
    found = of.ways(op, backend or jax.default_backend())
    drawn = jax.jit(lambda seed: of.draw(op.shape, op.dtype, jax.random.key(seed)))
    count = of.differentiated
    return Case(
        op,
        _each_once((default, of.default, *others, *found)),
        default,
        lambda settings: with_gradient(of.call(op.shape, settings, backend), count),
        with_gradient(functools.partial(of.plainest, op.shape), count),
        drawn,
    )


def _each_once(ways: Sequence[Settings]) -> tuple[Settings, ...]:
    found: list[Settings] = []
    for way in ways:
        if way not in found:
            found.append(dict(way))
    return tuple(found)


def plain_blocks(
    rows: int, tokens: int, width: int, depth: int, dtype: str
) -> tuple[LanguageModel, Op]:
    """GAM blocks, and their shape."""
    block = Block(GAM(slots=128, kernel=4))
    model = LanguageModel(block, width, depth, vocab=1, dtype=dtype)
    op = blocks_of(model, Part(rows, tokens))
    assert op is not None
    return model, op


def blocks_case(model: LanguageModel, op: Op) -> Case:
    """The blocks of a model: whether they are computed again, and how many in a turn.

    What is computed again already is so in all ways, since that is asked for to save memory.

    Args:
      model: whose settings are the default.
      op: see `gam_jax.tuning.table.blocks_of`.
    """
    dtype = op.dtype

    def make(settings: Settings) -> Callable[..., Any]:
        stack = dataclasses.replace(model, **settings).stack

        def run(x: Any, params: Any) -> Any:
            return stack(cast(stack.table(), params, dtype), x)[0]

        return with_gradient(run, 2)

    def draw(seed: int) -> Arrays:
        own, key, noise = jax.random.split(jax.random.key(seed), 3)
        x = jax.random.normal(own, (op.shape["rows"], op.shape["tokens"], model.width), dtype)
        return x, _drawn_params(model, key, noise)

    turns = len(model.block.order) if isinstance(model.block, Pattern) else model.depth
    unrolls = sorted(
        {n for n in (1, 2, 4, 8, turns, model.unroll) if n <= max(turns, model.unroll)}
    )
    remats = [True] if model.remat else [False, True]
    ways = tuple({"remat": remat, "unroll": unroll} for remat in remats for unroll in unrolls)
    plainest = make({"remat": False, "unroll": 1})
    return Case(op, ways, dict(op.own), make, plainest, draw)


@functools.partial(jax.jit, static_argnums=0)
def _drawn_params(model: LanguageModel, key: Any, noise: Any) -> Any:
    """First values of a model's blocks with noise, so that none of them is 0."""
    leaves, tree = jax.tree.flatten(init_params(model.stack.table(), key))
    keys = jax.random.split(noise, len(leaves))
    moved = [
        x + 0.02 * jax.random.normal(own, x.shape) for own, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, moved)


def cases_of(ops: Sequence[Op], model: LanguageModel, backend: str | None = None) -> list[Case]:
    """The cases of a run's ops, each op once.

    Args:
      ops: see `gam_jax.tuning.table.ops_of`.
      model: of the run.
      backend: where it will run; None for JAX's default.
    """
    alike: dict[tuple[str, ...], list[Op]] = {}
    for op in ops:
        alike.setdefault(op.key, []).append(op)
    return [
        blocks_case(model, first)
        if first.name == BLOCKS
        else op_case(first, backend, [other.own for other in others])
        for first, *others in alike.values()
    ]


def broken(case: Case, wrong: Callable[..., Any], fails: Callable[..., Any]) -> Case:
    """The case with two ways more of each, by a setting `fault`: one is wrong, one cannot be."""
    faults: Mapping[str, Any] = {"wrong": wrong, "fails": fails}

    def make(settings: Settings) -> Callable[..., Any]:
        own = {name: value for name, value in settings.items() if name != "fault"}
        made, fault = case.make(own), settings.get("fault")
        return made if fault is None else lambda *arrays: faults[fault](made, *arrays)

    more = ({**way, "fault": fault} for way in case.ways for fault in faults)
    return dataclasses.replace(case, ways=(*case.ways, *more), make=make)


def is_wrong(made: Callable[..., Any], *arrays: Any) -> Any:
    """The right result, but for its last values."""
    return jax.tree.map(lambda x: x.at[..., -1].multiply(1.5), made(*arrays))


def does_not_compile(made: Callable[..., Any], *arrays: Any) -> Any:
    """An inner product of arrays that do not fit each other, in a loop."""
    return lax.fori_loop(0, 2, lambda _, x: x @ x.T[:1], made(*arrays)[0])
