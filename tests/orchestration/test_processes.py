"""Children that end with their parent, and what a killed run leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from orchestration import processes
from orchestration.lock import hold_root
from pipelines.job import UserError

SLEEP = [sys.executable, "-c", "import time; time.sleep(300)"]


def gone(pid: int, within_s: float = 30) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path):
    """kill -9 gives the parent no chance to tell its child."""
    code = (
        "import sys, time; from pathlib import Path; from orchestration import processes\n"
        "out = open('/dev/null', 'wb')\n"
        f"child = processes.start([sys.executable, '-c', 'import time; time.sleep(300)'], Path({str(tmp_path)!r}), out)\n"
        "print(child.pid, flush=True); time.sleep(300)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert psutil.pid_exists(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert gone(child)


def test_leftovers_of_this_root_are_ended_and_no_others(tmp_path: Path):
    """A marked process with no living run is ended; one of another root, or without a mark, is not."""
    mine = subprocess.Popen(SLEEP, env={**os.environ, processes.ROOT_MARK: str(tmp_path / "a")}, start_new_session=True)
    other = subprocess.Popen(SLEEP, env={**os.environ, processes.ROOT_MARK: str(tmp_path / "ab")}, start_new_session=True)
    try:
        deadline = time.monotonic() + 20  # the environment is visible once exec has happened
        while not processes.leftovers(tmp_path / "a") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert processes.end_leftovers(tmp_path / "a") == 1
        assert gone(mine.pid)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_stubborn_child_is_killed_after_the_grace(tmp_path: Path):
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(300)"
    with open(tmp_path / "out", "wb") as output:
        child = processes.start([sys.executable, "-c", code], tmp_path, output)
    while b"deaf" not in (tmp_path / "out").read_bytes():
        time.sleep(0.05)
    assert processes.stop(child, grace_s=0.2) == -signal.SIGKILL


def test_the_lock_is_free_again_after_its_holder(tmp_path: Path):
    with hold_root(tmp_path, "first"):
        pass
    with hold_root(tmp_path, "second"), pytest.raises(UserError, match=r"another run holds .*: second, pid"), hold_root(tmp_path, "third"):
        pass


def test_the_lock_dies_with_its_process(tmp_path: Path):
    code = (
        "import time; from pathlib import Path; from orchestration.lock import hold_root\n"
        f"with hold_root(Path({str(tmp_path)!r}), 'killed'):\n    print('held', flush=True); time.sleep(300)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"killed, pid {holder.pid}"), hold_root(tmp_path, "me"):
        pass
    holder.kill()
    holder.wait()
    with hold_root(tmp_path, "me"):
        pass
