"""Freed memory stays in the process, and is not cleared by the system again."""

import subprocess
import sys

import pytest

from sharding.freed_memory import OWN, TUNABLES, keep_freed

FAULTS = """
import resource, sys
from sharding.freed_memory import keep_freed
kept = keep_freed({})
import numpy as np
np.ones(1 << 22)  # 32 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    np.ones(1 << 22)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_pages_are_cleared_once() -> None:
    found = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True)
    kept, faults = found.stdout.split()
    if kept == "False":
        pytest.skip("this C library has no mallopt")
    assert int(faults) < 1000  # 4 x 8,192 pages of 4 KiB if they went back each time


@pytest.mark.parametrize("name", OWN)
def test_what_somebody_has_chosen_stays(name: str) -> None:
    assert not keep_freed({name: "1"})
    assert not keep_freed({TUNABLES: "glibc.malloc.trim_threshold=1:glibc.malloc.hugetlb=1"})


def test_larger_pages_go_with_it() -> None:
    assert keep_freed({TUNABLES: "glibc.malloc.hugetlb=1"}) == keep_freed({})
