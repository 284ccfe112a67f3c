"""What a pipeline of stages loses and keeps by each schedule, and how layers are dealt to stages.

Sources: GPipe (arXiv 1811.06965), Megatron-LM (arXiv 2104.04473), zero bubble (arXiv 2401.10241),
Holmes (arXiv 2312.03549), torchgpipe (arXiv 2004.09910).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from experiments.study import Arm, Claim, Measure, Published, Study
from sharding.pipeline import orders
from sharding.pipeline.balance import balance, floor_rule, slowest
from sharding.pipeline.orders import Orders
from sharding.pipeline.simulator import Times, simulate
from sharding.pipeline.tables import GPIPE, INTERLEAVED, ONE_F_ONE_B, Table, make_table

STAGES, PARTS, IDEAL = 4, 8, 24
FEW, MANY, MESSAGE = 4, 128, 0.1
"""Parts with which interleaving wins and loses, where a message costs a tenth of a forward task."""
SPEEDS = (197.0, 160.0)
"""TFLOP/s measured over InfiniBand and RoCE: arXiv 2312.03549."""

TABLES: Mapping[str, tuple[str, Callable[[], Table]]] = {
    "gpipe": ("GPipe, lockstep", lambda: make_table(GPIPE, STAGES, PARTS)),
    "1f1b": ("1F1B, lockstep", lambda: make_table(ONE_F_ONE_B, STAGES, PARTS)),
    "v2": ("interleaved, 2 turns, lockstep", lambda: make_table(INTERLEAVED, STAGES, PARTS, 2)),
    "v4": ("interleaved, 4 turns, lockstep", lambda: make_table(INTERLEAVED, STAGES, PARTS, 4)),
}
ORDERS: Mapping[str, tuple[str, Callable[[int], Orders]]] = {
    "free_gpipe": ("GPipe", lambda parts: orders.gpipe(STAGES, parts)),
    "free_1f1b": ("1F1B", lambda parts: orders.one_f_one_b(STAGES, parts)),
    "free_v2": ("interleaved, 2 turns", lambda parts: orders.interleaved(STAGES, parts, 2)),
    "free_v4": ("interleaved, 4 turns", lambda parts: orders.interleaved(STAGES, parts, 4)),
    "zb_h1": ("ZB-H1", lambda parts: orders.zb_h1(STAGES, parts)),
    "zb_h2": ("ZB-H2", lambda parts: orders.zb_h2(STAGES, parts)),
    "zb_v": ("ZB-V", lambda parts: orders.zb_v(STAGES, parts)),
}


def of_table(table: Table) -> dict[str, float]:
    """A table's time in lockstep, idle time, and inputs kept on the worst stage."""
    time, kept = table.time(1, 2), max(table.peaks)
    return {"time": time, "idle": time - IDEAL, "chunks": kept, "kept": kept / table.turns}


def of_orders(make: Callable[[int], Orders], few: bool) -> dict[str, float]:
    """The same of free orders; with `few`, also their times where messages cost."""
    found = simulate(make(PARTS))
    kept = max(found.peaks)
    values = {
        "time": found.makespan,
        "idle": max(found.idle),
        "chunks": kept,
        "kept": kept / found.orders.turns,
    }
    if few:
        times = Times(message=MESSAGE)
        values["few"] = simulate(make(FEW), times).makespan
        values["many"] = simulate(make(MANY), times).makespan
    return values


def of_layers(
    costs: Sequence[float], speeds: Sequence[float], layers: Sequence[int]
) -> dict[str, float]:
    """Layers of the first stage, and the time of the slowest over that of a perfect split."""
    perfect = sum(costs) / sum(speeds)
    return {"first": layers[0], "slowest": slowest(costs, speeds, layers) / perfect}


def _layer_arms() -> dict[str, Arm]:
    found = {}
    for layers in (30, 48):
        costs = [1.0] * layers
        ways = {"floor": floor_rule(layers, SPEEDS), "balanced": balance(costs, SPEEDS)}
        for way, dealt in ways.items():
            found[f"{way}_{layers}"] = Arm(
                f"{layers} layers, speeds 197:160, {way}: {dealt[0]} + {dealt[1]}",
                numbers=lambda s, seed, c=costs, d=dealt: of_layers(c, SPEEDS, d),
                exact=True,
            )
    costs = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    found["one_to_six"] = Arm(
        "layers of costs 1 to 6, two equal stages",
        numbers=lambda s, seed: of_layers(costs, (1, 1), balance(costs, (1, 1))),
        exact=True,
    )
    return found


