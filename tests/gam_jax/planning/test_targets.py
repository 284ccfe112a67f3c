"""A GPU's compiler is told what the table of devices says of it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from gam_jax.planning import profile
from gam_jax.planning.targets import GPUS, NAMES, gpus, target, topology
from sharding import topology as machines
from sharding.errors import UserError
from sharding.topology import compiled
from tests.sharding.test_topology import there


@pytest.mark.parametrize("name", GPUS)
def test_the_text_says_the_figures_of_the_profile(name):
    found, text = profile(GPUS[name]), gpus()[name].target()
    words = {
        "gpu.cores": "core_count: ",
        "gpu.units": "fpus_per_core: ",
        "gpu.shared": "shared_memory_per_core: ",
        "gpu.block": "shared_memory_per_block_optin: ",
        "gpu.cache": "l2_cache_size: ",
        "gpu.capability": "cuda_compute_capability { major: ",
        "memory.device.usable": "device_memory_size: ",
        "memory.device.bandwidth": "memory_bandwidth: ",
    }
    for figure, word in words.items():
        assert f"{word}{found.value(figure):.0f} " in text.replace("\n", " ")
    assert f"clock_rate_ghz: {found.value('gpu.clock') / 1e9} " in text.replace("\n", " ")
    assert f'device_description_str: "{found.kinds[0]}"' in text
    assert name in NAMES


def test_a_figure_that_nobody_has_said_is_named():
    with pytest.raises(UserError, match=r"profile h200 has no figure gpu\.capability"):
        target(profile("h200"))
    with pytest.raises(UserError, match=r"a100_80\.parscale has no kinds"):
        target(profile("a100_80.parscale"))


@there
def test_programs_compile_for_a_gpu_by_the_figures_of_its_profile():
    step = (lambda x: jnp.tanh(x @ x.T), (jax.ShapeDtypeStruct((256, 256), jnp.bfloat16),))
    machine, figures = topology("h100:1x2"), profile("h100")
    for device in machine.devices:
        assert device.device_kind == figures.kinds[0]
        assert device.core_count == figures.value("gpu.cores")
        assert float(device.compute_capability) == figures.value("gpu.capability")
    found = compiled(*step, machine)
    assert found.fits is True
    assert found.arguments == 2 * 256**2
    assert found.memory == figures.memory.capacity
    other = {"h100": dataclasses.replace(gpus()["h100"], cores=7)}
    assert machines.topology("h100:1x1", gpus=other).devices[0].core_count == 7
