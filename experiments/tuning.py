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
from gam_jax.ops.cached_attention import causal_rule
from gam_jax.ops.cross_entropy import capped
from gam_jax.ops.fused_attention import attention
from gam_jax.ops.norm import unit_norm
from gam_jax.ops.scan import memory_scan
from gam_jax.params import cast, init_params
from gam_jax.search import Gate, Point, Space, Verdict, search, strategy_of, through
from gam_jax.tuned import ATTENTION, BLOCKS, SCAN, Op, Part, blocks_of
from sharding.errors import UserError
from sharding.topology import REFUSALS, Topology, compiles

BUILDS, COMPILES, EQUAL = "builds", "compiles", "equals the plainest"
DRAWS = 2
"""How many times inputs are drawn."""
CHUNKS = (16, 32, 64, 128, 256)
HOW = "how"
"""A choice whose values are several settings at once: not every chunk means something to all."""
Arrays = Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """One op at one shape, and ways to compute it.

    Attributes:
      op: its name.
      shape: sizes and kinds by name, by which a layer's own is found.
      dtype: of what it is given.
      space: the settings that are tried.
      default: those that are taken where nobody says anything.
      make: settings -> a function of the arrays: a result, and gradients.
      plainest: the same, in the plainest way.
      draw: seed -> arrays.
    """

    op: str
    shape: Mapping[str, Any]
    dtype: str
    space: Space
    default: Mapping[str, Any]
    make: Callable[[Mapping[str, Any]], Callable[..., Any]]
    plainest: Callable[..., Any]
    draw: Callable[[int], Arrays]


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What was found of a case.

    Attributes:
      verdicts: of each point, in turn.
      seconds: of those that passed all gates; empty where nothing was run.
      best: the settings to take.
    """

    verdicts: Mapping[Point, Verdict]
    seconds: Mapping[Point, Quantity]
    best: Mapping[str, Any]


def tune(case: Case, repeats: int, machine: Topology | None = None) -> Tuned:
    """Asks the gates of every way, and times those that pass, in turn.

    The way of the least median is timed again beside the default; it is taken if its quartiles lie
    below the default's, who has won by chance the first time loses here.

    Args:
      case: what is tuned.
      repeats: turns of what is timed.
      machine: compiles for it and runs nothing; None runs here.
    """
    verdicts: dict[Point, Verdict] = {}
    programs: dict[Point, Callable[[], Any]] = {}

    def measure(points: Sequence[Point]) -> list[float]:
        for point in points:
            verdicts[point] = through(_gates(case, machine, programs), point)
        return [math.inf if verdicts[point].refused else 0.0 for point in points]

    search(case.space, strategy_of("all"), measure, case.space.size, batch=case.space.size)
    passed = [point for point, verdict in verdicts.items() if not verdict.refused]
    default = case.space.point_of(case.default)
    if machine is not None or default not in passed:
        return Tuned(verdicts, {}, case.default)
    times = samples({point: programs[point] for point in passed}, repeats)
    seconds = {point: Quantity.of(values, "s") for point, values in times.items()}
    best = min(passed, key=lambda point: seconds[point].median)
    if best != default:
        again = samples({point: programs[point] for point in (default, best)}, repeats)
        first, other = (Quantity.of(again[point], "s") for point in (default, best))
        seconds |= {default: first, best: other}
        best = best if other.high < first.low else default
    return Tuned(verdicts, seconds, case.space.values(best))


def _gates(
    case: Case, machine: Topology | None, programs: dict[Point, Callable[[], Any]]
) -> tuple[Gate, ...]:
    arrays = [case.draw(seed) for seed in range(DRAWS)]

    def made(point: Point) -> Callable[..., Any]:
        return jax.jit(case.make(case.space.values(point)))

    def builds(point: Point) -> None:
        _said(lambda: jax.eval_shape(made(point), *arrays[0]))

    def compiled(point: Point) -> None:
        if machine is not None:
            if why := compiles(case.make(case.space.values(point)), arrays[0], machine):
                raise UserError(why)
            return
        program = _said(lambda: made(point).lower(*arrays[0]).compile())
        programs[point] = functools.partial(program, *arrays[0])

    def equal(point: Point) -> dict[str, float]:
        if machine is not None:
            return {}
        program = programs[point].func  # type: ignore[attr-defined]
        off = max(
            difference(program(*own), wanted)
            for own, wanted in zip(arrays, _wanted(case), strict=True)
        )
        if not off <= tolerance(case.dtype):
            raise UserError(f"off by {off:.2g} of the largest value")
        return {"off": off}

    return Gate(BUILDS, builds), Gate(COMPILES, compiled), Gate(EQUAL, equal)


@functools.lru_cache(maxsize=4)
def _wanted_of(plainest: Any, draw: Any) -> list[Any]:
    program = jax.jit(plainest)
    return [program(*draw(seed)) for seed in range(DRAWS)]


def _wanted(case: Case) -> list[Any]:
    """What the plainest way gives of each draw; computed once."""
    return _wanted_of(case.plainest, case.draw)


def tolerance(dtype: str) -> float:
    """Of a difference, as a share of the largest value."""
    return 1e-3 if dtype == "float32" else 5e-2


def settings_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a point's values, each by its own name."""
    return {**values.get(HOW, {}), **{name: x for name, x in values.items() if name != HOW}}


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


