"""The dry run and the plan need nothing but the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestration.preview import print_dry_run, print_plan
from pipelines.artifacts import Report, Workspace
from pipelines.plan import JOB_NAMES, jobs_for
from pipelines.recipe import load


def test_the_papers_whole_plan_prints_without_its_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    print_plan(load("paper"), Workspace(tmp_path))
    text = capsys.readouterr().out
    assert "sources: missing: source /data/raw does not exist" in text
    for job in JOB_NAMES:
        assert f"\n{job} " in text
    for number in ("50,000", "25,000", "30,000", "5,000", "700", "600-900, from 1000 on 650-750", "2,806", "64 GPU", "rank 128 alpha 1"):
        assert number in text, number
    assert list(tmp_path.iterdir()) == [], "a plan writes nothing"


def test_done_and_stale_jobs_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "clip.mp4").write_bytes(b"0")
    recipe = load("debug", sources=(str(tmp_path / "clip.mp4"),))
    workspace = Workspace(tmp_path / "root")
    upstream: dict[str, Report] = {}
    for spec in jobs_for("score"):
        fingerprint = workspace.job_fingerprint(recipe, spec, upstream)
        upstream[spec.name] = Report(job=spec.name, fingerprint=fingerprint, digest=f"digest of {spec.name}")
        workspace.finish(spec, upstream[spec.name])
    changed = load("debug", ("curation.quality.metrics=[niqe]",), sources=recipe.sources)
    print_dry_run("curate", changed, workspace)
    states = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines() if line.split()[:1] and line[0] != " "}
    assert states["ingest"] == states["detect_shots"] == "done"
    assert states["score"] == "stale"
    assert states["caption"] == states["select"] == "unknown"
    assert "train_stage1" not in states
