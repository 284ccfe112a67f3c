"""What is known without training: a planted case, and the row of workload 1 as recalled."""

from __future__ import annotations

from experiments.papers.nasaic.nets import TASKS
from experiments.search.cosearch import Cosearch, Counted, Landscape, Price, nets_first
from experiments.study.declare import Numbers
from gam_jax.search import Limit, Space, search, strategy_of

PLANTED = Landscape(
    Space.of(
        {
            "bytes": ["small", "large"],
            "digits": ["small", "large"],
            "devices": [[a, b] for a in (1, 2) for b in (1, 2)],
            "bytes style": ["data"],
            "digits style": ["data"],
        }
    ),
    {
        task: {
            "small": {(1, "data"): Price(1.0, 1.0, 1.0), (2, "data"): Price(0.6, 1.2, 1.0)},
            "large": {(1, "data"): Price(3.0, 3.0, 2.0), (2, "data"): Price(1.6, 3.2, 2.0)},
        }
        for task in TASKS
    },
    (Limit("seconds", 2.0, 4.0), Limit("device_seconds", 5.0, 9.0), Limit("held", 2.0, 3.0)),
)
"""Two large nets exceed a limit on any devices; one large net and one small one do not."""
PLANTED_ACCURACY = {"small": 0.80, "large": 0.84}


def planted(together: bool) -> Numbers:
    """The planted case, nets and devices at once or one after the other."""

    def accuracy(net: tuple[str, str]) -> float:
        return PLANTED_ACCURACY[net[1]]

    if not together:
        point, reward = nets_first(PLANTED, accuracy)
        return {**PLANTED.told(point), "reward": reward}
    counted = Counted(PLANTED, accuracy)
    own = Cosearch(PLANTED, counted)
    found = search(PLANTED.space, strategy_of("all"), own.measure, PLANTED.space.size)
    told = PLANTED.told(found.best.point)
    return {**told, "reward": -found.best.score, "above": counted.above}


ROW = {
    "apart": {"first": 94.17, "second": 83.94, "cycles": 9.45e5, "energy": 3.56e9, "area": 4.71e9},
    "together": {
        "first": 92.85,
        "second": 83.74,
        "cycles": 7.77e5,
        "energy": 1.43e9,
        "area": 2.03e9,
    },
}
"""Workload 1, one after the other and at once: accuracy and IoU in %, cycles, nJ, square µm."""


def row() -> Numbers:
    """What the abstract says of that row."""
    apart, together = ROW["apart"], ROW["together"]
    lost = [apart[name] - together[name] for name in ("first", "second")]
    return {
        "latency": 100 * (1 - together["cycles"] / apart["cycles"]),
        "energy": apart["energy"] / together["energy"],
        "area": apart["area"] / together["area"],
        "lost": sum(lost) / 2,
    }
