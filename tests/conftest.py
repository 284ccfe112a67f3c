"""Every test sees eight emulated CPU devices and uses no network."""

import gc
import os
import pathlib
import sys

FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",  # what is tested is small: compiling is what takes long
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",  # which halves that time; off in tests alone
    "--xla_cpu_parallel_codegen_split_count=1",  # small programs gain nothing from parts
)
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *FLAGS))
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

jax.config.update("jax_traceback_in_locations_limit", 0)  # programs hold no tracebacks
settings.register_profile(
    "laws",
    max_examples=6,
    deadline=None,  # the first example compiles
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("laws")

gc.set_threshold(50_000, 20, 20)  # tracing makes many objects: at 700 it takes a quarter longer

pytest_plugins = ["tests.workshop"]
"""One folder for the session; one corpus and one run on it, for all tests of commands."""


LONGEST = (
    "experiments/test_elastic.py",
    "property/test_layers.py",
    "property/test_meshes.py",
    "colabs/test_notebooks.py",
    "property/test_layers_on_meshes.py",
    "gam_jax/test_traffic.py",
    "gam_jax/test_traffic_of_experts_and_streams.py",
    "property/test_sampling_on_meshes.py",
    "gam_jax/convert/test_hf.py",
)
"""Files that begin first, so that no process is left alone with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; the order within a file stays."""
    places = {TESTS / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True, scope="session")
def what_is_compiled_is_kept_for_all_processes(shared_folder: pathlib.Path):
    """The test processes, and the commands that they start, read what any of them compiled."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "compilation_cache_dir": str(shared_folder / "compiled"),
            "persistent_cache_min_compile_time_secs": 0.0,
            "persistent_cache_min_entry_size_bytes": 0,
        }.items():
            patch.setenv(f"JAX_{name.upper()}", str(value))  # for the commands
            jax.config.update(f"jax_{name}", value)
        if sys.dont_write_bytecode:  # each command would compile its Python anew
            patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
            patch.setenv("PYTHONPYCACHEPREFIX", str(shared_folder / "bytecode"))
        yield


TESTS = pathlib.Path(__file__).parent
MAPS = pathlib.Path("/proc/self/maps")
MOST_MAPS = 15_000
"""Of memory, in a process. Linux allows 65,530, and XLA crashes where a program gets none."""


@pytest.fixture(autouse=True, scope="module")
def what_a_file_has_made_is_no_longer_looked_through():
    """Else each collection of garbage walks through all that JAX has cached by then."""
    yield
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_are_dropped_before_there_are_too_many():
    """Each program that was compiled keeps some maps of memory for as long as JAX caches it."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()
