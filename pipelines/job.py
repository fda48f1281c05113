"""What every job shares: its command line, lock, progress, skip, report and exit code.

`python -m pipelines.<job> --recipe RECIPE --root DIR` runs one job anywhere. Exit codes: 0 done or already
done; 1 failed; 2 a user's mistake (one line, no stack trace).
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import logging
import os
import platform
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from curation.held_off_pandas import hold_off_pandas
from curation.sources import SourceError
from flashvideo.errors import WeightsError
from flashvideo.whole_files import write_text
from pipelines.artifacts import Report, Workspace, write_atomically
from pipelines.plan import JobSpec, job_spec
from pipelines.recipe import Recipe, RecipeError, load

log = logging.getLogger("flashvideo")

NO_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""A full disk, a quota, a limit of file sizes, a read-only file system."""


class UserError(ValueError):
    """A user's mistake: its one line is printed and the exit code is 2."""


class Progress:
    """One line of progress in a file that the flow shows live: done, total, unit, rate, seconds left."""

    def __init__(self, path: Path | None, job: str) -> None:
        self._path, self._job = path, job
        self._begin = self._written = self._logged = time.monotonic()
        self._first = 0
        self.state: dict[str, object] = {}

    @property
    def path(self) -> Path | None:
        """The file; another process that does the work writes it in this one's place."""
        return self._path

    def update(self, done: int, total: int, unit: str, note: str = "") -> None:
        """`done` of `total` units; cheap to call often."""
        now = time.monotonic()
        if not self.state or self.state["unit"] != unit:
            self._begin, self._first, self._written = now, done, 0.0
        seconds = now - self._begin
        rate = (done - self._first) / seconds if seconds > 0 and done > self._first else None
        self.state = {
            "job": self._job,
            "done": done,
            "total": total,
            "unit": unit,
            "rate": rate,
            "left_s": (total - done) / rate if rate else None,
            "note": note,
        }
        if now - self._written >= 0.2 or done >= total:
            self._written = now
            if self._path is not None:
                write_progress(self._path, self.state)
        if now - self._logged >= 10 or done >= total:
            self._logged = now
            log.info("%s: %d of %d %s%s%s", self._job, done, total, unit, f", {rate:.2g}/s" if rate else "", f", {note}" if note else "")


def write_progress(path: Path, state: dict[str, object]) -> None:
    """Replaces the progress file (no fsync: it is only for looking at)."""
    write_text(path, json.dumps(state))


@dataclass
class JobContext:
    """What a job's `run` is given."""

    recipe: Recipe
    workspace: Workspace
    spec: JobSpec
    fingerprint: str
    folder: Path
    """The job's own output folder (artifacts/<job>/<fingerprint>/); may hold parts of an interrupted run."""
    progress: Progress
    upstream: dict[str, Report] = field(default_factory=dict)
    """Reports of every job before this one, by name."""

    def report(self, digest: str, **fields: object) -> Report:
        """The job's report, with the fields that `main` fills in left empty."""
        return Report.model_validate({"job": self.spec.name, "fingerprint": self.fingerprint, "digest": digest, **fields})


def main(name: str, run: Callable[[JobContext], Report]) -> None:
    """Entry point of a job module; exits the process."""
    parser = argparse.ArgumentParser(prog=f"python -m pipelines.{name}", description=job_spec(name).summary)
    parser.add_argument("--recipe", default="debug", help="preset name, or a YAML/JSON file")
    parser.add_argument("--root", type=Path, required=True, help="run root")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--run-id", default=None, help="names the folder of logs; made up where absent")
    arguments = parser.parse_args()

    def body() -> None:
        hold_off_pandas()
        recipe = load(arguments.recipe, tuple(arguments.overrides))
        run_id = arguments.run_id or datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ") + f"-{os.getpid()}"
        run_job(name, run, recipe, Workspace(arguments.root), run_id)

    exit_after(name, body)


