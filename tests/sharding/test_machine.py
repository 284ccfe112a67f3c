"""A run says where it runs, and which accelerator of the machine it leaves unused."""

from __future__ import annotations

import pathlib
import tomllib
import types

import pytest

from sharding.machine import accelerators, cores, unused, where

NOWHERE = "/nowhere"


def devices(count, kind, platform, version=""):
    """Stand-ins: this machine has no such devices."""
    client = types.SimpleNamespace(platform_version=version)
    one = types.SimpleNamespace(device_kind=kind, platform=platform, client=client)
    return [one] * count


def machine(root, **files):
    """A file system with these files, by their path and text."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return accelerators(root, NOWHERE)


CORES = f"{cores()} core" + ("s" if cores() > 1 else "")


@pytest.mark.parametrize(
    ("found", "used", "words"),
    [
        (devices(8, "NVIDIA H200", "gpu", "PJRT C API\ncuda 12090"), 8, "8 NVIDIA H200 (cuda)"),
        (devices(8, "NVIDIA H200", "gpu", "cuda"), 2, "2 of 8 NVIDIA H200 (cuda)"),
        (devices(2, "A", "gpu", "rocm 6") + devices(1, "B", "gpu"), None, "3 A and B (rocm)"),
        (devices(4, "TPU v5 lite", "tpu"), 4, "4 TPU v5 lite (tpu)"),
        (devices(1, "cpu", "cpu"), 1, f"cpu, {CORES}"),
        (devices(8, "cpu", "cpu"), 8, f"8 emulated devices, cpu, {CORES}"),
        (devices(8, "cpu", "cpu"), 1, f"1 of 8 emulated devices, cpu, {CORES}"),
    ],
)
def test_devices_are_told_by_number_kind_and_backend(found, used, words):
    assert where(found, used) == f"on {words}"


def test_emulated_devices_of_the_tests_are_said_to_be_so():
    assert where() == f"on 8 emulated devices, cpu, {CORES}"


OLD = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 2024"
NEW = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build"
PCI = "sys/bus/pci/devices/0000:00:05.0"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"dev/nvidia0": "", "proc/driver/nvidia/version": OLD}, ["/dev/nvidia0", "cuda12"]),
        ({"dev/nvidia3": "", "proc/driver/nvidia/version": NEW}, ["/dev/nvidia3", "cuda13"]),
        ({"dev/nvidiactl": ""}, ["NVIDIA GPU", "cuda12"]),
        ({"dev/accel0": ""}, ["TPU", "/dev/accel0", "gam_jax[tpu]"]),
        ({"dev/vfio/0": "", f"{PCI}/vendor": "0x1ae0\n", f"{PCI}/device": "0x0063\n"}, ["TPU"]),
        ({"dev/kfd": ""}, ["AMD GPU", "/dev/kfd"]),
    ],
)
def test_an_accelerator_that_jax_does_not_use_is_named_with_what_to_install(tmp_path, files, words):
    (line,) = unused(machine(tmp_path, **files), "cpu")
    assert "not used" in line
    assert all(word in line for word in words)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"dev/vfio/vfio": ""},  # every machine with that module has it
        {"dev/vfio/1": "", f"{PCI}/vendor": "0x10de", f"{PCI}/device": "0x2330"},
        {"dev/accel0": "", f"{PCI}/vendor": "0x1ae0", f"{PCI}/device": "0x0042"},  # its network
        {"dev/accel/accel0": ""},  # of Intel
    ],
)
def test_nothing_is_said_of_what_is_no_accelerator(tmp_path, files):
    assert machine(tmp_path, **files) == []


def test_what_is_used_or_left_out_on_purpose_is_said_so(tmp_path):
    found = machine(tmp_path, **{"dev/nvidia0": ""})
    assert unused(found, "gpu") == []
    (line,) = unused(found, "cpu", "cpu")
    assert "told to use cpu" in line
    assert "pip" not in line
    (line,) = unused(found, "cpu", "cuda,cpu")
    assert "pip install 'gam_jax[cuda12]'" in line


def test_a_program_of_the_driver_is_a_sign_too(tmp_path):
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.touch(mode=0o755)
    (found,) = accelerators(tmp_path / "root", str(smi.parent))
    assert (found.name, found.sign) == ("NVIDIA GPU", str(smi))


def test_what_is_told_to_be_installed_is_an_extra_with_the_tested_jax():
    project = tomllib.loads((pathlib.Path(__file__).parents[2] / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    (jax,) = (name for name in project["project"]["dependencies"] if name.startswith("jax>"))
    for extra in ("cuda12", "cuda13", "tpu"):
        assert extras[extra] == [jax.replace("jax", f"jax[{extra}]", 1)]
