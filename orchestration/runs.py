"""One run of a recipe in a root: what is open while its flow runs, and what it leaves in logs/<run_id>/run.json.

execute(target, recipe, workspace)      the command line's way: skip when all is done, else services, flow, report
open_run(...)                           lock, ended leftovers, progress board, memory sampler; used by scheduled flows too
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from curation.sources import SourceError, list_sources
from orchestration import processes
from orchestration.board import Board
from orchestration.jobs import JobCancelled, JobFailed, JobMistake, LocalRunner, Runner, check_exit, job_command, runner_for
from orchestration.lock import hold_root
from orchestration.memory import MemorySampler
from orchestration.services import LocalRay, PrefectServer, keep_loopback_direct
from pipelines.artifacts import JobState, Report, Workspace, write_atomically
from pipelines.job import UserError, write_json
from pipelines.plan import jobs_for
from pipelines.recipe import Recipe, dump

TARGETS: dict[str, tuple[str, ...]] = {
    "retrain": ("evaluate",),
    "curate": ("select",),
    "train": ("train_stage1", "train_stage2"),
    "train stage1": ("train_stage1",),
    "train stage2": ("train_stage2",),
    "generate": ("generate",),
    "evaluate": ("evaluate",),
}
"""Name of a flow (and of a command) -> the jobs that it is after; what those need comes along."""


@dataclass
class JobRecord:
    """A job of this run, as run.json keeps it."""

    state: str
    """done | was done | failed | cancelled"""
    seconds: float = 0.0
    """Of all attempts, with start-up."""
    peak_memory_bytes: int = 0
    """Of the whole run while the job ran: services and all (PSS)."""
    attempts: int = 0
    log: str = ""


@dataclass
class Run:
    """A run that is open. Flows are given its id and find it with `find_run`."""

    workspace: Workspace
    recipe: Recipe
    target: str
    run_id: str
    board: Board
    sampler: MemorySampler
    begin: float = field(default_factory=time.monotonic)
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    records: dict[str, JobRecord] = field(default_factory=dict)
    ray: LocalRay | None = None
    prefect: PrefectServer | None = None
    _runner: Runner | None = None

    @property
    def logs(self) -> Path:
        return self.workspace.logs(self.run_id)

    @property
    def recipe_file(self) -> Path:
        return self.logs / "recipe.json"

    def start_services(self) -> None:
        """Begins to start what the run needs, without waiting: Ray (none for the local runner or a cluster), Prefect's server."""
        keep_loopback_direct()
        if self.recipe.runtime.runner == "ray" and self.recipe.runtime.ray_address is None and self.ray is None:
            self.ray = LocalRay(self.workspace.root, self.recipe)
        if self.prefect is None and "PREFECT_API_URL" not in os.environ:
            self.prefect = PrefectServer(self.workspace.root, self.workspace.prefect_home, schedules=False)
            self.prefect.start()

    def stop_services(self) -> None:
        for service in (self.ray, self.prefect):
            if service is not None:
                service.stop()

    @property
    def runner(self) -> Runner:
        if self._runner is None:
            address = self.ray.wait_ready() if self.ray is not None else None
            self._runner = runner_for(self.recipe, self.workspace.root, address)
        return self._runner

    def render_samples(self) -> None:
        """Renders the default sources where the recipe names none; at once when they are there."""
        from curation.samples import is_complete

        folder = self.workspace.samples
        if self.recipe.sources:
            return
        if is_complete(folder):
            if "samples" not in self.records:
                self.records["samples"] = JobRecord("was done")
                self.board.end("samples", "was done")
            return
        self.board.begin("samples", note="rendering the default sources, once")
        log = self.logs / "samples.log"
        runner = LocalRunner(self.workspace.root, self.recipe.runtime.stop_grace_s)
        self._attempt("samples", [sys.executable, "-m", "curation.samples", str(folder)], log, runner)
        self.board.end("samples", "done")

    def job(self, name: str) -> Report:
        """Runs the job unless it is done; returns its report. Raises JobMistake, JobFailed or JobCancelled."""
        if self.prefect is not None and self.prefect.revive():
            self.note(f"Prefect's server had died before {name}; started again on the same port")
        state = self.workspace.states(self.recipe, [name])[-1]
        if state.report is not None:
            if name not in self.records:
                self.records[name] = JobRecord("was done", log=state.report.log)
            self.board.end(name, "was done")
            return state.report
        self.board.begin(
            name, self.logs / f"{name}.progress.json", "waiting for Ray" if self.ray is not None and self._runner is None else ""
        )
        runner = self.runner
        self.board.lines[name].note = ""
        log = self.logs / f"{name}.log"
        command = job_command(runner.python, name, self.workspace.root, self.recipe_file, self.run_id)
        self._attempt(name, command, log, runner)
        report = self.workspace.states(self.recipe, [name])[-1].report
        if report is None:
            raise JobFailed(f"{name} ended well but left no report; did its sources or the code change while it ran? (log: {log})")
        self.board.end(name, "done")
        return report

    def _attempt(self, name: str, command: list[str], log: Path, runner: Runner) -> None:
        record = self.records.setdefault(name, JobRecord("failed", log=self.workspace.relative(log)))
        begin = time.monotonic()
        self.sampler.attribute_to(name)
        try:
            check_exit(name, runner.run(name, command, log), log)
            record.state = "done"
        except JobCancelled:
            record.state = "cancelled"
            self.board.end(name, "cancelled", "the same command goes on from here")
            raise
        except (JobFailed, JobMistake):
            self.board.end(name, "failed")
            raise
        finally:
            record.attempts += 1
            record.seconds += time.monotonic() - begin
            record.peak_memory_bytes = max(record.peak_memory_bytes, self.sampler.job_peaks[name])
            self.sampler.attribute_to(None)
            self.save("running")

    def note(self, text: str) -> None:
        """A remark for whoever reads the run later: logs/<run_id>/notes.log."""
        with open(self.logs / "notes.log", "a") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}\n")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begin

    def save(self, outcome: str) -> None:
        """Writes run.json. `outcome`: running | done | failed | mistake | cancelled."""
        write_json(
            self.logs / "run.json",
            {
                "run_id": self.run_id,
                "target": self.target,
                "recipe": self.recipe.name,
                "outcome": outcome,
                "started": self.started,
                "wall_s": self.seconds,
                "peak_memory_bytes": self.sampler.peak_bytes,
                "host": platform.node(),
                "cpus": os.cpu_count(),
                "jobs": {name: asdict(record) for name, record in self.records.items()},
            },
        )


