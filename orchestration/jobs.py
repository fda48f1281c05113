"""Run a job by name: as a Ray job, or as a local child process. (`preview.py` prints it: the dry run.)

A job is a command, `python -m pipelines.<job> --recipe FILE --root DIR --run-id ID`; it does the work and tells how
it went by its exit code: 0 done, 2 a user's mistake (its last line says which), anything else a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from orchestration import processes
from pipelines.artifacts import write_atomically
from pipelines.job import UserError
from pipelines.recipe import Recipe

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

POLL_S = 0.2
CONTACT_LOST_S = 120.0
"""A job server that does not answer for this long is given up."""
MISTAKE = 2
"""Exit code of a job that a user's mistake stopped."""


class JobFailed(RuntimeError):
    """A job ended with an error. The message names the job, its exit code, its last line and its log."""


class JobMistake(UserError):
    """A job ended with exit code 2; the message is its one line. Running it again would not help."""


class JobCancelled(RuntimeError):
    """The run was interrupted; the job was stopped in order."""


def job_command(python: str, name: str, root: Path, recipe_file: Path, run_id: str) -> list[str]:
    """The command line that runs the job anywhere."""
    return [python, "-m", f"pipelines.{name}", "--recipe", str(recipe_file), "--root", str(root), "--run-id", run_id]


class Runner(Protocol):
    """Runs a command to its end."""

    python: str
    """The interpreter that the commands are written for."""

    def run(self, title: str, command: Sequence[str], log: Path) -> int:
        """The command's exit code, its output in `log` (appended). Raises JobCancelled when interrupted (Ctrl-C, SIGTERM)."""
        ...


class LocalRunner:
    """Every command is a child process in its own process group; it ends with this process."""

    python = sys.executable

    def __init__(self, root: Path, grace_s: float) -> None:
        self._root, self._grace_s = root, grace_s

    def run(self, title: str, command: Sequence[str], log: Path) -> int:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as output:
            process = processes.start(command, self._root, output, {"PYTHONUNBUFFERED": "1"})
        try:
            code = process.wait()
        except BaseException:  # Ctrl-C, or Prefect's own signal for a cancelled run
            processes.stop(process, self._grace_s)
            raise JobCancelled(title) from None
        processes.stop(process, 0)  # nothing of its group outlives it
        return code


class RayRunner:
    """Every command is a Ray job (Ray Jobs API); its output is streamed into the log."""

    def __init__(self, address: str, root: Path, grace_s: float, *, local: bool) -> None:
        """`local`: Ray runs on this machine, so its jobs use this interpreter and this working directory."""
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # it tells of every closed log stream
        self.python = sys.executable if local else "python"
        self._client: JobSubmissionClient = JobSubmissionClient(address)
        self._address, self._grace_s, self._local = address, grace_s, local
        self._record = root / "ray" / "job"
        """Names the job that runs, so that the run after a crash can stop it on a cluster that lived on."""

    def run(self, title: str, command: Sequence[str], log: Path) -> int:
        entrypoint = f"exec {shlex.join(command)}"
        if self._local:
            entrypoint = f"cd {shlex.quote(str(Path.cwd()))} && {entrypoint}"
        log.parent.mkdir(parents=True, exist_ok=True)
        job_id = f"{title}-{time.time_ns():x}"
        self._record.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._record, job_id)
        stream = None
        try:
            self._client.submit_job(entrypoint=entrypoint, submission_id=job_id, metadata={"flashvideo": title})
            stream = _LogStream(self._client, job_id, log)
            details = self._wait(job_id)
        except Exception:
            raise
        except BaseException:  # Ctrl-C, or Prefect's own signal for a cancelled run
            self.stop(job_id)
            raise JobCancelled(title) from None
        finally:
            if stream is not None:
                stream.close()
            self._record.unlink(missing_ok=True)
        if details.status == "SUCCEEDED":
            return 0
        if details.driver_exit_code is None:  # the job's supervisor died, or it never started
            with open(log, "a") as output:
                output.write(f"\nRay: {details.status}: {details.message}\n")
            return 1
        return int(details.driver_exit_code)

    def _wait(self, job_id: str) -> Any:
        """The job's details once it has ended; a job server that does not answer is asked again for a while."""
        heard = time.monotonic()
        while True:
            try:
                details = self._client.get_job_info(job_id)
                heard = time.monotonic()
                if details.status.is_terminal():
                    return details
            except (RuntimeError, OSError) as error:
                if time.monotonic() - heard > CONTACT_LOST_S:
                    raise JobFailed(f"no answer from Ray at {self._address} for {CONTACT_LOST_S:.0f} s: {error}") from None
            time.sleep(POLL_S)

    def stop(self, job_id: str) -> None:
        """Stops the job and waits until it is gone (Ray sends SIGTERM, then SIGKILL after the grace)."""
        deadline = time.monotonic() + self._grace_s + 10
        try:
            self._client.stop_job(job_id)
            while not self._client.get_job_status(job_id).is_terminal() and time.monotonic() < deadline:
                time.sleep(POLL_S)
        except (RuntimeError, OSError):
            return  # never submitted, or Ray is gone and its jobs with it

    def stop_leftover(self) -> None:
        """Stops the job that a killed run left on a cluster that lived on."""
        if self._record.is_file():
            self.stop(self._record.read_text())
            self._record.unlink()


