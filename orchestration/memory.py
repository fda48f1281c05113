"""Memory of a run: the sum of PSS over a process and all that it started, looked at about once a second.

PSS counts a page shared by n processes as 1/n in each, so the sum is what the run really takes.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path


def tree(pid: int) -> list[int]:
    """The process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 (names are wanted)
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            parent = int(stat.rpartition(")")[2].split()[1])  # "pid (name) state ppid", the name may hold anything
            children.setdefault(parent, []).append(int(entry))
    found, stack = [], [pid]
    while stack:
        found.append(stack.pop())
        stack += children.get(found[-1], [])
    return found


def pss_bytes(pid: int) -> int:
    """Proportional set size of one process; 0 once it is gone."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0


class MemorySampler:
    """Peak PSS of this process's tree, over the run and per job; a background thread of low cost."""

    interval_s = 1.0

    def __init__(self) -> None:
        self.peak_bytes = 0
        self.job_peaks: dict[str, int] = {}
        self._job: str | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def attribute_to(self, job: str | None) -> None:
        """From now on peaks are also the job's; None: no job's."""
        self._job = job
        if job is not None:
            self.job_peaks[job] = 0

    def sample(self) -> int:
        """Bytes at this moment; raises the peaks."""
        total = sum(pss_bytes(pid) for pid in tree(os.getpid()))
        self.peak_bytes = max(self.peak_bytes, total)
        if self._job is not None:
            self.job_peaks[self._job] = max(self.job_peaks[self._job], total)
        return total

    def _watch(self) -> None:
        pause_s = self.interval_s
        while not self._over.wait(pause_s):
            begin = time.monotonic()
            self.sample()
            # large trees cost more to look at; stay under a few percent of a core
            pause_s = max(self.interval_s, 20 * (time.monotonic() - begin))
