"""Mixtures of modulated experts beside mixtures of feed-forwards: parameters, work and time."""

from __future__ import annotations

from experiments.benchmark.timing import Quantity, Rows, medians
from experiments.papers.mofme import (
    PUBLISHED_PARAMETERS,
    PUBLISHED_TIME,
    SIZES,
    calls,
    layers_of,
    numbers,
)
from experiments.study import Setting

SHORT = ((4, 2), (4, 4))


def run(repeats: int, short: bool = False) -> Rows:
    """Forward, and forward with backward, of the arms of the study `mofme`, size by size.

    Returns:
      A row a number of experts and chosen: of both kinds parameters, operations of a token
      (matrix products, forward) and seconds; percent saved, beside what was published.
    """
    sizes = SHORT if short else SIZES
    return {f"{e} experts, {k} chosen": _row(e, k, repeats) for e, k in sizes}


def _row(experts: int, chosen: int, repeats: int) -> dict[str, Quantity]:
    pair = dict(zip(("mixture", "MoFME"), layers_of(experts, chosen), strict=True))
    timed = {
        f"{name} {kind}": call
        for name, layer in pair.items()
        for kind, call in calls(layer, Setting()).items()
    }
    times = medians(timed, repeats)
    row: dict[str, Quantity] = {}
    for name, layer in pair.items():
        found = numbers(layer)
        row[f"{name} parameters"] = Quantity.exactly(found["parameters"])
        row[f"{name} operations"] = Quantity.exactly(found["operations"], "M/token")
    for name in ("parameters", "operations"):
        row[f"{name} saved"] = Quantity.exactly(numbers(pair["MoFME"])[f"{name}_saved"], "%")
    for kind in ("forward", "both"):
        share = times[f"MoFME {kind}"].median / times[f"mixture {kind}"].median
        row[f"time saved {kind}"] = Quantity.exactly(100 * (1 - share), "%")
    published = {"parameters saved": PUBLISHED_PARAMETERS, "time saved forward": PUBLISHED_TIME}
    row |= {f"published {name}": Quantity.exactly(value, "%") for name, value in published.items()}
    return row | times
