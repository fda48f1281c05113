"""Child processes: results and exceptions come back; hangs, crashes and memory hogs become outcomes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from curation.supervised import Failure, SupervisedFunction


class NamedError(Exception):
    code = "truncated"


def misbehave(item: tuple[str, int]) -> object:
    """What the tests ask the child to do."""
    what, number = item
    if what == "double":
        return number * 2, os.getpid()
    if what == "raise":
        raise NamedError("half the file is missing")
    if what == "bug":
        raise KeyError("x")
    if what == "hang":
        time.sleep(3600)
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "bloat":
        return len(bytearray(number))
    if what == "print":
        print("noise on stdout")
        os.write(1, b"noise from C")
        return "quiet"
    raise AssertionError(what)


@pytest.fixture
def supervised(monkeypatch: pytest.MonkeyPatch) -> Iterator[SupervisedFunction]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    function = SupervisedFunction(f"{Path(__file__).stem}:misbehave", deadline_s=20, memory_bytes=300_000_000, attempts=2)
    yield function
    function.close()


def test_results_come_back_from_one_reused_child(supervised: SupervisedFunction) -> None:
    (first, child), (second, same_child) = supervised(("double", 2)), supervised(("double", 5))
    assert (first, second) == (4, 10)
    assert child == same_child != os.getpid()


def test_an_exception_keeps_its_code_and_is_not_tried_again(supervised: SupervisedFunction) -> None:
    failure = supervised(("raise", 0))
    assert (failure.code, failure.message, failure.attempts) == ("truncated", "half the file is missing", 1)
    assert supervised(("bug", 0)).code == "exception"
    assert supervised(("bug", 0)).message == "KeyError: 'x'"


def test_a_hanging_child_is_killed_at_its_deadline_after_the_stated_attempts(supervised: SupervisedFunction) -> None:
    supervised._deadline_s = 0.5
    failure = supervised(("hang", 0))
    assert isinstance(failure, Failure)
    assert (failure.code, failure.attempts) == ("deadline", 2)
    supervised._deadline_s = 20
    assert supervised(("double", 4))[0] == 8, "the next item gets a fresh child"


def test_a_crash_is_an_outcome(supervised: SupervisedFunction) -> None:
    failure = supervised(("crash", 0))
    assert failure.code == "crashed"
    assert "SIGSEGV" in failure.message
    assert supervised(("double", 1))[0] == 2


def test_memory_is_capped(supervised: SupervisedFunction) -> None:
    assert supervised(("bloat", 10_000_000)) == 10_000_000
    failure = supervised(("bloat", 2_000_000_000))
    assert failure.code == "out_of_memory"
    assert "300,000,000" in failure.message


def test_what_libraries_print_does_not_disturb_the_answers(supervised: SupervisedFunction) -> None:
    assert supervised(("print", 0)) == "quiet"


def test_the_child_dies_with_its_parent() -> None:
    """Closing is what a clean end does; kill -9 of the parent is covered by the kernel's parent-death signal."""
    here = Path(__file__)
    code = (
        f"import sys, os; sys.path[:0] = [{str(here.parent)!r}, {str(here.parents[2])!r}]\n"
        "from curation.supervised import SupervisedFunction\n"
        f"f = SupervisedFunction('{here.stem}:misbehave', 60, 300_000_000)\n"
        "print(f(('double', 1))[1], flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    import subprocess
    import sys

    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    child = int(output.stdout)
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail(f"child {child} outlived its parent")
