"""memory.py: freed memory stays with the process while it is used, and goes back when it is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

# Page faults of 50 rounds of asking for 20 MB, writing and freeing it, with the heap grown; what is
# given back then.
ROUNDS = """
import json, resource, sys
import torch
from minilm_retriever.kernels.memory import give_back_memory, keep_freed_memory

def round():
    torch.ones(5_000_000)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20

if sys.argv[1] == "keep":
    keep_freed_memory(256 << 20)
for _ in range(20):
    round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    round()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
kept = resident()
give_back_memory()
print(json.dumps({"faults": faults, "given_back": kept - resident()}))
"""


def rounds(mode, **environment):
    clean = {name: value for name, value in os.environ.items() if name != "MALLOC_TRIM_THRESHOLD_"}
    run = subprocess.run(
        [sys.executable, "-c", ROUNDS, mode],
        env=clean | environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.skipif(
    "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""), reason="another C library than glibc"
)
def test_freed_memory_is_kept_given_back_when_asked_and_left_to_who_chose():
    kept = rounds("keep")
    assert kept["faults"] < 5000  # 20 MB are 4,883 pages: not even one round's
    assert kept["given_back"] > 15
    chosen = rounds("keep", MALLOC_TRIM_THRESHOLD_="131072")
    assert chosen["faults"] > 10 * 4883 and chosen["given_back"] < 15
