"""Failures of large runs and colliding flows (C4): what quick detection and planned paths save.

Source: C4 (arXiv 2406.04594). It measures on 1,000 and more GPUs; here are the formulas.
"""

from __future__ import annotations

from experiments.study import Absent, Arm, Claim, Measure, Study, as_printed, closed
from experiments.study.declare import Numbers
from gam_jax.planning.failures import Failures, slowdown

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
PERIOD = 30 * MINUTE
STANDING = 5 * MINUTE
"""To isolate what failed and to restart."""
FLOWS = ((8, 8), (16, 8), (64, 8), (8, 2))
"""(flows, paths between switches)."""


def lost(detect: float) -> Numbers:
    """Percent of the time lost at one failure a day, and how much less than with 4 h to detect."""
    slow, own = (Failures(DAY, d, restart=STANDING).lost(PERIOD) for d in (4 * HOUR, detect))
    return {"lost": 100 * own, "change": 100 * (own / slow - 1)}


def period(save: float) -> Numbers:
    """Best period, in minutes, and percent lost at it, at half and at twice of it."""
    failures = Failures(DAY, MINUTE, restart=STANDING, save=save)
    best = failures.best_period
    worse = min(failures.lost(best / 2), failures.lost(best * 2))
    return {
        "period": best / MINUTE,
        "lost": 100 * failures.lost(best),
        "otherwise": 100 * worse,
    }


def collisions(flows: int, paths: int) -> Numbers:
    """Slowdown by hashed and by planned paths."""
    hashed, planned = slowdown(flows, paths), slowdown(flows, paths, planned=True)
    return {"hashed": hashed, "planned": planned, "gain": hashed / planned}


def _arms() -> dict[str, Arm]:
    found = {
        "slow": closed("4 hours to detect", lambda: lost(4 * HOUR)),
        "quick": closed("1 minute to detect", lambda: lost(MINUTE)),
        "save-30s": closed("30 s a checkpoint, at its best period", lambda: period(30.0)),
    }
    for flows, paths in FLOWS:
        title = f"{flows} flows over {paths} paths"
        found[f"{flows}-over-{paths}"] = closed(title, lambda f=flows, p=paths: collisions(f, p))
    return found


CLAIMS = (
    Claim(
        "A minute to detect a failure in place of 4 hours loses 92 % less (31.19 to 1.16 % is "
        "-96 %, with shorter isolation too)",
        "printed",
        ("quick",),
        "change",
        source="from the paper's motivation: hours to a minute",
        figures=("-92",),
    ),
    Claim(
        "Planned paths are never slower than hashed ones",
        "at_least",
        tuple(f"{flows}-over-{paths}" for flows, paths in FLOWS),
        "gain",
        1.0,
        source="the paper's premise",
    ),
)

STUDY = Study(
    name="c4-comm",
    title="Failures and colliding flows",
    source="arXiv 2406.04594",
    page="machines.md",
    arms=_arms(),
    measures={
        "lost": Measure("time lost", "lower", "%", ".2f"),
        "change": Measure("against 4 hours", "lower", "%", ".1f"),
        "period": Measure("best period", "", "min", ".1f"),
        "otherwise": Measure("lost at half or twice of it", "lower", "%", ".2f"),
        "hashed": Measure("slowdown, hashed", "lower", form=".3f"),
        "planned": Measure("slowdown, planned", "lower", form=".3f"),
        "gain": Measure("hashed over planned", form=".3f"),
    },
    published=as_printed(CLAIMS),
    claims=CLAIMS,
    notes=("one failure a day, a checkpoint every 30 minutes, 5 minutes to isolate and restart",),
    absent=(
        Absent(
            "Downtime falls from 31.19 to 1.16 % of a job's life",
            "counts of failures on Alibaba's cluster, which nobody else has",
        ),
        Absent(
            "Jobs of moderate communication run 15 % faster",
            "paths of a fat tree are chosen by the network card's library, not by JAX",
        ),
    ),
)
