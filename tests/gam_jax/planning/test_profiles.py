"""Each figure of a device has a unit that makes sense, a dtype and a source."""

from __future__ import annotations

import collections

import jax.numpy as jnp
import pytest

from gam_jax.planning import profile_of, profiles


@pytest.mark.parametrize("profile", profiles(), ids=lambda profile: profile.kinds[0])
def test_a_profile_has_a_source_of_its_maker_and_a_peak_in_operations_a_second(profile):
    makers = {"NVIDIA": "https://www.nvidia.com/", "Tesla": "https://www.nvidia.com/"}
    for kind in profile.kinds:
        maker = makers.get(kind.split()[0], "https://")
        assert profile.source.startswith(maker)
        assert profile_of(kind) is profile
    assert "cloud.google.com" in profile.source or "nvidia.com" in profile.source
    assert 1e12 < profile.peak_flops < 1e17  # neither teraflops nor a whole machine
    assert jnp.dtype(profile.dtype).itemsize == 2


def test_no_device_is_told_of_twice_and_an_unknown_one_not_at_all():
    kinds = collections.Counter(kind for profile in profiles() for kind in profile.kinds)
    assert max(kinds.values()) == 1
    assert profile_of("cpu") is None
    assert profile_of("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None  # a seventh of one
