"""Child processes of a run: started on a leash, in their own process group, stopped in order, found again after a crash.

Every process of a run carries `FLASHVIDEO_ROOT=<root>` in its environment, and so do its descendants (jobs, Ray
workers, decoders). A run that finds the root's lock free but marked processes alive ends those, and no others.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from orchestration import leash

ROOT_MARK = "FLASHVIDEO_ROOT"
LEFTOVER_DEADLINE_S = 15.0


def start(command: Sequence[str], root: Path, output: IO[bytes], environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """The command as a child in its own session (a terminal's Ctrl-C does not reach it), both outputs into `output`."""
    return subprocess.Popen(
        [sys.executable, "-S", "-E", leash.__file__, str(os.getpid()), *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(environment or {}), ROOT_MARK: str(root)},
        start_new_session=True,
    )


def stop(process: subprocess.Popen[bytes], grace_s: float) -> int:
    """Asks the process group to end, waits up to `grace_s` seconds, then kills what is left. Returns the exit code."""
    if process.poll() is None:
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    _signal_group(process.pid, signal.SIGKILL)
    return process.wait()


def shell_code(code: int, verb: str) -> int:
    """A child's exit code as a shell says it, 128 + n for signal n; one line on stderr where the child was killed and could not tell.

    For commands whose same call goes on with what is left.
    """
    if code >= 0:
        return code
    if -code not in (signal.SIGINT, signal.SIGTERM):  # those are asked for
        why = ", most likely because the machine or its container ran out of memory" if -code == signal.SIGKILL else ""
        said = f"flashvideo: {verb} was killed by {signal.Signals(-code).name}{why}; the same command goes on with what is left"
        print(f"\n{said}", file=sys.stderr, flush=True)  # after a line of progress
    return 128 - code


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def leftovers(root: Path) -> list[psutil.Process]:
    """Processes that carry the root's mark, without this one and those above it."""
    mark = f"{ROOT_MARK}={root}".encode()
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for pid in psutil.pids():
        if pid in own:
            continue
        try:
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(psutil.Process(pid))
        except (OSError, psutil.Error):
            continue
    return found


def end_leftovers(root: Path) -> int:
    """Kills what a dead run of this root left behind and waits until it is gone. Returns how many there were.

    Call it with the root's lock held. Raises TimeoutError when a process does not go within 15 s.
    """
    ended: set[int] = set()
    deadline = time.monotonic() + LEFTOVER_DEADLINE_S
    while processes := leftovers(root):
        for process in processes:
            ended.add(process.pid)
            with contextlib.suppress(psutil.Error):
                process.kill()
        _, alive = psutil.wait_procs(processes, timeout=1)
        if time.monotonic() > deadline and alive:
            raise TimeoutError(f"processes {sorted(p.pid for p in alive)} of an earlier run in {root} do not end; end them by hand")
    return len(ended)


def free_port() -> int:
    """A TCP port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
