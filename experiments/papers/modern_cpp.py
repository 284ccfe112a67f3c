"""Work where its data lie (Heller et al.): STREAM in JAX, and what a misplaced array costs.

Source: "Closing the Performance Gap with Modern C++" (arXiv 2206.06302), of which the abstract
was read; STREAM is J. McCalpin's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.study import Absent, Arm, Claim, Measure, Setting, Study, as_printed, closed
from experiments.study.declare import CPU, SHORT, Numbers
from gam_jax.planning.stream import KERNELS, SCALAR, self_check
from sharding.mesh import make_mesh
from sharding.messages import compiled_messages

SIZE = {SHORT: 2**12, CPU: 2**25}
"""Numbers of an array; STREAM wants four times the last cache at least."""
CHECKED = 1000


def counted(name: str) -> Numbers:
    """Bytes of a number of eight bytes."""
    return {"bytes": KERNELS[name].bytes(1)}


def check() -> Numbers:
    """The self-check after ten turns, in float32."""
    return {"error": self_check(CHECKED)}


def messages(placed: bool) -> Numbers:
    """Collectives of a triad over two devices, with b where the work is or split otherwise.

    Nothing where there is one device: try --emulate=2.
    """
    devices = jax.devices()[:2]
    if len(devices) < 2:
        return {}
    mesh = make_mesh(data=2, devices=devices)
    rows, columns = (NamedSharding(mesh, spec) for spec in (P("data", None), P(None, "data")))
    array = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    triad = KERNELS["triad"].formula
    shardings = (rows if placed else columns, rows)
    program = jax.jit(triad, in_shardings=shardings, out_shardings=rows)
    found = compiled_messages(program.lower(array, array).compile().as_text() or "")
    return {"collectives": sum(message.count for message in found)}


def in_jax(setting: Setting) -> Mapping[str, Callable[[], Any]]:
    """A compiled triad into the buffer of the a before."""
    size = SIZE[setting.scale]
    b, c = jnp.full((size,), 2.0), jnp.full((size,), 0.5)
    held = [jnp.zeros((size,))]
    triad = jax.jit(
        lambda a, b, c: KERNELS["triad"].formula(b, c), donate_argnums=0, keep_unused=True
    )

    def call() -> Any:
        held[0] = triad(held[0], b, c)
        return held[0]

    return {"triad": call}


def in_numpy(setting: Setting) -> Mapping[str, Callable[[], Any]]:
    """The same in NumPy, in place: one pass multiplies, another one adds."""
    size = SIZE[setting.scale]
    a, b, c = (np.full((size,), value, np.float32) for value in (0.0, 2.0, 0.5))

    def call() -> Any:
        np.multiply(c, np.float32(SCALAR), out=a)
        return np.add(a, b, out=a)

    return {"triad": call}


ARMS: dict[str, Arm] = {
    **{name: closed(name, lambda n=name: counted(n)) for name in KERNELS},
    "check": closed("ten turns", check),
    "together": closed("data where the work is", lambda: messages(True)),
    "apart": closed("one array split otherwise", lambda: messages(False)),
    "jax": Arm("jitted triad", timed=in_jax),
    "numpy": Arm("NumPy's triad, in place", timed=in_numpy),
}
CLAIMS = (
    Claim(
        "STREAM counts 16, 16, 24 and 24 bytes a number",
        "printed",
        tuple(KERNELS),
        "bytes",
        source="STREAM",
        figures=("16", "16", "24", "24"),
    ),
    Claim(
        "After ten turns the arrays hold what STREAM says, in float32",
        "at_most",
        ("check",),
        "error",
        1e-5,
        source="STREAM's self-check",
    ),
    Claim(
        "Work that is split as its data are sends nothing",
        "near",
        ("together",),
        "collectives",
        source="the paper's idea",
    ),
    Claim(
        "One array that is split otherwise costs one collective",
        "near",
        ("apart",),
        "collectives",
        1.0,
        source="the paper's idea",
    ),
    Claim(
        "A jitted triad is as fast as NumPy's in place, which takes two passes",
        "times_at_most",
        ("jax", "numpy"),
        "triad",
        1.0,
        source="ours",
    ),
)

STUDY = Study(
    name="modern-cpp",
    title="Work where its data lie",
    source="arXiv 2206.06302",
    page="machines.md",
    arms=ARMS,
    measures={
        "bytes": Measure("counted bytes of a number", "lower", "B", ".0f"),
        "error": Measure("largest error", "lower", form=".1e"),
        "collectives": Measure("collectives", "lower", form=".0f"),
        "triad": Measure("triad", "lower", "s", ".5f"),
    },
    published=as_printed(CLAIMS),
    claims=CLAIMS,
    notes=(f"triads over {SIZE[CPU]:,} numbers of float32; collectives need --emulate=2",),
    absent=(
        Absent(
            "HPX reaches at least what OpenMP's and CUDA's STREAM reach",
            "its figures could not be read, and HPX is a runtime of C++",
        ),
    ),
)