def plain_scan(
    kind: str, rows: int, tokens: int, heads: int, size: int, values: int = 0
) -> dict[str, Any]:
    """The shape of a scan.

    Args:
      kind: a rule and what a decay is of, as "hebb:head"; "none" for no decay.
      rows: B.
      tokens: T.
      heads: H, of all.
      size: of keys.
      values: their size; 0 for that of keys.
    """
    rule, _, decay = kind.partition(":")
    shape = {"rule": rule, "decay": decay, "rows": rows, "tokens": tokens, "groups": heads}
    return shape | {"heads": heads, "keys": size, "values": values or size}


def scan_case(shape: Mapping[str, Any], dtype: str, backend: str | None = None) -> Case:
    """A memory scan: methods and chunks.

    Args:
      shape: see `gam_jax.tuned.scan_shape`.
      dtype: of queries, keys and values.
      backend: where it will run; None for JAX's default. On a TPU its kernel takes part.
    """
    rule, decay, heads = shape["rule"], shape["decay"], shape["heads"]
    asked = [*(["log_decay"] if decay != "none" else []), *(["beta"] if rule == "delta" else [])]

    def make(settings: Mapping[str, Any]) -> Callable[..., Any]:
        def scanned(q: Any, k: Any, v: Any, *more: Any) -> Any:
            own = dict(zip(asked, more, strict=True))
            return memory_scan(q, k, v, rule=rule, backend=backend, **own, **settings[HOW])[0]

        return with_gradient(scanned, 3)

    def draw(seed: int) -> Arrays:
        keys = jax.random.split(jax.random.key(seed), 5)
        lead = shape["rows"], shape["tokens"]
        sizes = ("groups", "keys"), ("groups", "keys"), ("heads", "values")
        q, k, v = (
            jax.random.normal(key, (*lead, *(shape[name] for name in names)), dtype)
            for key, names in zip(keys, sizes, strict=False)
        )
        of = (shape["keys"],) if decay == "channel" else ()
        log_decay = -jax.nn.softplus(jax.random.normal(keys[3], (*lead, heads, *of)) - 3)
        beta = jax.nn.sigmoid(jax.random.normal(keys[4], (*lead, heads)))
        found = {"log_decay": log_decay, "beta": beta}
        return (q, unit_norm(k).astype(dtype), v, *(found[name] for name in asked))

    chunked = ["chunked", *(["pallas"] if (backend or jax.default_backend()) == "tpu" else [])]
    hows = [{"method": method, "chunk": chunk} for method in chunked for chunk in CHUNKS]
    space = Space.of({HOW: [*hows, {"method": "associative", "chunk": 64}]})
    default = {HOW: {"method": "chunked", "chunk": 64}}
    plainest = make({HOW: {"method": "recurrent"}})
    return Case(SCAN, shape, dtype, space, default, make, plainest, draw)


def plain_attention(rows: int, tokens: int, heads: int, size: int) -> dict[str, Any]:
    """The shape of attention without groups, window or cap."""
    shape = {"rows": rows, "tokens": tokens, "groups": heads, "heads": heads, "keys": size}
    return shape | {"window": 0, "soft_cap": 0.0}


def attention_case(shape: Mapping[str, Any], dtype: str, backend: str | None = None) -> Case:
    """Causal attention in blocks: their size; 0 is what the machine has.

    Args:
      shape: see `gam_jax.tuned.attention_shape`.
      dtype: of queries, keys and values.
      backend: where it will run; None for JAX's default.
    """
    tokens, size, window = shape["tokens"], shape["keys"], shape["window"]
    served = shape["heads"] // shape["groups"]
    plain = causal_rule(size**-0.5, window, shape["soft_cap"])

    def make(settings: Mapping[str, Any]) -> Callable[..., Any]:
        rule = plain.in_blocks(settings["block_size"])
        return with_gradient(lambda q, k, v: attention(rule, q, k, v, backend), 3)

    def whole(q: Any, k: Any, v: Any) -> Any:
        q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
        k, v = (jnp.repeat(x, served, axis=2) for x in (k, v))
        scores = jnp.einsum("bthk,bshk->bhts", q, k) * size**-0.5
        scores = capped(scores, shape["soft_cap"])
        seen = jnp.tril(jnp.ones((tokens, tokens), bool))
        if window:
            seen &= ~jnp.tril(jnp.ones((tokens, tokens), bool), -window)
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
        return jnp.einsum("bhts,bshk->bthk", weights, v)

    def draw(seed: int) -> Arrays:
        keys = jax.random.split(jax.random.key(seed), 3)
        heads = shape["heads"], shape["groups"], shape["groups"]
        return [
            jax.random.normal(key, (shape["rows"], tokens, own, size), dtype)
            for key, own in zip(keys, heads, strict=True)
        ]

    space = Space.of({"block_size": [0, 32, 64, 128, 256, 512, 1024]})
    plainest = with_gradient(whole, 3)
    return Case(ATTENTION, shape, dtype, space, {"block_size": 0}, make, plainest, draw)


