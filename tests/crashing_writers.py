"""Processes that append and merge into one store at the same time, one of them killed in the middle of a commit.

A commit holds the table's lock file from beginning to end, so the kernel's list of locks (/proc/locks) says who commits.
The victim is stopped there (SIGSTOP), looked at, and killed (SIGKILL).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from curation.store import Store

ROOT = Path(__file__).resolve().parents[1]
ROWS = 50
"""Clips of one upsert, besides SHARED rows that every writer writes."""
SHARED = 5
LATER = 20
"""Moments of 0.3 ms that a commit may be allowed before it is killed, where no data file is waited for."""
MISSES = 2
"""Commits that were through before the moment asked for; the next one is killed as soon as it has the lock."""
WRITER = """
import sys
import pyarrow as pa
from curation import column_files
from curation.store import Store
path, name, column_files.LEAST_SHARE, turns, rows, shared = *sys.argv[1:3], float(sys.argv[3]), *map(int, sys.argv[4:])
store = Store.open(path)
print("ready", flush=True)
sys.stdin.readline()
for turn in range(turns):
    ids = [f"{name}-{turn}-{i}" for i in range(rows)]
    alike = [f"shared-{i}" for i in range(shared)]
    store.upsert("clips", pa.table({"clip_id": ids + alike, "uri": [name] * (rows + shared)}))
    print("appended", turn, flush=True)
    motion = pa.array([float(turn)] * rows, pa.float32())
    store.merge_columns("clips", pa.table({"clip_id": ids, "state": ["kept"] * rows, "motion_proxy": motion}))
    print("merged", turn, flush=True)
"""


@dataclass
class Writer:
    """A child process and what it said it had committed."""

    name: str
    process: subprocess.Popen[str]
    appended: set[int] = field(default_factory=set)
    merged: set[int] = field(default_factory=set)

    def listen(self) -> None:
        """Takes what it says until it ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            word, turn = line.split()
            (self.appended if word == "appended" else self.merged).add(int(turn))


@dataclass(frozen=True)
class Round:
    """One round: four writers, one kill, what was seen."""

    victim: str
    moment: str
    """Of the killed commit: data files written and no manifest, or nothing written yet."""
    readings: int
    """Times that the table was opened and read whole while they wrote."""
    faults: tuple[str, ...]
    """Rows lost, doubled or half there; readings that failed."""
    rows: int
    """In the table, once the victim's turns were written by a new process."""


def run_round(store: Store, number: int, turns: int, writers: int, seed: int, least_share: float = 0.5) -> Round:
    """Starts the writers, kills one inside a commit, lets the others end, checks, and has the victim's work done again.

    `least_share`: of the table's rows from which a merge writes files of columns (0: always, 2: never).
    """
    draw = random.Random(seed * 1000 + number)
    team = [_start(store, f"r{number}w{index}", turns, least_share) for index in range(writers)]
    with _killed_at_the_end(team), _Reader(store.path) as reader:
        threads = [threading.Thread(target=writer.listen) for writer in team]
        for writer, thread in zip(team, threads, strict=True):
            _go(writer)
            thread.start()
        victim = team[draw.randrange(writers)]
        others = [writer for writer in team if writer is not victim]
        moment = _kill_inside_commit(store, victim, others, skip=draw.randrange(turns), after_data=draw.random() < 0.7, draw=draw)
        for thread in threads:
            thread.join()
    faults = list(reader.faults)
    faults += [f"{writer.name} ended with {code}" for writer in others if (code := writer.process.wait())]
    faults += faults_of(store, team, turns, whole=others)
    again = _start(store, victim.name, turns, least_share)
    with _killed_at_the_end([again]):
        _go(again)
        again.listen()
        faults += [f"{victim.name} could not do its work again"] if again.process.wait() else []
    faults += faults_of(store, [*others, again], turns, whole=[*others, again])
    return Round(victim.name, moment, reader.readings, tuple(faults), store.count("clips"))


def _start(store: Store, name: str, turns: int, least_share: float) -> Writer:
    numbers = [str(number) for number in (least_share, turns, ROWS, SHARED)]
    command = [sys.executable, "-c", WRITER, store.path, name, *numbers]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return Writer(name, process)


def _go(writer: Writer) -> None:
    assert writer.process.stdout is not None and writer.process.stdin is not None
    assert writer.process.stdout.readline() == "ready\n", f"{writer.name} did not start"
    writer.process.stdin.write("go\n")
    writer.process.stdin.close()


# ---- the kill


