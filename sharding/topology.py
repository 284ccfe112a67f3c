"""Machines that programs are compiled for and never run on: the real compilers, no accelerator.

A TPU's compiler is in the package `libtpu`, a GPU's in JAX's CUDA plugin; neither needs a device or
a driver (`jax.experimental.topologies`). Both are installed by the extra `compilers`.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from sharding import plugins
from sharding.errors import UserError, one_line
from sharding.messages import compiled_messages

GIB = 2**30
MOST = 2**16
"""Of devices: more than any machine has of these."""


@dataclasses.dataclass(frozen=True)
class Tpu:
    """A TPU by the name that its compiler has for it.

    Attributes:
      numbers: how many a shape has: 2 for a torus in the plane, 3 in space.
      memory: bytes that programs can use of one JAX device's, as the compiler itself says where a
        program needs more, rounded down to 0.01 GiB.
      config: the compiler's name for how a chip's cores are joined; empty for its default.
    """

    numbers: int
    memory: int
    config: str = ""

    def like(self, name: str) -> str:
        """An example, to be followed."""
        return f"{name}:{'x'.join('2' * self.numbers)}"


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What a GPU's compiler has to know of it; whoever has a table of devices makes one.

    Attributes:
      kind: its `jax.Device.device_kind`.
      memory: bytes of the device.
      capability: the major number of its compute capability.
      cores: multiprocessors.
      units: of a core, for float32.
      shared: bytes of a core's shared memory.
      block: the most that one block of threads may use of these.
      cache: bytes of the second level.
      clock: GHz.
      bandwidth: bytes a second.
    """

    kind: str
    memory: int
    capability: int
    cores: int
    units: int
    shared: int
    block: int
    cache: int
    clock: float
    bandwidth: int

    def like(self, name: str) -> str:
        """An example, to be followed."""
        return f"{name}:1x8"

    def target(self) -> str:
        """The compiler's text of it; limits of threads and registers are those of all of them."""
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
              shared_memory_per_block: 49152 shared_memory_per_block_optin: {self.block}
              shared_memory_per_core: {self.shared} l2_cache_size: {self.cache}
              core_count: {self.cores} fpus_per_core: {self.units} clock_rate_ghz: {self.clock}
              memory_bandwidth: {self.bandwidth} device_memory_size: {self.memory}
              cuda_compute_capability {{ major: {self.capability} }}
            }}
            platform_name: "CUDA"
            dnn_version_info {{ major: 9 minor: 7 }}
            runtime_version {{ major: 12 minor: 8 }}
            device_description_str: "{self.kind}"
        """


TPUS = {
    "v4": Tpu(3, int(30.75 * GIB), config="megacore"),
    "v5e": Tpu(2, int(15.75 * GIB)),
    "v5p": Tpu(3, int(95.74 * GIB)),
    "v6e": Tpu(2, int(31.25 * GIB)),
    "tpu7x": Tpu(3, int(94.75 * GIB)),
}
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""What keeps a TPU's library from asking the network what it runs on, and from its lock file."""

