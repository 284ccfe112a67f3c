"""Serving in large batches (NanoFlow): what limits it, and operations of three kinds overlapped.

Source: arXiv 2408.12757 (v2). Formulas of section 3, its Table 2, and its device figures as they
are printed; some differ from the makers' sheets.
"""

from __future__ import annotations

import dataclasses

from experiments.study import Absent, Arm, Claim, Measure, Study, as_printed, closed
from experiments.study.declare import Numbers
from gam_jax.planning import Profile, profile
from gam_jax.planning.overlap import Operation, list_schedule

HALF = 2
"""Bytes of float16."""


@dataclasses.dataclass(frozen=True)
class Model:
    """As section 3 counts it: width D, layers L, P parameters, bytes of a token's cache."""

    width: int
    layers: int
    params: float
    kv_width: int

    @property
    def cache(self) -> int:
        """Bytes of keys and values of one token."""
        return 2 * self.kv_width * self.layers * HALF


LLAMA_70B = Model(8192, 80, 70e9, 1024)
LLAMA_8B = Model(4096, 32, 8e9, 1024)
LLAMA_405B = Model(16384, 126, 405e9, 1024)
DEVICES, BATCH = 8, 2048

PRINTED = {
    "v100": "0.218",
    "a100_40": "0.273",
    "a100_80": "0.273",
    "h100": "0.576",
    "h200": "0.576",
    "b100": "0.524",
    "b200": "0.655",
    "mi250": "0.237",
    "mi300": "0.669",
    "mi325x": "0.669",
    "gaudi2": "0.874",
    "gaudi3": "0.786",
    "ada_6000": "1.491",
}
"""T_net / T_comp of LLaMA-2-70B over eight of each, as printed."""
A100 = "a100_80"
"""The device of Table 2."""

DENSE = {
    "kqv": (8192, 8192 + 2 * 1024, "27487.8", "19.5", "11.01", "1.22"),
    "out": (8192, 8192, "21990.2", "16.1", "8.81", "1.01"),
    "up-gate": (8192, 2 * 28672, "153931.6", "96.6", "61.67", "6.04"),
    "down": (28672, 8192, "76965.8", "49.7", "30.84", "3.11"),
}
"""Table 2: columns in, columns out; GFLOP, GB of memory, ms of arithmetic and of memory."""

MEASURED = {
    "kqv": 16.08,
    "out": 16.01,
    "up-gate": 69.92,
    "down": 34.96,
    "decode": 35.60,
    "prefill": 4.56,
    "collectives": 47.92,
}
"""Table 2: ms of each operation alone, all layers together."""

LAYER = (
    ("kqv", "compute", MEASURED["kqv"]),
    ("decode", "memory", MEASURED["decode"]),
    ("prefill", "compute", MEASURED["prefill"]),
    ("out", "compute", MEASURED["out"]),
    ("first", "network", MEASURED["collectives"] / 2),
    ("up-gate", "compute", MEASURED["up-gate"]),
    ("down", "compute", MEASURED["down"]),
    ("second", "network", MEASURED["collectives"] / 2),
)
"""In order: name, resource, ms."""

WORKLOADS = {
    "lmsys": (102, 222, "0.07", "0.23"),
    "splitwise": (1155, 211, "0.09", "0.31"),
    "sharegpt": (246, 322, "0.11", "0.37"),
    "512-512": (512, 512, "0.18", "0.61"),
    "1024-512": (1024, 512, "0.20", "0.68"),
    "512-1024": (512, 1024, "0.32", "1.09"),
}
"""Tokens read and written; T_R of LLaMA-2-70B on 8 devices and of Llama-3-8B on 1."""


def device(name: str) -> Profile:
    """A device with the paper's figures of it."""
    return profile(f"{name}.nanoflow")


def dense(name: str) -> Numbers:
    """A row of Table 2: 2 B n_in n_out L operations, (n_in n_out + B n_in + B n_out) S L bytes.

    The table's times are those of bytes that it has rounded, and so are these.
    """
    n_in, n_out = DENSE[name][:2]
    layers = LLAMA_70B.layers
    work = 2.0 * BATCH * n_in * n_out * layers
    moved = HALF * layers * (n_in * n_out + BATCH * n_in + BATCH * n_out)
    return {
        "work": work / 1e9,
        "memory": moved / 1e9,
        "compute_time": 1e3 * work / (DEVICES * device(A100).peak_flops),
        "memory_time": 1e12 * round(moved / 1e9, 1) / (DEVICES * device(A100).memory.bandwidth),
    }