def _kill_inside_commit(store: Store, victim: Writer, others: Sequence[Writer], skip: int, after_data: bool, draw: random.Random) -> str:
    """Kills the writer in one of its commits, after `skip` of them; returns what of that commit was on disk."""
    lock = Path(store.path) / ".clips.lock"
    table = Path(store.path) / "clips.lance"
    pid, missed = victim.process.pid, 0
    with open(lock, "a") as file:
        while True:
            fcntl.flock(file, fcntl.LOCK_EX)  # as another writer would; so the table stands still
            while (True, pid) not in _locks(lock):
                assert victim.process.poll() is None, f"{victim.name} ended before it was killed"
                time.sleep(0.001)
            manifests, files = _manifests(table), _data_files(table)
            with _stopped([*others, victim]):  # the victim is the next to have the lock, and goes on when it is told to
                fcntl.flock(file, fcntl.LOCK_UN)
                if skip > 0:
                    skip -= 1
                    continue
                later = 0 if after_data or missed else draw.randrange(LATER)
                if (new := _stop_inside(pid, lock, manifests, files, after_data, later)) is not None:
                    os.kill(pid, signal.SIGKILL)
                    victim.process.wait()
                    return f"{new} new data file{'s' * (new != 1)}, no manifest"
            missed += 1
            after_data &= missed < MISSES


@contextlib.contextmanager
def _stopped(writers: Sequence[Writer]) -> Iterator[None]:
    running = [writer.process for writer in writers if writer.process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGSTOP)
    for process in running:
        while psutil.Process(process.pid).status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            time.sleep(0.0001)
    try:
        yield
    finally:
        for process in running:
            process.send_signal(signal.SIGCONT)


def _stop_inside(pid: int, lock: Path, manifests: set[Path], files: set[Path], after_data: bool, later: int) -> int | None:
    """Lets the stopped process go on by moments until it is inside its commit (and, where asked, has written a data file), and then
    `later` moments more; new data files then. None: its commit was through first, and it goes on."""
    process, table = psutil.Process(pid), lock.parent / "clips.lance"
    while True:
        if _manifests(table) != manifests:
            return None
        new = len(_data_files(table) - files)
        if _holder(lock) == pid and (new or not after_data):
            later -= 1
            if later < 0:
                return new
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.0003)
        os.kill(pid, signal.SIGSTOP)
        while (status := process.status()) != psutil.STATUS_STOPPED:  # every thread has stopped
            if status == psutil.STATUS_ZOMBIE:  # through with all of its work meanwhile
                return None
            time.sleep(0.0001)


def _manifests(table: Path) -> set[Path]:
    return set((table / "_versions").glob("*.manifest"))


def _data_files(table: Path) -> set[Path]:
    return set((table / "data").glob("*"))


def _holder(lock: Path) -> int | None:
    return next((process for waits, process in _locks(lock) if not waits), None)


def _locks(lock: Path) -> set[tuple[bool, int]]:
    """(waits, process) of everyone who holds the lock file or waits for it."""
    number, found = f":{lock.stat().st_ino}", set()
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.replace("-> ", "").split()
        if words[1] == "FLOCK" and words[5].endswith(number):
            found.add(("->" in line, int(words[4])))
    return found


# ---- what is looked at


class _Reader:
    """Opens the table and reads it whole, again and again, in a thread of its own."""

    def __init__(self, path: str) -> None:
        self.readings, self.faults = 0, list[str]()
        self._path, self._stop = path, threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> _Reader:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _read(self) -> None:
        before = 0
        while not self._stop.is_set():
            try:
                rows = Store.open(self._path, create=False).read("clips", ["clip_id"])["clip_id"].to_pylist()
            except Exception as error:
                self.faults.append(f"a reading failed: {type(error).__name__}: {error}")
                continue
            self.readings += 1
            if len(set(rows)) != len(rows) or len(rows) < before:
                self.faults.append(f"a reading saw {len(rows)} rows, {len(set(rows))} keys, after {before}")
            before = len(rows)
            self._stop.wait(0.02)


def faults_of(store: Store, said: Sequence[Writer], turns: int, whole: Sequence[Writer]) -> list[str]:
    """What is wrong in the table, given what the writers said and which of them are to be there whole."""
    faults = []
    rows = store.read("clips", ["clip_id", "state", "motion_proxy"]).to_pylist()
    if len({row["clip_id"] for row in rows}) != len(rows):
        faults.append("a row is there twice")
    found: dict[tuple[str, int], list[dict[str, object]]] = {}
    for row in rows:
        name, *rest = row["clip_id"].split("-")
        if name != "shared":
            found.setdefault((name, int(rest[0])), []).append(row)
    faults += [f"{name}, turn {turn}: {len(part)} of {ROWS} rows" for (name, turn), part in found.items() if len(part) != ROWS]
    if sum(row["clip_id"].startswith("shared-") for row in rows) != SHARED:
        faults.append("shared rows are doubled or lost")
    for writer in said:
        everything = set(range(turns)) if writer in whole else set()
        for turn in writer.appended | everything:
            if (writer.name, turn) not in found:
                faults.append(f"{writer.name}: append {turn} was lost")
        for turn in writer.merged | everything:
            values = {(row["state"], row["motion_proxy"]) for row in found.get((writer.name, turn), [])}
            if values != {("kept", float(turn))}:
                faults.append(f"{writer.name}: merge {turn} was lost ({values})")
    return list(dict.fromkeys(faults))


@contextlib.contextmanager
def _killed_at_the_end(writers: Sequence[Writer]) -> Iterator[None]:
    """Leaves no child behind."""
    try:
        yield
    finally:
        for writer in writers:
            if writer.process.poll() is None:
                writer.process.kill()
