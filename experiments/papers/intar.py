"""Large arrays between tasks (InTAR): materialised, streamed in tiles, or recomputed.

Source: arXiv 2502.08807, which makes circuits of its schedules. Here they are a planner's, and
the premise is seen in compiled programs of this machine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array, lax

from experiments.study import Absent, Arm, Claim, Measure, Setting, Study, closed
from experiments.study.declare import CPU, SHORT, Numbers
from gam_jax.planning.fusion import Chip, Task, best_plan, planned

WIDTH, HEADS, CHUNK = 64, 4, 64
LONG, FEW = 512, 64
TIMED = {SHORT: 128, CPU: LONG}
"""Scale -> tokens of the long sequences that are timed."""
BYTES = 2
RATE, BANDWIDTH, FAST = 1e14, 1e12, 16 * 2**20
"""Of the plans: multiply-adds and bytes a second, fast memory in bytes; round figures of ours."""


def attention_chain(tokens: int, width: int = 1024, heads: int = 16) -> list[Task]:
    """Queries with keys, softmax, values, and a feed-forward of 4 D hidden units."""
    square = heads * tokens**2 * BYTES
    rows = tokens * width * BYTES
    side = width**2
    return [
        Task(3 * tokens * side, 3 * rows, 3 * side * BYTES),
        Task(tokens**2 * width, square),
        Task(heads * tokens**2, square),
        Task(tokens**2 * width, rows),
        Task(4 * tokens * side, 4 * rows, 4 * side * BYTES),
        Task(4 * tokens * side, rows, 4 * side * BYTES),
    ]


def plan(tokens: int, fast: float) -> Numbers:
    """The best plan's microseconds and MiB spilled, and those of each pure style."""
    tasks, chip = attention_chain(tokens), Chip(RATE, BANDWIDTH, fast)
    count = len(tasks)
    alone = planned(tasks, chip, [(i, i + 1) for i in range(count)])
    whole = planned(tasks, chip, [(0, count)])
    best = best_plan(tasks, chip)
    return {
        "time": 1e6 * best.seconds,
        "spilled": best.spilled / 2**20,
        "groups": len(best.groups),
        "gain": min(alone.seconds, whole.seconds) / best.seconds,
    }


def scores(q: Array, k: Array, v: Array) -> Array:
    """Attention that holds its T x T scores; [H, T, D] each."""
    return jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) * q.shape[-1] ** -0.5) @ v


def in_chunks(q: Array, k: Array, v: Array) -> Array:
    """The same, for 64 queries at a time."""
    parts = jnp.moveaxis(q.reshape(q.shape[0], -1, CHUNK, q.shape[-1]), 1, 0)
    done = lax.map(lambda part: scores(part, k, v), parts)
    return jnp.moveaxis(done, 0, 1).reshape(q.shape)


PROGRAMS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "whole": scores,
    "chunked": in_chunks,
}


def compiled(name: str, tokens: int) -> Callable[[], Array]:
    """A call of one of the programs, on random arrays."""
    arrays = jax.random.normal(jax.random.key(0), (3, HEADS, tokens, WIDTH // HEADS))
    program = jax.jit(PROGRAMS[name]).lower(*arrays).compile()
    return functools.partial(program, *arrays)


def memory(name: str, tokens: int) -> Numbers:
    """Temporary MiB of the compiled program."""
    shape = jax.ShapeDtypeStruct((HEADS, tokens, WIDTH // HEADS), jnp.float32)
    analysis = jax.jit(PROGRAMS[name]).lower(shape, shape, shape).compile().memory_analysis()
    assert analysis is not None
    return {"temporary": analysis.temp_size_in_bytes / 2**20}


def _program(name: str, tokens: int) -> Arm:
    def timed(setting: Setting) -> Mapping[str, Callable[[], Array]]:
        return {"seconds": compiled(name, min(tokens, TIMED[setting.scale]))}

    return Arm(
        f"{name}, {tokens:,} tokens",
        numbers=lambda setting, seed: memory(name, tokens),
        timed=timed,
        exact=True,
    )


ARMS = {
    "all-fast": closed("4,096 tokens, fast memory without end", lambda: plan(4096, float("inf"))),
    "none-fast": closed("4,096 tokens, no fast memory", lambda: plan(4096, 0)),
    "long": closed("4,096 tokens, 16 MiB", lambda: plan(4096, FAST)),
    "short": closed("256 tokens, 16 MiB", lambda: plan(256, FAST)),
    "whole-long": _program("whole", LONG),
    "chunked-long": _program("chunked", LONG),
    "whole-short": _program("whole", FEW),
    "chunked-short": _program("chunked", FEW),
}

STUDY = Study(
    name="intar",
    title="Arrays between tasks",
    source="arXiv 2502.08807",
    page="machines.md",
    arms=ARMS,
    measures={
        "time": Measure("time", "lower", "us", ".1f"),
        "spilled": Measure("spilled", "lower", "MiB", ".1f"),
        "groups": Measure("groups", form=".0f"),
        "gain": Measure("times faster than one style alone", "higher", form=".3f"),
        "temporary": Measure("temporary memory", "lower", "MiB", ".2f"),
        "seconds": Measure("time here", "lower", "s", ".5f"),
    },
    claims=(
        Claim(
            "With fast memory without end nothing is spilled",
            "near",
            ("all-fast",),
            "spilled",
            source="the paper's rule",
        ),
        Claim(
            "Without fast memory all tasks are one pipeline",
            "near",
            ("none-fast",),
            "groups",
            1.0,
            source="the paper's rule",
        ),
        Claim(
            "A mixed plan is never slower than one style alone",
            "at_least",
            ("all-fast", "none-fast", "long", "short"),
            "gain",
            1.0,
            source="the paper's idea",
        ),
        Claim(
            "Chunks take less temporary memory where T x T is large",
            "times_at_most",
            ("chunked-long", "whole-long"),
            "temporary",
            0.5,
            source="the paper's premise",
        ),
        Claim(
            "Chunks take at most 1.3 times the time",
            "times_at_most",
            ("chunked-long", "whole-long"),
            "seconds",
            1.3,
            source="ours",
        ),
        Claim(
            "Where T x T is small, chunks save no memory",
            "times_at_least",
            ("chunked-short", "whole-short"),
            "temporary",
            1.0,
            source="the paper's premise",
        ),
    ),
    notes=(
        f"plans for {RATE:g} products and {BANDWIDTH:g} bytes a second, in 1,024 tiles",
        "from 1,024 tokens on the CPU's compiler tells no temporary bytes of the whole program",
    ),
    absent=(
        Absent(
            "1.8 times as fast as dataflow and 7.1 times as fast as sequential circuits; GPT-2 "
            "medium 3.65 to 39.14 times as fast as Allo and DFX",
            "measured on FPGAs",
        ),
    ),
)
