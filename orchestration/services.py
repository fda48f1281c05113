"""The local services of a run: Ray and the Prefect server, each a child process that ends with the run."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from orchestration import processes
from pipelines.plan import JOBS
from pipelines.recipe import Recipe

START_DEADLINE_S = 180.0
STOP_GRACE_S = 10.0
SOCKET_FOLDER_LENGTH = 24
"""Longest temporary folder under which Ray's unix sockets stay below the kernel's 107 bytes."""


class ServiceError(RuntimeError):
    """A local service did not start or died; the message names its log."""


def keep_loopback_direct() -> None:
    """Requests to this machine's own services never go through a proxy."""
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join(dict.fromkeys([*hosts, "127.0.0.1", "localhost"]))


class LocalRay:
    """A Ray of this run's own on the loopback interface (`ray_head.py`), with a token that only this run knows."""

    def __init__(self, root: Path, recipe: Recipe) -> None:
        """Starts it; `wait_ready` waits."""
        self._folder = root / "ray"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._remove_old_session()
        base = tempfile.gettempdir() if len(tempfile.gettempdir()) <= SOCKET_FOLDER_LENGTH else "/tmp"
        self._session = Path(tempfile.mkdtemp(prefix="fv-ray-", dir=base))
        (self._folder / "session").write_text(str(self._session))
        self._ready = self._folder / "head.json"
        self._ready.unlink(missing_ok=True)
        self.log = self._folder / "head.log"
        # the Train controller and the job itself ask for no CPU; two more leave room for a job's own tasks beside its ranks
        cpus = max([os.cpu_count() or 1, *(int(spec.demand(recipe).cpus) + 2 for spec in JOBS)])
        os.environ.update(
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN=os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32),
            RAY_USAGE_STATS_ENABLED="0",
            RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # Ray's switch for binding every service to 127.0.0.1
            RAY_JOB_STOP_WAIT_TIME_S=str(int(recipe.runtime.stop_grace_s)),
        )
        command = [sys.executable, "-m", "orchestration.ray_head"]
        command += ["--folder", str(self._session), "--ready", str(self._ready), "--cpus", str(cpus)]
        command += ["--object-store-bytes", str(recipe.runtime.ray_object_store_bytes)]
        command += ["--dashboard-port", str(processes.free_port())]
        with open(self.log, "wb") as output:
            self._process = processes.start(command, root, output)

    def _remove_old_session(self) -> None:
        record = self._folder / "session"
        if record.is_file():
            shutil.rmtree(record.read_text(), ignore_errors=True)

    def wait_ready(self) -> str:
        """The address of the job server, http://127.0.0.1:port. Raises ServiceError."""
        deadline = time.monotonic() + START_DEADLINE_S
        while not self._ready.is_file():
            _still_starting(self._process, deadline, "Ray", self.log)
        address: str = json.loads(self._ready.read_text())["address"]
        return address

    def stop(self) -> None:
        processes.stop(self._process, STOP_GRACE_S)
        shutil.rmtree(self._session, ignore_errors=True)
        self._ready.unlink(missing_ok=True)


class PrefectServer:
    """Prefect's API server of this run, its data in ROOT/prefect."""

    def __init__(self, root: Path, home: Path, *, schedules: bool) -> None:
        """Settles its address, in this process's environment too: before Prefect is first imported here, which reads it once.

        `schedules`: also run the services that fire schedules, and the web page.
        """
        self._port = processes.free_port()
        self.api_url = f"http://127.0.0.1:{self._port}/api"
        self.log = home / "server.log"
        os.environ.update(prefect_settings(home), PREFECT_API_URL=self.api_url)
        self._root = root
        self._environment = {"PREFECT_API_BLOCKS_REGISTER_ON_START": "false", "PREFECT_LOGGING_LEVEL": "WARNING"}
        if not schedules:
            self._environment |= {"PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1", "PREFECT_UI_ENABLED": "0"}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it; `wait_ready` waits."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._process = self._launch()

    def _launch(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
        command += ["--host", "127.0.0.1", "--port", str(self._port), "--log-level", "error", "--lifespan", "on"]
        with open(self.log, "ab") as output:
            return processes.start(command, self._root, output, self._environment)

    def revive(self) -> bool:
        """Starts it again on the same port where it has died, without waiting. Prefect's client tries again by itself."""
        if self._process is None or self._process.poll() is None:
            return False
        self._process = self._launch()
        return True

    def wait_ready(self) -> str:
        """The API's URL. Raises ServiceError."""
        assert self._process is not None, "start comes first"
        deadline = time.monotonic() + START_DEADLINE_S
        while not answers(f"{self.api_url}/health"):
            _still_starting(self._process, deadline, "the Prefect server", self.log)
        return self.api_url

    def stop(self) -> None:
        if self._process is not None:
            processes.stop(self._process, STOP_GRACE_S)


def prefect_settings(home: Path) -> dict[str, str]:
    """Prefect's environment for a run: data in the root, no telemetry, a quiet console."""
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_LEVEL": os.environ.get("PREFECT_LOGGING_LEVEL", "CRITICAL"),
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    }


def answers(url: str) -> bool:
    """True when the URL answers 200 (local services only: short timeout, no proxy)."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(urllib.error.URLError, OSError), opener.open(url, timeout=2) as response:
        return bool(response.status == 200)
    return False


def _still_starting(process: subprocess.Popen[bytes], deadline: float, what: str, log: Path) -> None:
    if process.poll() is not None:
        raise ServiceError(f"{what} ended with exit code {process.returncode} while it started; log: {log}")
    if time.monotonic() > deadline:
        raise ServiceError(f"{what} did not start within {START_DEADLINE_S:.0f} s; log: {log}")
    time.sleep(0.1)
