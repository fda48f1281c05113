"""What would be computed again, and why, after each kind of change; and that looking changes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from curated_root import recipe_for, run_jobs
from generated_films import moving, write_film

from curation.step import Lineage
from curation.store import Store
from pipelines.artifacts import Workspace
from pipelines.recipe import dump
from pipelines.stale import Stale, find_stale, reason


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Path]:
    """Two films, ingested, cut and scored; every clip with a caption of a run that is not registered, none selected."""
    folder = tmp_path_factory.mktemp("stale")
    for seed, name in enumerate(("pan.mp4", "tilt.mp4")):
        write_film(folder / "films" / name, moving(96, 128, 48, (1, seed), seed=seed))
    workspace = Workspace(folder / "root")
    run_jobs(workspace, recipe_for(folder / "films"), "ingest", "detect_shots", "score")
    store = Store.open(workspace.store)
    ids = store.read("clips", ["clip_id"])["clip_id"]
    store.merge_columns("clips", pa.table({"clip_id": ids, "caption_run": ["elsewhere"] * len(ids)}))
    return workspace, folder / "films"


def by_step(workspace: Workspace, films: Path, *overrides: str) -> dict[str, Stale]:
    return {each.step.split(" ")[0]: each for each in find_stale(workspace, recipe_for(films, *overrides))}


def test_before_the_first_run_every_file_is_new(curated: tuple[Workspace, Path], tmp_path: Path) -> None:
    [only] = find_stale(Workspace(tmp_path / "none"), recipe_for(curated[1]))
    assert (only.step, only.todo, dict(only.why)) == ("ingest", 2, {"new": 2})
    assert not (tmp_path / "none").exists()


def test_a_change_of_settings_names_the_setting_and_only_what_it_touches(curated: tuple[Workspace, Path]) -> None:
    workspace, films = curated
    clips = Store.open(workspace.store).count("clips")
    settled = by_step(workspace, films)
    assert set(settled) == {"caption", "select"}
    assert dict(settled["caption"].why) == {"made by a run that is not registered (elsewhere)": clips}
    assert settled["select"].todo == clips and all(why.startswith("new -> ") for why in settled["select"].why)
    changed = by_step(workspace, films, "curation.shots.min_duration_s=0.5")
    assert set(changed) == {"detect_shots", "caption", "select"}
    [why] = changed["detect_shots"].why
    assert why.startswith("shots.min_duration_s ") and why.endswith(" -> 0.5")


def test_a_bumped_scorer_is_one_line(curated: tuple[Workspace, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines import score

    workspace, films = curated
    before, versions = score.aesthetic_proxy_lineage, Store.open(workspace.store).version("clips")
    monkeypatch.setattr(score, "aesthetic_proxy_lineage", lambda track: Lineage(**{**vars(before(track)), "version": "99"}))
    found = by_step(workspace, films)
    assert set(found) == {"aesthetic_proxy", "caption", "select"}
    assert dict(found["aesthetic_proxy"].why) == {f"version {before('x').version} -> 99": found["aesthetic_proxy"].total}
    assert Store.open(workspace.store).version("clips") == versions, "looking writes nothing"


def test_files_that_came_and_went(curated: tuple[Workspace, Path], tmp_path: Path) -> None:
    workspace, films = curated
    write_film(tmp_path / "new.mp4", moving(96, 128, 30, (1, 0), seed=9))
    (tmp_path / "list.txt").write_text(f"{films}/pan.mp4\n{tmp_path}/new.mp4\n")
    assert dict(by_step(workspace, tmp_path / "list.txt")["ingest"].why) == {"new": 1, "gone, their clips are set aside": 1}


def test_reasons_name_what_differs() -> None:
    lineage = Lineage("score", "motion", "2", "DIS", "ab" * 32, {"pairs": 48, "flow": {"size": 360}})
    old = {"version": "1", "model": "DIS", "weights_sha256": "cd" * 32, "parameters": '{"pairs": 48, "flow": {"size": 270}}'}
    assert reason("r", lineage, {"r": old}) == "version 1 -> 2, weights cdcdcdcdcdcd -> abababababab, flow.size 270 -> 360"
    assert reason(None, lineage, {}) == "not made yet"


def test_the_command_says_it_in_lines(curated: tuple[Workspace, Path]) -> None:
    workspace, films = curated
    command = [sys.executable, "-m", "pipelines.stale", str(workspace.root)]
    done = subprocess.run(command, input=dump(recipe_for(films)), capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[-1] == "2 steps have something to do" and lines[0].startswith("caption (facts are read anew")
    gone = subprocess.run(command, input=dump(recipe_for(films / "zz")), capture_output=True, text=True, check=False)
    assert gone.returncode == 2 and gone.stderr.startswith("flashvideo: source ") and gone.stderr.count("\n") == 1