def _arms() -> dict[str, Arm]:
    tables = {
        name: Arm(title, numbers=lambda s, seed, make=make: of_table(make()), exact=True)
        for name, (title, make) in TABLES.items()
    }
    free = {
        name: Arm(
            title,
            numbers=lambda s, seed, make=make, few=name in ("free_1f1b", "free_v2"): of_orders(
                make, few
            ),
            exact=True,
        )
        for name, (title, make) in ORDERS.items()
    }
    return {**tables, **free, **_layer_arms()}


FOUND_IN = "tables of torch.distributed.pipelining 2.14, equal tasks"
PUBLISHED = (
    *(
        Published(f"{way}{name}", "time", value, "arXiv 2104.04473, section 2.2")
        for way in ("", "free_")
        for name, value in (("gpipe", 33), ("1f1b", 33), ("v2", 28.5), ("v4", 26.25))
    ),
    Published("zb_h1", "time", 27, FOUND_IN),
    Published("zb_v", "time", 25.5, FOUND_IN),
    Published("free_gpipe", "chunks", 8, FOUND_IN),
    Published("free_1f1b", "chunks", 4, FOUND_IN),
    Published("free_v2", "chunks", 11, FOUND_IN),
    Published("free_v4", "chunks", 19, FOUND_IN),
    Published("zb_v", "chunks", 8, FOUND_IN),
    Published("zb_h1", "idle", 3, "arXiv 2401.10241, table 2"),
    Published("zb_h2", "idle", 0, "arXiv 2401.10241, table 2"),
    Published("zb_v", "idle", 0, "arXiv 2401.10241"),
    Published("zb_h1", "kept", 4, "arXiv 2401.10241, table 2"),
    Published("zb_h2", "kept", 7, "arXiv 2401.10241, table 2"),
    Published("zb_v", "kept", 4, "arXiv 2401.10241"),
    Published("floor_30", "first", 16, "released recipe of arXiv 2312.03549"),
    Published("floor_48", "first", 26, "released recipe of arXiv 2312.03549"),
    Published("one_to_six", "first", 4, "arXiv 2004.09910's example"),
)


def _as_printed() -> tuple[Claim, ...]:
    """A claim for each published figure: it comes out to the digit."""
    titles = {"time": "time", "chunks": "chunks kept", "idle": "idle", "kept": "parts kept"}
    arms = _arms()
    return tuple(
        Claim(
            f"{arms[one.arm].title}: {titles.get(one.measure, 'layers first')} {one.value:g}",
            "near",
            (one.arm,),
            one.measure,
            one.value,
            1e-9,
            source=one.table,
        )
        for one in PUBLISHED
    )


STUDY = Study(
    name="gpipe",
    title="Schedules of a pipeline",
    source="arXiv 1811.06965, 2104.04473, 2401.10241, 2312.03549",
    page="pipelines.md",
    arms=_arms(),
    measures={
        "time": Measure("time", "lower", form=".2f"),
        "idle": Measure("idle", "lower", form=".2f"),
        "chunks": Measure("chunks kept", "lower", form=".0f"),
        "kept": Measure("parts kept", "lower", form=".2f"),
        "few": Measure(f"time of {FEW} parts, messages", "lower", form=".2f"),
        "many": Measure(f"time of {MANY} parts, messages", "lower", form=".2f"),
        "first": Measure("layers of the first stage", form=".0f"),
        "slowest": Measure("slowest stage", "lower", "times a perfect split", ".4f"),
    },
    published=PUBLISHED,
    claims=(
        *_as_printed(),
        Claim(
            f"Where messages cost, two turns win with {FEW} parts",
            "lower",
            ("free_v2", "free_1f1b"),
            "few",
            source="arXiv 2104.04473, figure 12",
        ),
        Claim(
            f"Where messages cost, two turns lose with {MANY} parts",
            "higher",
            ("free_v2", "free_1f1b"),
            "many",
            source="arXiv 2104.04473, figure 12",
        ),
        *(
            Claim(
                f"Of {layers} layers, the published rule leaves the slowest stage slower",
                "lower",
                (f"balanced_{layers}", f"floor_{layers}"),
                "slowest",
                source="ours",
            )
            for layers in (30, 48)
        ),
    ),
    notes=(
        f"{STAGES} stages, {PARTS} parts; forward 1, backward 2, of which half is the gradient of "
        f"the input and half that of the weights: ideal {IDEAL}",
        "lockstep: every stage waits for the end of a tick; idle: of the worst stage, in free "
        "orders from its own first task to its last; kept: on the worst stage, in chunks, and in "
        "what all chunks of a stage keep of a part",
        f"with messages: each keeps its sender busy for {MESSAGE:g}",
    ),
)
