"""GPT from 1.7 B to 1 T parameters (Megatron-LM): sizes, days, utilisation, schedules, degrees.

Sources: arXiv 2104.04473, Tables 1 and 2 and section 2.2; arXiv 2205.05198 for MFU and HFU.
"""

from __future__ import annotations

from experiments.papers.gpt import Gpt, Split, linked, step_seconds
from experiments.study import Absent, Arm, Claim, Measure, Study, as_printed, closed
from experiments.study.declare import Numbers
from gam_jax.planning import Profile, profile
from sharding.pipeline.orders import Orders, interleaved, one_f_one_b
from sharding.pipeline.simulator import Times, simulate

SIZES = {
    "1.7": (24, 2304, 24, 32, 137, "4.4"),
    "3.6": (30, 3072, 32, 64, 138, "8.8"),
    "7.5": (36, 4096, 32, 128, 142, "18.2"),
    "18.4": (40, 6144, 48, 256, 135, "34.6"),
    "39.1": (48, 8192, 64, 512, 138, "70.8"),
    "76.1": (60, 10240, 80, 1024, 140, "143.8"),
    "145.6": (80, 12288, 96, 1536, 148, "227.1"),
    "310.1": (96, 16384, 128, 1920, 155, "297.4"),
    "529.6": (105, 20480, 128, 2520, 163, "410.2"),
    "1008.0": (128, 25600, 160, 3072, 163, "502.0"),
}
"""Table 1: billions of parameters; layers, width, heads, GPUs, TFLOP/s of one, PFLOP/s of all."""

SELECTIVE = {
    "22b": (48, 6144, 64, 4, 8, 1.10, "41.5", "43.7"),
    "175b": (96, 12288, 96, 64, 64, 13.75, "51.4", "52.8"),
    "530b": (105, 20480, 128, 280, 280, 37.83, "56.0", "57.0"),
    "1t": (128, 25600, 160, 512, 512, 71.49, "56.3", "57.0"),
}
"""arXiv 2205.05198: layers, width, heads, batch, GPUs, seconds of a step; MFU and HFU, percent."""

DAYS = {"175b": (300e9, 175e9, 1024, 140e12, "33.9"), "1t": (450e9, 1008e9, 3072, 163e12, "83.9")}
"""Tokens, parameters, GPUs, FLOP/s of one; days (printed: 34 and 84)."""

STAGES, PARTS = 4, 8
ORDERS = {
    "1f1b": (one_f_one_b(STAGES, PARTS), "33"),
    "two-turns": (interleaved(STAGES, PARTS, 2), "28.5"),
    "four-turns": (interleaved(STAGES, PARTS, 4), "26.25"),
}
"""Schedules of section 2.2, and their times where forward takes 1 and backward 2."""
DEGREES = (1, 2, 4, 8, 16, 32)


def size(name: str) -> Numbers:
    """Billions of parameters; PFLOP/s of all GPUs."""
    layers, width, heads, gpus, rate, _ = SIZES[name]
    return {"params": Gpt(layers, width, heads).params / 1e9, "total": rate * gpus / 1e3}


def days(name: str) -> Numbers:
    """8 T P / n X."""
    tokens, params, gpus, rate, _ = DAYS[name]
    return {"days": 8 * tokens * params / (gpus * rate) / 86_400}


def utilisation(name: str) -> Numbers:
    """MFU and HFU of a step with selective recomputation."""
    layers, width, heads, batch, gpus, seconds, *_ = SELECTIVE[name]
    model, able = Gpt(layers, width, heads), gpus * peak().peak_flops * seconds
    return {
        "mfu": 100 * model.useful(batch) / able,
        "hfu": 100 * model.useful(batch, again=True) / able,
    }


def peak() -> Profile:
    """An A100 as the paper has it."""
    return profile("a100_80.megatron")


def schedule(orders: Orders) -> Numbers:
    """Its time, and chunks that the first and the last stage keep."""
    found = simulate(orders, Times())
    return {"time": found.makespan, "first": found.peaks[0], "last": found.peaks[-1]}


