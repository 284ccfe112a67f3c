"""Many whole models on one machine (SN40L, Samba-CoE): switching between them, and room for them.

Source: arXiv 2405.07518. A prompt's expert, one of 150 Llama2-7B models, is copied into fast
memory unless it is there already.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import random
import signal
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.benchmark.starts import train
from experiments.command import as_process
from experiments.study import (
    Absent,
    Arm,
    Claim,
    Measure,
    Setting,
    Study,
    as_printed,
    closed,
)
from experiments.study.declare import SHORT, Numbers
from gam_jax.planning import profile
from gam_jax.planning.tiers import resident
from sharding.errors import UserError

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


RUNS, LOADED = ("a", "b", "c"), 2
"""Small runs that are served, and how many of them are on the device at once."""
WIDTH, BLOCKS, WRITTEN = 64, 2, 16


@contextlib.contextmanager
def serving(runs: Sequence[pathlib.Path], *options: str) -> Iterator[str]:
    """The address of a server of some runs, in a process of its own."""
    command = ["gam", "serve", "--port=0", "--rows=2", *(f"--run={run}" for run in runs), *options]
    with subprocess.Popen(
        as_process(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        told = ""
        for told in process.stderr:
            if told.startswith("serving "):
                break
        else:
            raise UserError(f"gam serve failed: {told.strip()}")
        try:
            yield process.stdout.readline().strip()
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()


def answer(url: str, **body: Any) -> Any:
    """What a server says to a body; without one, what it tells of its models."""
    path = "v1/completions" if body else "v1/models"
    data = json.dumps(body).encode() if body else None
    head = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url + path, data, head)) as sent:
        return json.load(sent)


def served(setting: Setting) -> Numbers:
    """Requests for three runs of unlike parameters, one after another: `gam serve` with room for
    two of them, beside the simulator, and beside a server with room for all.
    """
    draw = random.Random(0)
    weights = [1 / (rank + 1) for rank in range(len(RUNS))]
    asked = draw.choices(RUNS, weights, k=8 if setting.scale == SHORT else 100)
    found, texts = [], []
    with tempfile.TemporaryDirectory() as place:
        runs = [pathlib.Path(place) / name for name in RUNS]
        for number, run in enumerate(runs):
            train(run, WIDTH, BLOCKS, number, f"{place}/programs")
        for options in ((), (f"--loaded={LOADED}",)):
            with serving(runs, f"--compile_cache={place}/programs", *options) as url:
                own = []
                for number, name in enumerate(asked):
                    before = _misses(url)
                    body = {"prompt": "def ", "max_tokens": WRITTEN, "seed": number}
                    own.append(answer(url, model=name, **body)["choices"][0]["text"])
                    found.append(_misses(url) == before)
                texts.append(own)
    hits, simulated = found[len(asked) :], resident([*RUNS[:LOADED], *asked], LOADED)[LOADED:]
    return {
        "served": 100 * sum(hits) / len(asked),
        "simulated": 100 * sum(simulated) / len(asked),
        "unlike": sum(x != y for x, y in zip(hits, simulated, strict=True)),
        "changed": sum(x != y for x, y in zip(*texts, strict=True)),
        "missed": len(asked) - sum(found[: len(asked)]),
    }


def _misses(url: str) -> int:
    return sum(model["misses"] for model in answer(url)["data"])


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
    "served": Arm(
        "three small runs served, room for two", numbers=lambda s, seed: served(s), exact=True
    ),
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
    Claim(
        "Served, each of 100 requests for three runs hits where the simulator says",
        "near",
        ("served",),
        "unlike",
        source="ours",
    ),
    Claim(
        "No text is another one than with room for all",
        "near",
        ("served",),
        "changed",
        source="ours",
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
        "served": Measure("hits of the server", "higher", "%", ".1f"),
        "simulated": Measure("of the simulator", "higher", "%", ".1f"),
        "unlike": Measure("requests where they differ", "lower", form=".0f"),
        "changed": Measure("texts that differ from room for all", "lower", form=".0f"),
        "missed": Measure("misses with room for all", "lower", form=".0f"),
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
            "A router that picks one of several models for each prompt",
            "a request to the server names its model",
        ),
    ),
)
