"""The whole story at a small size, as tests run it: sources, recipe, child processes, what a root holds."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from curation.samples import render_one
from curation.store import Store
from orchestration.processes import leftovers
from pipelines.artifacts import Report, Workspace
from pipelines.plan import JOB_NAMES
from pipelines.recipe import Recipe, load

SOURCES = (
    "motorcycle_pan_left.mp4",
    "retina_pan_left.mp4",
    "rocket_pan_left.mp4",
    "brick_camera_cut.mp4",
    "coins_static.mp4",
    "retina_still.jpg",
)
"""Three that are kept, one with a cut, one that is rejected as static, one image."""

SMALL = (
    "stage1.iterations=10",
    "stage1.engine.checkpoint_every=3",
    "stage2.phases.image_patches.iterations=6",
    "stage2.phases.mixed_patches.iterations=6",
    "stage2.phases.full_resolution.iterations=4",
    "stage2.phases.full_resolution.noise_steps_after=null",
    "stage2.phases.preference.iterations=2",
    "stage2.engine.checkpoint_every=3",
    "generate.num_prompts=1",
    "generate.stage1.num_steps=4",
    "evaluation.held_out_clips=2",
)
LOCAL = ("runtime.runner=local", "runtime.backend=local")
TIME_COLUMNS = {
    "errors": ["time", "seconds", "node"],
    "runs": ["time", "seconds", "device", "rows_in", "rows_ok", "rows_failed", "table_version"],
}
"""What of a table tells when and where, or how much one execution did, rather than what was made."""


def render_sources(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in SOURCES:
        render_one(name, folder)
    return folder


def command(verb: str, root: Path, sources: Path, *overrides: str) -> list[str]:
    arguments = [sys.executable, "-m", "orchestration.cli", *verb.split(), "--recipe", "debug", "--root", str(root)]
    for override in (*SMALL, *overrides):
        arguments += ["--set", override]
    return [*arguments, "--sources", str(sources)]


def recipe_of(sources: Path, *overrides: str) -> Recipe:
    return load("debug", (*SMALL, *overrides), sources=(str(sources),))


def run(verb: str, root: Path, sources: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """The command to its end; it must succeed."""
    done = subprocess.run(command(verb, root, sources, *overrides), capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@dataclass(frozen=True)
class Moment:
    """When a run is killed: in the middle of a job, or inside one of its commits to the store."""

    job: str
    note: str = ""
    """Part of the progress file's note."""
    at_least: int = 1
    """Units done; after the first checkpoint, where the job keeps some."""
    inside_commit: bool = False
    settings: tuple[str, ...] = ()
    """What gives the job a middle."""


MOMENTS = {
    "scoring": Moment("score"),
    "commit": Moment("score", inside_commit=True),
    "stage1": Moment("train_stage1", "stage1", at_least=4),
    "stage2_phase": Moment("train_stage2", "mixed_patches", at_least=10),  # 6 of the first phase, 4 of this one
    "generation": Moment(
        "generate", settings=("generate.num_prompts=2", "generate.prompts=[a street with motorcycles, a rocket on its pad]")
    ),
}
"""In the order of the story: each is later than the one before."""


def settings_of(moments: Sequence[str]) -> tuple[str, ...]:
    """What the run needs to have these moments."""
    return tuple(setting for moment in moments for setting in MOMENTS[moment].settings)


@dataclass(frozen=True)
class Launch:
    """One launch of the command, killed or run to its end, and what the root held after it."""

    root: Path
    moment: str | None
    """Where it was killed; None: it ran to its end."""
    seen: str
    """What was seen at the kill."""
    finished: dict[str, str]
    """Job -> when it started: every job that is finished."""
    kept: tuple[int, ...]
    """Of the killed job, what no later launch may do again (see `kept_of`)."""
    ran: tuple[str, ...]
    """Jobs that this launch ran to their end."""
    found: dict[str, tuple[int, ...]]
    """Of those, what they found done and left alone, in the units of `kept`."""
    survivors: int
    """Processes of the run that were alive just after the kill."""
    wall_s: float


def kill_and_resume(verb: str, root: Path, sources: Path, moments: Sequence[str], *overrides: str) -> list[Launch]:
    """The command killed at each moment, and after the last kill run to its end."""
    return [launch(verb, root, sources, moment, *overrides) for moment in (*moments, None)]


