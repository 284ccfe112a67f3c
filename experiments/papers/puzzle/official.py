"""The library of blocks that was published with Puzzle's demo, read where a person has it.

`gam study run puzzle --arms=official-80,official-40,official-85 --data=block_library.json`
"""

from __future__ import annotations

import numpy as np

from experiments.study import Claim, Setting
from experiments.study.declare import Numbers
from gam_jax.search import Budget, best_sum
from sharding.errors import UserError
from sharding.json_file import BadJson, read_json
from sharding.paths import local_path

FILE = "block_library.json of github.com/NVlabs/puzzle"
OFFICIAL = {
    "official-80": "80,000 MiB and 51,200 ms",
    "official-40": "40,000 MiB",
    "official-85": "85 % of the parent's of both",
}
LIMITS = {"official-80": (80_000.0, 51_200.0), "official-40": (40_000.0, np.inf)}
"""MiB and milliseconds."""


def official(name: str, setting: Setting, seed: int) -> Numbers:
    """The best sum of KL of the published library, under the limits of its demo."""
    path = local_path(setting.data)
    try:
        blocks = [list(block.values()) for block in read_json(path).values()]
        costs, memory, runtime = (
            [[float(one[group][key]) for one in block] for block in blocks]
            for group, key in (
                ("metrics", "kl_div"),
                ("stats", "memory_mib"),
                ("stats", "runtime_ms"),
            )
        )
        if not costs or not all(costs):
            raise ValueError("a block without options, or no block")
    except (BadJson, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(
            f"--data={setting.data}: no library of blocks as published ({error})"
        ) from error
    whole = [0.85 * sum(block[0] for block in uses) for uses in (memory, runtime)]
    limits = LIMITS.get(name, (whole[0], whole[1]))
    budgets = [
        Budget(uses, limit)
        for uses, limit in zip((memory, runtime), limits, strict=True)
        if np.isfinite(limit)
    ]
    point, total = best_sum(costs, budgets)
    used = [sum(own[n] for own, n in zip(uses, point, strict=True)) for uses in (memory, runtime)]
    found = {"published": total, "mib": used[0], "ms": used[1]}
    if name in LIMITS:
        return found
    return {**found, "second": best_sum(costs, budgets, [point], apart=20)[1]}


def _printed(text: str, arms: tuple[str, ...], measure: str, *figures: str) -> Claim:
    source = "output of the released demo"
    return Claim(text, "printed", arms, measure, source=source, figures=figures)


PRINTED = (
    _printed(
        "Sums of KL of the published library's best children",
        tuple(OFFICIAL),
        "published",
        "6.861455",
        "18.935023",
        "3.2821",
    ),
    _printed("and their memory", tuple(OFFICIAL), "mib", "79994.6", "39998.9", "96418.0"),
    _printed("and runtime", tuple(OFFICIAL), "ms", "46980.2", "25166.2", "55547.9"),
    _printed("and the best that differs in 20 layers", ("official-85",), "second", "3.3417"),
)
