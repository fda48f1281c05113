"""The score job: right numbers in the right rows, only what is stale, failures isolated, both backends equal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from curated_root import make_sources, recipe_for, rows_by_name, run_jobs

from curation.store import Store
from pipelines.artifacts import Workspace
from pipelines.job import UserError
from pipelines.local_ray import ray_connected
from pipelines.score import SCORES

JOBS = ("ingest", "detect_shots", "score")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources and a root with all three jobs done; tests that change it copy it."""
    folder = tmp_path_factory.mktemp("scored")
    make_sources(folder / "sources")
    run_jobs(Workspace(folder / "root"), recipe_for(folder / "sources"), *JOBS)
    return folder


def scores(workspace: Workspace) -> dict[str, dict[str, object]]:
    return {name: {column: row[column] for column in SCORES} for name, row in rows_by_name(workspace, "clips").items()}


def test_scores_are_those_of_the_films(root: Path) -> None:
    """2 px/frame at 180 px is 2 x 3 x 2 = 12 px at 360 px per 1/8 s."""
    clips = rows_by_name(Workspace(root / "root"), "clips")
    assert clips["pan.mp4@0"]["motion_proxy"] == pytest.approx(12, rel=0.05)
    assert clips["pan.mp4@0"]["camera_move"] == "pan right"
    assert clips["two.mp4@0"]["camera_move"] == "tilt down"
    assert clips["two.mp4@1500"]["motion_proxy"] == pytest.approx(6, rel=0.05)
    assert clips["still.png@0"]["motion_proxy"] is None
    assert all(row["aesthetic_proxy"] is not None and row["luma_mean"] is not None for row in clips.values())


def test_the_reencoded_film_is_a_duplicate_of_the_larger_one(root: Path) -> None:
    clips = rows_by_name(Workspace(root / "root"), "clips")
    assert {name: row["is_duplicate"] for name, row in clips.items() if row["is_duplicate"]} == {
        "pan_small.mp4@0": 1,
        "pan_small.mp4@1250": 1,
    }
    assert clips["pan_small.mp4@0"]["duplicate_cluster"] == clips["pan.mp4@0"]["clip_id"] == clips["pan.mp4@0"]["duplicate_cluster"]


def test_lineage_stands_beside_each_score(root: Path) -> None:
    store = Store.open(root / "root" / "store")
    runs = {row["run_id"]: row for row in store.read("runs").to_pylist()}
    assert {"probe", "decode_pass", "health"} <= {row["step"] for row in runs.values()}
    known = ("device", "seconds", "rows_in", "rows_ok", "rows_failed", "parameters_hash", "table_version")
    assert all(row[name] is not None for row in runs.values() for name in known)
    assert all(row["table_version"] <= store.version("sources" if row["step"] == "probe" else "clips") for row in runs.values())
    for row in store.read("clips").to_pylist():
        assert runs[row["health_run"]]["step"] == "health"
        assert runs[row["dedup_run"]]["step"] == "dedup"
        if row["media_type"] == "video":
            assert "DIS" in runs[row["motion_proxy_run"]]["model"]


def test_a_changed_scorer_computes_its_own_column_only(root: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(root, tmp_path / "copy")
    workspace = Workspace(tmp_path / "copy" / "root")
    recipe = recipe_for(root / "sources", "curation.motion.max_pairs=3")
    before = rows_by_name(workspace, "clips")
    run_jobs(workspace, recipe, "score")
    after = rows_by_name(workspace, "clips")
    assert {row["motion_pairs"] for row in after.values()} == {3, None}
    assert all(after[name]["health_run"] == before[name]["health_run"] for name in before)
    [again] = [row for row in Store.open(workspace.store).read("runs").to_pylist() if row["parameters"].find('"max_pairs": 3') >= 0]
    assert again["rows_in"] == 6


def test_a_lost_track_fails_its_clips_only(root: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(root, tmp_path / "copy")
    workspace = Workspace(tmp_path / "copy" / "root")
    source = rows_by_name(workspace, "sources")["two.mp4"]["source_id"]
    (workspace.tracks / f"{source}.arrow").unlink()
    report = run_jobs(workspace, recipe_for(root / "sources", "curation.motion.max_pairs=3"), "score")["score"]
    assert report.counts["failed"] == 2
    clips = rows_by_name(workspace, "clips")
    assert clips["two.mp4@0"]["motion_proxy"] is None
    assert clips["pan.mp4@0"]["motion_pairs"] == 3
    errors = [row for row in Store.open(workspace.store).read("errors").to_pylist() if row["job"] == "score"]
    assert {(row["clip_id"], row["step"]) for row in errors} == {
        (clips[f"two.mp4@{start}"]["clip_id"], "motion_proxy") for start in (0, 1500)
    }


def test_ray_writes_what_local_writes(root: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ray")
    with ray_connected(80_000_000, cpus=2):
        reports = run_jobs(workspace, recipe_for(root / "sources", backend="ray"), *JOBS)
    local = Workspace(root / "root")
    for table in ("sources", "clips"):
        assert Store.open(workspace.store).read(table).equals(Store.open(local.store).read(table))
    for name, report in reports.items():
        assert report.digest == run_jobs(local, recipe_for(root / "sources"), name)[name].digest


def test_missing_weights_are_a_users_mistake(root: Path) -> None:
    with pytest.raises(UserError, match=r"raft_large_C_T_SKHT_V2-ff5fadd5\.pth"):
        run_jobs(Workspace(root / "root"), recipe_for(root / "sources", "curation.motion.raft=true"), "score")
    with pytest.raises(UserError, match="clip-vit-large-patch14"):
        run_jobs(Workspace(root / "root"), recipe_for(root / "sources", "curation.aesthetic.laion=true"), "score")


def test_scores_are_finite_or_null(root: Path) -> None:
    for row in scores(Workspace(root / "root")).values():
        for column, value in row.items():
            assert not isinstance(value, float) or np.isfinite(value), column
            assert value != -1, "-1 does not exist"