def launch(verb: str, root: Path, sources: Path, moment: str | None, *overrides: str) -> Launch:
    """Starts the command and kills its whole process group (kill -9) at the moment; None: lets it run to its end.

    The jobs and services run in sessions of their own and have to notice; only a writer that was stopped inside its commit
    is killed with the group. Raises AssertionError when the command ends in another way.
    """
    begin, log = time.monotonic(), root.with_suffix(".log")
    seen, survivors = "", 0
    with open(log, "ab") as output:
        process = subprocess.Popen(command(verb, root, sources, *overrides), stdout=output, stderr=output, start_new_session=True)
    try:
        if moment is None:
            assert process.wait(timeout=1500) == 0, f"{verb} failed:\n{log.read_text()[-3000:]}"
        else:
            seen = _wait_for(root, process, MOMENTS[moment])
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            _kill_the_stopped(root)
            process.wait()
    wall_s = time.monotonic() - begin
    if moment is not None:
        survivors = len(leftovers(root))
    recipe = recipe_of(sources, *overrides)
    done = reports(root, recipe)
    [folder] = root.glob(f"logs/*-{process.pid}")
    ran = tuple(name for name, report in done.items() if Path(report.log).parent.name == folder.name)
    return Launch(
        root,
        moment,
        seen,
        {name: report.started for name, report in done.items()},
        () if moment is None else kept_of(MOMENTS[moment].job, root),
        ran,
        {name: _found_by(done[name], folder) for name in ran},
        survivors,
        wall_s,
    )


def _wait_for(root: Path, process: subprocess.Popen[bytes], moment: Moment) -> str:
    """Returns at the moment, with what was seen then."""
    while True:
        facts = _progress(root, process.pid, moment.job)
        if facts is not None and moment.inside_commit:
            _stop_inside_commit(root, process, moment.job)
        elif facts is None or not moment.at_least <= facts["done"] < facts["total"] or moment.note not in facts["note"]:
            _still_running(process, root)
            time.sleep(0.02)
            continue
        facts = _progress(root, process.pid, moment.job) or facts
        return f"{facts['done']} of {facts['total']} {facts['unit']}"


def _still_running(process: subprocess.Popen[bytes], root: Path) -> None:
    if process.poll() is not None:
        raise AssertionError(f"the command ended before the moment came:\n{root.with_suffix('.log').read_text()[-3000:]}")


def _progress(root: Path, pid: int, job: str) -> dict[str, Any] | None:
    for file in root.glob(f"logs/*-{pid}/{job}.progress.json"):
        with contextlib.suppress(OSError, ValueError):
            facts: dict[str, Any] = json.loads(file.read_text())
            return facts
    return None


# ---------------------------------------------------------------------------------------------- inside a commit


def _stop_inside_commit(root: Path, process: subprocess.Popen[bytes], job: str) -> None:
    """Stops (SIGSTOP) the job's process when it next writes `clips`, between its commit's first new file and its manifest.

    A commit holds the table's lock file from beginning to end. This process holds it first, as another writer would, until
    the kernel says that the job's process waits for it (/proc/locks); then lets it go and looks at the table's folder.
    A commit that was through before it could be stopped is followed by the next one.
    """
    lock = root / "store" / ".clips.lock"
    with open(lock, "a") as file:
        while True:
            fcntl.flock(file, fcntl.LOCK_EX)
            while (writer := _waiting(lock)) is None:
                _still_running(process, root)
                time.sleep(0.01)
            assert f"pipelines.{job}" in psutil.Process(writer).cmdline(), f"no commit of {job} could be stopped before it was through"
            before = _manifests(root), _data_files(root)
            with _first_in_line():
                fcntl.flock(file, fcntl.LOCK_UN)
                if _stopped_inside(writer, root, *before):
                    return


