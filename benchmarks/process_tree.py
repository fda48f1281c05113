"""What a command costs with everything that it starts: CPU seconds, wall seconds, peak memory of the whole process tree.

Orphans (Ray's daemons) come back to this process (Linux: child subreaper). CPU seconds are the kernel's for all that was waited
for, or the sum of what every process had used when it was last looked at, whichever is more: Ray waits for none of its workers,
and what lives for less than a look is only in the first. Memory is the sum of the processes' PSS (pages that several share
are counted once), at the same looks. Pages that a process outside the tree maps too are counted in part, so that who measures
should hold none of the libraries that it measures.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

SAMPLE_S = 0.3
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Cost:
    """Of one command."""

    cpu_s: float
    wall_s: float
    peak_bytes: int
    exit_code: int
    output: str
    """What it wrote to standard output."""


def measure(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Cost:
    """Runs the command to its end; its standard error goes to `log`. Not for two commands at once."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with open(log, "ab") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **(environment or {})})
    seen, stop = _Seen(), threading.Event()
    watcher = threading.Thread(target=_watch, args=(seen, stop), daemon=True)
    watcher.start()
    try:
        output, _ = process.communicate()
        wall_s = time.monotonic() - begin
    finally:
        stop.set()
        watcher.join()
        _reap_orphans()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(max(cpu_s, sum(seen.cpu_s.values())), wall_s, seen.peak_bytes, process.returncode, output)


@dataclass
class _Seen:
    peak_bytes: int = 0
    cpu_s: dict[tuple[int, float], float] = field(default_factory=dict)
    """By process id and start."""


def _watch(seen: _Seen, stop: threading.Event) -> None:
    me = psutil.Process()
    while not stop.wait(SAMPLE_S):
        processes = me.children(recursive=True)
        seen.peak_bytes = max(seen.peak_bytes, sum(_pss_bytes(process.pid) for process in processes))
        for process in processes:
            with contextlib.suppress(psutil.Error):
                used = process.cpu_times()
                seen.cpu_s[process.pid, process.create_time()] = used.user + used.system


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0  # it has ended
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _reap_orphans(patience_s: float = 10.0) -> None:
    """Waits for what the command left behind (it is being shut down), then ends it."""
    deadline = time.monotonic() + patience_s
    while psutil.Process().children():
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        if time.monotonic() > deadline:
            for orphan in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    orphan.kill()
            deadline += patience_s
        time.sleep(0.05)