def sent(model: Model, devices: int) -> float:
    """Bytes of the collectives of one step: 4 G B D S L (G - 1) / G."""
    return 4.0 * BATCH * model.width * HALF * model.layers * (devices - 1)


def network() -> Numbers:
    """Table 2's row of collectives; a link is 300 GB/s one way."""
    moved = sent(LLAMA_70B, DEVICES)
    link = DEVICES * device(A100).value("links.node.bandwidth")
    return {"sent": moved / 1e9, "network_time": 1e12 * round(moved / 1e9, 1) / link}


def net_over_compute(name: str, model: Model = LLAMA_70B) -> float:
    """T_net / T_comp over 8 such devices."""
    own = device(name)
    net = sent(model, DEVICES) / (DEVICES * own.value("links.node.bandwidth"))
    return net / (2 * BATCH * model.params / (DEVICES * own.peak_flops))


def other_model(model: Model) -> Numbers:
    """The same beside LLaMA-2-70B's."""
    return {"beside": net_over_compute(A100, model) / net_over_compute(A100)}


def memory_over_compute(model: Model, devices: int, read: int, written: int) -> float:
    """T_R: reading all memory once against the arithmetic of the largest batch.

    As many requests run as memory holds with half of what they write, and a step's tokens are
    those written and those read in the meantime.
    """
    own = device(A100)
    free = devices * own.memory.capacity - HALF * model.params
    requests = free / (model.cache * (read + written / 2))
    batch = requests * (read + written) / written
    compute = 2 * batch * model.params / (devices * own.peak_flops)
    return own.memory.capacity / own.memory.bandwidth / compute


def workload(name: str) -> Numbers:
    """T_R of both models."""
    read, written = WORKLOADS[name][:2]
    return {
        "llama_70b": memory_over_compute(LLAMA_70B, DEVICES, read, written),
        "llama_8b": memory_over_compute(LLAMA_8B, 1, read, written),
    }


def optimum(reached: float) -> Numbers:
    """Tokens a second of one device, C / 2P, and what part of it 1,272 tokens/s are."""
    best = reached / (2 * LLAMA_70B.params)
    return {"optimum": best, "share": 100 * 1272 / best}


def operations(parts: int) -> list[Operation]:
    """Table 2's measured milliseconds of one layer after the other, in parts of the batch.

    Rows do not mix, so each part has a chain of its own: products, attention that reads memory,
    products, and a collective after either half of a layer. A part takes its share of the time.
    """
    layers = LLAMA_70B.layers
    found = []
    for part in range(parts):
        last: tuple[str, ...] = ()
        for layer in range(layers):
            for name, resource, ms in LAYER:
                own = f"{part}.{layer}.{name}"
                found.append(Operation(own, resource, ms / layers / parts, last))
                last = (own,)
    return found


def scheduled(parts: int) -> Numbers:
    """Milliseconds of a list schedule, and tokens a second of one of the 8 devices."""
    steps = operations(parts)
    longest = list_schedule(steps).seconds
    least = max(
        sum(op.seconds for op in steps if op.resource == kind)
        for kind in ("compute", "memory", "network")
    )
    tokens = BATCH / (longest / 1e3) / DEVICES
    return {"makespan": longest, "above": longest / least, "tokens": tokens}


ARMS: dict[str, Arm] = {
    **{f"row-{name}": closed(f"Table 2, {name}", lambda n=name: dense(n)) for name in DENSE},
    "row-net": closed("Table 2, collectives", network),
    **{
        f"net-{name}": closed(f"8 x {name}", lambda n=name: {"ratio": net_over_compute(n)})
        for name in PRINTED
    },
    "llama-8b": closed("Llama-3-8B", lambda: other_model(LLAMA_8B)),
    "llama-405b": closed("Llama-3-405B, on 2 nodes", lambda: other_model(LLAMA_405B)),
    **{f"on-{name}": closed(f"requests {name}", lambda n=name: workload(n)) for name in WORKLOADS},
    "optimum": closed("260 TFLOP/s reached", lambda: optimum(device(A100).flops("float16"))),
    "optimum-280": closed("280 TFLOP/s reached", lambda: optimum(280e12)),
    **{
        f"parts-{parts}": closed(f"list schedule, batch in {parts}", lambda p=parts: scheduled(p))
        for parts in (1, 2, 4)
    },
}
ROWS = tuple(f"row-{name}" for name in DENSE)
ON = tuple(f"on-{name}" for name in WORKLOADS)
PARTS = ("parts-1", "parts-2", "parts-4")