def exit_after(name: str, body: Callable[[], object], level: int = logging.INFO) -> None:
    """Runs the body of a command of its own process with logs on stderr. A user's mistake is one line and exit code 2, a full
    disk one line and 1, Ctrl-C one line and 130, a fault a traceback and 1."""
    logging.basicConfig(level=level, format="%(asctime)s %(name)s %(levelname)s %(message)s", stream=sys.stderr)
    for chatty in ("httpx", "urllib3", "filelock", "PIL"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        body()
    except (UserError, RecipeError, SourceError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{name}: stopped; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        cause = getattr(error, "cause", error)  # Ray's errors hold their worker's
        if isinstance(cause, WeightsError):
            print(f"{name}: {cause}", file=sys.stderr)
            sys.exit(2)
        if isinstance(cause, OSError) and cause.errno in NO_WRITING:
            print(
                f"{name}: cannot write {cause.filename or 'a file'}: {cause.strerror}; the same command goes on from there", file=sys.stderr
            )
        else:
            log.exception("%s failed", name)
        sys.exit(1)


def run_job(name: str, run: Callable[[JobContext], Report], recipe: Recipe, workspace: Workspace, run_id: str) -> Report:
    """Runs one job unless it is done, and marks it finished. Raises UserError when a job before it is not done."""
    spec = job_spec(name)
    upstream: dict[str, Report] = {}
    for state in workspace.states(recipe, [name])[:-1]:
        if state.report is None:
            raise UserError(
                f"{state.spec.name} is not done in {workspace.root}; run it first, or: flashvideo retrain --root {workspace.root}"
            )
        upstream[state.spec.name] = state.report
    job_fingerprint = workspace.job_fingerprint(recipe, spec, upstream)
    with _lock(workspace, name):
        done = workspace.report(spec, job_fingerprint)
        if done is not None:
            log.info("%s is done already (%s)", name, job_fingerprint)
            return done
        folder = workspace.begin(spec, job_fingerprint)
        logs = workspace.logs(run_id)
        logs.mkdir(parents=True, exist_ok=True)
        context = JobContext(recipe, workspace, spec, job_fingerprint, folder, Progress(logs / f"{name}.progress.json", name), upstream)
        started, begin = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        log.info("%s starts (%s)", name, job_fingerprint)
        report = run(context)
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * 1024
        report = report.model_copy(
            update={
                "seconds": time.monotonic() - begin,
                "peak_memory_bytes": max(report.peak_memory_bytes, peak),
                "log": workspace.relative(logs / f"{name}.log"),
                "started": started,
                "versions": {"python": platform.python_version()}
                | {
                    package: version(package)
                    for package in ("flashvideo", "torch", "ray", "lancedb", "pylance", "av")
                    if _installed(package)
                },
            }
        )
        workspace.finish(spec, report)
        log.info("%s done in %.1f s: %s", name, report.seconds, report.counts)
        return report


def _installed(package: str) -> bool:
    try:
        version(package)
    except Exception:  # importlib.metadata raises several kinds
        return False
    return True


def _lock(workspace: Workspace, name: str) -> AbstractContextManager[None]:
    """Only one process at a time does a job of a root."""
    return held_alone(
        workspace.root / "artifacts" / name / ".lock",
        workspace.root,
        holder="pid {pid} on {host} since {time}",
        busy=lambda by: f"{name} is running already in {workspace.root}: {by}",
    )


@contextmanager
def held_alone(path: Path, root: Path, holder: str, busy: Callable[[str], str]) -> Iterator[None]:
    """Holds a lock file for the duration; the lock dies with its process.

    `holder` is what the file says of this process ({pid}, {host} and {time} are filled in); `busy` makes the message from
    what another holder wrote. Raises UserError when the root cannot be written or the lock is held.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115 (closed below, where the lock ends)
    except OSError as error:
        raise UserError(f"cannot write under {root}: {error.strerror}; choose another --root") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(busy(file.read().strip())) from None
        file.truncate(0)
        file.write(holder.format(pid=os.getpid(), host=socket.gethostname(), time=datetime.now(UTC).isoformat(timespec="seconds")))
        file.flush()
        yield


def write_json(path: Path, value: object) -> None:
    """A JSON file, written beside and renamed."""
    write_atomically(path, json.dumps(value, indent=1, default=str))
