"""A supernode of 384 accelerators (CloudMatrix384): bytes and buffers of its experts' exchange.

Source: arXiv 2506.12708 (v3). What is arithmetic comes out; what was measured there is named.
"""

from __future__ import annotations

from experiments.study import Absent, Arm, Claim, Measure, Study, as_printed, closed
from experiments.study.declare import Numbers
from gam_jax.planning import Profile, profile

KIB, MIB = 2**10, 2**20
WIDTH, CHOSEN = 7168, 8
"""D of DeepSeek-R1, and experts of a token."""
SCALE = 512
"""Bytes that a token's scale is padded to."""
RANKS, TOKENS = 320, 96
"""Dies with one expert each; tokens of a die: 48 requests of 2 guessed tokens."""
DIES = 2
"""Of one accelerator; the profile is of a die."""

LATENCIES = {
    "1024-1024": (128, 46.8, "2733"),
    "2048-256": (112, 47.4, "2360"),
    "4096-256": (96, 49.4, "1943"),
    "4096-256-25ms": (24, 24.6, "974"),
    "4096-256-15ms": (8, 14.9, "538"),
}
"""Tokens read and written: batch of an accelerator, ms a token, tokens/s as printed."""

OPERATORS = {
    "dispatch-8": (116, 71, WIDTH + SCALE),
    "dispatch-256": (152, 54, WIDTH + SCALE),
    "combine-8": (118, 131, 2 * WIDTH),
    "combine-256": (149, 103, 2 * WIDTH),
}
"""Of 128 tokens a rank: us and GB/s as printed, bytes of a token."""


def die() -> Profile:
    """A die of an Ascend 910C with its three planes of links, as the paper has it."""
    return profile("ascend_910c.cloudmatrix")


def planes() -> Numbers:
    """GB/s of a die over each plane."""
    names = {"ub": "links.ub.bandwidth", "rdma": "planes.rdma", "vpc": "planes.vpc"}
    return {name: die().value(figure) / 1e9 for name, figure in names.items()}


def efficiency(tokens: float) -> Numbers:
    """Tokens a second for each INT8 TFLOP/s of an accelerator."""
    return {"efficiency": tokens / (DIES * die().value("flops.int8") / 1e12)}


def exchange() -> Numbers:
    """Bytes of a token that is dispatched and combined, and of the buffers for all ranks."""
    payload, back = WIDTH + SCALE, 2 * WIDTH
    return {
        "payload": payload,
        "buffers": RANKS * TOKENS * (payload + back) / MIB,
        "saved": 100 * (1 - payload / back),
    }


def node() -> Numbers:
    """GB/s of a node's eight accelerators, and of its seven switches upwards."""
    own = die()
    upwards = own.value("node.links") * own.value("node.link")
    return {"inside": 8 * DIES * own.value("links.ub.bandwidth") / 1e9, "upwards": upwards / 1e9}


def decode(name: str) -> Numbers:
    """Tokens a second of an accelerator: batch over the time of a token."""
    batch, milliseconds, _ = LATENCIES[name]
    return {"tokens": batch / (milliseconds / 1e3)}


def operator(name: str) -> Numbers:
    """Bytes by the printed bandwidth and time, against batch x chosen experts x message."""
    microseconds, gigabytes, message = OPERATORS[name]
    moved = microseconds * 1e-6 * gigabytes * 1e9
    return {"accounted": 100 * moved / (128 * CHOSEN * message)}


ARMS: dict[str, Arm] = {
    "exchange": closed("exchange among 320 dies", exchange),
    "planes": closed("planes of links of a die", planes),
    "node": closed("one node", node),
    **{name: closed(f"decode, {name}", lambda n=name: decode(n)) for name in LATENCIES},
    **{name: closed(name, lambda n=name: operator(n)) for name in OPERATORS},
    "prefill": closed("prefill, tokens/s a TFLOP/s", lambda: efficiency(6688)),
    "decode": closed("decode, tokens/s a TFLOP/s", lambda: efficiency(1943)),
}


def _printed(text: str, arm: str, measure: str, figure: str, section: str) -> Claim:
    return Claim(text, "printed", (arm,), measure, source=section, figures=(figure,))


CLAIMS = (
    _printed(
        "A dispatched token is 7,680 bytes: int8 and a padded scale",
        "exchange",
        "payload",
        "7680",
        "on early quantisation",
    ),
    _printed("Buffers take 645 MiB a rank", "exchange", "buffers", "645", "on static buffers"),
    Claim(
        "Decoding gives batch / time of a token, in five rows, to 0.3 %",
        "printed",
        tuple(LATENCIES),
        "tokens",
        tolerance=3e-3,
        source="the table of latency targets",
        figures=tuple(str(row[2]) for row in LATENCIES.values()),
    ),
    _printed("Eight accelerators send 3,136 GB/s", "node", "inside", "3136", "on the node"),
    _printed("Seven switches carry 3,136 GB/s up", "node", "upwards", "3136", "on the node"),
    Claim(
        "Printed time x bandwidth is batch x 8 x message, to 6 %",
        "near",
        tuple(OPERATORS),
        "accounted",
        100.0,
        6.0,
        "the tables of operators",
    ),
    Claim(
        "1,504 INT8 TOPS an accelerator give the printed tokens/s a TFLOP/s",
        "printed",
        ("prefill", "decode"),
        "efficiency",
        source="the tables of prefill and decode",
        figures=("4.45", "1.29"),
    ),
)

STUDY = Study(
    name="cloudmatrix",
    title="A supernode of 384 accelerators",
    source="arXiv 2506.12708",
    page="machines.md",
    arms=ARMS,
    measures={
        "payload": Measure("a token's message", "lower", "B", ",.0f"),
        "buffers": Measure("buffers", "lower", "MiB", ",.0f"),
        "saved": Measure("less than bfloat16", "higher", "%", ".1f"),
        "inside": Measure("inside", "higher", "GB/s", ",.0f"),
        "upwards": Measure("upwards", "higher", "GB/s", ",.0f"),
        "ub": Measure("UB", "higher", "GB/s", ",.1f"),
        "rdma": Measure("RDMA", "higher", "GB/s", ",.1f"),
        "vpc": Measure("VPC", "higher", "GB/s", ",.1f"),
        "tokens": Measure("decoded", "higher", "tokens/s", ",.0f"),
        "accounted": Measure("of the formula's bytes", "", "%", ".1f"),
        "efficiency": Measure("tokens/s a TFLOP/s", "higher", form=".2f"),
    },
    published=as_printed(CLAIMS),
    claims=CLAIMS,
    notes=("6,688 tokens/s of prefill assume experts in perfect balance; the default gives 5,655",),
    absent=(
        Absent(
            "5,655 and 1,943 tokens/s an accelerator, 16 benchmarks on par in INT8",
            "measured on Ascend 910C with a model of 671 B parameters",
        ),
    ),
)
