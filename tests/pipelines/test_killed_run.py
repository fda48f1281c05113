"""kill -9 in the middle of a run: the same command goes on where it was, and ends as if nothing had happened."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from curated_root import recipe_for, run_jobs
from generated_films import moving, write_film

from curation.store import Store
from pipelines.artifacts import Workspace

FILMS = 24
ROOT = Path(__file__).resolve().parents[2]


def finished(workspace: Workspace) -> dict[str, int]:
    """Tracks that are whole, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in workspace.tracks.glob("*.arrow") if ".keys." not in path.name}


def test_a_killed_run_repeats_nothing_that_it_had_finished(tmp_path: Path) -> None:
    for number in range(FILMS):
        write_film(tmp_path / "sources" / f"{number:02}.mp4", moving(96, 128, 48, (1, 0), seed=number))
    recipe = recipe_for(tmp_path / "sources")
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    workspace = Workspace(tmp_path / "root")
    run_jobs(workspace, recipe, "ingest")
    command = [sys.executable, "-m", "pipelines.detect_shots", "--recipe", str(tmp_path / "recipe.json"), "--root", str(workspace.root)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(finished(workspace)) < 3:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -9
    kept = finished(workspace)
    assert 3 <= len(kept) < FILMS, "killed in the middle"
    report = run_jobs(workspace, recipe, "detect_shots")["detect_shots"]
    after = finished(workspace)
    assert len(after) == FILMS
    assert {name: after[name] for name in kept} == kept
    assert report.counts["clips"] == FILMS
    assert len(set(Store.open(workspace.store).read("clips", ["source_id"])["source_id"].to_pylist())) == FILMS
