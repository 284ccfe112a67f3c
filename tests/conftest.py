"""Every test sees eight emulated CPU devices and uses no network."""

import gc
import os
import pathlib

FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",  # what is tested is small: compiling is what takes long
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",  # which halves that time; off in tests alone
)
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *FLAGS))
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile(
    "laws",
    max_examples=12,
    deadline=None,  # the first example compiles
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("laws")

pytest_plugins = ["tests.workshop"]
"""One corpus and one run on it, for all tests of commands."""

MAPS = pathlib.Path("/proc/self/maps")
MOST_MAPS = 15_000
"""Of memory, in a process. Linux allows 65,530, and XLA crashes where a program gets none."""


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_are_dropped_before_there_are_too_many():
    """Each program that was compiled keeps some maps of memory for as long as JAX caches it."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()