REFUSALS = (jax.errors.JaxRuntimeError, NotImplementedError, ValueError)
"""What compilers, and the lowering of kernels, say no with."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      name: as it was asked for, "v5e:4x4*2".
      devices: in JAX's order; no program runs on them.
      hosts: a number for the fast network that each is on, see `sharding.mesh.make_mesh`: a TPU's
        slice, a GPU's host.
      memory: bytes that programs can use of one device's.
    """

    name: str
    devices: tuple[Any, ...]
    hosts: tuple[int, ...]
    memory: int

    @property
    def backend(self) -> str:
        """ "tpu" or "gpu"."""
        return self.devices[0].platform


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a machine's compiler makes of a program; bytes are of one device.

    Attributes:
      seconds: that it took.
      memory: bytes that programs can use of a device's.
      reason: why it did not compile, or does not fit; None if it did and does.
      fits: whether what is held at most is within the memory; None where that is not known, for a
        program that is refused for another reason.
      arguments: bytes of what the program is given; None, as all that follows, where it is refused.
      held: the most bytes held at any time: arguments, results and all between.
      collectives: how often each kind of collective happens.
      sent: bytes that a device sends. None for a TPU, see `sharding.messages.compiled_messages`.
    """

    seconds: float
    memory: int
    reason: str | None = None
    fits: bool | None = None
    arguments: int | None = None
    held: int | None = None
    collectives: dict[str, int] | None = None
    sent: int | None = None


def topology(
    text: str, what: str = "--topology", gpus: Mapping[str, Gpu] | None = None
) -> Topology:
    """The devices that a command line asks to compile for.

    JAX itself uses the CPU alone from then on, if it has not looked for its devices yet.

    Args:
      text: NAME:SHAPE of a TPU slice, as "v5e:4x4"; NAME:SHAPE*SLICES of several that a slower
        network joins, as "v5p:2x2x4*2"; NAME:HOSTSxGPUS, as "h100:2x8", of a GPU that is told of.
      what: names it in a message.
      gpus: that there are besides TPUs, by name; None for none.

    Raises:
      UserError: an unknown name, a shape that there is not, a compiler that is not installed.
    """
    machines: dict[str, Tpu | Gpu] = {**TPUS, **(gpus or {})}
    name, shape, slices = _read(text, what, machines)
    machine = machines[name]
    with_cpu()
    try:
        if isinstance(machine, Tpu):
            devices = _tpus(name, machine, shape, slices)
            hosts = [getattr(device, "slice_index", None) or 0 for device in devices]
        else:
            devices = _gpus(name, machine, *shape)
            hosts = [device.process_index for device in devices]
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        raise UserError(f"{what}={text}: its compiler says: {_said(error)}") from error
    except ModuleNotFoundError as error:
        raise UserError(
            f"{what}={text}: its compiler is not installed: pip install 'gam_jax[compilers]'"
        ) from error
    return Topology(text, tuple(devices), tuple(hosts), machine.memory)


def _read(text: str, what: str, machines: Mapping[str, Tpu | Gpu]) -> tuple[str, list[int], int]:
    """The name, the numbers of the shape, and slices."""
    found = re.fullmatch(r"(\w+):([0-9]{1,6}(?:x[0-9]{1,6})*)(?:\*([0-9]{1,6}))?", text)
    name = text.partition(":")[0]
    if name not in machines:
        near = difflib.get_close_matches(name, machines, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(machines)}"
        raise UserError(f"{what}={text}: unknown '{name}'; {hint}")
    machine = machines[name]
    shape = [int(size) for size in found[2].split("x")] if found else []
    slices = int(found[3] or 1) if found else 0
    if math.prod((*shape, slices)) > MOST:
        raise UserError(f"{what}={text}: there are at most {MOST:,} of them: make it smaller")
    wanted = machine.numbers if isinstance(machine, Tpu) else 2
    sliced = found is not None and found[3] is not None
    if len(shape) != wanted or 0 in (*shape, slices) or (sliced and isinstance(machine, Gpu)):
        says = f"{wanted} numbers, with *2 for two slices" if name in TPUS else "HOSTSxGPUS"
        raise UserError(f"{what}={text}: give {says}, as {machine.like(name)}")
    return name, shape, slices


def with_cpu() -> None:
    """Makes JAX use the CPU, unless it uses something already."""
    try:
        jax.config.update("jax_platforms", "cpu")
    except RuntimeError:
        return


def _tpus(name: str, tpu: Tpu, shape: list[int], slices: int) -> list[Any]:
    _need("libtpu")
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    more: dict[str, Any] = {"chip_config_name": tpu.config} if tpu.config else {}
    if set(shape) == {1}:
        more["chips_per_host_bounds"] = (1, 1, 1)  # one chip; hosts have 2 x 2 by default
    if slices > 1:
        more["num_slices"] = slices
    label = f"{name}:{'x'.join(map(str, shape))}"
    with plugins.without_chatter():
        return topologies.get_topology_desc(label, "tpu", **more).devices


def _gpus(name: str, gpu: Gpu, hosts: int, count: int) -> list[Any]:
    _need("jax_cuda12_plugin", "jax_cuda13_plugin")
    shape = f"{hosts}x1x{count}"  # what fast links join, hosts of it, devices of a host
    with plugins.without_chatter():
        found = topologies.get_topology_desc(
            name, "cuda", target_config=gpu.target(), topology=shape
        )
    return found.devices


def _need(*packages: str) -> None:
    """Raises ModuleNotFoundError if none of them is installed."""
    if all(importlib.util.find_spec(package) is None for package in packages):
        raise ModuleNotFoundError(packages[0])


def compiles(function: Callable[..., Any], args: Sequence[Any], topology: Topology) -> str | None:
    """Why a program does not compile for a machine, or does not fit it; None if it does.

    Kernels are compiled too, so that one which needs more of a core's memory than there is says so.

    Args:
      function: a program. One that `jax.jit` was given says itself where its arguments lie.
      args: arrays, or their shapes. Those that lie nowhere lie on the machine's first device.
      topology: the machine.
    """
    return compiled(function, args, topology).reason


def compiled(function: Callable[..., Any], args: Sequence[Any], topology: Topology) -> Compiled:
    """What a machine's compiler makes of a program; the arguments are those of `compiles`.

    Raises:
      ValueError: the program is for other devices than the machine's.
    """
    begun = time.perf_counter()
    try:
        program = _lowered(function, args, topology).compile()
    except REFUSALS as error:
        reason = _said(error)
        full = reason.startswith("RESOURCE_EXHAUSTED") and "hbm" in reason.lower()
        seconds = time.perf_counter() - begun
        return Compiled(seconds, topology.memory, reason, False if full else None)
    seconds = time.perf_counter() - begun
    _check_devices(program, topology)
    analysis, text = program.memory_analysis(), program.as_text()
    held = _held(analysis, topology.backend)
    fits = held <= topology.memory
    messages = compiled_messages(text)
    counts = collections.Counter[str]()
    for message in messages:
        counts[message.collective] += message.count
    return Compiled(
        seconds,
        topology.memory,
        None if fits else f"needs {held:,} bytes of the {topology.memory:,} that a device has",
        fits,
        analysis.argument_size_in_bytes,
        held,
        dict(sorted(counts.items())),
        sum(message.sent for message in messages) if topology.backend == "gpu" else None,
    )


def _lowered(function: Any, args: Sequence[Any], topology: Topology) -> Any:
    if hasattr(function, "lower"):
        return function.lower(*args)
    first = SingleDeviceSharding(topology.devices[0])

    def placed(x: Any) -> Any:
        if isinstance(x, jax.ShapeDtypeStruct) and x.sharding is not None:
            return x
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=first)

    return jax.jit(function).lower(*jax.tree.map(placed, tuple(args)))


def _check_devices(program: Any, topology: Topology) -> None:
    used = {
        device
        for sharding in jax.tree.leaves(program.input_shardings)
        for device in sharding.device_set
    }
    if not used <= set(topology.devices):
        raise ValueError(f"the program is for other devices than those of {topology.name}")


def _held(analysis: Any, backend: str) -> int:
    """A TPU's compiler tells the peak; on a GPU all is allocated before the program begins."""
    if backend == "tpu":
        return analysis.peak_memory_in_bytes
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + results


def _said(error: Exception) -> str:
    """What an error says first, in one line; a number of it, as "E1001:", is only its heading."""
    said: list[str] = []
    for line in filter(str.strip, str(error).splitlines()):
        said.append(line.strip())
        if not said[-1].endswith(":"):
            break
    return one_line(" ".join(said) or type(error).__name__)
