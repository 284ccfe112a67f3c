"""What compilers of accelerators make of products by group: no accelerator, nothing runs.

  pip install -e '.[compilers]' && python docs/compile_experts.py

Prints the table of docs/speed.md: the gradients of a mixture of two experts a token by tokens and
weights, in bfloat16, by method, machine and number of experts.
"""

from __future__ import annotations

import functools
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from experiments.benchmark.experts import mixed
from gam_jax.planning.targets import topology
from sharding.mesh import make_mesh
from sharding.topology import Topology

TOKENS, CHOICES, WIDTH, HIDDEN = 2048, 2, 512, 1024
"""Tokens are those of a device."""
TRUE = 6 * 2 * TOKENS * CHOICES * WIDTH * HIDDEN
"""Operations of two products, forward and by both their sides."""
ROWS, WHOLE = PartitionSpec("data"), PartitionSpec()


def main() -> None:
    """Prints the table."""
    print("| machine | experts | method | arithmetic over the rows' own | set aside, MiB | s |")
    print("|---|---|---|---|---|---|")
    for name, methods in (("v5e:2x2", ("ragged", "kernel")), ("h100:1x4", ("ragged", "blocks"))):
        machine = topology(name)
        for experts in (8, 32):
            for method in methods:
                print(
                    f"| `{name}` | {experts} | `{method}` | {_compiled(machine, experts, method)} |"
                )


def _compiled(machine: Topology, experts: int, method: str) -> str:
    mesh = make_mesh(data=len(machine.devices), devices=machine.devices)

    def own(x: Any, weight: Any, owner: Any) -> Any:
        way = functools.partial(mixed, owner=owner, method=method, backend=machine.backend)
        return jax.grad(lambda *a: jnp.sum(jnp.sin(way(*a).astype(jnp.float32))), (0, 1))(x, weight)

    program = jax.shard_map(own, mesh=mesh, in_specs=(ROWS, WHOLE, ROWS), out_specs=(ROWS, WHOLE))
    tokens = TOKENS * mesh.size
    arrays = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for shape, dtype, spec in (
            ((tokens, WIDTH), jnp.bfloat16, ROWS),
            ((experts, WIDTH, HIDDEN), jnp.bfloat16, WHOLE),
            ((tokens, CHOICES), jnp.int32, ROWS),
        )
    ]
    begun = time.perf_counter()
    made = jax.jit(program).lower(*arrays).compile()
    seconds = time.perf_counter() - begun
    counted = made.cost_analysis()  # the GPU's compiler has none where there is no GPU
    share = f"{counted['flops'] / TRUE:.2f}" if counted else "-"
    return f"{share} | {made.memory_analysis().temp_size_in_bytes / 2**20:.0f} | {seconds:.1f}"


if __name__ == "__main__":
    main()