_OPEN: dict[str, Run] = {}
"""Runs that this process has open, by id: Prefect gives a flow JSON parameters only, so a flow is given the id."""


def find_run(run_id: str) -> Run | None:
    """The open run of that id in this process."""
    return _OPEN.get(run_id)


@contextmanager
def open_run(workspace: Workspace, recipe: Recipe, target: str, run_id: str | None = None) -> Iterator[Run]:
    """Holds the root and opens a run in it; at the end its services are stopped and run.json tells the outcome.

    Raises UserError when the root cannot be written or is held by another run.
    """
    run_id = run_id or datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ") + f"-{os.getpid()}"
    with hold_root(workspace.root, f"flashvideo {target} (run {run_id})"):
        processes.end_leftovers(workspace.root)
        jobs = [spec.name for spec in jobs_for(*TARGETS[target])]
        board = Board([*([] if recipe.sources else ["samples"]), *jobs], f"{target}, recipe {recipe.name}, logs {workspace.logs(run_id)}")
        pinned = recipe.model_copy(update={"labels": workspace.labels(recipe)})
        run = Run(workspace, pinned, target, run_id, board, MemorySampler())
        _record_recipe(run)
        _OPEN[run_id] = run
        _heed_signals()
        run.sampler.start()
        outcome = "failed"
        try:
            yield run
            outcome = "done"
        except (JobCancelled, KeyboardInterrupt):
            outcome = "cancelled"
            raise
        except (UserError, SourceError):
            outcome = "mistake"
            raise
        finally:
            run.board.close()
            run.sampler.stop()
            run.stop_services()
            run.save(outcome)
            del _OPEN[run_id]


def _heed_signals() -> None:
    """Ctrl-C and SIGTERM both stop the run in order, also where a shell started it in the background (SIGINT ignored there)."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _record_recipe(run: Run) -> None:
    try:
        run.logs.mkdir(parents=True, exist_ok=True)
        write_atomically(run.recipe_file, dump(run.recipe))
        write_atomically(run.workspace.root / "recipe.json", dump(run.recipe.model_copy(update={"labels": None})))
    except OSError as error:
        raise UserError(f"cannot write under {run.workspace.root}: {error.strerror}; choose another --root") from None


def states(workspace: Workspace, recipe: Recipe, target: str) -> list[JobState] | None:
    """The target's jobs and what is done of them; None while the default sources are not rendered yet.

    Raises SourceError for sources that name nothing.
    """
    from curation.samples import is_complete

    if not recipe.sources and not is_complete(workspace.samples):
        return None
    list_sources(workspace.sources(recipe))
    return workspace.states(recipe, TARGETS[target])


def execute(target: str, recipe: Recipe, workspace: Workspace) -> Run | None:
    """Runs the target's flow; None when everything was done already (nothing is started then).

    Raises UserError, SourceError (a user's mistake), JobFailed, JobCancelled, ServiceError.
    """
    found = states(workspace, recipe, target)
    if found is not None and all(state.state == "done" for state in found):
        return None
    with open_run(workspace, recipe, target) as run:
        run.board.open()
        run.start_services()
        run.render_samples()
        if run.prefect is not None:
            run.prefect.wait_ready()
        from orchestration import flows

        flows.run_flow(run)
        return run
