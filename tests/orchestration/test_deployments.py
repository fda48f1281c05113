"""A schedule of one minute, served through Prefect: it fires twice and curates the file that was added between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from curation.samples import render_one
from curation.store import Store
from orchestration.lock import hold_root

DEADLINE_S = 400


def finished_runs(root: Path) -> list[dict[str, object]]:
    runs = [json.loads(path.read_text()) for path in sorted(root.glob("logs/*/run.json"))]
    return [run for run in runs if run["outcome"] != "running"]


def sources_table(root: Path) -> dict[str, dict[str, object]]:
    return {Path(row["uri"]).name: row for row in Store.open(root / "store", create=False).read("sources").to_pylist()}


@pytest.mark.story
@pytest.mark.timeout(1200)
def test_a_one_minute_schedule_curates_what_was_added_between(tmp_path: Path):
    folder, root = tmp_path / "sources", tmp_path / "root"
    folder.mkdir()
    render_one("retina_still.jpg", folder)
    command = [sys.executable, "-m", "orchestration.cli", "schedule", "curate", "--cron", "* * * * *", "--recipe", "debug"]
    # Without pyiqa, whose import takes each of the runs seconds.
    settings = ("runtime.runner=local", "runtime.backend=local", "curation.quality.metrics=[]")
    command += [word for setting in settings for word in ("--set", setting)]
    command += ["--root", str(root), "--sources", str(folder)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    with open(tmp_path / "schedule.log", "wb") as log:
        schedule = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        wait_for(1, root, schedule, tmp_path / "schedule.log")
        first = sources_table(root)
        tracks = {path: path.stat().st_mtime_ns for path in root.glob("tracks/*.arrow")}
        render_one("coffee_still.jpg", folder)
        wait_for(len(finished_runs(root)) + 1, root, schedule, tmp_path / "schedule.log")
    finally:
        schedule.send_signal(signal.SIGINT)
        assert schedule.wait(60) == 0, (tmp_path / "schedule.log").read_text()[-3000:]
    assert [run["outcome"] for run in finished_runs(root)] == ["done"] * len(finished_runs(root))
    second = sources_table(root)
    assert set(first) == {"retina_still.jpg"}
    assert set(second) == {"retina_still.jpg", "coffee_still.jpg"}
    assert second["retina_still.jpg"] == first["retina_still.jpg"]
    assert {path: path.stat().st_mtime_ns for path in tracks} == tracks, "an old file was decoded again"


def wait_for(runs: int, root: Path, schedule: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while len(finished_runs(root)) < runs:
        assert schedule.poll() is None, log.read_text()[-3000:]
        server = root / "prefect" / "server.log"
        assert time.monotonic() < deadline, f"{log.read_text()[-2000:]}\n{server.read_text()[-2000:] if server.is_file() else ''}"
        time.sleep(0.5)


def test_mistakes_start_no_server(tmp_path: Path):
    """A cron line that means nothing; a root that has a schedule already. In child processes, for Prefect's sake."""
    command = [sys.executable, "-m", "orchestration.cli", "schedule", "curate", "--root", str(tmp_path), "--cron"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run([*command, "every day"], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith('flashvideo: --cron "every day"')
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "schedule").exists()
    with hold_root(tmp_path / "schedule", "flashvideo schedule"):
        done = subprocess.run([*command, "0 2 * * *"], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 2
    assert "another run holds" in done.stderr
    assert not (tmp_path / "prefect" / "prefect.db").exists()
