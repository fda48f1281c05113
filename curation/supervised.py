"""Runs a function in a child process with a deadline and a memory cap: native decoders can hang, crash and bloat.

The child is a fresh, light interpreter that imports only the function's module (av, numpy and cv2 for a decode,
never torch) and is kept for the next call. It talks over pipes, in pickles. Whatever happens to it becomes an
outcome with a stable code; the caller never hangs and never crashes with it.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import pickle
import re
import resource
import selectors
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from curation.held_off_pandas import hold_off_pandas

GRACE_S = 5.0
"""The child's own alarm rings this long after the deadline, should its parent be dead by then."""
KEEPS_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "134217728", "MALLOC_MMAP_THRESHOLD_": "33554432", "ARROW_DEFAULT_MEMORY_POOL": "system"}
"""For the child: freed pictures are taken again instead of given back to the kernel, which zeroes every page that comes anew: 51,000
page faults in a decode pass over 29 s of video, 2,000 so."""
OUT_OF_MEMORY = re.compile(
    r"(cannot|failed to|unable to) allocate|(insufficient|not enough|out of) memory|failed to launch worker thread", re.I
)
"""How libraries say that the cap was reached without raising MemoryError."""
NEAR_CAP = 0.05
"""The share of the cap that a child must leave free to be believed: decoders call a failed allocation "invalid data", and a sound
file whose pictures do not fit would pass for a damaged one."""
START_S = 120.0
"""A child that has not finished its imports by then is broken."""


@dataclass(frozen=True)
class Failure:
    """In place of a result: what went wrong in the child."""

    code: str
    """The exception's own code (e.g. truncated), or deadline, out_of_memory, crashed, exception."""
    message: str
    attempts: int
    seconds: float


class SupervisedFunction:
    """Calls `module:function` with one picklable item in a child process. Not for use by two threads at once.

    An outcome that a second try may change (the child died or ran out of time or memory) is tried `attempts` times;
    an exception of the function is final at once.
    """

    def __init__(self, target: str, deadline_s: float, memory_bytes: int, attempts: int = 1) -> None:
        self._target, self._deadline_s, self._memory_bytes, self._attempts = target, deadline_s, memory_bytes, attempts
        self._child: subprocess.Popen[bytes] | None = None

    def __call__(self, item: Any) -> Any:
        """The function's result, or a Failure."""
        begin = time.monotonic()
        attempt = 0
        while attempt < self._attempts:
            attempt += 1
            kind, value = self._once(item)
            if kind == "result":
                return value
            code, message = value
            if kind == "raised":
                break
        return Failure(code, message, attempt, time.monotonic() - begin)

    def _once(self, item: Any) -> tuple[str, Any]:
        child = self._ready_child()
        assert child.stdin is not None and child.stdout is not None
        try:
            _send(child.stdin, item)
            answer = _receive_by(child.stdout, time.monotonic() + self._deadline_s)
        except _DeadlineError:
            self._kill()
            return "died", ("deadline", f"no answer after {self._deadline_s:g} s (decode.deadline_s), the child process was killed")
        except (EOFError, BrokenPipeError):
            return "died", self._autopsy()
        kind: str = answer[0]
        if kind == "exhausted":  # after a MemoryError the heap may be fragmented: start afresh
            self._kill()
            return "died", ("out_of_memory", f"needs more than {self._memory_bytes:,} bytes (decode.memory_bytes): {answer[1]}")
        return kind, answer[1]

    def _autopsy(self) -> tuple[str, str]:
        child, self._child = self._child, None
        assert child is not None
        _close_pipes(child)
        status = child.wait()
        if status == -signal.SIGALRM:
            return "deadline", f"no answer after {self._deadline_s:g} s (decode.deadline_s), the child process ended itself"
        name = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        return "crashed", f"the child process died: {name}"

    def _ready_child(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is not None:
            self._kill()
        if self._child is None:
            command = [sys.executable, "-m", "curation.supervised", self._target, str(self._deadline_s), str(self._memory_bytes)]
            root = str(Path(__file__).resolve().parent.parent)
            paths = [root, *(path for path in sys.path if path)]
            threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **threads, **KEEPS_MEMORY}
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0)
            try:
                _receive_by(self._child.stdout, time.monotonic() + START_S)
            except (EOFError, _DeadlineError) as error:
                self._kill()
                raise RuntimeError(f"the child process for {self._target} did not start; its messages stand above") from error
        return self._child

    def close(self) -> None:
        """Ends the child."""
        self._kill()

    def _kill(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            _close_pipes(child)
            child.wait()


def _close_pipes(child: subprocess.Popen[bytes]) -> None:
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


class _DeadlineError(Exception):
    pass


def _send(pipe: Any, value: Any) -> None:
    data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    view = memoryview(struct.pack("<Q", len(data)) + data)
    while view:
        view = view[pipe.write(view) or 0 :]


def _receive_by(pipe: Any, deadline: float) -> Any:
    """The next value from an unbuffered pipe. Raises _DeadlineError, or EOFError when the other end is gone."""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)

        def read(count: int) -> bytes:
            parts: list[bytes] = []
            while count:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise _DeadlineError
                part = os.read(pipe.fileno(), min(count, 1 << 20))
                if not part:
                    raise EOFError
                parts.append(part)
                count -= len(part)
            return b"".join(parts)

        (length,) = struct.unpack("<Q", read(8))
        return pickle.loads(read(length))


def _child_main(target: str, deadline_s: float, memory_bytes: int) -> None:
    """The child's life: import, say ready, then one item after the other until the parent is gone."""
    _die_with_parent()
    commands: BinaryIO = os.fdopen(os.dup(0), "rb")
    answers: BinaryIO = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # a library that prints must not write into the answers
    module, name = target.split(":")
    function = getattr(importlib.import_module(module), name)
    hold_off_pandas()
    _cap_memory(memory_bytes)
    _send(answers, "ready")
    while True:
        head = commands.read(8)
        if len(head) < 8:
            return
        item = pickle.loads(commands.read(struct.unpack("<Q", head)[0]))
        signal.setitimer(signal.ITIMER_REAL, deadline_s + GRACE_S)  # the default action ends the process, even inside C
        answer = _answer(function, item)
        if answer[0] != "exhausted" and _left_of_cap() < NEAR_CAP * memory_bytes:
            answer = "exhausted", f"it came within {NEAR_CAP:.0%} of that, where allocations fail and decoders take them for damage"
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(answers, answer)


def _answer(function: Any, item: Any) -> tuple[str, Any]:
    try:
        return "result", function(item)
    except MemoryError as error:
        return "exhausted", str(error) or "MemoryError"
    except Exception as error:
        if OUT_OF_MEMORY.search(str(error)) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return "exhausted", str(error)
        return "raised", (str(getattr(error, "code", None) or "exception"), _message(error))


def _message(error: Exception) -> str:
    return str(error) if isinstance(getattr(error, "code", None), str) else f"{type(error).__name__}: {error}"


def _cap_memory(memory_bytes: int) -> None:
    """Limits the address space to what it is now plus `memory_bytes`."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _left_of_cap() -> int:
    """Bytes of address space that were never used, at this process's peak."""
    (peak,) = re.findall(r"^VmPeak:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return resource.getrlimit(resource.RLIMIT_AS)[0] - 1024 * int(peak)


def _die_with_parent() -> None:
    """Linux: the kernel kills this process when the thread that started it ends, kill -9 included."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    _child_main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
