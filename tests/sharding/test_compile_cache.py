"""What one process has compiled, the next one reads; never that of another kind of processor."""

import os
import pathlib
import stat
import subprocess
import sys

import pytest

from sharding.compile_cache import OFF, keep_programs, processor, usual_folder
from sharding.errors import UserError

PROGRAM = """
import sys
import jax, jax.numpy as jnp
from sharding.compile_cache import keep_programs
found = []
jax.monitoring.register_event_listener(lambda event, **kw: found.append(event))
keep_programs(sys.argv[1])
x = jax.jit(lambda x: jnp.linalg.eigh(x @ x.T)[0].sum())(jnp.arange(64.0).reshape(8, 8))
print(sum(event == "/jax/compilation_cache/cache_hits" for event in found), float(x))
"""


def start(where, home):
    """Hits of a process that compiles one program, and the number that it prints."""
    own = {"XDG_CACHE_HOME": str(home)}
    env = {n: x for n, x in os.environ.items() if "CACHE" not in n and "cache" not in n} | own
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(where)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    hits, number = done.stdout.split()
    return int(hits), number


def test_the_second_process_reads_what_the_first_has_compiled(tmp_path):
    first, wanted = start("", tmp_path)
    second, found = start("", tmp_path)
    assert first == 0 < second
    assert found == wanted
    assert list((tmp_path / "gam_jax" / "programs" / processor()).glob("*-cache"))
    none, found = start(OFF, tmp_path)
    assert (none, found) == (0, wanted)


def test_each_kind_of_processor_has_a_folder_of_its_own():
    one = "processor : 0\nmodel name : A 7\nflags : sse avx\n"
    two = "processor : 1\nmodel name : A 7\nflags : sse avx\n"
    assert processor(one) == processor(one + two)
    assert processor(one) != processor(one.replace("avx", "avx avx512f"))
    assert processor(one) != processor(one.replace("A 7", "B 2"))
    assert processor("") == processor("")


@pytest.fixture
def untold(monkeypatch):
    """JAX as if nobody had named a folder; what is set is set back."""
    import jax

    kept = {
        name: jax.config._read(name)
        for name in (
            "jax_compilation_cache_dir",
            "jax_compilation_cache_max_size",
            "jax_persistent_cache_min_compile_time_secs",
            "jax_persistent_cache_min_entry_size_bytes",
            "jax_enable_compilation_cache",
        )
    }
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in kept.items():
        jax.config.update(name, value)


def test_a_folder_that_jax_was_told_of_stays(tmp_path):
    import jax

    told = jax.config.jax_compilation_cache_dir
    assert told
    assert keep_programs() == pathlib.Path(told)
    assert jax.config.jax_compilation_cache_dir == told


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_where_nothing_can_be_written_nothing_is_kept(untold, tmp_path, monkeypatch):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert keep_programs() is None
    with pytest.raises(UserError, match="cannot write there"):
        keep_programs(str(tmp_path / "named"))


def test_a_file_in_the_place_of_the_folder_is_refused_if_it_was_named(
    untold, tmp_path, monkeypatch
):
    (tmp_path / "gam_jax").write_text("")
    with pytest.raises(UserError, match=r"--compile_cache=.*cannot write there.*or off"):
        keep_programs(str(tmp_path / "gam_jax"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert usual_folder() == tmp_path / "gam_jax" / "programs"
    assert keep_programs() is None