class _LogStream:
    """Follows a Ray job's output into a file, in a thread of its own."""

    def __init__(self, client: JobSubmissionClient, job_id: str, log: Path) -> None:
        self._client, self._job_id, self._log = client, job_id, log
        self._written = 0
        self._loop = asyncio.new_event_loop()
        self._following = self._loop.create_task(self._copy())
        self._thread = threading.Thread(target=self._follow, name="job log", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._following)
        self._loop.close()

    async def _copy(self) -> None:
        while True:
            skip = self._written  # a new connection tells the log from its beginning
            try:
                async for text in self._client.tail_job_logs(self._job_id):
                    fresh, skip = text[skip:], max(0, skip - len(text))
                    self._write(fresh)
                return
            except (RuntimeError, OSError):
                await asyncio.sleep(1)

    def _write(self, text: str) -> None:
        if text:
            with open(self._log, "a") as output:
                output.write(text)
            self._written += len(text)

    def close(self) -> None:
        """Reads what the job said last. The stream would tell it too, but only after it has looked twice, a second apart."""
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._following.cancel)
        self._thread.join(timeout=10)
        with contextlib.suppress(RuntimeError, OSError):  # Ray is gone
            self._write(self._client.get_job_logs(self._job_id)[self._written :])


def runner_for(recipe: Recipe, root: Path, local_ray_address: str | None) -> Runner:
    """The recipe's runner. `local_ray_address`: of the run's own Ray, where the recipe names no cluster."""
    grace_s = recipe.runtime.stop_grace_s
    if recipe.runtime.runner == "local":
        return LocalRunner(root, grace_s)
    address = recipe.runtime.ray_address or local_ray_address
    assert address is not None, "a run on Ray has an address: the recipe's, or its own Ray's"
    try:
        runner = RayRunner(address, root, grace_s, local=recipe.runtime.ray_address is None)
    except (ConnectionError, RuntimeError) as error:
        raise UserError(f"no Ray job server answers at {address} (runtime.ray_address): {_first_line(str(error))}") from None
    if recipe.runtime.ray_address is not None:
        runner.stop_leftover()
    return runner


def check_exit(name: str, code: int, log: Path) -> None:
    """Returns for exit code 0; raises JobMistake for 2 and JobFailed for everything else."""
    if code == 0:
        return
    last = last_line(log)
    if code == MISTAKE:
        raise JobMistake(last or f"{name} ended with exit code {MISTAKE}; log: {log}")
    ending = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
    raise JobFailed(f"{name} {ending}: {last or 'it said nothing'} (log: {log})")


def last_line(log: Path) -> str:
    """The log's last line that says something, without the colour codes."""
    if not log.is_file():
        return ""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else ""