def _printed(
    text: str, arms: tuple[str, ...], measure: str, source: str, figures: tuple[str, ...]
) -> Claim:
    return Claim(text, "printed", arms, measure, source=source, figures=figures)


def _row(text: str, measure: str, column: int) -> Claim:
    figures = tuple(str(row[column]) for row in DENSE.values())
    return _printed(f"Table 2's dense rows: {text}", ROWS, measure, "Table 2", figures)


CLAIMS = (
    _row("operations", "work", 2),
    _row("bytes of memory", "memory", 3),
    _row("time of arithmetic", "compute_time", 4),
    _row("time of memory", "memory_time", 5),
    _printed("Table 2: bytes of collectives", ("row-net",), "sent", "Table 2", ("75.2",)),
    _printed("Table 2: time of collectives", ("row-net",), "network_time", "Table 2", ("31.33",)),
    _printed(
        "T_net / T_comp of LLaMA-2-70B on 13 devices",
        tuple(f"net-{name}" for name in PRINTED),
        "ratio",
        "the figure of network against compute",
        tuple(PRINTED.values()),
    ),
    _printed(
        "Of Llama-3-8B it is 1.75 times, of 405B 0.544 times that",
        ("llama-8b", "llama-405b"),
        "beside",
        "the same figure",
        ("1.75", "0.544"),
    ),
    *(
        _printed(
            f"T_R of {title}",
            ON,
            measure,
            "the figure of memory against compute",
            tuple(str(row[column]) for row in WORKLOADS.values()),
        )
        for title, measure, column in (
            ("LLaMA-2-70B on 8 A100", "llama_70b", 2),
            ("Llama-3-8B on one A100", "llama_8b", 3),
        )
    ),
    _printed(
        "The optimum is 1,857 tokens/s a device: of 260 TFLOP/s, not of the 280 that v2 says",
        ("optimum",),
        "optimum",
        "section 3",
        ("1857",),
    ),
    _printed("1,272 tokens/s are 68.5 % of it", ("optimum",), "share", "abstract", ("68.5",)),
    _printed(
        "One after the other, Table 2's measured times take 225.05 ms",
        ("parts-1",),
        "makespan",
        "Table 2",
        ("225.05",),
    ),
    Claim(
        "In parts of the batch that overlap they take less",
        "at_most",
        PARTS[1:],
        "makespan",
        225.0,
        source="the paper's idea",
    ),
    Claim(
        "Never less than all that one resource has to do",
        "at_least",
        PARTS,
        "above",
        1.0,
        source="exact",
    ),
)

STUDY = Study(
    name="nanoflow",
    title="Serving in large batches",
    source="arXiv 2408.12757",
    page="machines.md",
    arms=ARMS,
    measures={
        "work": Measure("operations", "", "G", ",.1f"),
        "memory": Measure("memory moved", "", "GB", ".1f"),
        "sent": Measure("sent", "", "GB", ".1f"),
        "compute_time": Measure("arithmetic", "lower", "ms", ".2f"),
        "memory_time": Measure("memory", "lower", "ms", ".2f"),
        "network_time": Measure("network", "lower", "ms", ".2f"),
        "ratio": Measure("T_net / T_comp", "lower", form=".3f"),
        "beside": Measure("beside LLaMA-2-70B's", form=".3f"),
        "llama_70b": Measure("T_R, 70B", form=".2f"),
        "llama_8b": Measure("T_R, 8B", form=".2f"),
        "optimum": Measure("optimum", "higher", "tokens/s", ",.0f"),
        "share": Measure("reached of it", "higher", "%", ".1f"),
        "makespan": Measure("step", "lower", "ms", ".2f"),
        "above": Measure("times the busiest resource", "lower", form=".3f"),
        "tokens": Measure("a device", "higher", "tokens/s", ",.0f"),
    },
    published=as_printed(CLAIMS),
    claims=CLAIMS,
    notes=(
        "device figures as the paper prints them; links one way are half of the printed ones",
        "the schedule knows no interference between operations that overlap, which lowers what "
        "the paper reaches to 1,212 to 1,286 tokens/s",
    ),
    absent=(
        Absent("T_R of Mixtral", "its printed figures could not be read"),
        Absent(
            "1,212 to 1,286 tokens/s a device, 1.91 times TensorRT-LLM on traces",
            "measured on 8 A100; parts of a GPU cannot be given to operations from JAX",
        ),
    ),
)
