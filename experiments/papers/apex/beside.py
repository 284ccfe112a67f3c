"""The loop beside the scheduler that serves, on the same requests and prices.

`gam_jax.planning.batching.simulate` runs the server's own scheduler on a device that only counts
seconds. It reads prompts in blocks before each step; the loop reads them in the iteration that
writes their first token. So an iteration of the loop is priced as the blocks of its prompts, read
together as the server reads them, and a step. Where all requests are there at first, with rows for
all and no bound on prompts between two steps, both have the same rules. Else the server differs in
two: a step begins before the last one's tokens are seen, so that who comes, or takes the place of
who went, begins a step later; and `prefill_budget` bounds what is read between two steps.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from experiments.papers.apex.loop import Request, drawn, serve
from experiments.study.declare import Numbers
from gam_jax.planning.batching import simulate
from gam_jax.planning.requests import Asked
from gam_jax.serve.executor import Sizes
from gam_jax.serve.listed import WIDTHS
from gam_jax.serve.scheduler import deal, gathered

STEP, TOKEN, CALL = 0.02, 1e-5, 1e-4
"""Seconds of a step of all rows, of a token of a block of prompts, and of such a block."""
COUNT, ROWS = 60, 8


def price(program: str, tokens: int) -> float:
    """Seconds of a program of the server."""
    kind, _, width = program.partition(" ")
    if kind == "read":
        return CALL + TOKEN * int(width)
    return STEP if kind == "step" else 0.0


def iteration(sizes: Sizes, prompts: Sequence[int], contexts: Sequence[int]) -> float:
    """The same work in the loop."""
    dealt = deal(prompts, sizes.widths, [0] * len(prompts), sum(prompts))
    return STEP + sum(CALL + TOKEN * width for width, _ in gathered(dealt, sizes.together))


def compared(requests: Sequence[Request], rows: int = 0, budget: int = 2**20) -> Numbers:
    """How far apart the two are.

    Args:
      requests: by arrival.
      rows: texts in progress at once; 0 for all.
      budget: tokens of prompts between two steps.

    Returns:
      steps: of the server more than of the loop; order: requests whose first token is another one
      in the order; apart: the most seconds between two ends of a request, in steps; late: the
      mean of them, later ends counting as positive.
    """
    sizes = Sizes(rows or len(requests), WIDTHS, 1, 0, 1, 0, 0, 1)
    asked = [Asked(one.arrives, one.reads, one.writes) for one in requests]
    served = simulate(asked, sizes, price, (0.0, 0.0), lambda _: 0.0, budget)
    loop = serve(requests, 10**9, functools.partial(iteration, sizes), rows)
    late = [one.last - loop.ends[i] for i, one in enumerate(served.told)]
    firsts = [one.first for one in served.told], [loop.firsts[i] for i in range(len(requests))]
    orders = [sorted(range(len(own)), key=own.__getitem__) for own in firsts]
    return {
        "steps": served.calls["step 1"] - len(loop.iterations),
        "order": sum(x != y for x, y in zip(*orders, strict=True)),
        "apart": max(map(abs, late)) / STEP,
        "late": sum(late) / len(late) / STEP,
    }


def at_once() -> Numbers:
    """All are there at first, with rows for all."""
    return compared(drawn(COUNT, 0, 0))


def arriving(seed: int) -> Numbers:
    """They come one after another, more than are in progress at a time on average."""
    return compared(drawn(COUNT, 5, seed))


def few_rows(seed: int) -> Numbers:
    """All are there, with rows for some: one begins where another one has ended."""
    return compared(drawn(COUNT, 0, seed), ROWS)


def bounded() -> Numbers:
    """Few tokens of prompts between two steps."""
    return compared(drawn(COUNT, 0, 0), budget=WIDTHS[0])
