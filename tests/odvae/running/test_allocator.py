"""Freed memory is kept for the next tensors."""

import subprocess
import sys

import pytest

# Prints whether memory is kept, and the page faults of tensors of 40 MiB, more than glibc keeps by default.
SCRIPT = """
import resource, sys, torch
from odvae.running.allocator import keep_freed_memory
kept = sys.argv[1] == "keep" and keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(60):
    torch.ones(10 * 2**20)
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep: str) -> int:
    done = subprocess.run([sys.executable, "-c", SCRIPT, keep], capture_output=True, text=True, timeout=120, check=True)
    kept, faults = map(int, done.stdout.split())
    if keep == "keep" and not kept:
        pytest.skip("the C library is not glibc")
    return faults


def test_freed_memory_is_used_again_without_new_pages():
    assert page_faults("keep") < page_faults("default") / 5
