"""Many whole models on one machine (SN40L, Samba-CoE): switching between them, and room for them.

Source: arXiv 2405.07518. A prompt's expert, one of 150 Llama2-7B models, is copied into fast
memory unless it is there already.
"""

from __future__ import annotations

import random

from experiments.study import Absent, Arm, Claim, Measure, Setting, Study, as_printed, closed
from experiments.study.declare import Numbers
from gam_jax.planning import profile
from gam_jax.planning.tiers import resident

GB = 1e9
EXPERT = 13.5 * GB
"""Llama2-7B in bfloat16."""
SOCKETS = 8
"""Of a node; the profile is of one."""
EXPERTS = 850
CACHE = 2 * 32 * 4096 * 2
"""Bytes of keys and values of one token of Llama2-7B in bfloat16."""
TEXTS, TOKENS = 8, 4096
"""The paper's largest batch, at the model's whole context."""
ASKED, MODELS = 2000, 150
"""Prompts of a simulation, and models they are for."""


def link_of(name: str) -> float:
    """Bytes a second from slow to fast memory of a whole machine."""
    own = profile(f"{name}.samba_coe").value("memory.host.dma")
    return SOCKETS * own if name == "sn40l" else own


def switch(name: str) -> Numbers:
    """Milliseconds to bring one expert, and how many times longer than on the SN40L node."""
    link = link_of(name)
    return {"switch": 1e3 * EXPERT / link, "times": link_of("sn40l") / link}


def room() -> Numbers:
    """Experts that fit into a DGX; nodes for 850 of them; what DDR of one node they take."""
    whole = EXPERTS * EXPERT
    cache = TEXTS * TOKENS * CACHE
    fast = profile("dgx_a100.samba_coe").memory.capacity
    slow = SOCKETS * profile("sn40l.samba_coe").value("memory.host.capacity")
    return {
        "experts": fast // EXPERT,
        "nodes": -(-whole // fast),
        "nodes_cache": -(-whole // (fast - cache)),
        "ddr": 100 * whole / slow,
    }


def hits(held: int, seed: int) -> Numbers:
    """Percent of prompts that find their expert, by chance and with a few experts asked often."""
    draw = random.Random(seed)
    alike = [str(draw.randrange(MODELS)) for _ in range(ASKED)]
    weights = [1 / (rank + 1) for rank in range(MODELS)]
    skewed = [str(model) for model in draw.choices(range(MODELS), weights, k=ASKED)]
    rates = [100 * sum(resident(asked, held)) / ASKED for asked in (alike, skewed)]
    return {"alike": rates[0], "skewed": rates[1]}


def _cache(held: int) -> Arm:
    def numbers(setting: Setting, seed: int) -> Numbers:
        return hits(held, seed)

    return Arm(f"fast memory holds {held} of {MODELS}", numbers=numbers)


ARMS = {
    "sn40l": closed("SN40L node, 1 TB/s", lambda: switch("sn40l")),
    "h100": closed("DGX H100, 64 GB/s", lambda: switch("dgx_h100")),
    "a100": closed("DGX A100, 32 GB/s", lambda: switch("dgx_a100")),
    "room": closed("850 experts, DGX of 640 GB", room),
    "holds-47": _cache(47),
    "holds-100": _cache(100),
}
LINKS = "the paper's text"
CLAIMS = (
    Claim(
        "Switching is 31 times faster than on a DGX A100",
        "printed",
        ("a100",),
        "times",
        source=LINKS,
        figures=("31",),
    ),
    Claim(
        "Switching is 16 times faster than on a DGX H100 (also printed as 15)",
        "printed",
        ("h100",),
        "times",
        source=LINKS,
        figures=("16",),
    ),
    Claim(
        "47 experts fit into 640 GB; the paper's curve spills near 50",
        "printed",
        ("room",),
        "experts",
        source="ours",
        figures=("47",),
    ),
    Claim(
        "850 experts take 18 DGX for weights alone",
        "printed",
        ("room",),
        "nodes",
        source="ours",
        figures=("18",),
    ),
    Claim(
        "850 experts take 19 DGX, with keys and values of 8 x 4,096 tokens",
        "printed",
        ("room",),
        "nodes_cache",
        source="the paper's figure of footprints",
        figures=("19",),
    ),
    Claim(
        "850 experts fit into one node's 12 TiB of DDR",
        "at_most",
        ("room",),
        "ddr",
        100.0,
        source="the paper's figure of footprints",
    ),
    Claim(
        "Asked by chance, a third of the experts gives a third of the hits, to 3 points",
        "near",
        ("holds-47",),
        "alike",
        100 * 47 / MODELS,
        3.0,
        "ours",
    ),
    Claim("More room, more hits", "higher", ("holds-100", "holds-47"), "skewed", source="ours"),
)

STUDY = Study(
    name="samba-coe",
    title="Many whole models on one machine",
    source="arXiv 2405.07518",
    page="machines.md",
    arms=ARMS,
    measures={
        "switch": Measure("one switch", "lower", "ms", ".1f"),
        "times": Measure("times longer", "lower", form=".2f"),
        "experts": Measure("experts", "higher", form=".0f"),
        "nodes": Measure("nodes for weights", "lower", form=".0f"),
        "nodes_cache": Measure("with keys and values", "lower", form=".0f"),
        "ddr": Measure("of one node's DDR", "lower", "%", ".1f"),
        "alike": Measure("hits, asked alike", "higher", "%", ".1f"),
        "skewed": Measure("hits, asked as 1 / rank", "higher", "%", ".1f"),
    },
    published=as_printed(CLAIMS),
    claims=CLAIMS,
    notes=("47 experts of a node times 18 nodes are 846: with whole experts it is 19 as well",),
    absent=(
        Absent(
            "2.0 to 6.6 times as fast as DGX A100, 1.5 to 3.7 times as DGX H100; fusion 1 to 13 "
            "times; 129, 457 and 1,042 tokens/s for one user",
            "measured on SN40L; the DGX side is the authors' own estimate",
        ),
        Absent(
            "A router that picks one of several models for each prompt, served",
            "the room here is a simulator's; no server of several models is held against it",
        ),
    ),
)