def plain_blocks(
    rows: int, tokens: int, width: int, depth: int, dtype: str
) -> tuple[LanguageModel, Op]:
    """GAM blocks, and their shape."""
    block = Block(GAM(slots=128, kernel=4))
    model = LanguageModel(block, width, depth, vocab=1, dtype=dtype)
    op = blocks_of(model, Part(rows, tokens, 1, frozenset()))
    assert op is not None
    return model, op


def blocks_case(model: LanguageModel, op: Op) -> Case:
    """The blocks of a model: whether they are computed again, and how many in a turn.

    What is computed again already is so in all ways, since that is asked for to save memory.

    Args:
      model: whose settings are the default.
      op: see `gam_jax.tuned.blocks_of`.
    """
    dtype = op.dtype

    def make(settings: Mapping[str, Any]) -> Callable[..., Any]:
        stack = dataclasses.replace(model, **settings).stack

        def run(x: Any, params: Any) -> Any:
            return stack(cast(stack.table(), params, dtype), x)[0]

        return with_gradient(run, 2)

    def draw(seed: int) -> Arrays:
        own, key, noise = jax.random.split(jax.random.key(seed), 3)
        x = jax.random.normal(own, (op.shape["rows"], op.shape["tokens"], model.width), dtype)
        return x, _drawn_params(model, key, noise)

    turns = len(model.block.order) if isinstance(model.block, Pattern) else model.depth
    unrolls = {n for n in (1, 2, 4, 8, turns, model.unroll) if n <= max(turns, model.unroll)}
    remats = [True] if model.remat else [False, True]
    space = Space.of({"remat": remats, "unroll": sorted(unrolls)})
    default = {"remat": model.remat, "unroll": model.unroll}
    plainest = make({"remat": False, "unroll": 1})
    return Case(BLOCKS, op.shape, dtype, space, default, make, plainest, draw)


@functools.partial(jax.jit, static_argnums=0)
def _drawn_params(model: LanguageModel, key: Any, noise: Any) -> Any:
    """First values of a model's blocks with noise, so that none of them is 0."""
    leaves, tree = jax.tree.flatten(init_params(model.stack.table(), key))
    keys = jax.random.split(noise, len(leaves))
    moved = [
        x + 0.02 * jax.random.normal(own, x.shape) for own, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, moved)


def case_of(op: Op, model: LanguageModel, backend: str | None = None) -> Case:
    """The case of an op of a model."""
    if op.name == BLOCKS:
        return blocks_case(model, op)
    makers = {SCAN: scan_case, ATTENTION: attention_case}
    return makers[op.name](op.shape, op.dtype, backend)


def broken(case: Case, wrong: Callable[..., Any], fails: Callable[..., Any]) -> Case:
    """The case with two ways more, of a choice `fault`: one that is wrong, one that cannot be."""
    choices = {choice.path: list(choice.values) for choice in case.space.choices}
    space = Space.of({**choices, "fault": ["", "wrong", "fails"]})

    def make(settings: Mapping[str, Any]) -> Callable[..., Any]:
        own = {name: value for name, value in settings.items() if name != "fault"}
        made = case.make(own)
        faults = {"wrong": wrong, "fails": fails}
        if settings["fault"]:
            return lambda *arrays: faults[settings["fault"]](made, *arrays)
        return made

    return dataclasses.replace(case, space=space, default={**case.default, "fault": ""}, make=make)


def is_wrong(made: Callable[..., Any], *arrays: Any) -> Any:
    """The right result, but for its last values."""
    return jax.tree.map(lambda x: x.at[..., -1].multiply(1.5), made(*arrays))


def does_not_compile(made: Callable[..., Any], *arrays: Any) -> Any:
    """An inner product of arrays that do not fit each other, in a loop."""
    return lax.fori_loop(0, 2, lambda _, x: x @ x.T[:1], made(*arrays)[0])
