"""Batches that grow as they go: each iteration writes a token for all that run, and admits.

Written anew from section 3 of arXiv 2411.17651, without what its released code gets wrong.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Sequence

from experiments.study.declare import Numbers
from sharding.errors import UserError


@dataclasses.dataclass(frozen=True)
class Request:
    """Arrives at a second; reads so many tokens and writes so many, at least one.

    Raises:
      UserError: a number that no request has.
    """

    arrives: float
    reads: int
    writes: int

    def __post_init__(self) -> None:
        if not math.isfinite(self.arrives):
            raise UserError(f"request: arrives={self.arrives}: give a finite number of seconds")
        if self.reads < 0 or self.writes < 1:
            raise UserError(
                f"request: reads={self.reads}, writes={self.writes}: give at least 0 and 1 tokens"
            )


@dataclasses.dataclass
class Trace:
    """What a simulation leaves.

    Attributes:
      ends: seconds at which each request ended, by its number.
      firsts: at which each had its first token.
      spent: of each, seconds of the iterations in which it ran, since it was admitted first.
      iterations: seconds, requests and tokens of each.
      seconds: at which all had ended.
      written: tokens.
      most: tokens of the cache that were held at once.
    """

    ends: dict[int, float] = dataclasses.field(default_factory=dict)
    firsts: dict[int, float] = dataclasses.field(default_factory=dict)
    spent: dict[int, list[float]] = dataclasses.field(default_factory=dict)
    iterations: list[tuple[float, int, int]] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    written: int = 0
    most: int = 0


Iteration = Callable[[Sequence[int], Sequence[int]], float]
"""(tokens of each prompt, contexts of those that write) -> seconds."""


def serve(requests: Sequence[Request], room: int, iteration: Iteration, batch: int = 0) -> Trace:
    """The loop. An iteration reads the prompts of those that it admits, and writes for all.

    The cache never holds more than `room` tokens: whoever was admitted last gives way, and
    begins again later with what it has read and written as its prompt.

    Args:
      requests: by arrival.
      room: tokens of the cache; each request alone fits, with all that it reads and writes.
      iteration: its time.
      batch: requests that run at once, at most; 0 for any number.

    Raises:
      UserError: requests are not by arrival, one alone does not fit, or `batch` is negative.
    """
    _check(requests, room, batch)
    waiting = list(range(len(requests)))
    running: list[int] = []
    context = [0] * len(requests)
    done = [0] * len(requests)
    trace, clock = Trace(), 0.0
    while waiting or running:
        while running and sum(context[i] + 1 for i in running) > room:
            last = running.pop()
            context[last] = 0
            waiting.insert(0, last)
        writes, prompts = list(running), list[int]()
        while waiting and requests[waiting[0]].arrives <= clock and len(running) != (batch or -1):
            first = waiting[0]
            size = requests[first].reads + done[first]
            if sum(context[i] + 1 for i in running) + size + 1 > room:
                break
            running.append(waiting.pop(0))
            context[first] = size
            prompts.append(size)
        if not running:
            clock = requests[waiting[0]].arrives
            continue
        seconds = iteration(prompts, [context[i] for i in writes])
        clock += seconds
        trace.iterations.append((seconds, len(running), len(writes) + sum(prompts)))
        for i in running:
            context[i] += 1
            done[i] += 1
            trace.written += 1
            trace.firsts.setdefault(i, clock)
            trace.spent.setdefault(i, []).append(seconds)
        trace.most = max(trace.most, sum(context[i] for i in running))
        for i in [i for i in running if done[i] == requests[i].writes]:
            trace.ends[i] = clock
            running.remove(i)
    trace.seconds = clock
    return trace


def _check(requests: Sequence[Request], room: int, batch: int) -> None:
    if batch < 0:
        raise UserError(f"serve: batch={batch}: give how many run at once, or 0 for any number")
    for number, one in enumerate(requests):
        if one.reads + one.writes > room:
            raise UserError(
                f"serve: request {number} reads {one.reads} and writes {one.writes} tokens, "
                f"for which room={room} is too small"
            )
        if number and one.arrives < requests[number - 1].arrives:
            raise UserError(f"serve: request {number} arrives before the one before: sort them")


def linear(prompts: Sequence[int], contexts: Sequence[int]) -> float:
    """A synthetic device: reads weights, multiplies tokens, reads every context."""
    return 0.02 + 1e-5 * (sum(prompts) + len(contexts)) + 1e-6 * sum(contexts)


def drawn(count: int, rate: float, seed: int) -> list[Request]:
    """Requests whose arrivals are a Poisson process of this rate a second; all at once if 0."""
    draw, clock, found = random.Random(seed), 0.0, []
    for _ in range(count):
        clock += draw.expovariate(rate) if rate else 0.0
        found.append(Request(clock, draw.randint(1, 300), draw.randint(1, 80)))
    return found


def conserved(seed: int) -> Numbers:
    """Tokens that are missing, requests without an end, and cache above its room, at random."""
    requests, room = drawn(60, 20, seed), 900
    found = serve(requests, room, linear)
    early = sum(found.ends.get(i, -1.0) <= r.arrives for i, r in enumerate(requests))
    return {
        "missing": sum(r.writes for r in requests) - found.written,
        "endless": len(requests) - len(found.ends) + early,
        "above": max(0, found.most - room),
    }


def equal(count: int = 16, reads: int = 100, writes: int = 40) -> Numbers:
    """Equal requests at once and room for all: one prompt, then writes - 1 tokens, exactly."""
    found = serve([Request(0.0, reads, writes)] * count, 10**9, linear)
    expected = linear([reads] * count, [])
    expected += sum(linear([], [reads + 1 + done] * count) for done in range(writes - 1))
    return {"off": 100 * (found.seconds / expected - 1)}


def context() -> Numbers:
    """Time of a request with a long context over that of a short one, decoding alone."""
    long, short = (linear([], [tokens] * 8) for tokens in (20_000, 16))
    return {"context": long / short}
