"""A bumped version makes its job run again, and recomputes what it names and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from curated_root import recipe_for, run_jobs
from generated_films import moving, write_film

from curation import versions
from curation.store import Store
from pipelines.artifacts import Workspace

JOBS = ("ingest", "detect_shots", "score")


def test_a_bumped_scorer_recomputes_its_column_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_film(tmp_path / "sources" / "pan.mp4", moving(96, 128, 36, (1, 0)))
    workspace, recipe = Workspace(tmp_path / "root"), recipe_for(tmp_path / "sources")
    run_jobs(workspace, recipe, *JOBS)
    before = Store.open(workspace.store).read("clips")
    assert [state.state for state in workspace.states(recipe, ["score"])] == ["done"] * 3

    monkeypatch.setitem(versions.SCORE_VERSIONS, "motion_proxy", "another")
    assert [state.state for state in workspace.states(recipe, ["score"])] == ["done", "done", "stale"]
    report = run_jobs(workspace, recipe, *JOBS)["score"]
    after = Store.open(workspace.store).read("clips")
    assert report.counts["scored_now"] == after.num_rows == 1
    assert [name for name in after.column_names if not after[name].equals(before[name])] == ["motion_proxy_run"]
    runs = Store.open(workspace.store).read("runs", ["step", "version"]).to_pylist()
    assert [row["version"] for row in runs if row["step"] == "health"] == ["1"]
    assert {row["version"] for row in runs if row["step"] == "motion_proxy"} >= {"another"}


@pytest.mark.parametrize(("name", "job"), [("PROBE_VERSION", "ingest"), ("PASS_VERSION", "detect_shots")])
def test_every_version_is_in_its_jobs_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, job: str) -> None:
    from pipelines.plan import job_spec
    from pipelines.recipe import fingerprint, preset

    before = fingerprint(job_spec(job).settings(preset("debug")))
    monkeypatch.setattr(versions, name, "another")
    assert fingerprint(job_spec(job).settings(preset("debug"))) != before