def best_degree(outside: float, inside: float = 250e9) -> Numbers:
    """The tensor degree with the shortest step: 162 B parameters, 64 GPUs, a batch of 32.

    All of a replica is split over tensor x pipe, as in figure 13.
    """
    model, own = Gpt(80, 12288, 96), linked(peak(), inside, outside)
    seconds = {}
    for tensor in DEGREES:
        split = Split(tensor=tensor, pipe=64 // tensor, parts=32)
        seconds[tensor] = step_seconds(model, split, own, 0.5)
    best = min(seconds, key=lambda tensor: seconds[tensor])
    return {"best": best, "slower": seconds[16] / seconds[8]}


ARMS: dict[str, Arm] = {
    **{name: closed(f"{name} B parameters", lambda n=name: size(n)) for name in SIZES},
    **{f"days-{n}": closed(f"days of {n.upper()}", lambda n=n: days(n)) for n in DAYS},
    **{
        f"mfu-{n}": closed(f"{n.upper()}, selective recomputation", lambda n=n: utilisation(n))
        for n in SELECTIVE
    },
    **{n: closed(n, lambda o=orders: schedule(o)) for n, (orders, _) in ORDERS.items()},
    "links-10": closed("links inside nodes 10 times faster", lambda: best_degree(25e9)),
    "links-1": closed("links alike", lambda: best_degree(250e9)),
}


def _column(text: str, arms: tuple[str, ...], measure: str, source: str, figures: list, **more):
    return Claim(text, "printed", arms, measure, source=source, figures=tuple(figures), **more)


MFU = tuple(f"mfu-{name}" for name in SELECTIVE)
CLAIMS = (
    _column("Ten sizes", tuple(SIZES), "params", "Table 1", list(SIZES)),
    _column(
        "TFLOP/s of a GPU times GPUs, to 0.4 %",
        tuple(SIZES),
        "total",
        "Table 1",
        [row[-1] for row in SIZES.values()],
        tolerance=4e-3,
    ),
    _column(
        "Days of training, printed as 34 and 84",
        tuple(f"days-{name}" for name in DAYS),
        "days",
        "section 5.1",
        [row[-1] for row in DAYS.values()],
    ),
    *(
        Claim(
            f"{measure.upper()} of {name.upper()}: {row[column]} %, to 0.2 points",
            "near",
            (f"mfu-{name}",),
            measure,
            float(row[column]),
            0.2,
            "arXiv 2205.05198",
        )
        for name, row in SELECTIVE.items()
        for measure, column in (("mfu", 6), ("hfu", 7))
    ),
    _column(
        "Times of schedules",
        tuple(ORDERS),
        "time",
        "section 2.2",
        [row[1] for row in ORDERS.values()],
    ),
    _column("Two turns: 11 chunks on the first", ("two-turns",), "first", "its order", ["11"]),
    _column("and 5 on the last stage", ("two-turns",), "last", "its order", ["5"]),
    _column("The best tensor degree is a node", ("links-10",), "best", "takeaway 1", ["8"]),
)

STUDY = Study(
    name="megatron",
    title="GPT up to a trillion parameters",
    source="arXiv 2104.04473",
    page="machines.md",
    arms=ARMS,
    measures={
        "params": Measure("parameters", form=".1f", unit="B"),
        "total": Measure("all GPUs", "higher", "PFLOP/s", ".1f"),
        "days": Measure("days", "lower", form=".1f"),
        "mfu": Measure("MFU", "higher", "%", ".1f"),
        "hfu": Measure("HFU", "higher", "%", ".1f"),
        "time": Measure("schedule", "lower", form=".2f"),
        "first": Measure("chunks kept, first stage", "lower", form=".0f"),
        "last": Measure("last stage", "lower", form=".0f"),
        "best": Measure("best tensor degree", form=".0f"),
        "slower": Measure("16 against 8", "lower", form=".2f"),
    },
    published=as_printed(CLAIMS),
    claims=CLAIMS,
    notes=("degrees: 64 GPUs in nodes of 8, half of the peak reached, nothing overlapped",),
    absent=(
        Absent(
            "Interleaving, fusion and scatter/gather bring up to 10, 19 and 11 %; ZeRO-3 beside",
            "measured on up to 3,072 A100",
        ),
    ),
)
