"""Kernels chosen by gates: compile, check, then time (CUDA-LLM), on ways of this project's ops.

Source: arXiv 2506.09092. Its models that write kernels are no part of this; what is seen here is
its order of gates and its choice, on block sizes and methods that are there already.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax

from experiments.benchmark.timing import Quantity, samples
from experiments.study import Absent, Arm, Claim, Measure, Setting, Study
from experiments.study.declare import CPU, SHORT, Numbers
from experiments.tuning import (
    Case,
    Tuned,
    broken,
    does_not_compile,
    is_wrong,
    op_case,
    tune,
)
from gam_jax.tuning.ops import Op, Sizes
from gam_jax.tuning.table import TUNABLE

REPEATS = {SHORT: 3, CPU: 15}
TOKENS = {SHORT: (16,), CPU: (512, 2048)}


OPS = {"attention": "attention", "memory_scan": "hebb:head"}
"""An op -> which example of it."""


@functools.cache
def cases(scale: str) -> tuple[Case, ...]:
    """Attention and a memory scan at each length."""
    heads, size = (1, 8) if scale == SHORT else (4, 32)
    found = []
    for tokens in TOKENS[scale]:
        sizes = Sizes(1, tokens, heads, size, size)
        for name, word in OPS.items():
            case = op_case(Op(name, TUNABLE[name].examples[word](sizes), "float32"))
            found.append(_two_ways(case) if scale == SHORT else case)
    return tuple(found)


def _two_ways(case: Case) -> Case:
    small = {"block_size": 8} if case.op.name == "attention" else {"method": "chunked", "chunk": 8}
    return dataclasses.replace(case, ways=(case.default, small))


@functools.cache
def tuned(scale: str, seed: int) -> tuple[Tuned, ...]:
    """Each case, tuned; another seed times it again."""
    del seed
    return tuple(tune(case, REPEATS[scale]) for case in cases(scale))


def gates(setting: Setting, seed: int) -> Numbers:
    """Faulty ways of the first case: how many, and how many were timed; whether others were."""
    case = broken(cases(setting.scale)[0], is_wrong, does_not_compile)
    found = tune(case, 3)
    faulty = [way for way in found.ways if "fault" in way.settings]
    return {
        "faulty": len(faulty),
        "timed": sum(way.seconds is not None for way in faulty),
        "refused": sum(bool(way.verdict.refused) for way in found.ways),
        "default": float(found.of(case.default).seconds is not None),
    }


def choice(setting: Setting, seed: int) -> Numbers:
    """The best gain over the default of any case, and the most that one is slower than it.

    Both are timed anew: those times by which a way was taken cannot speak against it.
    """
    gains, slower = [], [0.0]
    for case, found in zip(cases(setting.scale), tuned(setting.scale, seed), strict=True):
        if found.best == case.default:
            gains.append(1.0)
            continue
        default, best = afresh(case, found.best, REPEATS[setting.scale])
        gains.append(default.median / best.median)
        slower.append(best.low / default.high - 1)
    return {"gain": max(gains), "slower": max(slower)}


def afresh(case: Case, best: Mapping[str, Any], repeats: int) -> list[Quantity]:
    """Seconds of the default and of another way, compiled again and in turn."""
    arrays = case.draw(0)
    programs = {
        name: functools.partial(jax.jit(case.make(settings)), *arrays)
        for name, settings in (("default", case.default), ("best", best))
    }
    return [Quantity.of(values, "s") for values in samples(programs, repeats).values()]


STUDY = Study(
    name="cuda-llm",
    title="Kernels chosen by gates",
    source="arXiv 2506.09092",
    page="tuning.md",
    arms={
        "gates": Arm("ways that are wrong or do not compile", numbers=gates, exact=True),
        "choice": Arm("the way that is taken", numbers=choice),
    },
    measures={
        "gain": Measure("default over taken", "higher", "times", ".2f"),
        "slower": Measure("slower than the default beyond the spread", "lower", "", ".3f"),
        "faulty": Measure("faulty ways", form=".0f"),
        "timed": Measure("of them timed", "lower", form=".0f"),
        "refused": Measure("refused", form=".0f"),
        "default": Measure("defaults timed beside them", "higher", form=".0f"),
    },
    claims=(
        Claim(
            "Wrong ways and ways that do not compile are out before anything is timed",
            "at_most",
            ("gates",),
            "timed",
            0.0,
            source="section on feature search and reinforcement",
        ),
        Claim("and there were such ways", "at_least", ("gates",), "faulty", 1.0, source="ours"),
        Claim(
            "beside a default that was timed",
            "at_least",
            ("gates",),
            "default",
            1.0,
            source="ours",
        ),
        Claim(
            "What is taken is not slower than the default beyond the spread, timed anew",
            "at_most",
            ("choice",),
            "slower",
            0.0,
            source="ours",
        ),
        Claim(
            "For at least one shape a tuned way is 1.05 times as fast as the default, timed anew",
            "at_least",
            ("choice",),
            "gain",
            1.05,
            source="ours, after its speedups over default kernels",
        ),
    ),
    notes=("blocks of attention, methods and chunks of a memory scan, forward and backward",),
    absent=(
        Absent("Up to 179 times as fast as general code", "language models that write kernels"),
        Absent("All of 20 kernels correct", "language models that write kernels"),
    ),
)
