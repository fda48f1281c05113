"""The ingest job: every file an outcome, duplicates by bytes, a second run touches only what is new."""

from __future__ import annotations

from pathlib import Path

import pytest
from curated_root import make_sources, recipe_for, rows_by_name, run_jobs
from generated_films import CORPUS, moving, write_film
from object_server import Bucket, s3_server

from curation.sources import SourceError
from curation.store import Store
from pipelines.artifacts import Workspace
from pipelines.executor import FailedShareError
from pipelines.recipe import load


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    return make_sources(tmp_path / "sources")


def test_every_file_has_an_outcome(tmp_path: Path, sources: Path) -> None:
    workspace = Workspace(tmp_path / "root")
    report = run_jobs(workspace, recipe_for(sources), "ingest")["ingest"]
    assert report.counts == {
        "files": 6, "probed_now": 6, "skipped": 0, "videos": 4, "images": 1, "duplicates": 1, "failed": 1, "ignored": 0,
    }  # fmt: skip
    rows = rows_by_name(workspace, "sources")
    assert {name: row["status"] for name, row in rows.items()} == {
        "no_film.mp4": "failed",
        "pan.mp4": "probed",
        "pan_copy.mp4": "duplicate",
        "pan_small.mp4": "probed",
        "still.png": "probed",
        "two.mp4": "probed",
    }
    assert rows["pan_copy.mp4"]["duplicate_of"] == str(sources / "pan.mp4")
    assert rows["pan_copy.mp4"]["source_id"] == rows["pan.mp4"]["source_id"]
    [error] = Store.open(workspace.store).read("errors").to_pylist()
    assert (error["code"], error["uri"], error["resolved"]) == ("not_media", str(sources / "no_film.mp4"), False)


def test_a_second_run_touches_only_what_is_new_or_changed(tmp_path: Path, sources: Path) -> None:
    workspace, recipe = Workspace(tmp_path / "root"), recipe_for(sources)
    first = run_jobs(workspace, recipe, "ingest")["ingest"]
    write_film(sources / "new.mp4", moving(96, 128, 30, (1, 0), seed=9))
    (sources / "two.mp4").unlink()
    write_film(sources / "no_film.mp4", moving(96, 128, 30, (1, 0), seed=10))
    second = run_jobs(workspace, recipe, "ingest")["ingest"]
    assert (second.counts["files"], second.counts["probed_now"], second.counts["failed"]) == (6, 2, 0)
    assert second.digest != first.digest
    assert rows_by_name(workspace, "sources")["two.mp4"]["present"] is False
    [error] = Store.open(workspace.store).read("errors").to_pylist()
    assert error["resolved"], "the file is a film now"


def test_films_in_a_bucket_are_fetched_once_and_cut_into_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHVIDEO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    film = write_film(tmp_path / "pan.mp4", moving(96, 128, 60, (1, 0), seed=1)).read_bytes()
    other = write_film(tmp_path / "tilt.mp4", moving(96, 128, 60, (0, 1), seed=2)).read_bytes()
    with s3_server() as (endpoint, buckets):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        films = buckets["films"] = Bucket({"a/pan.mp4": (film, 1.7e9), "b/copy.mp4": (film, 1.7e9)})
        workspace, recipe = (
            Workspace(tmp_path / "root"),
            load("debug", ("runtime.backend=local", "runtime.workers=1"), sources=("s3://films",)),
        )
        first = run_jobs(workspace, recipe, "ingest", "detect_shots")
        assert first["ingest"].counts["duplicates"] == 1
        assert films.reads == ["a/pan.mp4", "b/copy.mp4"], "one download a file, for both jobs"
        clips = Store.open(workspace.store).read("clips", ["uri", "start_us"]).to_pylist()
        assert {clip["uri"] for clip in clips} == {"s3://films/a/pan.mp4"}
        films.objects["c/tilt.mp4"] = (other, 1.7e9)
        second = run_jobs(workspace, recipe, "ingest", "detect_shots")
    assert second["ingest"].counts["probed_now"] == 1
    assert films.reads[2:] == ["c/tilt.mp4"]
    assert Store.open(workspace.store).count("clips") > len(clips)


def test_the_digest_does_not_depend_on_history(tmp_path: Path, sources: Path) -> None:
    once = run_jobs(Workspace(tmp_path / "once"), recipe_for(sources), "ingest")["ingest"]
    later = Workspace(tmp_path / "later")
    moved = (sources / "two.mp4").rename(tmp_path / "two.mp4")
    run_jobs(later, recipe_for(sources), "ingest")
    moved.rename(sources / "two.mp4")
    assert run_jobs(later, recipe_for(sources), "ingest")["ingest"].digest == once.digest


def test_a_duplicate_becomes_the_original_when_that_is_gone(tmp_path: Path, sources: Path) -> None:
    workspace = Workspace(tmp_path / "root")
    run_jobs(workspace, recipe_for(sources), "ingest")
    (sources / "pan.mp4").unlink()
    run_jobs(workspace, recipe_for(sources), "ingest")
    row = rows_by_name(workspace, "sources")["pan_copy.mp4"]
    assert (row["status"], row["duplicate_of"]) == ("probed", None)


def test_too_many_failures_fail_the_job_after_they_are_written(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "bad" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bad" / name).write_text(name)
    workspace = Workspace(tmp_path / "root")
    with pytest.raises(FailedShareError, match="2 of 2 files failed"):
        run_jobs(workspace, recipe_for(tmp_path / "bad"), "ingest")
    assert Store.open(workspace.store).count("errors") == 2


def test_sources_that_do_not_exist_are_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        run_jobs(Workspace(tmp_path / "root"), recipe_for(tmp_path / "nowhere"), "ingest")


@pytest.mark.corpus
@pytest.mark.skipif(not CORPUS.is_dir(), reason=f"no corpus at {CORPUS}")
def test_hostile_corpus(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "root")
    run_jobs(workspace, recipe_for(CORPUS / "hostile"), "ingest")
    rows = rows_by_name(workspace, "sources")
    assert len(rows) == len(list((CORPUS / "hostile").iterdir()))
    codes = {Path(row["uri"]).name: row["code"] for row in Store.open(workspace.store).read("errors").to_pylist()}
    assert codes == {
        "audio_init_only.mp4": "no_video_stream",
        "audio_only.mp4": "no_video_stream",
        "chunk_out_of_range.mp4": "invalid_container",
        "empty.mp4": "empty_file",
        "encrypted_init_only.mp4": "encrypted",
        "text_named.mp4": "not_media",
        "truncated_no_moov.mp4": "truncated",
    }
    assert {name for name, row in rows.items() if row["status"] == "failed"} == set(codes)
    assert [name for name, row in rows.items() if row["status"] == "duplicate"] == ["one_frame.mp4"]
