"""ZeRO in levels on slow links: seconds, bytes, errors of sums in few bits, and a trained model.

Source: arXiv 2501.04266 (three levels; its abstract and a published summary, the body could not be
read) and ZeRO++ (arXiv 2306.10209).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.papers.gpt import HALF, Gpt
from experiments.study import Absent, Arm, Claim, Measure, Setting, Study, closed
from experiments.study.declare import CPU, SHORT, Numbers, as_printed
from gam_jax.data import Text
from gam_jax.layers import GAM, Block
from gam_jax.models import LanguageModel
from gam_jax.optimizer import OptimizerConfig
from gam_jax.planning.cluster import Cluster, cluster
from gam_jax.planning.cost import seconds_of
from gam_jax.traffic.levels import as_sent, gathers, scatters
from gam_jax.traffic.sizes import FLOAT
from gam_jax.training import Experiment, TrainConfig
from sharding import quantised
from sharding.checkpoint import CheckpointConfig
from sharding.degrees import Degrees, held
from sharding.messages import Message
from sharding.parallel import Parallel

GAINS = {"zeropp": "1.405", "levels": "1.707", "both": "2.398"}
"""TFLOP/s of a die: ZeRO++ over ZeRO-3, three levels over ZeRO++, three levels over ZeRO-3."""
PROFILE, NODE = "frontier_gcd.frontier", 8
MODELS = {"10b": Gpt(48, 4096, 32), "20b": Gpt(44, 6144, 64)}
DEVICES, PARTS = (64, 128, 256, 384), 8
REACHED = 0.4
"""Of the peak that products reach: a round figure of ours."""
DIE, NODES, OUTER = ("data_2",), ("data_2", "data_1"), ("data_0",)
"""Mesh axes of a card, of a node, and between nodes: data=NODESx4x2."""
STEPS = {SHORT: 8, CPU: 900}


def messages(scheme: str, count: int, mesh: Mapping[str, int], parts: int) -> Iterator[Message]:
    """What a step sends for `count` parameters in 16 bits, as a program here does.

    Args:
      scheme: zero3; zeropp, a second copy in the node and few bits; levels, weights over a card,
        gradients over the node, state over all, in few bits; levels_8, new parameters in 8 too.
      count: of parameters.
      mesh: devices of each level.
      parts: of the batch.
    """
    devices, every = NODE * mesh["data_0"], (*NODES, *OUTER)
    whole, wide = HALF * count, FLOAT * count
    if scheme == "zero3":
        yield from gathers(whole, every, mesh, 2 * parts)
        yield from scatters(whole, every, mesh, parts)
    elif scheme == "zeropp":
        coded = as_sent(count, HALF, 8, devices)
        yield from gathers(coded // NODE, OUTER, mesh)
        yield from gathers(coded, NODES, mesh, 2 * parts)
        yield from scatters(wide, every, mesh, parts, 4)
    else:
        yield from gathers(as_sent(count, HALF, 8, 2), DIE, mesh, 2 * parts)
        yield from scatters(wide, NODES, mesh, parts, 4)
        yield from scatters(wide // NODE, OUTER, mesh, 1, 4)
        new = as_sent(count, HALF, 8, devices) if scheme == "levels_8" else whole
        yield from gathers(new // 2, ("data_1", *OUTER), mesh)


DEGREES = {
    "zero3": lambda n: Degrees(n, n, n),
    "zeropp": lambda n: Degrees(n, n, n, NODE),
    "levels": lambda n: Degrees(2, NODE, n),
}


@functools.cache
def _cluster(devices: int) -> Cluster:
    return cluster(f"{PROFILE}:{devices}")


def step(scheme: str, model: Gpt, devices: int, parts: int) -> tuple[float, float, float]:
    """Seconds of products, seconds of messages, and bytes that a node sends outside in numbers.

    The last is in 16-bit numbers over those of the model.
    """
    joined, mesh = _cluster(devices), {"data_0": devices // NODE, "data_1": 4, "data_2": 2}
    count = int(model.params) // (256 * devices) * 256 * devices
    sent = list(messages(scheme, count, mesh, parts))
    products = model.operations(parts) / (joined.profile.flops("float16") * REACHED)
    outside = sum(one.sent for one in sent if one.axes == OUTER) * NODE / (HALF * count)
    return products, sum(seconds_of(one, joined, mesh) for one in sent), outside


def timed(scheme: str, size: str, devices: int, parts: int) -> Numbers:
    """A step of a scheme, what a node sends, and what a device holds."""
    products, sent, outside = step(scheme, MODELS[size], devices, parts)
    found = {"seconds": products + sent, "messages": sent, "outside": outside}
    if scheme in DEGREES:
        found["held"] = held(MODELS[size].params, DEGREES[scheme](devices)) / 1e9
    return found


def least(parts: int, last: str = "levels") -> Numbers:
    """The least gain of ZeRO++ over ZeRO-3 and of three levels over ZeRO++, of all sizes."""
    gains = []
    for model in MODELS.values():
        for devices in DEVICES:
            one, two, three = (
                sum(step(scheme, model, devices, parts)[:2]) for scheme in ("zero3", "zeropp", last)
            )
            gains += [one / two, two / three]
    return {"least": min(gains)}


def explained() -> Numbers:
    """Three levels over ZeRO++ if products take as long as gives ZeRO++ its published gain."""
    one, two, three = (
        step(scheme, MODELS["20b"], max(DEVICES), PARTS)[1]
        for scheme in ("zero3", "zeropp", "levels")
    )
    gain = float(GAINS["zeropp"])
    products = (one - gain * two) / (gain - 1)
    return {"gain": (products + two) / (products + three)}


def rounded(x: Array, block: int = quantised.BLOCK) -> Array:
    """As it arrives in 4 bits."""
    return quantised.decoded(quantised.coded(x, 4, block), 4, x.shape[-1])


def error(way: str, seed: int) -> Numbers:
    """The relative error of a sum over 8 devices of Gaussian numbers in 4 bits, in percent."""
    x = jax.random.normal(jax.random.key(seed), (8, 2**16))
    total = jnp.sum(x, axis=0)
    if way == "one":
        found = jnp.sum(rounded(x), axis=0)
    elif way == "global":
        found = jnp.sum(rounded(x, x.shape[-1]), axis=0)
    elif way == "two":  # two nodes of four
        found = jnp.sum(rounded(jnp.sum(rounded(x).reshape(2, 4, -1), axis=1)), axis=0)
    else:
        found = x[0]
        for own in x[1:]:
            found = rounded(found) + own
    return {"error": float(jnp.linalg.norm(found - total) / jnp.linalg.norm(total))}


def experiment(bits: str, setting: Setting) -> Experiment:
    """A small GAM on bytes of Python files; weights over all devices, a second copy in a node."""
    steps = setting.steps or STEPS[setting.scale]
    return Experiment(
        model=LanguageModel(Block(GAM(slots=64)), width=64, depth=1, context=64),
        data=Text(setting.data or "python_stdlib", dir=setting.data_dir, window=64),
        train=TrainConfig(
            steps=steps,
            batch=16,
            validate_every=steps,
            log_every=50,
            tokens=400_000,
            validation_tokens=16_384,
        ),
        optimizer=OptimizerConfig(learning_rate=setting.learning_rate or 3e-3, warmup=steps // 10),
        checkpoint=CheckpointConfig(every=steps, keep=1),
        parallel=Parallel(shards="weights:8,secondary:4", bits=bits),
    )


TITLES = {
    "zero3": "ZeRO-3",
    "zeropp": "ZeRO++",
    "levels": "three levels",
    "levels_8": "three levels, new parameters in 8 bits",
}
WAYS = {
    "one": "one hop",
    "two": "two hops",
    "ring": "a ring",
    "global": "one hop, one block of 65,536",
}
ARMS: dict[str, Arm] = {
    "published": closed(
        "TFLOP/s, three levels over ZeRO-3",
        lambda: {"gain": float(GAINS["zeropp"]) * float(GAINS["levels"])},
    ),
    **{
        f"{scheme}_{size}": closed(
            f"{TITLES[scheme]}, {size.upper()}, {max(DEVICES)} dies, {PARTS} parts",
            lambda scheme=scheme, size=size: timed(scheme, size, max(DEVICES), PARTS),
        )
        for size in MODELS
        for scheme in DEGREES
    },
    **{
        f"{scheme}_once": closed(
            f"{TITLES[scheme]}, 20B, {max(DEVICES)} dies, 1 part",
            lambda scheme=scheme: timed(scheme, "20b", max(DEVICES), 1),
        )
        for scheme in TITLES
    },
    "parts": closed(f"10B and 20B, 64 to 384 dies, {PARTS} parts", lambda: least(PARTS)),
    "once": closed("10B and 20B, 64 to 384 dies, 1 part", lambda: least(1)),
    "once_8": closed("likewise, new parameters in 8 bits", lambda: least(1, "levels_8")),
    "explained": closed("products as long as 1.405 asks for", explained),
    **{
        way: Arm(
            f"a sum over 8 devices in 4 bits, {title}",
            numbers=lambda setting, seed, way=way: error(way, seed),
        )
        for way, title in WAYS.items()
    },
    **{
        name: Arm(title, experiment=lambda setting, bits=bits: experiment(bits, setting))
        for name, (title, bits) in {
            "float32": ("trained, float32 messages", ""),
            "few": ("trained, weights in 8 bits, gradients in 4", "weights:8,gradients:4"),
            "eight": ("trained, both in 8 bits", "weights:8,gradients:8"),
        }.items()
    },
}
ZEROPP, FRONTIER = "arXiv 2306.10209", "arXiv 2501.04266"
CLAIMS = (
    Claim(
        "Its three gains belong together: 1.405 x 1.707 = 2.398",
        "printed",
        ("published",),
        "gain",
        figures=(GAINS["both"],),
        source=FRONTIER,
    ),
    Claim(
        "A step takes less time in three levels than under ZeRO++, and there than under ZeRO-3",
        "at_least",
        ("parts",),
        "least",
        1.0,
        source=f"{FRONTIER}; {PARTS} parts a step",
    ),
    Claim(
        "So it does where a batch is one part",
        "at_least",
        ("once",),
        "least",
        1.0,
        source="ours; new parameters are sent in 16 bits",
    ),
    Claim(
        "So it does where a batch is one part and new parameters go in 8 bits",
        "at_least",
        ("once_8",),
        "least",
        1.0,
        source="ours; in no program here",
    ),
    Claim(
        "Three levels are 1.707 times as fast as ZeRO++ where that is 1.405 times ZeRO-3",
        "near",
        ("explained",),
        "gain",
        float(GAINS["levels"]),
        0.05,
        source=FRONTIER,
    ),
    Claim(
        "What is faster holds more",
        "ordered",
        ("zero3_20b", "zeropp_20b", "levels_20b"),
        "held",
        source=FRONTIER,
    ),
    Claim(
        "A node sends 3 M numbers outside under ZeRO-3",
        "near",
        ("zero3_once",),
        "outside",
        3 * (1 - NODE / max(DEVICES)),
        1e-3,
        source=f"{ZEROPP}; times (Y - 1) / Y of Y nodes",
    ),
    Claim(
        "0.75 M under ZeRO++",
        "near",
        ("zeropp_once",),
        "outside",
        0.75 * (1 - NODE / max(DEVICES)),
        0.025,
        source=f"{ZEROPP}; ours are larger by the scales, 4 bytes a block",
    ),
    *(
        Claim(
            f"The relative error of {WAYS[way]} in 4 bits is {figure}",
            "near",
            (way,),
            "error",
            figure,
            0.005,
            source=f"a reading of {ZEROPP}",
        )
        for way, figure in (("one", 0.112), ("two", 0.159), ("ring", 0.207))
    ),
    Claim(
        "Blocks of 256 err less than one block for all numbers",
        "lower",
        ("one", "global"),
        "error",
        source=ZEROPP,
    ),
    Claim(
        "Weights in 8 and gradients in 4 bits train within 1 % of the loss of float32",
        "times_at_most",
        ("few", "float32"),
        "loss",
        1.01,
        source=f"{ZEROPP}, {FRONTIER}",
    ),
    Claim(
        "Both in 8 bits train within 0.5 % of it",
        "times_at_most",
        ("eight", "float32"),
        "loss",
        1.005,
        source="ours",
    ),
)
STUDY = Study(
    name="frontier-lowband",
    title="ZeRO in levels and in few bits",
    source=f"{FRONTIER}, {ZEROPP.removeprefix('arXiv ')}",
    page="levels.md",
    arms=ARMS,
    measures={
        "loss": Measure("validation loss", "lower", "nats a token"),
        "seconds": Measure("a step", "lower", "s", ".2f"),
        "messages": Measure("of it messages", "lower", "s", ".2f"),
        "outside": Measure("a node sends", "lower", "M numbers", ".3f"),
        "held": Measure("a device holds", "lower", "GB", ".2f"),
        "least": Measure("least gain", "higher", "times", ".3f"),
        "gain": Measure("gain", "higher", "times", ".3f"),
        "error": Measure("relative error", "lower", form=".4f"),
    },
    published=as_printed(CLAIMS[:1]),
    claims=CLAIMS,
    notes=(
        f"seconds are predicted: messages one after another with products at {REACHED:.0%} of the "
        "peak; a part is 2,048 tokens",
        "trained on --emulate=8 --mesh=data=2x4, both with a second copy of the weights in a node",
    ),
    absent=(
        Absent("TFLOP/s of 20 B on up to 384 dies, 0.94 of linear", "needs Frontier"),
        Absent("Where each kind of state lies", "the paper's body could not be read"),
    ),
)
