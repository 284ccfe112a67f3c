"""Programs are compiled for machines that are not here, by those machines' own compilers."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from gam_jax.planning.targets import NAMES, gpus, topology
from sharding import plugins
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import mesh_from_text
from sharding.topology import TPUS, compiled, compiles

there = pytest.mark.skipif(
    len(plugins.installed()) < 2, reason="pip install -e '.[compilers]' installs the compilers"
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("v5x:2x2", "unknown 'v5x'; did you mean 'v5p'"),
        ("abacus:2x2", "unknown 'abacus'; choose from v4, v5e, v5p, v6e, tpu7x, h100, a100"),
        ("", "unknown ''; choose from"),
        ("v5e", "give 2 numbers, with \\*2 for two slices, as v5e:2x2"),
        ("v5e:2x2x2", "give 2 numbers"),
        ("v5p:2x2", "give 3 numbers, with \\*2 for two slices, as v5p:2x2x2"),
        ("v5e:2x2\n", "give 2 numbers"),
        ("v5e:0x2", "give 2 numbers"),
        ("v5e:2x2*0", "give 2 numbers"),
        ("h100:8", "give HOSTSxGPUS, as h100:1x8"),
        ("h100:1x8*2", "give HOSTSxGPUS"),
        ("v5e:" + "9" * 5000, "give 2 numbers"),
        ("h100:99999x99999", "there are at most 65,536 of them"),
    ],
)
def test_words_that_name_no_machine_are_refused(text, words):
    with pytest.raises(UserError, match=f"^--topology=.*{words}"):
        topology(text)


@pytest.mark.parametrize("text", ["v5e:2x2", "h100:1x8"])
def test_a_compiler_that_is_not_installed_is_named(text, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed: pip install 'gam_jax\[compilers\]'"):
        topology(text)


@there
@pytest.mark.parametrize("name", NAMES)
def test_every_machine_has_devices_of_its_kind(name):
    machine = topology({**TPUS, **gpus()}[name].like(name))
    assert machine.backend == ("gpu" if name in ("h100", "a100") else "tpu")
    assert len({device.device_kind for device in machine.devices}) == 1
    assert Layout(mesh_from_text("", "", machine.devices)).axes.backend == machine.backend


@there
def test_a_shape_that_hosts_do_not_divide_is_one_line():
    with pytest.raises(UserError, match=r"^--topology=v5e:3x5: its compiler says: .*not divisible"):
        topology("v5e:3x5")


@there
@pytest.mark.parametrize(("text", "hosts"), [("v5e:4x4", 1), ("v5e:2x4*2", 2), ("h100:2x8", 2)])
def test_inner_axes_stay_inside_a_slice_or_a_host(text, hosts):
    machine = topology(text)
    assert len(machine.devices) == 16
    host = dict(zip(machine.devices, machine.hosts, strict=True))
    mesh = mesh_from_text("data=2,tensor=8", "", machine.devices, machine.hosts)
    inner = [{host[device] for device in row} for row in mesh.devices.reshape(2, 8)]
    assert [len(row) for row in inner] == [1, 1]
    assert len(set.union(*inner)) == hosts
    if hosts == 2:
        across = mesh_from_text("data=2,tensor=8", "tensor=2", machine.devices, machine.hosts)
        rows = across.devices.reshape(2, 8)
        assert all(len({host[device] for device in row}) == 2 for row in rows)


@there
@pytest.mark.parametrize(
    ("text", "mesh"), [("v6e:16x16", "data=32,tensor=8"), ("v5p:4x4x4", "data=8,seq=2,tensor=4")]
)
def test_axes_of_a_mesh_may_share_an_axis_of_the_torus(text, mesh):
    machine = topology(text)
    made = mesh_from_text(mesh, "", machine.devices, machine.hosts)
    assert set(made.devices.flat) == set(machine.devices)


@there
def test_devices_that_are_no_part_of_the_torus_are_refused():
    machine = topology("v5e:2x2")
    with pytest.raises(UserError, match=r"data=3.*no whole part of the torus"):
        mesh_from_text("data=3", "", machine.devices, machine.hosts)


def doubled(size):
    """A kernel that holds a square of that size at once."""

    def kernel(x, y):
        y[...] = x[...] * 2

    def call(x):
        return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)

    return call, (jax.ShapeDtypeStruct((size, size), jnp.float32),)


@there
def test_a_kernel_that_needs_more_of_a_core_s_memory_than_there_is_says_so():
    machine = topology("v5e:2x2")
    assert compiles(*doubled(256), machine) is None
    for size, where, words in (
        (4096, machine, "memory space vmem"),
        (1024, topology("h100:1x1"), "exceeds available shared memory"),
    ):
        reason = compiles(*doubled(size), where)
        assert reason is not None
        assert words in reason
        assert "\n" not in reason


@there
@pytest.mark.parametrize("text", ["v5e:2x2", "h100:1x1"])
def test_too_much_for_the_device_is_an_answer(text):
    wide = (jax.ShapeDtypeStruct((2**17, 2**18), jnp.bfloat16),)
    found = compiled(lambda x: jnp.sin(x) @ x.T, wide, topology(text))
    assert found.fits is False
    assert found.reason is not None
    fine = compiled(lambda x: x + 1, (jax.ShapeDtypeStruct((8,), jnp.float32),), topology(text))
    assert (fine.fits, fine.reason) == (True, None)
    assert (fine.arguments or 0) >= 32


@there
def test_a_program_for_other_devices_is_refused():
    with pytest.raises(ValueError, match="for other devices than those of v5e:2x2"):
        compiled(jax.jit(jnp.sin), (jnp.ones(3),), topology("v5e:2x2"))


COMMANDS = (
    "experiments.train --show-config",
    "experiments.sample --help",
    "sharding.checkpoint -h",
)
LOOK = """
import sharding, jax, pathlib
print(jax.default_backend(), jax.config.jax_platforms)
print("libtpu" in pathlib.Path("/proc/self/maps").read_text())
"""


@there
@pytest.mark.parametrize("words", [*(("-m", *line.split()) for line in COMMANDS), ("-c", LOOK)])
def test_with_the_compilers_installed_commands_start_on_the_processor_and_say_nothing(words):
    environment = {name: x for name, x in os.environ.items() if name != "JAX_PLATFORMS"}
    ended = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    if words[0] == "-c":
        assert ended.stdout == "cpu cpu\nFalse\n"
