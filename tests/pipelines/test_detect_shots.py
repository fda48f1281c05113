"""The detect_shots job: clips of every source once, incremental, settings that change replace, damage named."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from curated_root import make_sources, recipe_for, rows_by_name, run_jobs
from generated_films import moving, write_film

from curation import passes
from curation.decode_pass import run_pass
from curation.passes import PassResult, PassTask
from curation.store import Store
from pipelines.artifacts import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    make_sources(tmp_path / "sources")
    return Workspace(tmp_path / "root")


CLIPS = {"pan.mp4@0", "pan.mp4@1250", "pan_small.mp4@0", "pan_small.mp4@1250", "still.png@0", "two.mp4@0", "two.mp4@1500"}


def test_clips_of_every_source_once(tmp_path: Path, workspace: Workspace) -> None:
    report = run_jobs(workspace, recipe_for(tmp_path / "sources"), "ingest", "detect_shots")["detect_shots"]
    assert report.counts == {
        "sources": 4, "decoded_now": 4, "skipped": 0, "cuts": 1, "clips": 7, "corrupt_frames": 0, "failed": 0,
    }  # fmt: skip
    clips = rows_by_name(workspace, "clips")
    assert set(clips) == CLIPS
    assert (clips["two.mp4@1500"]["shot"], clips["two.mp4@1500"]["num_frames"], clips["two.mp4@1500"]["duration_s"]) == (1, 30, 1.25)
    assert (clips["still.png@0"]["media_type"], clips["still.png@0"]["short_side_px"]) == ("image", 200)
    sources = rows_by_name(workspace, "sources")
    assert (sources["two.mp4"]["status"], sources["two.mp4"]["cuts_us"], sources["two.mp4"]["decoded_frames"]) == ("split", [1_500_000], 72)
    assert sources["pan_copy.mp4"]["status"] == "duplicate"


def test_a_second_run_decodes_only_new_sources(tmp_path: Path, workspace: Workspace) -> None:
    recipe = recipe_for(tmp_path / "sources")
    run_jobs(workspace, recipe, "ingest", "detect_shots")
    write_film(tmp_path / "sources" / "zz.mp4", moving(96, 128, 30, (1, 0), seed=9))
    report = run_jobs(workspace, recipe, "ingest", "detect_shots")["detect_shots"]
    assert (report.counts["decoded_now"], report.counts["skipped"], report.counts["clips"]) == (1, 4, 8)


def test_an_interrupted_run_goes_on_and_ends_equal(tmp_path: Path, workspace: Workspace) -> None:
    """A source whose track is there but whose row was not committed is decoded again; nothing is doubled."""
    recipe = recipe_for(tmp_path / "sources")
    whole = run_jobs(workspace, recipe, "ingest", "detect_shots")["detect_shots"]
    before = Store.open(workspace.store).read("clips")
    (workspace.folder("detect_shots", whole.fingerprint) / "report.json").unlink()
    (workspace.tracks / f"{rows_by_name(workspace, 'sources')['two.mp4']['source_id']}.arrow").unlink()
    again = run_jobs(workspace, recipe, "detect_shots")["detect_shots"]
    assert (again.counts["decoded_now"], again.digest) == (1, whole.digest)
    assert Store.open(workspace.store).read("clips").equals(before)


def test_other_settings_replace_the_clips(tmp_path: Path, workspace: Workspace) -> None:
    run_jobs(workspace, recipe_for(tmp_path / "sources"), "ingest", "detect_shots")
    longer = recipe_for(tmp_path / "sources", "curation.shots.clip_duration_s=2.5", "curation.shots.min_duration_s=2.0")
    report = run_jobs(workspace, longer, "detect_shots")["detect_shots"]
    assert set(rows_by_name(workspace, "clips")) == {"pan.mp4@0", "pan_small.mp4@0", "still.png@0"}
    assert report.counts["clips"] == 3
    [error] = [row for row in Store.open(workspace.store).read("errors").to_pylist() if row["job"] == "detect_shots"]
    assert error["code"] == "no_clip"
    assert "lower shots.min_duration_s" in error["message"]


def test_damage_is_named_and_the_rest_is_used(tmp_path: Path) -> None:
    film = write_film(tmp_path / "sources" / "cut.mp4", moving(180, 320, 96, (2, 1)))
    data = bytearray(film.read_bytes())
    middle = len(data) * 2 // 5
    data[middle : middle + 6000] = b"\xa5" * 6000
    film.write_bytes(bytes(data))
    workspace = Workspace(tmp_path / "root")
    report = run_jobs(workspace, recipe_for(tmp_path / "sources"), "ingest", "detect_shots")["detect_shots"]
    assert report.counts["clips"] >= 2
    assert report.counts["corrupt_frames"] > 0
    assert [row["code"] for row in Store.open(workspace.store).read("errors").to_pylist()] == ["damaged"]


def hanging_pass(task: PassTask) -> PassResult:
    """A decode pass whose decoder hangs on one file."""
    if "slow" in task.uri:
        time.sleep(3600)
    return run_pass(task)


def test_a_source_that_hangs_is_quarantined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "DECODE_PASS", f"{Path(__file__).stem}:hanging_pass")
    for index, name in enumerate(("fine", "slow")):
        write_film(tmp_path / "sources" / f"{name}.mp4", moving(96, 128, 40, (2, 1), seed=index))

    workspace = Workspace(tmp_path / "root")
    recipe = recipe_for(tmp_path / "sources", "curation.decode.deadline_s=6", "curation.decode.attempts=1")
    report = run_jobs(workspace, recipe, "ingest", "detect_shots")["detect_shots"]
    assert (report.counts["failed"], report.counts["clips"]) == (1, 1)
    sources = rows_by_name(workspace, "sources")
    assert (sources["slow.mp4"]["status"], sources["fine.mp4"]["status"]) == ("failed", "split")
    [error] = Store.open(workspace.store).read("errors").to_pylist()
    assert (error["code"], error["attempt"]) == ("deadline", 1)
    (workspace.folder("detect_shots", report.fingerprint) / "report.json").unlink()
    again = run_jobs(workspace, recipe, "detect_shots")["detect_shots"]
    assert again.counts["decoded_now"] == 0, "a quarantined file is not tried again by the same settings"


def test_a_file_that_another_folder_lists_changes_its_dataset_and_is_not_decoded_again(tmp_path: Path) -> None:
    film = tmp_path / "films" / "cats" / "pan.mp4"
    write_film(film, moving(96, 128, 48, (1, 0), seed=0))
    workspace = Workspace(tmp_path / "root")
    for folder, decoded in (("films", 1), ("films/cats", 0)):
        report = run_jobs(workspace, recipe_for(tmp_path / folder), "ingest", "detect_shots")
        assert report["detect_shots"].counts["decoded_now"] == decoded
        for table in ("sources", "clips"):
            assert set(Store.open(workspace.store).read(table, ["dataset"])["dataset"].to_pylist()) == {Path(folder).name}
