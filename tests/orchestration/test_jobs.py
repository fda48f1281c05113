"""Runners: exit codes, logs, cancelling; the local one and a real Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestration.jobs import (
    JobCancelled,
    JobFailed,
    JobMistake,
    LocalRunner,
    RayRunner,
    Runner,
    check_exit,
    job_command,
    runner_for,
)
from orchestration.services import LocalRay, keep_loopback_direct
from pipelines.job import UserError
from pipelines.recipe import load

SAY_AND_EXIT = "import sys; print('working'); print(sys.argv[1], file=sys.stderr); sys.exit(int(sys.argv[2]))"
PID_AND_SLEEP = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(300)"


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


@pytest.fixture(scope="module")
def ray_runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayRunner]:
    """A Ray of this module's own; 15 s."""
    root = tmp_path_factory.mktemp("ray_root")
    before = dict(os.environ)
    keep_loopback_direct()
    service = LocalRay(root, load("debug"))
    try:
        yield RayRunner(service.wait_ready(), root, grace_s=5, local=True)
    finally:
        service.stop()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(params=["local", "ray"])
def runner(request: pytest.FixtureRequest, tmp_path: Path) -> Runner:
    if request.param == "local":
        return LocalRunner(tmp_path, grace_s=5)
    found: RayRunner = request.getfixturevalue("ray_runner")
    return found


def test_exit_codes_come_back_and_attempts_share_a_log(runner: Runner, tmp_path: Path):
    log = tmp_path / "logs" / "job.log"
    assert runner.run("job", python(SAY_AND_EXIT, "first words", "2"), log) == 2
    assert runner.run("job", python(SAY_AND_EXIT, "last words", "0"), log) == 0
    text = log.read_text()
    assert text.splitlines().count("working") == 2
    assert text.index("first words") < text.index("last words")


@pytest.fixture
def ctrl_c_is_heard() -> Iterator[None]:
    """A shell starts what it puts behind itself (`make test &`) with SIGINT ignored, and Python leaves that so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_is_heard")
def test_ctrl_c_stops_the_job(runner: Runner, tmp_path: Path):
    pid_file = tmp_path / "pid"

    def interrupt() -> None:
        while not pid_file.is_file() or not pid_file.read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(JobCancelled):
        runner.run("job", python(PID_AND_SLEEP, str(pid_file)), tmp_path / "job.log")
    thread.join()
    assert not psutil.pid_exists(int(pid_file.read_text()))


def test_a_job_killed_from_outside_is_a_failure(runner: Runner, tmp_path: Path):
    code = runner.run("job", python("import os; os.kill(os.getpid(), 9)"), tmp_path / "job.log")
    assert code not in (0, 2)


def test_nothing_of_a_local_job_outlives_it(tmp_path: Path):
    """A job that ends but leaves a child: the child is ended too."""
    leave = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)']); print(p.pid)"
    LocalRunner(tmp_path, grace_s=1).run("job", python(leave), tmp_path / "job.log")
    left = int((tmp_path / "job.log").read_text())
    deadline = time.monotonic() + 20
    while psutil.pid_exists(left) and psutil.Process(left).status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE


def test_ray_listens_on_the_loopback_interface_alone(ray_runner: RayRunner):
    """Ray runs whatever it is sent: nothing of it may be reachable from outside."""
    mine = {child.pid for child in psutil.Process().children(recursive=True)}
    listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in mine]
    assert len(listening) >= 5
    assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}


def test_a_job_is_told_the_address_of_its_own_ray(ray_runner: RayRunner, tmp_path: Path):
    """Another Ray may run on the machine: `ray.init(address="auto")` in a job must not find that one."""
    head = json.loads((ray_runner._record.parent / "head.json").read_text())
    look_alike = ["raylet", "-c", "import time; time.sleep(300)", "--gcs-address=127.0.0.1:9"]  # Ray looks for processes of that name
    other = subprocess.Popen(look_alike, executable=sys.executable)
    try:
        ray_runner.run("job", python("import os; print('ray at', os.environ['RAY_ADDRESS'])"), tmp_path / "job.log")
    finally:
        other.kill()
        other.wait()
    assert f"ray at {head['gcs']}" in (tmp_path / "job.log").read_text()


def test_ray_refuses_who_has_no_token(ray_runner: RayRunner):
    import urllib.error
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError) as refused:
        opener.open(f"{ray_runner._address}/api/jobs/", timeout=10)
    assert refused.value.code in (401, 403)


def test_a_mistake_is_told_by_the_jobs_own_line(tmp_path: Path):
    log = tmp_path / "score.log"
    log.write_text("starting\nscore: no clip is left; lower the policy\n\n")
    with pytest.raises(JobMistake, match=r"^score: no clip is left; lower the policy$"):
        check_exit("score", 2, log)


def test_a_failure_names_the_job_the_code_and_the_log(tmp_path: Path):
    log = tmp_path / "score.log"
    log.write_text("Traceback\nValueError: out of range\n")
    with pytest.raises(JobFailed, match=r"score failed with exit code 1: ValueError: out of range \(log: .*score.log\)"):
        check_exit("score", 1, log)
    with pytest.raises(JobFailed, match="score was killed by signal 9"):
        check_exit("score", -9, log)
    check_exit("score", 0, log)


def test_an_address_without_ray_is_a_users_mistake(tmp_path: Path):
    recipe = load("debug", ("runtime.ray_address=http://127.0.0.1:9",))
    with pytest.raises(UserError, match=r"no Ray job server answers at http://127\.0\.0\.1:9"):
        runner_for(recipe, tmp_path, None)


def test_a_jobs_command_runs_anywhere():
    command = job_command("python", "score", Path("/root"), Path("/recipe.json"), "7")
    assert command == ["python", "-m", "pipelines.score", "--recipe", "/recipe.json", "--root", "/root", "--run-id", "7"]
