"""Configurators of training (Pipette): a schedule's time to the letter, choices, and node orders.

Source: arXiv 2405.18093; formulas and annealing are read from its code, since its tables could
not be. A hop takes c and a stage does not wait for it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator

import numpy as np

from experiments.papers.gpt import HALF, NODE, Gpt, Split, linked, one_f_one_b, part_seconds
from experiments.study import Absent, Arm, Claim, Measure, Setting, Study, closed
from experiments.study.declare import CPU, SHORT, Numbers
from gam_jax.planning import Profile, profile
from gam_jax.planning.order import anneal
from sharding.pipeline import orders
from sharding.pipeline.simulator import Times, simulate

DRAWS = {SHORT: 12, CPU: 400}
"""Scale -> random pipelines that are simulated."""
CLUSTERS = 40
NODES, ROW, HOP, GRADIENTS = 8, 4, 64e6, 1e9
"""Nodes that are ordered, stages of a pipeline, bytes of a hop and of a node's gradients."""
MATRICES = {SHORT: 1, CPU: 10}
"""Scale -> drawn matrices of bandwidths."""
MODEL, BATCH = Gpt(24, 2048, 32), 256


def gpipe(part: float, hop: float, stages: int, parts: int) -> float:
    """All forward, then all backward: (n - 1 + p) C + 2 (p - 1) c."""
    return (parts - 1 + stages) * part + 2 * (stages - 1) * hop


def older(part: float, hop: float, stages: int, parts: int) -> float:
    """What configurators before took for 1F1B as well: (n - 1) C + p C + 2 (p - 1) c."""
    return gpipe(part, hop, stages, parts)


def published(part: float, hop: float, stages: int, parts: int) -> float:
    """Pipette's: k [p C + 2 (p - 1) c] + (p - 1) C, with k = n / p turns."""
    turn = stages * part + 2 * (stages - 1) * hop
    return parts // stages * turn + (stages - 1) * part


def simulated(kind: str, forward: float, backward: float, hop: float, p: int, n: int) -> float:
    """The simulator's time of a schedule of p stages and n parts."""
    made = orders.gpipe(p, n) if kind == "gpipe" else orders.one_f_one_b(p, n)
    times = Times(forward=forward, input=backward / 2, weights=backward / 2, latency=hop)
    return simulate(made, times).makespan


def identity(kind: str, closed_form: Callable[..., float], setting: Setting) -> Numbers:
    """Draws in which a closed form and the simulator differ, and the largest difference."""
    draw = random.Random(0)
    worst, off = 0.0, 0
    for _ in range(DRAWS[setting.scale]):
        p = draw.randint(2, 8)
        n = p * draw.randint(1, 4)
        forward, backward = draw.uniform(0.5, 2), draw.uniform(0.5, 4)
        hop = draw.uniform(0, 0.3) * (forward + backward)
        found = simulated(kind, forward, backward, hop, p, n)
        error = abs(closed_form(forward + backward, hop, p, n) / found - 1)
        worst, off = max(worst, error), off + (error > 1e-9)
    return {"mismatches": off, "difference": 100 * worst}


def _identity(title: str, kind: str, form: Callable[..., float]) -> Arm:
    return Arm(title, numbers=lambda setting, seed: identity(kind, form, setting), exact=True)


def short_of(parts: int) -> Numbers:
    """Percent that both formulas are short of the simulator: 8 stages, c = C / 3.

    And how far Pipette's is from short by 2 (p - 2) c.
    """
    stages, hop = 8, 1 / 3
    found = simulated("1f1b", 1 / 3, 2 / 3, hop, stages, parts)
    own = published(1, hop, stages, parts)
    return {
        "published": 100 * (1 - own / found),
        "older": 100 * (1 - older(1, hop, stages, parts) / found),
        "left": found - own - 2 * (stages - 2) * hop,
    }


def layouts(devices: int) -> Iterator[Split]:
    """All (p, t, d, b) with whole turns of 1F1B: what both configurators choose among."""
    for tensor, pipe, micro in itertools.product((1, 2, 4, 8), (1, 2, 4, 8, 12, 24), (1, 2, 4, 8)):
        data, rest = divmod(devices, tensor * pipe)
        if data == 0 or rest or MODEL.layers % pipe or BATCH % (data * micro):
            continue
        parts = BATCH // (data * micro)
        if parts % pipe == 0:
            yield Split(tensor, pipe, data, parts, micro)


def choice(own: Profile, devices: int) -> float:
    """True time of Pipette's choice over that of the older model's."""
    network = own.value("links.network.bandwidth")
    found: dict[str, tuple[float, float]] = {}
    for split in layouts(devices):
        part = part_seconds(MODEL, split, own, 0.4)
        hop = split.micro * MODEL.tokens * MODEL.width * HALF / network
        model = split.tensor * split.pipe
        data = 2 * (split.data - 1) / split.data * MODEL.params / model * HALF / network
        sizes = part, hop, split.pipe, split.parts
        true = one_f_one_b(*sizes) + data
        for name, form in (("published", published), ("older", older)):
            found[name] = min(found.get(name, (float("inf"), 0.0)), (form(*sizes) + data, true))
    return found["published"][1] / found["older"][1]


def choices() -> Numbers:
    """The worst and the best of Pipette's choices against the older ones, on drawn clusters."""
    draw = random.Random(0)
    base = profile("a100_80.megatron")
    found = []
    for _ in range(CLUSTERS):
        outside = 10 ** draw.uniform(8.5, 10.5)
        own = linked(base, outside * 10 ** draw.uniform(0.5, 2), outside)
        found.append(choice(own, NODE * draw.choice((2, 4, 8))))
    return {"worst": max(found), "best": min(found)}


