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


@pytest.mark.parametrize(("code", "shell"), [(0, 0), (2, 2), (-signal.SIGTERM, 143), (-signal.SIGINT, 130)])
def test_an_ending_that_was_asked_for_is_silent(code: int, shell: int, capsys: pytest.CaptureFixture[str]):
    assert processes.shell_code(code, "vbench") == shell
    assert capsys.readouterr().err == ""


def test_a_killed_vbench_says_so_in_one_line(tmp_path: Path):
    """kill -9 to the child, as the kernel does when memory is out."""
    command = [sys.executable, "-m", "orchestration.cli", "vbench", str(tmp_path), "--prompts", "none.json", "--out", str(tmp_path)]
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    children: list[psutil.Process] = []
    while not children and time.monotonic() < deadline and parent.poll() is None:
        time.sleep(0.01)
        children = [child for child in psutil.Process(parent.pid).children() if child.is_running()]
    children[0].kill()
    _, told = parent.communicate(timeout=60)
    assert parent.returncode == 128 + signal.SIGKILL
    assert told.strip().splitlines() == [
        "flashvideo: vbench was killed by SIGKILL, most likely because the machine or its container ran out of memory; "
        "the same command goes on with what is left"
    ]