@contextlib.contextmanager
def _first_in_line() -> Iterator[None]:
    """This process runs as soon as it wakes (SCHED_FIFO) where the system allows it, so the writer cannot run on meanwhile."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def _stopped_inside(writer: int, root: Path, manifests: set[Path], files: set[Path]) -> bool:
    """Stops the writer and lets it go for a moment, again and again, until `clips` has a new data file or a new manifest."""
    while True:
        os.kill(writer, signal.SIGSTOP)
        while psutil.Process(writer).status() != psutil.STATUS_STOPPED:  # every thread has stopped
            time.sleep(0.0001)
        inside = _manifests(root) == manifests
        if inside and _data_files(root) - files:
            return True
        os.kill(writer, signal.SIGCONT)
        if not inside:
            return False
        time.sleep(0.0002)


def _manifests(root: Path) -> set[Path]:
    """One file a version: it is there when the commit is through."""
    return set((root / "store" / "clips.lance" / "_versions").glob("*.manifest"))


def _data_files(root: Path) -> set[Path]:
    return set((root / "store" / "clips.lance" / "data").iterdir())


def _waiting(lock: Path) -> int | None:
    """The process that waits for a flock on the file."""
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1:3] == ["->", "FLOCK"] and words[6].endswith(f":{lock.stat().st_ino}"):
            return int(words[5])
    return None


def _kill_the_stopped(root: Path) -> None:
    """The writer that was caught inside its commit ends there (kill -9), not at the signal that its parent's death sends."""
    for process in leftovers(root):
        with contextlib.suppress(psutil.Error):
            if process.status() == psutil.STATUS_STOPPED:
                process.kill()


# ---------------------------------------------------------------------------------------------- what is kept


def kept_of(job: str, root: Path) -> tuple[int, ...]:
    """What of an unfinished job is safe on disk. score: rows; Stage I: train_steps; Stage II: phases, train_steps; generate: prompts."""
    folder = root / "artifacts" / job
    if job == "score":
        return (Store.open(root / "store", create=False).count("clips", "health_run is not null"),)
    if job == "train_stage1":
        return (_checkpointed(folder),)
    if job == "train_stage2":
        phases = list((folder / "phases").iterdir())
        unfinished = [phase for phase in phases if not (phase / "phase.json").is_file()]
        return (len(phases) - len(unfinished), max((_checkpointed(phase) for phase in unfinished), default=0))
    manifests = [json.loads(path.read_text()) for path in folder.glob("*/manifest.json")]
    return (sum(len(manifest["rows"]) for manifest in manifests),)


def _checkpointed(folder: Path) -> int:
    """train_steps of the newest checkpoint under the folder."""
    return max((int(path.parent.name.removeprefix("step-")) for path in folder.rglob("step-*/checkpoint.json")), default=0)


def _found_by(report: Report, logs: Path) -> tuple[int, ...]:
    """What a finished job found done when it started, in the units of `kept_of`; empty for other jobs."""
    if report.job in ("score", "generate"):
        return (report.counts["skipped"],)
    if report.job in ("train_stage1", "train_stage2"):
        went_on = re.search(r": goes on after train_step (\d+) of", (logs / f"{report.job}.log").read_text())
        train_steps = int(went_on.group(1)) if went_on else 0
        return (train_steps,) if report.job == "train_stage1" else (report.counts["phases_reused"], train_steps)
    return ()


def done_again(launches: Sequence[Launch]) -> list[str]:
    """What a launch did although an earlier one had finished it: whole jobs, and parts of a killed job."""
    wrong = []
    for before, after in itertools.pairwise(launches):
        wrong += [f"{name} (finished at the kill at {before.moment})" for name in before.finished if name in after.ran]
        wrong += [
            f"{name} (its report is another since the kill at {before.moment})"
            for name in before.finished
            if after.finished.get(name) != before.finished[name]
        ]
        job = MOMENTS[before.moment].job if before.moment else ""
        if job in after.found and after.found[job] < before.kept:
            wrong.append(f"{job} found {after.found[job]} done, but {before.kept} was done at the kill")
    return wrong


def reports(root: Path, recipe: Recipe) -> dict[str, Any]:
    """Every finished job's report."""
    return {state.spec.name: state.report for state in Workspace(root).states(recipe, JOB_NAMES) if state.report is not None}


def tables(root: Path) -> dict[str, pa.Table]:
    """What the store holds, without the columns that tell times."""
    store = Store.open(root / "store", create=False)
    found = {}
    for name in ("sources", "clips", "captions", "latents", "text_embeddings", "errors", "runs"):
        table = store.read(name)
        found[name] = table.drop_columns([column for column in TIME_COLUMNS.get(name, []) if column in table.column_names])
    return found


def last_run(root: Path) -> dict[str, Any]:
    """run.json of the newest run."""
    newest = max(root.glob("logs/*/run.json"), key=lambda path: path.stat().st_mtime)
    facts: dict[str, Any] = json.loads(newest.read_text())
    return facts
