"""The memory sampler counts a process and all that it started."""

from __future__ import annotations

import os
import subprocess
import sys

from orchestration.memory import MemorySampler, pss_bytes, tree

HOLD = "import sys; held = bytearray(200_000_000); held[::4096] = bytes(len(held[::4096])) ; print('held', flush=True); sys.stdin.read()"


def test_a_grandchilds_memory_is_counted_once():
    sampler = MemorySampler()
    before = sampler.sample()
    command = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD!r}])"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    sampler.attribute_to("score")
    after = sampler.sample()
    child.communicate("")
    assert 200_000_000 <= after - before < 300_000_000
    assert sampler.peak_bytes == after == sampler.job_peaks["score"]
    sampler.sample()
    assert sampler.peak_bytes == after


def test_a_process_that_is_gone_counts_nothing():
    child = subprocess.Popen([sys.executable, "-c", ""])
    assert child.pid in tree(os.getpid())
    child.wait()
    assert child.pid not in tree(os.getpid())
    assert pss_bytes(child.pid) == 0