def planted() -> Numbers:
    """Fast nodes behind a slow network: the more stages, the freer it looks to the older model."""
    base = profile("a100_80.megatron")
    return {"best": choice(linked(base, 300e9, 0.5e9), 64)}


def node_seconds(placed: np.ndarray, bandwidth: np.ndarray) -> np.ndarray:
    """Pipette's objective of orders [M, N] of nodes, as pipelines of `ROW` stages.

    The slowest pipeline's hops, there and back; a ring of gradients over the first stages' nodes,
    as fast as its slowest edge; and rings within nodes, as fast as the slowest node.
    """
    grid = placed.reshape(len(placed), -1, ROW)
    hops = np.sum(2 * HOP / bandwidth[grid[..., :-1], grid[..., 1:]], -1).max(-1)
    first = grid[..., 0]
    pipelines = first.shape[-1]
    edges = bandwidth[first, np.roll(first, -1, -1)].min(-1)
    ring = 2 * (pipelines - 1) / pipelines * GRADIENTS / edges
    return hops + ring + GRADIENTS / np.diag(bandwidth).min()


def annealed(setting: Setting) -> Numbers:
    """Percent that annealing is above the best of all 40,320 orders, at most.

    And that orders differ by where all links are alike; and whether a slow link is crossed.
    """
    every = np.array(list(itertools.permutations(range(NODES))))
    draw = np.random.default_rng(0)
    above = 0.0
    for seed in range(MATRICES[setting.scale]):
        links = draw.uniform(1e9, 10e9, (NODES, NODES))
        best = float(node_seconds(every, links).min())

        def cost(order: tuple[int, ...], links: np.ndarray = links) -> float:
            return float(node_seconds(np.array([order]), links)[0])

        _, found = anneal(cost, NODES, seed, steps=4000)
        above = max(above, found / best - 1)
    alike = node_seconds(every, np.full((NODES, NODES), 5e9))
    slow = np.full((NODES, NODES), 5e9)
    slow[2, 3] = slow[3, 2] = 1e8
    return {
        "above": 100 * above,
        "spread": 100 * float(alike.max() / alike.min() - 1),
        "slow": 100 * float(node_seconds(every, slow).min() / alike.min() - 1),
    }


ARMS: dict[str, Arm] = {
    "orders": Arm(
        "8 nodes, 2 pipelines of 4", numbers=lambda setting, seed: annealed(setting), exact=True
    ),
    "gpipe": _identity("GPipe's closed form", "gpipe", gpipe),
    "1f1b": _identity("1F1B's, with the last term", "1f1b", one_f_one_b),
    "short-8": closed("8 stages, 8 parts", lambda: short_of(8)),
    "short-64": closed("8 stages, 64 parts", lambda: short_of(64)),
    "choices": closed(f"choices on {CLUSTERS} drawn clusters", choices),
    "planted": closed("fast nodes, slow network", planted),
}
OURS = "ours, by simulation"

STUDY = Study(
    name="pipette",
    title="Configurators of training",
    source="arXiv 2405.18093",
    page="machines.md",
    arms=ARMS,
    measures={
        "mismatches": Measure("draws that differ", "lower", form=".0f"),
        "difference": Measure("largest difference", "lower", "%", ".2e"),
        "published": Measure("Pipette's formula short by", "lower", "%", ".1f"),
        "older": Measure("the older one", "lower", "%", ".1f"),
        "left": Measure("beside 2 (p - 2) c", "lower", form=".1e"),
        "worst": Measure("choice against the older, worst", "lower", form=".3f"),
        "best": Measure("best", "lower", form=".3f"),
        "above": Measure("annealing above the best order", "lower", "%", ".2f"),
        "spread": Measure("orders differ, links alike", "lower", "%", ".1e"),
        "slow": Measure("lost to one slow link", "lower", "%", ".1e"),
    },
    claims=(
        Claim(
            "Closed forms are the simulator's times in every draw",
            "near",
            ("gpipe", "1f1b"),
            "mismatches",
            source=OURS,
        ),
        Claim(
            "Pipette's formula is short by 2 (p - 2) c",
            "near",
            ("short-8", "short-64"),
            "left",
            0.0,
            1e-9,
            OURS,
        ),
        Claim(
            "which are 17 % of 8 stages with 8 parts",
            "near",
            ("short-8",),
            "published",
            17.0,
            0.5,
            OURS,
        ),
        Claim(
            "and 3.6 % with 64 parts",
            "near",
            ("short-64",),
            "published",
            3.6,
            0.05,
            OURS,
        ),
        Claim(
            "The older model is shorter still, by up to a third",
            "near",
            ("short-64",),
            "older",
            33.0,
            1.0,
            OURS,
        ),
        Claim(
            "Pipette's choice is never worse than the older model's",
            "at_most",
            ("choices",),
            "worst",
            1.0,
            source="the paper's claim, on drawn clusters",
        ),
        Claim(
            "It is better where a slow network joins fast nodes",
            "at_most",
            ("planted",),
            "best",
            0.99,
            source="the paper's claim, a planted case",
        ),
        Claim(
            "Annealing is at most 1 % above the best of all orders of 8 nodes",
            "at_most",
            ("orders",),
            "above",
            1.0,
            source=OURS,
        ),
        Claim(
            "Where all links are alike so are all orders",
            "near",
            ("orders",),
            "spread",
            0.0,
            1e-9,
            "exact",
        ),
        Claim(
            "One slow link is avoided at no cost", "near", ("orders",), "slow", 0.0, 1e-9, "exact"
        ),
    ),
    notes=("1F1B with whole turns: parts are a multiple of stages",),
    absent=(
        Absent(
            "Speedups over AMP, Varuna and Megatron-LM's defaults",
            "its tables could not be read; measured on 128 V100 and A100",
        ),
    ),
)
