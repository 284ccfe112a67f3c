"""Where a program runs, and which accelerators of this machine it leaves unused."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import pathlib
import re
import shutil
from collections.abc import Sequence
from typing import Any

import jax

from sharding import processes

GOOGLE, NO_TPU = "0x1ae0", ("0x0042", "0x001f")
"""The PCI vendor, and those of its devices that are network cards and disks."""
CUDA_13_DRIVER = 580
"""The first driver for CUDA 13 (docs.nvidia.com/cuda/cuda-toolkit-release-notes, table 2)."""


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One kind of accelerator that this machine has.

    Attributes:
      name: what it is.
      sign: what tells of it.
      platforms: of `jax.Device.platform` by which JAX would use it.
      plugins: packages that let JAX use it.
      extra: of this package that installs them; empty if there is none.
    """

    name: str
    sign: str
    platforms: tuple[str, ...]
    plugins: tuple[str, ...]
    extra: str


def accelerators(
    root: pathlib.Path = pathlib.Path("/"), path: str | None = None
) -> list[Accelerator]:
    """What stands in this machine, by its device files and its drivers.

    Args:
      root: of the file system.
      path: where `nvidia-smi` is looked for, as PATH; PATH itself if None.
    """
    found = []
    if sign := _first(root, "dev/nvidia[0-9]*", "dev/nvidiactl", "dev/dxg"):
        found.append(_nvidia(sign, root))
    elif smi := shutil.which("nvidia-smi", path=path):
        found.append(_nvidia(smi, root))
    if (sign := _first(root, "dev/accel[0-9]*", "dev/vfio/[0-9]*")) and _google(root):
        found.append(Accelerator("TPU", sign, ("tpu",), ("libtpu",), "tpu"))
    if sign := _first(root, "dev/kfd"):
        plugins = ("jax-rocm60-plugin", "jax-rocm7-plugin")
        found.append(Accelerator("AMD GPU", sign, ("gpu", "rocm"), plugins, ""))
    return found


def where(devices: Sequence[Any] | None = None, used: int | None = None) -> str:
    """The devices of this job in words: "on 8 NVIDIA H200 (cuda)", "on cpu, 2 cores".

    Args:
      devices: JAX's; all that it has if None.
      used: how many of them a mesh takes; all if None.
    """
    devices = jax.devices() if devices is None else devices
    total, jobs = len(devices), processes.count()
    count = f"{total}" if used in (None, total) else f"{used} of {total}"
    several = f", {jobs} processes" if jobs > 1 else ""
    if devices[0].platform == "cpu":
        place = f"cpu, {cores()} core{'' if cores() == 1 else 's'}{several}"
        if total == jobs:  # a device a process is what JAX sees without being asked for more
            return f"on {place}"
        return f"on {count} emulated device{'' if total == 1 else 's'}, {place}"
    kinds = " and ".join(dict.fromkeys(device.device_kind for device in devices))
    return f"on {count} {kinds} ({_backend(devices[0])}){several}"


def unused(found: Sequence[Accelerator], platform: str, told: str | None = None) -> list[str]:
    """A line for each accelerator that JAX does not use, and how it would.

    Args:
      found: see `accelerators`.
      platform: of the devices that are used.
      told: what JAX was told to use, as `jax_platforms`; None or empty for nothing.
    """
    return [
        f"{one.name} ({one.sign}) is here and not used: {_reason(one, told)}"
        for one in found
        if platform not in one.platforms
    ]


def told_of(used: int | None = None) -> list[str]:
    """Where this runs, and what it leaves unused: the first lines of a run.

    Args:
      used: devices that the mesh takes; all if None.
    """
    platform, told = jax.devices()[0].platform, getattr(jax.config, "jax_platforms", None)
    return [where(used=used), *unused(accelerators(), platform, told)]


def cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _first(root: pathlib.Path, *patterns: str) -> str:
    """The first file that one of the patterns names, as it is called on this machine."""
    names = (path for pattern in patterns for path in sorted(root.glob(pattern)))
    return next((f"/{path.relative_to(root)}" for path in names), "")


def _nvidia(sign: str, root: pathlib.Path) -> Accelerator:
    """The extra is for the newest CUDA that the driver knows."""
    version = root / "proc/driver/nvidia/version"
    text = version.read_text(errors="replace") if version.is_file() else ""
    driver = re.search(r"\b(\d{3,})\.\d+", text)
    new = driver is not None and int(driver[1]) >= CUDA_13_DRIVER
    plugins = ("jax-cuda12-plugin", "jax-cuda13-plugin")
    return Accelerator("NVIDIA GPU", sign, ("gpu",), plugins, "cuda13" if new else "cuda12")


def _google(root: pathlib.Path) -> bool:
    """Whether the PCI bus has a TPU; also where it cannot be looked at."""
    vendors = sorted(root.glob("sys/bus/pci/devices/*/vendor"))
    theirs = [path for path in vendors if path.read_text().strip() == GOOGLE]
    kinds = {path.with_name("device").read_text().strip() for path in theirs}
    return not vendors or bool(kinds - set(NO_TPU))


def _reason(one: Accelerator, told: str | None) -> str:
    if told and not set(told.split(",")) & {*one.platforms, "cuda"}:
        return f"JAX is told to use {told} alone (--emulate or JAX_PLATFORMS)"
    for plugin in one.plugins:
        try:
            version = importlib.metadata.version(plugin)
        except importlib.metadata.PackageNotFoundError:
            continue
        return f"{plugin} {version} is installed and JAX could not start it: check the driver"
    if not one.extra:
        return "JAX's own page says how to install for it"
    return f"pip install 'gam_jax[{one.extra}]'"


def _backend(device: Any) -> str:
    """cuda, rocm or tpu."""
    version = str(getattr(device.client, "platform_version", "")).lower()
    return next((name for name in ("cuda", "rocm") if name in version), device.platform)
