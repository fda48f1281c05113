"""One code's items are tried again, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from curated_root import recipe_for, rows_by_name, run_jobs
from generated_films import moving, write_film

from curation.expression import QueryError
from curation.store import Store
from pipelines.artifacts import Workspace
from pipelines.job import UserError
from pipelines.retry import mark_for_retry, still_open


@pytest.fixture
def curated(tmp_path: Path) -> tuple[Workspace, Path]:
    """Two films; the track of one is out of reach while they are scored."""
    films = tmp_path / "films"
    for seed, name in enumerate(("pan.mp4", "tilt.mp4")):
        write_film(films / name, moving(96, 128, 48, (1, seed), seed=seed))
    workspace = Workspace(tmp_path / "root")
    recipe = recipe_for(films, "curation.max_failed_share=0.9")
    run_jobs(workspace, recipe, "ingest", "detect_shots")
    source = str(rows_by_name(workspace, "sources")["tilt.mp4"]["source_id"])
    files = [path for path in workspace.tracks.iterdir() if path.name.startswith(source)]
    (tmp_path / "away").mkdir()
    for file in files:
        file.rename(tmp_path / "away" / file.name)
    run_jobs(workspace, recipe, "score")
    for file in files:
        (tmp_path / "away" / file.name).rename(file)
    return workspace, films


def test_only_the_codes_items_are_done_again_and_their_errors_resolved(curated: tuple[Workspace, Path]) -> None:
    workspace, films = curated
    store, recipe = Store.open(workspace.store), recipe_for(films, "curation.max_failed_share=0.9")
    [code] = {row["code"] for row in store.read("errors").to_pylist()}
    steps = store.count("errors", "resolved = false")
    assert steps == store.count("clips", f"source_id = '{rows_by_name(workspace, 'sources')['tilt.mp4']['source_id']}'") * 3
    before = rows_by_name(workspace, "clips")
    assert run_jobs(workspace, recipe, "score")["score"].counts["scored_now"] == len(before), "the job is done: its old report"

    marked = mark_for_retry(workspace, store, code)
    assert (len(marked.error_ids), dict(marked.of_job)) == (steps, {"score": steps})
    assert still_open(store, marked) == steps, "marking resolves nothing"
    assert mark_for_retry(workspace, store, code) == marked
    report = run_jobs(workspace, recipe, "ingest", "detect_shots", "score")
    assert report["score"].counts["scored_now"] == steps // 3
    assert report["detect_shots"].counts["failed"] == 0
    assert still_open(store, marked) == 0
    after = rows_by_name(workspace, "clips")
    assert all(after[name] == row for name, row in before.items() if name.startswith("pan"))
    assert all(row["motion_proxy"] is not None for row in after.values())
    with pytest.raises(UserError, match=r"no error with the code .* is open"):
        mark_for_retry(workspace, store, code)


def test_files_that_ran_out_of_time_are_decoded_again_with_more(tmp_path: Path) -> None:
    films = tmp_path / "films"
    write_film(films / "pan.mp4", moving(96, 128, 48, (1, 0), seed=0))
    workspace = Workspace(tmp_path / "root")
    short = recipe_for(films, "curation.decode.deadline_s=1e-9", "curation.decode.attempts=1", "curation.max_failed_share=1")
    run_jobs(workspace, short, "ingest")
    store = Store.open(workspace.store)
    assert store.read("errors", ["job", "code"]).to_pylist() == [{"job": "ingest", "code": "deadline"}]
    longer = recipe_for(films, "curation.max_failed_share=1")
    assert run_jobs(workspace, longer, "ingest")["ingest"].counts["probed_now"] == 0, "what failed stays so by itself"
    marked = mark_for_retry(workspace, store, "deadline")
    assert run_jobs(workspace, longer, "ingest")["ingest"].counts["probed_now"] == 1
    assert still_open(store, marked) == 0
    assert rows_by_name(workspace, "sources")["pan.mp4"]["status"] == "probed"


def test_another_code_takes_the_place_of_the_first(tmp_path: Path) -> None:
    """A text that is named as a film runs out of time; with more time it is found to be no film, and the deadline is past."""
    films = tmp_path / "films"
    films.mkdir()
    (films / "text.mp4").write_text("not a film\n")
    workspace = Workspace(tmp_path / "root")
    store = Store.open(workspace.store)
    settings = ("curation.decode.attempts=1", "curation.max_failed_share=1")
    run_jobs(workspace, recipe_for(films, *settings, "curation.decode.deadline_s=1e-9"), "ingest")
    marked = mark_for_retry(workspace, store, "deadline")
    run_jobs(workspace, recipe_for(films, *settings), "ingest")
    assert still_open(store, marked) == 0
    assert store.read("errors", ["code", "resolved"]).sort_by("code").to_pylist() == [
        {"code": "deadline", "resolved": True},
        {"code": "not_media", "resolved": False},
    ]


def test_a_refusal_is_asked_for_again(tmp_path: Path) -> None:
    """The refusal is kept as a row of captions; while it is there, its clip counts as described."""
    workspace = Workspace(tmp_path / "root")
    store = Store.open(workspace.store)
    captions = [{"clip_id": clip, "caption_run": run, "text": "I cannot"} for clip in "ab" for run in ("r", "other")]
    store.upsert("captions", pa.Table.from_pylist(captions))
    error = {"job": "caption", "step": "caption", "run_id": "r", "code": "caption_refusal", "message": "declined"}
    store.append_errors([error | {"clip_id": "a"}])
    current = workspace.root / "artifacts" / "caption" / "current.json"
    current.parent.mkdir(parents=True)
    current.write_text(json.dumps({"fingerprint": "f"}))
    mark_for_retry(workspace, store, "caption_refusal")
    left = {(row["clip_id"], row["caption_run"]) for row in store.read("captions").to_pylist()}
    assert left == {("a", "other"), ("b", "r"), ("b", "other")}
    assert not current.exists()


def test_mistakes_are_one_line_and_change_nothing(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "root")
    store = Store.open(workspace.store)
    store.append_errors([{"job": "precompute_latents", "step": "decode", "clip_id": "a", "code": "unreadable", "message": "gone"}])
    with pytest.raises(UserError, match="flashvideo run precompute_latents"):
        mark_for_retry(workspace, store, "unreadable")
    with pytest.raises(QueryError, match="no error has the code 'unreadible'; codes: unreadable"):
        mark_for_retry(workspace, store, "unreadible")
